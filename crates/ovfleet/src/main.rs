//! The ovfleet daemon and command line.
fn main() {}
