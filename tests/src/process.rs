//! Child processes that never outlive the test.

use std::{
    fs::OpenOptions,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, kill_process, pidfd_open},
};

pub use rustix::process::Signal;

use crate::poll::poll_until;

/// A running child whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
}

/// `program` under `setpriv --pdeathsig KILL`: the kernel ends it with the thread that
/// started it, so a killed test leaves nothing behind. The process id stays that of
/// the child, `setpriv` becomes the program.
pub(crate) fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg("--pdeathsig")
        .arg("KILL")
        .arg("--")
        .arg(program);
    command
}

/// Where `program` is, or a clear error: a scenario never passes by being skipped.
pub(crate) fn find_program(program: &str, hint: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file());
    found
        .with_context(|| format!("`{program}` is not installed, and the scenarios need it: {hint}"))
}

impl Process {
    /// Starts any other program a scenario needs, without keeping what it says.
    ///
    /// Call it on the test's own thread: the child dies with the thread.
    ///
    /// # Errors
    /// It is missing, or cannot be started.
    pub fn spawn(program: &str, arguments: &[&str]) -> Result<Self> {
        let path = find_program(program, &format!("`apt-get install {program}`"))?;
        let mut command = mortal(path);
        command.args(arguments);
        Self::start(program, command, Path::new("/dev/null"))
    }

    /// Starts `command`, which [`mortal`] made, appending what it says to `log`.
    ///
    /// Call it on the test's own thread: the child dies with the thread.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(what: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        Ok(Self {
            child,
            what: what.to_owned(),
            log: log.to_owned(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// The process has ended and was waited for.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} has already ended ({status}):\n{}",
                self.what,
                self.tail()
            );
        }
        kill_process(Pid::from_child(&self.child), signal)?;
        Ok(())
    }

    /// Its exit status, once it has ended.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It did not within `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.what);
        poll_until(&what, timeout, async || Ok(self.child.try_wait()?)).await
    }

    /// Ends it at once; nothing is said to anybody.
    pub fn kill(&mut self) {
        // Failing means it has ended already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and insists after `grace`. Blocks: for `Drop` only.
    pub(crate) fn terminate(&mut self, grace: Duration) {
        let pid = Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None))
            && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && kill_process(pid, Signal::TERM).is_ok()
        {
            let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
            let timeout = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            let mut ended = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            let _ = poll(&mut ended, Some(&timeout));
        }
        self.kill();
    }

    /// Fails, with its last words, if it has ended.
    pub(crate) fn expect_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.what, self.tail());
        }
        Ok(())
    }

    /// The last lines of its output.
    pub(crate) fn tail(&self) -> String {
        const TAIL_LINES: usize = 25;
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
