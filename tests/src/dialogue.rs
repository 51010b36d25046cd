//! Programs that are spoken to line by line.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// A turn of any of them takes milliseconds; starting an interpreter seconds, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program whose standard input and output are a conversation. It ends with the value.
#[derive(Debug)]
pub struct Dialogue {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Its standard error.
    complaints: File,
}

impl Dialogue {
    /// Starts `command`, which has to be one that ends with the test.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let complaints = tempfile::tempfile()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
            complaints,
        })
    }

    /// Says a line.
    ///
    /// # Errors
    /// It has ended; what it complained about is in the error.
    pub async fn say(&mut self, line: &str) -> Result<()> {
        let said = self.input.write_all(format!("{line}\n").as_bytes()).await;
        said.with_context(|| self.complaints())
    }

    /// Its next line, without the line end.
    ///
    /// # Errors
    /// It has ended, or says nothing; what it complained about is in the error.
    pub async fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match timeout(PATIENCE, self.output.read_line(&mut line)).await {
            Ok(read) => read.with_context(|| self.complaints())?,
            Err(_) => bail!("silence after {line:?}: {}", self.complaints()),
        };
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
            None => bail!("it ended after {line:?}: {}", self.complaints()),
        }
    }

    /// Says a line, and gives the next that it says.
    ///
    /// # Errors
    /// As [`say`](Self::say) and [`hear`](Self::hear).
    pub async fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line).await?;
        self.hear().await
    }

    /// Says no more, and waits until it ends in order.
    ///
    /// # Errors
    /// It does not end, or with a failure.
    pub async fn end(self) -> Result<()> {
        let Self {
            mut child,
            input,
            output,
            complaints,
        } = self;
        drop((input, output));
        let status = timeout(PATIENCE, child.wait())
            .await
            .context("it does not end")??;
        ensure!(status.success(), "{status}: {}", read_all(&complaints));
        Ok(())
    }

    fn complaints(&self) -> String {
        read_all(&self.complaints)
    }
}

fn read_all(mut file: &File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.read_to_string(&mut text).map(drop));
    match read {
        Ok(()) => text,
        Err(error) => format!("(its standard error cannot be read: {error})"),
    }
}
