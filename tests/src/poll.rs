//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a condition that does not hold yet is left alone: at first, and doubled each time up to this.
const POLL_INTERVAL: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];

/// Asks `attempt` until it gives a value, and gives that value.
///
/// `what` completes the sentence "waiting for ...". The one place of the lab that
/// sleeps: a scenario waits for what it needs to see, never for time.
///
/// # Errors
/// The first error of `attempt`; or that `timeout` passed without a value.
pub async fn poll_until<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let [mut interval, longest] = POLL_INTERVAL;
    loop {
        if let Some(value) = attempt()
            .await
            .with_context(|| format!("waiting for {what}"))?
        {
            return Ok(value);
        }
        if started.elapsed() >= timeout {
            bail!("waited {timeout:?} in vain for {what}");
        }
        tokio::time::sleep(interval).await;
        interval = longest.min(interval * 2);
    }
}
