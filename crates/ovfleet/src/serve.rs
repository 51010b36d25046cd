//! `serve` and `check-config`: the gateway as a process.

use std::{
    future::pending,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ovfleet_gateway::{
    Config, ConfigErrors, Dependants, Gateway, Inheritance, InheritedSockets, LogBroadcast,
};
use tokio::{signal::unix::SignalKind, task::JoinSet};
use tracing::{info, warn};

use crate::{
    action::number_of,
    args::{CheckConfigArgs, ServeArgs},
    failure::{Failure, Outcome, Verdict},
    logging,
    output::note,
    privileges, service_manager,
    signals::Signals,
    standby,
    watchdog::Watchdog,
};

/// How long callers may take to leave when the gateway is told to end.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long daemons that would end with us are waited for before that.
const DEPENDANTS_GRACE: Duration = Duration::from_secs(10);
/// Open files beside those of sessions, their virtual sockets and callers: listeners, state, what is open for a moment.
const FILES_BESIDE: u64 = 64;
/// How long both and the end of the sessions may take together; whatever hangs then is cut. Below the patience of
/// the [`Watchdog`], for when even that hangs.
const SHUTDOWN_MAX: Duration = Duration::from_secs(28);

/// Runs the gateway until it is told to end.
///
/// To be called before the process has a second thread: it may become another
/// user.
pub(crate) fn run(args: &ServeArgs) -> Outcome {
    let sockets =
        InheritedSockets::from_environment().context("cannot use the sockets handed down")?;
    privileges::become_user(args.user.as_deref(), args.group.as_deref())?;
    let broadcast = logging::start(args)?;
    let open_files_max = privileges::raise_open_files()?;
    let config = Config::load(&args.config).map_err(|errors| mistakes(&errors))?;
    check_open_files(&config, open_files_max)?;
    info!(version = env!("CARGO_PKG_VERSION"), gateway = %config.name, open_files_max, "starting");
    let watchdog = Watchdog::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(config, sockets, broadcast, args, &watchdog));
    // Dropped, it would wait for a file that hangs.
    runtime.shutdown_background();
    outcome
}

/// Refuses a limit of open files that cannot hold the sessions; warns of one that callers could use up.
fn check_open_files(config: &Config, max: Option<u64>) -> Result<(), Failure> {
    let Some(max) = max else { return Ok(()) };
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let instances = count(config.instances.len());
    let sockets: usize = config
        .instances
        .iter()
        .map(|instance| instance.mux.len())
        .sum();
    let needed = instances
        .saturating_add(count(sockets))
        .saturating_add(FILES_BESIDE);
    let remedy = "raise it (LimitNOFILE= of the service, `ulimit -Hn`)";
    if max < needed {
        return Err(Failure::Failed(format!(
            "the limit of open files is {max}, and {} need {needed}: {remedy}",
            number_of(config.instances.len(), "instance"),
        )));
    }
    let wanted = needed.saturating_add(count(config.limits.connections));
    if max < wanted {
        warn!(
            open_files_max = max,
            wanted,
            "callers and tools may use up the open files, and then nobody can connect, nor a lost session be begun \
             anew: {remedy}, or lower limits.connections"
        );
    }
    Ok(())
}

