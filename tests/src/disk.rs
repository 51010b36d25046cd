//! A small disk of its own for a gateway: it can be full, read-only, and whole again.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    gateway::Gateway,
    poll::poll_until,
    process::{Process, Signal, find_program, mortal},
};

/// What helpers do at once; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Where everything of it is full.
const FILLER: &str = "filler";

/// 1 MiB in memory, mounted in a mount namespace that a process holds: nobody else sees it, and it is gone with this.
#[derive(Debug)]
pub struct Disk {
    holder: Process,
    mount: PathBuf,
}

impl Disk {
    /// Mounts one at `mount`, a directory.
    ///
    /// # Errors
    /// That takes root.
    pub async fn mount(mount: &Path) -> Result<Self> {
        const HOLD: &str = "mount -t tmpfs -o size=1m tmpfs \"$0\" && exec sleep infinity";
        let mut command = mortal("unshare");
        command.args(["--mount", "--", "sh", "-c", HOLD]).arg(mount);
        let mut disk = Self {
            holder: Process::start("a disk", command, &mount.with_extension("log"))?,
            mount: mount.to_owned(),
        };
        let mounted = mount.to_str().context("not UTF-8")?;
        poll_until("the disk", SOON, async || {
            disk.holder.expect_running()?;
            let mounts = fs::read_to_string(format!("/proc/{}/mounts", disk.holder.pid()))?;
            let is_there = mounts.lines().any(|line| {
                let mut fields = line.split(' ');
                fields.next() == Some("tmpfs") && fields.next() == Some(mounted)
            });
            Ok(is_there.then_some(()))
        })
        .await?;
        Ok(disk)
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// It is not there, or read-only.
    pub fn fill(&self) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.seen()?.join(FILLER))?;
        for piece in [4096, 1] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// It was not filled.
    pub fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.seen()?.join(FILLER))?)
    }

    /// Makes it read-only, or writable again.
    ///
    /// # Errors
    /// Somebody has a file open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let option = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        let mut command = self.inside(Path::new("/"));
        let output = command
            .args(["mount", "-o", option])
            .arg(&self.mount)
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// What runs the program behind it where the disk is seen.
    pub(crate) fn inside(&self, directory: &Path) -> Command {
        let mut command = mortal("nsenter");
        command.arg(format!("--target={}", self.holder.pid()));
        command
            .arg("--mount")
            .arg(format!("--wd={}", directory.display()))
            .arg("--");
        command
    }

    /// Its root, as everybody may see it.
    fn seen(&self) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        Ok(root.join(self.mount.strip_prefix("/")?))
    }
}

/// Files that a running process cannot write, as if their file system had become read-only under it: the kernel
/// refuses with EROFS, for as long as a tracer tells it to.
///
/// A file system with files that are open for writing cannot be made read-only on purpose.
#[derive(Debug)]
pub struct ReadOnly(Process);

impl ReadOnly {
    /// Begins it, for these files of `gateway`.
    ///
    /// # Errors
    /// `strace` is missing, or may not trace.
    pub async fn begin(gateway: &Gateway, files: &[&Path]) -> Result<Self> {
        const WRITES: &str = "write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync";
        let strace = find_program("strace", "`apt-get install strace`")?;
        let mut command = mortal(strace);
        command.args(["-f", "-qq", "-o", "/dev/null"]);
        command.arg(format!("--inject={WRITES}:error=EROFS"));
        command.arg(format!("--trace={WRITES}"));
        for file in files {
            command.arg("-P").arg(file);
        }
        command.arg("-p").arg(gateway.pid().to_string());
        let log = gateway.config_path().with_extension("strace");
        let mut tracer = Self(Process::start("strace", command, &log)?);
        poll_until("the tracer", SOON, async || {
            tracer.0.expect_running()?;
            Ok(tracer.traces_all_of(gateway)?.then_some(()))
        })
        .await?;
        Ok(tracer)
    }

    /// Ends it: they can be written again.
    ///
    /// # Errors
    /// The tracer has ended before.
    pub async fn end(mut self) -> Result<()> {
        self.0.signal(Signal::INT)?;
        self.0.wait(SOON).await.map(drop)
    }

    fn traces_all_of(&self, gateway: &Gateway) -> Result<bool> {
        let traced = format!("TracerPid:\t{}\n", self.0.pid());
        for task in fs::read_dir(format!("/proc/{}/task", gateway.pid()))? {
            // A thread may have ended.
            let status = fs::read_to_string(task?.path().join("status"));
            if status.is_ok_and(|status| !status.contains(&traced)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
