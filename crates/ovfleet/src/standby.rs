//! `serve --standby`: everything checked, waiting for the gateway before us to end.

use std::{fmt::Display, path::Path, thread};

use anyhow::{Context as _, Result, anyhow};
use ovfleet_gateway::{Config, Dependants, Gateway, InheritedSockets, StateError, StateLock};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::{args::ServeArgs, failure::Failure, service_manager};

/// Waits for the state directory of `config`, and gives the right to it together with the configuration as it is by
/// then. Dropped, it goes on to wait in a thread: for a process that ends.
pub(crate) async fn wait(
    mut config: Config,
    sockets: &InheritedSockets,
    args: &ServeArgs,
) -> Result<(Config, StateLock), Failure> {
    loop {
        let Some(directory) = config.state_dir.clone() else {
            return Err(Failure::Usage(format!(
                "--standby needs a `state_dir`, whose lock it waits for: set one in {}",
                args.config.display()
            )));
        };
        Gateway::check(&config, sockets).context("cannot take over")?;
        let lock = wait_for(&directory, &config).await?;
        config = reread(config, sockets, args);
        if config.state_dir.as_deref() == Some(lock.directory()) {
            info!(state_dir = %directory.display(), "taking over");
            return Ok((config, lock));
        }
        warn!("the configuration names another state_dir now");
    }
}

async fn wait_for(directory: &Path, config: &Config) -> Result<StateLock> {
    let holder = match StateLock::take(directory) {
        Ok(lock) => return Ok(lock),
        Err(StateError::InUse { holder, .. }) => holder,
        Err(error) => return Err(error.into()),
    };
    let shown = directory.display();
    info!(state_dir = %shown, holder, "standby: the configuration is good; waiting for its holder to end");
    service_manager::status(&format!(
        "standby: waiting for process {holder} to leave {shown}"
    ));
    name_those_that_end(config);
    let (sender, taken) = oneshot::channel();
    let directory = directory.to_owned();
    thread::Builder::new()
        .name("standby".to_owned())
        .spawn(move || sender.send(StateLock::wait(&directory)))
        .context("cannot wait for the state_dir")?;
    let taken = taken
        .await
        .map_err(|_| anyhow!("the wait for the state_dir failed"))?;
    Ok(taken?)
}

/// The configuration as its files are now; what was checked before, if these cannot be used.
fn reread(checked: Config, sockets: &InheritedSockets, args: &ServeArgs) -> Config {
    let unusable = |cause: &dyn Display| {
        warn!(%cause, "the configuration has changed and cannot be used: taking over with the one checked before");
    };
    let now = match Config::load(&args.config) {
        Ok(now) => now,
        Err(errors) => {
            unusable(&errors);
            return checked;
        }
    };
    if now.state_dir.is_none() {
        unusable(&"it has no state_dir");
        return checked;
    }
    if let Err(error) = Gateway::check(&now, sockets) {
        unusable(&format!("{:#}", anyhow::Error::from(error)));
        return checked;
    }
    now
}

/// Those that are known without the state, which belongs to the holder of its directory, and without discovery.
fn name_those_that_end(config: &Config) {
    let instances = Dependants::configured(config);
    if !instances.is_empty() {
        warn!(
            instances = words(&instances),
            "these daemons end or restart with the gateway before: nobody can take them over"
        );
    }
    let sources = Dependants::sources(config);
    if !sources.is_empty() {
        warn!(
            sources = words(&sources),
            "the daemons that these sources find end or restart with the gateway before: nobody can take them over"
        );
    }
}

/// Names every daemon that nobody could take over, once `gateway` knows all of them.
pub(crate) fn name_those_that_ended(gateway: &Gateway) {
    let instances = gateway.dependants().fragile();
    if !instances.is_empty() {
        warn!(
            instances = words(&instances),
            "these daemons may have ended with the gateway before"
        );
    }
}

fn words(items: &[impl Display]) -> String {
    let words: Vec<_> = items.iter().map(ToString::to_string).collect();
    words.join(" ")
}
