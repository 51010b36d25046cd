//! Who holds a daemon's only management slot.

use std::path::Path;

use tokio::task::spawn_blocking;

use crate::address::Address;

/// Why a daemon that took our connection says nothing, naming the holder of its slot where this machine can tell.
pub(crate) async fn describe(address: &Address) -> String {
    let holders = match address {
        Address::Unix(path) => {
            let path = path.clone();
            spawn_blocking(move || holders(&path))
                .await
                .unwrap_or_default()
        }
        Address::Tcp { .. } => Vec::new(),
    };
    let Some(holder) = holders.first() else {
        return "another manager holds the daemon's only management slot, or the daemon hangs; we are next in line"
            .to_owned();
    };
    let Holder { pid, command } = holder;
    format!(
        "{command} (pid {pid}) holds the daemon's only management slot; we are next in line when it leaves"
    )
}

/// A process with one end of a connection to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) command: String,
}

/// Those connected to the Unix socket at `path`, as far as this process may see. Blocks.
pub(crate) fn holders(_path: &Path) -> Vec<Holder> {
    Vec::new()
}
