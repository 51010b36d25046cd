//! Files of the configuration that change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{Inventory, InventoryError, Order, ReloadCause};
use crate::{
    config::ConfigFiles,
    directory_watch::{DirectoryWatch, directories, parent},
};

/// How long the files have to stay as they are before they are read: whoever writes one may not be done.
const CALM: Duration = Duration::from_millis(300);
/// Files that are never calm are read after that long all the same.
const RESTLESS_MAX: Duration = Duration::from_secs(5);

/// Orders a reload whenever the files hold something else than what was read, until `files` is closed. `None` in it is:
/// not now.
pub(super) async fn watch(mut files: watch::Receiver<Option<ConfigFiles>>, inventory: Inventory) {
    let mut directories = DirectoryWatch::new("a changed configuration takes a SIGHUP");
    loop {
        let Some(watched) = files.borrow_and_update().clone() else {
            if files.changed().await.is_err() {
                return;
            }
            continue;
        };
        // Watched before they are looked at: what changes between is then seen twice, not never.
        directories.set(holders(&watched));
        let now = digest(&watched).await;
        if now == watched.digest {
            tokio::select! {
                () = directories.changed() => sleep(CALM).await,
                open = files.changed() => if open.is_err() { return },
            }
            continue;
        }
        settle(&watched, now).await;
        let order = Order::Reload {
            cause: ReloadCause::FileChange,
            validate_only: false,
            force: false,
        };
        // Whatever comes of it is told there, and what was read is `files` then.
        if let Err(InventoryError::ShuttingDown | InventoryError::NoFile) =
            inventory.order(order, None).await
        {
            return;
        }
    }
}

/// Waits until the files stay as they are.
async fn settle(files: &ConfigFiles, mut last: u64) {
    let since = Instant::now();
    while since.elapsed() < RESTLESS_MAX {
        sleep(CALM).await;
        let now = digest(files).await;
        if now == last {
            return;
        }
        last = now;
    }
}

/// The directories in which a file can change: also where a link leads, for it may be the link or the file that does.
fn holders(files: &ConfigFiles) -> BTreeSet<PathBuf> {
    let target = files.main.canonicalize().ok();
    let main = std::iter::once(files.main.as_path()).chain(target.as_deref());
    main.map(parent)
        .map(Path::to_owned)
        .chain(
            files
                .include
                .iter()
                .flat_map(|pattern| directories(pattern)),
        )
        .collect()
}

async fn digest(files: &ConfigFiles) -> u64 {
    let files = files.clone();
    let reading = spawn_blocking(move || files.digest_now()).await;
    reading.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
