//! Sessions to daemons that are written by hand, and to real ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod attached;
mod dial_in;
mod ending;
mod login;
mod probe;
mod real;
mod snapshots;
mod support;
mod tls;
