//! A fleet of simulated daemons, seen through its public face.

mod actions;
mod client_mode;
mod events;
mod lab;
mod membership;
mod races;
mod settings;
mod versions;
