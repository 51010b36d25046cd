//! Whole-system scenarios: the gateway as its users run it, on real OpenVPN daemons.

mod arrivals;
mod commands;
mod kill;
mod lab;
mod outage;
mod restart;
mod view;
