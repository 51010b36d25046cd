//! Simulated daemons and real ones get the same commands and must give the same lines, but for
//! times, numbers and certificates: `parity` plays recordings to both, `real` single commands,
//! `versions` what other versions said to the simulated one.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod compare;
mod lab;
mod manager;
mod parity;
mod people;
mod prompts;
mod real;
mod script;
mod setup;
mod setups;
mod stage;
mod versions;
