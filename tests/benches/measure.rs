//! Figures of a process and of many samples.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use ovfleet_tests::poll_until;

/// How long a process may take until its memory no longer changes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Readings without a change, 20 ms apart, after which memory counts as settled.
const SETTLED_READINGS: u32 = 50;

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

/// Memory of a process that is resident, in bytes, once that no longer changes.
pub(crate) async fn settled_memory(pid: u32) -> Result<u64> {
    let (mut last, mut unchanged) = (0, 0);
    poll_until("the memory to settle", SETTLE_TIMEOUT, async || {
        let now = resident(pid)?;
        // Some pages come and go with every timer.
        unchanged = if now.abs_diff(last) < 64 << 10 {
            unchanged + 1
        } else {
            0
        };
        if unchanged == 0 {
            last = now;
        }
        Ok((unchanged >= SETTLED_READINGS).then_some(now))
    })
    .await
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