async fn serve(
    config: Config,
    sockets: InheritedSockets,
    broadcast: Option<LogBroadcast>,
    args: &ServeArgs,
    watchdog: &Watchdog,
) -> Outcome {
    // From before the first caller can see that we run.
    let mut end_signals = Signals::listen(&[SignalKind::terminate(), SignalKind::interrupt()])?;
    let mut reload_signal = Signals::listen(&[SignalKind::hangup()])?;
    let mut gateway = tokio::select! {
        started = start(config, sockets, args) => started?,
        () = end_signals.next() => return Ok(Verdict::Done),
    };
    if let Some(broadcast) = broadcast {
        gateway.broadcast(broadcast);
    }
    let addresses = gateway.addresses();
    for address in addresses.grpc.iter().chain(&addresses.http) {
        info!(%address, "listening");
    }
    let serving = format!("serving on {}", addresses.grpc.join(", "));
    service_manager::ready(&serving);
    let mut reloads = JoinSet::new();
    let idle = gateway.idle_watch();
    let idle = async {
        match args.idle_exit {
            Some(minutes) => idle.wait(Duration::from_secs(minutes * 60)).await,
            None => pending().await,
        }
    };
    let mut idle = pin!(idle);
    let end = loop {
        tokio::select! {
            () = end_signals.next() => break Ok(Verdict::Done),
            failed = gateway.wait() => break Err(anyhow::Error::from(failed).into()),
            () = &mut idle => break Ok(Verdict::Done),
            () = reload_signal.next() => {
                service_manager::reloading();
                reloads.spawn(gateway.reload());
            }
            Some(_) = reloads.join_next() => if reloads.is_empty() {
                service_manager::ready(&serving);
            },
        }
    };
    let told = Instant::now();
    watchdog.tell();
    service_manager::stopping("draining");
    // Whoever balances callers shall know before those that dialled in are waited for.
    gateway.leave();
    if end.is_ok() && !args.force {
        wait_for(&gateway.dependants(), &mut end_signals).await;
    }
    let left = SHUTDOWN_MAX.saturating_sub(told.elapsed());
    if tokio::time::timeout(left, gateway.shutdown(SHUTDOWN_GRACE))
        .await
        .is_err()
    {
        return Err(Failure::Failed(
            "the gateway did not end in time: cut".to_owned(),
        ));
    }
    end
}

async fn start(
    config: Config,
    sockets: InheritedSockets,
    args: &ServeArgs,
) -> Result<Gateway, Failure> {
    let (config, lock) = if args.standby {
        let (config, lock) = standby::wait(config, &sockets, args).await?;
        (config, Some(lock))
    } else {
        (config, None)
    };
    let started = Gateway::start_with(config, Inheritance { lock, sockets }).await;
    let gateway = started.context("cannot start the gateway")?;
    if args.standby {
        standby::name_those_that_ended(&gateway);
    }
    Ok(gateway)
}

/// Gives daemons that dialled in, and would end with us, the time to be ended in order: until they are gone, a second
/// signal comes, or the grace is over. Meanwhile reads and streams go on.
async fn wait_for(dependants: &Dependants, end_signals: &mut Signals) {
    let names = |dependants: &Dependants| {
        let names: Vec<_> = dependants.names().iter().map(ToString::to_string).collect();
        names.join(" ")
    };
    let instances = names(dependants);
    if instances.is_empty() {
        return;
    }
    warn!(
        instances,
        grace = ?DEPENDANTS_GRACE,
        "these daemons dialled in and end when the gateway does: stop them now, or signal again to end them at once"
    );
    tokio::select! {
        () = dependants.gone() => {}
        () = end_signals.next() => {}
        () = tokio::time::sleep(DEPENDANTS_GRACE) => {}
    }
    let instances = names(dependants);
    if !instances.is_empty() {
        warn!(instances, "ending these daemons");
    }
}

/// Says everything that is wrong with a configuration.
pub(crate) fn check_config(args: &CheckConfigArgs) -> Outcome {
    let config = Config::check(&args.file).map_err(|errors| mistakes(&errors))?;
    note(&format!(
        "{}: no mistakes; {} named, {} of further ones",
        args.file.display(),
        number_of(config.instances.len(), "instance"),
        number_of(config.discover.len(), "source"),
    ));
    Ok(Verdict::Done)
}

fn mistakes(errors: &ConfigErrors) -> Failure {
    match errors.as_slice() {
        [only] => Failure::Failed(only.to_string()),
        many => Failure::Failed(format!("{} mistakes\n{errors}", many.len())),
    }
}
