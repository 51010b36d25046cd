//! Directories of single servers, clients, gateways and taps.

use std::io;

use tempfile::TempDir;

/// A new directory, gone with the value; `OVFLEET_LAB_KEEP=1` keeps it, to look at the
/// logs and configurations of a scenario that failed.
pub(crate) fn new_directory() -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("ovfleet-lab-")
        .disable_cleanup(std::env::var_os("OVFLEET_LAB_KEEP").is_some())
        .tempdir()
}
