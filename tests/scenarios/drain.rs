//! Told to end, the gateway says so at once, finishes what it began, and ends in its time whatever hangs.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{
    self, ClientFilter, KillClientsRequest, SignalInstancesRequest, SignalWait,
    StreamEventsRequest, stream_events_request::Start,
};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig, Server, Signal,
    api::{all, by_name, named, reason, timed},
    events::Item,
    poll_until,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long callers and actions may take to come to their end.
const GRACE: Duration = Duration::from_secs(10);
/// The process has ended then, in any case.
const HARD_END: Duration = Duration::from_secs(30);
/// For what the machine adds to the gateway's own times.
const MARGIN: Duration = Duration::from_secs(3);

/// While daemons that end with the gateway are waited for, nobody may be sent there any more, and nothing may begin
/// that the end would cut; who only looks, still can.
#[tokio::test]
async fn told_to_end_it_is_not_ready_at_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("caller.sock");
    let address = format!("listen-unix:{}", socket.display());
    let mut gateway = GatewayConfig::new()
        .instance(InstanceConfig::new("caller", &address))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    let mut health = HealthClient::new(gateway.channel().await?);
    let _server = Server::builder("caller").dial_in(&socket).start().await?;
    api.wait_attached().await?;
    let log = api.follow().await?;
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await?
        .into_inner();
    let first = watch.message().await?.context("no health")?.status();
    ensure!(first == ServingStatus::Serving, "{first:?}");
    let (code, _) = gateway.http_get("/readyz").await?;
    ensure!(code == 200, "{code}");

    gateway.signal(Signal::TERM)?;
    let last = tokio::time::timeout(SOON, watch.message()).await??;
    let last = last.context("no last word")?.status();
    ensure!(last == ServingStatus::NotServing, "{last:?}");
    let status = health.check(HealthCheckRequest::default()).await?;
    let status = status.into_inner().status();
    ensure!(status == ServingStatus::NotServing, "{status:?}");
    let (code, body) = gateway.http_get("/readyz").await?;
    ensure!(code == 503 && body.contains("draining"), "{code}: {body}");
    let (code, _) = gateway.http_get("/healthz").await?;
    ensure!(code == 200, "{code}");

    let kill = KillClientsRequest {
        selector: all(),
        filter: Some(ClientFilter::default()),
        every_client: true,
        ..Default::default()
    };
    let refused = api.kill(kill).await.err().context("killed")?;
    ensure!(refused.code() == Code::Unavailable, "{refused:?}");
    ensure!(
        reason(&refused).as_deref() == Some("SHUTTING_DOWN"),
        "{refused:?}"
    );
    let hold = v1::SetVerbRequest {
        instance: "caller".to_owned(),
        level: 3,
        ..Default::default()
    };
    let refused = api.instance.set_verb(timed(hold)).await.err();
    let refused = refused.context("the verb was set")?;
    ensure!(refused.code() == Code::Unavailable, "{refused:?}");
    // To look is still allowed, and the stream is still there.
    api.status("caller").await?;
    ensure!(log.end().is_none(), "{:?}", log.end());

    // A second signal ends the wait.
    gateway.signal(Signal::TERM)?;
    let drain = log
        .wait("the drain", SOON, |item| matches!(item, Item::Drain(_)))
        .await?;
    ensure!(!drain.cursor.is_empty(), "{drain:?}");
    let status = gateway.wait_ended(SOON).await?;
    ensure!(status.success(), "{status}: {}", gateway.log());
    Ok(())
}

/// A caller that never reads and an action that waits for ever get their grace, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_ends_is_cut_after_the_grace() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config = GatewayConfig::new();
    let mut daemons = Vec::new();
    for name in ["busy", "gone"] {
        let path = directory.path().join(name);
        let daemon = Daemon::builder(name).unix(path).start().await?;
        config = config.instance(InstanceConfig::new(name, &daemon.address().to_string()));
        daemons.push(daemon);
    }
    let mut gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let mut reader = Api::connect(&gateway).await?;
    let request = StreamEventsRequest {
        start: Some(Start::Oldest(true)),
        ..Default::default()
    };
    let _never_read = reader.events.stream_events(request).await?.into_inner();
    daemons[0].burst(5_000).await?;
    let log = api.follow().await?;
    // The daemon ends for good, and the call waits for its return.
    let mut signaller = api.clone();
    let signal = tokio::spawn(async move {
        let request = SignalInstancesRequest {
            selector: named(&["gone"]),
            signal: v1::Signal::Sigterm.into(),
            force: true,
            wait_for: SignalWait::Reattached.into(),
            ..Default::default()
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(300));
        signaller.control.signal_instances(request).await
    });
    tokio::time::timeout(SOON, daemons[1].wait_stopped()).await?;

    let asked = Instant::now();
    gateway.signal(Signal::TERM)?;
    let drain = log
        .wait("the drain", SOON, |item| matches!(item, Item::Drain(_)))
        .await?;
    ensure!(!drain.cursor.is_empty(), "{drain:?}");
    let status = gateway.wait_ended(HARD_END + MARGIN).await?;
    let took = asked.elapsed();
    eprintln!("ended after {took:?}");
    ensure!(status.success(), "{status}: {}", gateway.log());
    ensure!(
        took >= GRACE - Duration::from_secs(1),
        "cut at once: {took:?}"
    );
    ensure!(took <= GRACE + Duration::from_secs(5) + MARGIN, "{took:?}");
    ensure!(
        gateway.log().contains("did not leave in time"),
        "{}",
        gateway.log()
    );
    ensure!(signal.await?.is_err(), "it cannot have come to its end");
    Ok(())
}

/// A log that nobody reads any more stops every thread that writes to it, those of the runtime first: the order to end
/// must be heard and carried out all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_though_every_thread_hangs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let fifo = directory.path().join("log.fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut never_read = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&fifo)?;
    let path = directory.path().join("sim");
    let daemon = Daemon::builder("sim").unix(path).start().await?;
    let mut gateway = GatewayConfig::new()
        .argument(format!("--log-file={}", fifo.display()))
        .instance(InstanceConfig::new("sim", &daemon.address().to_string()))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    // Full, whatever the pipe holds here.
    while never_read.write(b"\n").is_ok() {}
    let mut killers = JoinSet::new();
    poll_until("every thread to hang", SOON, async || {
        // Each logs its line, or waits for ever to.
        for _ in 0..8 {
            let mut api = api.clone();
            let kill = KillClientsRequest {
                selector: all(),
                filter: Some(by_name("nobody")),
                ..Default::default()
            };
            killers.spawn(async move { api.kill(kill).await });
        }
        let mut request = tonic::Request::new(v1::GetSummaryRequest::default());
        request.set_timeout(Duration::from_secs(2));
        Ok(api.fleet.get_summary(request).await.is_err().then_some(()))
    })
    .await?;

    let asked = Instant::now();
    gateway.signal(Signal::TERM)?;
    let status = gateway.wait_ended(HARD_END + MARGIN).await?;
    eprintln!("{status} after {:?}", asked.elapsed());
    ensure!(!status.success(), "{status}");
    ensure!(
        asked.elapsed() <= HARD_END + MARGIN / 3,
        "{:?}",
        asked.elapsed()
    );
    ensure!(
        gateway.log().contains("did not end within"),
        "{}",
        gateway.log()
    );
    Ok(())
}
