//! Listening sockets that outlive the process: a gateway is replaced, and no caller is refused.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener as StdTcpListener},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{GetSummaryRequest, KillClientsRequest};
use ovfleet_tests::{
    Api, GatewayConfig, InstanceConfig,
    api::{all, by_name, reason},
    poll_until,
    random::soak,
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::transport::Endpoint;

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Calls that a caller makes at least between two changes of the process.
const CALLS: u64 = 20;

fn loopback() -> Result<StdTcpListener> {
    Ok(StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
}

fn unix(path: &Path, mode: u32) -> Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A caller that connects anew for every call, and counts those that were answered.
struct Caller {
    answered: watch::Receiver<u64>,
    task: JoinHandle<Result<()>>,
}

impl Caller {
    fn start(address: String) -> Self {
        let (sender, answered) = watch::channel(0);
        let task = tokio::spawn(async move {
            let endpoint = Endpoint::try_from(address)?
                .timeout(SOON)
                .connect_timeout(SOON);
            while !sender.is_closed() {
                let count = *sender.borrow();
                let channel = endpoint.connect().await;
                let channel = channel.with_context(|| format!("refused after {count} calls"))?;
                let answer = Api::new(channel)
                    .fleet
                    .get_summary(GetSummaryRequest::default())
                    .await;
                answer.with_context(|| format!("not answered after {count} calls"))?;
                sender.send_replace(count + 1);
            }
            Ok(())
        });
        Self { answered, task }
    }

    /// Waits for some more answers.
    async fn wait_more(&mut self) -> Result<()> {
        let wanted = *self.answered.borrow() + CALLS;
        let wait = self.answered.wait_for(|answered| *answered >= wanted);
        let answered = tokio::time::timeout(SOON, wait).await;
        if matches!(answered, Ok(Ok(_))) {
            return Ok(());
        }
        self.task.abort();
        match (&mut self.task).await {
            Ok(Err(error)) => Err(error),
            other => bail!("no answers: {other:?}"),
        }
    }

    async fn stop(self) -> Result<u64> {
        let count = *self.answered.borrow();
        drop(self.answered);
        self.task.await??;
        Ok(count)
    }
}

/// An upgrade: by a restart, and by a standby that takes over. Callers over TCP and over a Unix socket that come
/// meanwhile wait in the queue of the socket; none of them may see an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_is_refused_while_the_process_changes() -> Result<()> {
    let rounds = if soak() { 50 } else { 3 };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("handed.sock");
    let (near, local, web) = (loopback()?, unix(&path, 0o660)?, loopback()?);
    let (tcp, http) = (near.local_addr()?, web.local_addr()?);
    let daemon = Daemon::builder("sim")
        .unix(directory.path().join("sim"))
        .start()
        .await?;
    let mut gateway = GatewayConfig::new()
        .set(
            "state_dir",
            directory.path().join("state").display().to_string(),
        )
        .instance(InstanceConfig::new("sim", &daemon.address().to_string()))
        .hand_down("near", near)
        .hand_down("web", web)
        .hand_down("local", local)
        .listen_grpc("fd:near")
        .listen_grpc("fd:local")
        .listen_http("fd:web")
        .start()
        .await?;
    let mut callers = [
        Caller::start(format!("http://{tcp}")),
        Caller::start(format!("unix:{}", path.display())),
    ];
    for caller in &mut callers {
        caller.wait_more().await?;
    }
    let ready = get_ready(http).await?;
    ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");

    for round in 0..rounds {
        let status = gateway.stop().await?;
        ensure!(
            status.success(),
            "round {round}: {status}: {}",
            gateway.log()
        );
        gateway.start_again().await?;
        for caller in &mut callers {
            caller
                .wait_more()
                .await
                .with_context(|| format!("restart {round}"))?;
        }
    }
    for round in 0..rounds {
        let standby = gateway.start_standby(&format!("standby{round}.log"))?;
        poll_until("the standby", SOON, async || {
            Ok(standby
                .output()
                .contains("waiting for its holder")
                .then_some(()))
        })
        .await?;
        let status = gateway.stop().await?;
        ensure!(
            status.success(),
            "round {round}: {status}: {}",
            gateway.log()
        );
        gateway.follow(standby).await?;
        for caller in &mut callers {
            caller
                .wait_more()
                .await
                .with_context(|| format!("standby {round}"))?;
        }
    }
    for caller in callers {
        eprintln!("{} calls, none refused", caller.stop().await?);
    }
    ensure!(
        path.exists(),
        "the file of the socket is not ours to remove"
    );
    Ok(())
}

async fn get_ready(http: std::net::SocketAddr) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut stream = tokio::net::TcpStream::connect(http).await?;
    let request = "GET /readyz HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What is allowed on a socket that was handed down follows from what it is bound to: whoever made it may have made a
/// mistake, and must hear of it, or not be trusted with more.
#[tokio::test]
async fn what_was_handed_down_is_judged_as_it_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let failure = async |config: GatewayConfig| match config.start().await {
        Ok(_) => bail!("it started"),
        Err(error) => Ok(format!("{error:#}")),
    };
    let anybody = StdTcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let config = GatewayConfig::new()
        .hand_down("far", anybody)
        .listen_grpc("fd:far");
    let said = failure(config).await?;
    ensure!(said.contains("plaintext beyond loopback"), "{said}");
    let config = GatewayConfig::new()
        .hand_down("one", loopback()?)
        .listen_grpc("fd:two");
    let said = failure(config).await?;
    ensure!(
        said.contains("no socket `two`") && said.contains("`one`"),
        "{said}"
    );
    let config = GatewayConfig::new().hand_down("one", loopback()?);
    let said = failure(config).await?;
    ensure!(said.contains("a socket `one` was handed down"), "{said}");
    let file = fs::File::open(directory.path())?;
    let config = GatewayConfig::new()
        .hand_down("file", file)
        .listen_grpc("fd:file");
    let said = failure(config).await?;
    ensure!(said.contains("no listening stream socket"), "{said}");

    // As systemd makes it unless it is told otherwise: every user of the machine may connect.
    let path = directory.path().join("open.sock");
    let gateway = GatewayConfig::new()
        .hand_down("open", unix(&path, 0o666)?)
        .listen_grpc("fd:open")
        .start()
        .await?;
    let endpoint = Endpoint::try_from(format!("unix:{}", path.display()))?;
    let mut api = Api::new(endpoint.connect().await?);
    api.instances().await?;
    let kill = KillClientsRequest {
        selector: all(),
        filter: Some(by_name("nobody")),
        ..Default::default()
    };
    let refused = api.kill(kill).await.err().context("it may kill")?;
    ensure!(
        reason(&refused).as_deref() == Some("READ_ONLY_LISTENER"),
        "{refused:?}"
    );
    ensure!(
        gateway.log().contains("SocketMode=0660"),
        "{}",
        gateway.log()
    );
    Ok(())
}
