//! A daemon's bytes, cut anywhere, with commands and missed deadlines between them.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| openvpn_management::fuzzing::parser(input, Instant::now()));
