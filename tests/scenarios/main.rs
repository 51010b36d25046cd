//! Whole-system scenarios: the gateway as its users run it, on real OpenVPN daemons.

mod lab;
