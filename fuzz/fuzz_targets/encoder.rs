//! Any command: refused for a reason, or read by OpenVPN as it was meant.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| openvpn_management::fuzzing::encoder(input));
