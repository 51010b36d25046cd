//! The disk of the state fills up, or is slow: who only looks does not notice, who changes something is told why not.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{
    ClientFilter, CreateInstanceRequest, InstanceDefinition, KillClientsRequest,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{all, reason, timed},
    events::EventLog,
    poll_until,
};
use tonic::Code;

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// How long a change may take to be refused. The promise is 1 s.
const REFUSED_MAX: Duration = Duration::from_secs(2);
/// From the end of the fault to the first change that is made. The promise is 5 s.
const RECOVERY_MAX: Duration = Duration::from_secs(8);
/// Most changes that fit where there is no room any more.
const CHANGES_MAX: usize = 200;

/// A gateway, a daemon, and a stream of what happens there.
struct Lab {
    gateway: Gateway,
    daemon: Daemon,
    api: Api,
    log: EventLog,
    created: usize,
}

impl Lab {
    async fn start(config: GatewayConfig, directory: &Path) -> Result<Self> {
        let daemon = Daemon::builder("sim")
            .unix(directory.join("sim"))
            .start()
            .await?;
        let gateway = config
            .instance(InstanceConfig::new("sim", &daemon.address().to_string()))
            .start()
            .await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        let log = api.follow().await?;
        Ok(Self {
            gateway,
            daemon,
            api,
            log,
            created: 0,
        })
    }

    /// A change, which has to be on disk before it is made; how long it took to be refused, and the reason.
    async fn change(&mut self) -> Result<Option<(Duration, String)>> {
        self.created += 1;
        let request = CreateInstanceRequest {
            instance: Some(InstanceDefinition {
                name: format!("new{}", self.created),
                address: format!("unix:/nonexistent/{}", self.created),
                ..InstanceDefinition::default()
            }),
            ..CreateInstanceRequest::default()
        };
        let asked = Instant::now();
        let Err(status) = self.api.inventory.create_instance(timed(request)).await else {
            return Ok(None);
        };
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        ensure!(
            reason(&status).as_deref() == Some("STATE_UNAVAILABLE"),
            "{status:?}"
        );
        Ok(Some((asked.elapsed(), status.message().to_owned())))
    }

    /// Changes until one is refused; gives the reason.
    async fn refused(&mut self) -> Result<String> {
        for _ in 0..CHANGES_MAX {
            if let Some((took, message)) = self.change().await? {
                eprintln!("refused after {took:?}: {message}");
                ensure!(took <= REFUSED_MAX, "{took:?}");
                return Ok(message);
            }
        }
        bail!("{CHANGES_MAX} changes were made")
    }

    /// A client connects, its event comes, and lists answer.
    async fn looks(&mut self) -> Result<()> {
        let asked = Instant::now();
        let cid = self.daemon.connect(ClientSpec::new("alice")).await?;
        self.log
            .wait_event("the client", SOON, |event| {
                let client = event
                    .client
                    .as_ref()
                    .and_then(|client| client.r#ref.as_ref());
                event.kind == "client.established" && client.is_some_and(|r| r.cid == cid)
            })
            .await?;
        self.api.clients(ClientFilter::default()).await?;
        ensure!(asked.elapsed() < REFUSED_MAX, "{:?}", asked.elapsed());
        Ok(())
    }

    /// Waits until changes are made again.
    async fn recovers(&mut self) -> Result<()> {
        let over = Instant::now();
        poll_until("a change to be made", RECOVERY_MAX, async || {
            Ok(self.change().await?.is_none().then_some(()))
        })
        .await?;
        eprintln!("changes are made {:?} after the fault", over.elapsed());
        self.looks().await
    }
}

/// A full disk refuses changes with its reason, and nothing else; when there is room again they are made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_changes_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk");
    std::fs::create_dir(&disk)?;
    let config = GatewayConfig::new()
        .set("state_dir", disk.join("state").display().to_string())
        .small_disk(&disk);
    let mut lab = Lab::start(config, directory.path()).await?;
    ensure!(lab.change().await?.is_none(), "there is room");

    // The disk is there for the gateway alone, and gone with it.
    let seen = PathBuf::from(format!("/proc/{}/root", lab.gateway.pid()));
    let filler = seen.join(disk.strip_prefix("/")?).join("filler");
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&filler)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    let message = lab.refused().await?;
    ensure!(
        message.contains("full") && message.contains("make room"),
        "{message}"
    );
    // A kill is a change too: nobody could say later whether it was sent.
    let kill = KillClientsRequest {
        selector: all(),
        filter: Some(ClientFilter::default()),
        every_client: true,
        ..Default::default()
    };
    let asked = Instant::now();
    let refused = lab
        .api
        .kill(kill)
        .await
        .err()
        .context("it was carried out")?;
    ensure!(asked.elapsed() <= REFUSED_MAX, "{:?}", asked.elapsed());
    ensure!(
        reason(&refused).as_deref() == Some("STATE_UNAVAILABLE"),
        "{refused:?}"
    );
    let commands = lab.daemon.commands();
    ensure!(!commands.iter().any(|line| line.starts_with(b"client-kill")));
    lab.looks().await?;
    let (_, metrics) = lab.gateway.http_get("/metrics").await?;
    ensure!(metrics.contains("\"full\"} 1"), "{metrics}");

    drop(file);
    std::fs::remove_file(&filler)?;
    lab.recovers().await
}

/// A disk that does not answer in time: changes are refused in time, and nobody else waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_refuses_changes_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let config = GatewayConfig::new()
        .set("state_dir", state.display().to_string())
        .environment("OVFLEET_FAILPOINT", "state.write=delay:4s@30*1");
    let mut lab = Lab::start(config, directory.path()).await?;
    let message = lab.refused().await?;
    ensure!(message.contains("does not answer within"), "{message}");
    lab.looks().await?;
    lab.recovers().await
}
