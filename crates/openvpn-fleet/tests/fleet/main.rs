//! A fleet of simulated daemons, seen through its public face.

mod actions;
mod events;
mod lab;
mod membership;
mod versions;
