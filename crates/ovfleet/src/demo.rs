//! `demo`: a gateway and a living fleet in one process, and nothing left
//! behind.

mod member;
mod pki;
mod real;
mod simulated;

use std::{env, future::pending, io, net::TcpListener, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use ovfleet_gateway::{Config, Gateway as Server};
use ovfleet_proto::v1::{GetSummaryRequest, ListClientsRequest, Totals};
use tokio::{
    signal::unix::SignalKind,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{CallerArgs, Command, DemoArgs, parse_from},
    command::events::EventStream,
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    output::Output,
    serve::SHUTDOWN_GRACE,
    signals::Signals,
    table::Tone,
};
use member::Member;

/// How long the first sessions and clients may take before the stream begins;
/// one that takes longer is seen in it.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// What the stream shows: not the text that daemons also say in other words.
const KINDS: &str = "client.*,action.*,instance.attached,instance.detached,\
                     instance.condition,instance.state,instance.generation";

pub(crate) async fn run(args: DemoArgs, caller: CallerArgs, output: &mut Output) -> Outcome {
    // From before there is anything that has to be cleaned away.
    let mut end_signals = Signals::listen(&[
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ])?;
    // Everything is in here, and goes with it.
    let dir = tempfile::Builder::new()
        .prefix("ovfleet-demo-")
        .tempdir()
        .context("cannot make a directory for the demonstration")?;
    check_port(args.port)?;

    let living = CancellationToken::new();
    let start = async {
        let (members, life) = start_fleet(dir.path(), args.openvpn, &living).await?;
        let server = start_gateway(dir.path(), &members, args.port).await?;
        anyhow::Ok((members.len(), life, server))
    };
    let (instances, mut life, server) = tokio::select! {
        started = start => started?,
        () = end_signals.next() => return Ok(Verdict::Done),
    };

    let outcome = tokio::select! {
        outcome = show(&args, caller, &server, instances, output) => outcome,
        () = end_signals.next() => Ok(Verdict::Done),
        outcome = &mut life => Err(match outcome {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => Failure::Failed("the fleet ended by itself".to_owned()),
        }),
    };
    living.cancel();
    server.shutdown(SHUTDOWN_GRACE).await;
    if !life.is_finished() {
        // It ends its processes; what it says about that helps nobody now.
        let _ = life.await;
    }
    outcome
}

/// Says what to try, and then what happens, for as long as was asked for.
async fn show(
    args: &DemoArgs,
    caller: CallerArgs,
    server: &Server,
    instances: usize,
    output: &mut Output,
) -> Outcome {
    let url = server.addresses().grpc.concat();
    let caller = CallerArgs {
        gateway: Some(url.clone()),
        ..caller
    };
    let gateway = Gateway::connect(&caller).await?;
    let totals = settle(&gateway, instances).await;
    let someone = someone(&gateway).await;
    output.text(&introduction(
        args,
        &url,
        &totals,
        someone.as_deref(),
        output,
    ))?;

    let mut stream = EventStream::new(events_args());
    let end = async {
        match args.duration {
            Some(duration) => sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::select! {
        outcome = stream.run(&gateway, output) => outcome,
        () = end => Ok(Verdict::Done),
    }
}

/// Starts the daemons and their crowd, which lives until `living` is cancelled.
async fn start_fleet(
    dir: &Path,
    real: bool,
    living: &CancellationToken,
) -> Result<(Vec<Member>, JoinHandle<Result<()>>)> {
    let living = living.clone();
    if real {
        let (members, fleet) = real::start(dir).await?;
        return Ok((members, tokio::spawn(fleet.run(living))));
    }
    let (members, population) = simulated::start(dir).await?;
    let life = tokio::spawn(async move {
        population.run(living).await;
        Ok(())
    });
    Ok((members, life))
}

/// A port that is taken is worth a better word than the gateway's: here it is
/// not the configuration that is wrong.
fn check_port(port: u16) -> Result<(), Failure> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Failure::Failed(format!(
            "port {port} of 127.0.0.1 is taken, perhaps by another gateway\n  \
             Choose another with --port N, or any free one with --port 0."
        ))),
        Err(error) => Err(Failure::Failed(format!(
            "cannot use port {port} of 127.0.0.1: {error}"
        ))),
    }
}

async fn start_gateway(dir: &Path, members: &[Member], port: u16) -> Result<Server> {
    let file = dir.join("ovfleet.toml");
    member::write_private(&file, &member::configuration(members, port))?;
    let config = Config::load(&file)?;
    Server::start(config)
        .await
        .context("cannot start the gateway")
}

/// Waits until every instance is attached and somebody is connected, or long
/// enough; gives the totals then.
async fn settle(gateway: &Gateway, instances: usize) -> Totals {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let request = gateway.request(GetSummaryRequest::default());
        let totals = match gateway.fleet().get_summary(request).await {
            Ok(response) => response.into_inner().totals.unwrap_or_default(),
            Err(_) => Totals::default(),
        };
        let attached = totals.instances_attached == instances as u64;
        if (attached && totals.clients > 0) || Instant::now() > deadline {
            return totals;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// The common name of somebody who is connected, for an example.
async fn someone(gateway: &Gateway) -> Option<String> {
    let request = ListClientsRequest {
        page_size: 100,
        ..ListClientsRequest::default()
    };
    let response = gateway
        .fleet()
        .list_clients(gateway.request(request))
        .await
        .ok()?;
    let clients = response.into_inner().clients;
    // A name that is easy to type makes the better example.
    let easy = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
    };
    let name = clients.into_iter().map(|client| client.common_name);
    name.filter(|name| !name.is_empty() && easy(name))
        .min_by_key(String::len)
}

fn introduction(
    args: &DemoArgs,
    url: &str,
    totals: &Totals,
    someone: Option<&str>,
    output: &Output,
) -> String {
    let kind = if args.openvpn { "real" } else { "simulated" };
    let program = env::args().next().unwrap_or_else(|| "ovfleet".to_owned());
    let someone = someone.unwrap_or("alice");
    let mut text = format!(
        "{} of {} {kind} OpenVPN daemons attached, {} clients, one gateway at {url}.\n\n\
         Try in another terminal:\n\n",
        totals.instances_attached, totals.instances, totals.clients
    );
    for command in [
        "summary --by region",
        "instances",
        "clients --sort bytes --desc --limit 10",
        "events --kind 'client.*'",
        "watch",
        &format!("kill --common-name {someone} --all --wait"),
        "signal SIGUSR1 -l region=us --wait-for connected",
        "actions",
    ] {
        text += &output.paint(
            Tone::Good,
            &format!("  {program} {command} --gateway {url}"),
        );
        text.push('\n');
    }
    let end = match args.duration {
        Some(duration) => format!("for {} s", duration.as_secs()),
        None => "until Ctrl-C".to_owned(),
    };
    text + &format!("\nWhat happens, {end}:\n\n")
}

/// The options of the stream: those of `ovfleet events`.
fn events_args() -> crate::args::EventsArgs {
    match parse_from(["ovfleet", "events", "--kind", KINDS]).map(|cli| cli.command) {
        Ok(Command::Events(args)) => args,
        other => unreachable!("a constant command line: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_has_options_that_parse() {
        assert_eq!(events_args().kind.len(), KINDS.split(',').count());
    }

    #[test]
    fn a_taken_port_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Err(Failure::Failed(message)) = check_port(port) else {
            panic!("{port} is taken")
        };
        assert!(
            message.contains(&port.to_string()) && message.contains("--port 0"),
            "{message}"
        );
    }
}
