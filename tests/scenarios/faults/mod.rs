//! Faults, put in on purpose, and what must hold all the same.
//!
//! Each test has a short form, for `make test`, and a long one, for `make soak`. What is random
//! follows from a seed that is printed, and is repeated with `OVFLEET_SEED`.

mod clock;
mod costs;
mod crashes;
mod cuts;
mod daemons;
mod disk;
mod journal;
mod lab;
mod open_files;
mod panic;
mod restarts;
mod signals;
mod streams;
mod zoo;
