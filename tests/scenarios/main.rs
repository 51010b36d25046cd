//! Whole-system scenarios: the gateway as its users run it, on real OpenVPN daemons.

mod arrivals;
mod callers;
mod commands;
mod crowded;
mod demo;
mod dial_in;
mod discovery;
mod drain;
mod faults;
mod kill;
mod lab;
mod modes;
mod outage;
mod questions;
mod refusals;
mod restart;
mod resume;
mod shutdown;
mod slow;
mod standard;
mod standby;
mod together;
mod tool_certificates;
mod tool_limits;
mod tools;
mod view;
