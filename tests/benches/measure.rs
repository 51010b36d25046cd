//! Figures of a process and of many samples.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use ovfleet_tests::poll_until;

/// Readings of a process' memory, 20 ms apart.
const READINGS: usize = 150;
/// More than they take.
const READINGS_TIMEOUT: Duration = Duration::from_secs(30);

/// What was lowest, in the middle and highest of some rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            min: at(0),
            median: at(values.len() / 2),
            max: at(values.len().saturating_sub(1)),
        }
    }
}

/// The value that `percent` of `sorted` do not exceed.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// CPU time that the threads of a process have used so far, user and system.
///
/// To the nanosecond, where `/proc/PID/stat` counts in ticks of 10 ms. A thread that has
/// ended is missing; between two readings in quick succession none of ours ends.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let on_cpu = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        nanos += on_cpu.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Memory of a process that is resident, in bytes: the middle of some seconds, because
/// what it takes to read a table comes and goes.
pub(crate) async fn resident_memory(pid: u32) -> Result<u64> {
    let mut readings = Vec::with_capacity(READINGS);
    poll_until("enough readings", READINGS_TIMEOUT, async || {
        readings.push(resident(pid)?);
        Ok((readings.len() == READINGS).then_some(()))
    })
    .await?;
    readings.sort_unstable();
    readings.get(READINGS / 2).copied().context("no reading")
}

/// Exact, which `VmRSS` is not.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no Rss")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}
