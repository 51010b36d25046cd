//! Tests of what may not be read, also where root runs them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
};

use rustix::{
    process::{Uid, geteuid},
    thread::set_thread_res_uid,
};

/// Runs `job` as a user whom permissions bind.
pub(crate) fn unprivileged<T: Send>(job: impl FnOnce() -> T + Send) -> T {
    let job = || {
        if geteuid().is_root() {
            // The kernel knows the identity of threads: the others stay who they are.
            let nobody = Uid::from_raw(65_534);
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        job()
    };
    thread::scope(|scope| scope.spawn(job).join().unwrap())
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
