//! A gateway as its callers and monitors see it, from start to drain.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ovfleet_gateway::{Config, Gateway, StartError};
use ovfleet_proto::v1::{GetSummaryRequest, fleet_service_client::FleetServiceClient};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixListener},
    time::{sleep, timeout},
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    gateway: Gateway,
    directory: TempDir,
}

impl Running {
    /// A gateway on a socket and an HTTP port of its own; `@` in `text` is its directory.
    async fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(config(&directory, text)).await.unwrap();
        Self { gateway, directory }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::try_from(self.gateway.addresses().grpc[0].clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        get(&self.gateway.addresses().http[0], path).await
    }
}

fn config(directory: &TempDir, text: &str) -> Config {
    let listen = "[listen]\ngrpc = \"unix:@/ovfleet.sock\"\nhttp = \"127.0.0.1:0\"\n";
    let text = format!("{text}\n{listen}").replace('@', &directory.path().display().to_string());
    let path = directory.path().join("ovfleet.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} took too long");
        sleep(Duration::from_millis(10)).await;
    }
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// A load balancer follows Watch: it must hear of the drain, and not hold it up.
#[tokio::test]
async fn health_says_not_serving_while_draining_and_ends() {
    let running = Running::start("").await;
    let mut health = HealthClient::new(running.channel().await);
    for service in [
        "",
        "ovfleet.v1.FleetService",
        "ovfleet.v1.EventService",
        "ovfleet.v1.ControlService",
    ] {
        let status = health
            .check(request(service))
            .await
            .unwrap()
            .into_inner()
            .status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(request("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = health.watch(request("")).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    let mut unknown = health.watch(request("nobody")).await.unwrap().into_inner();
    assert_eq!(
        unknown.message().await.unwrap().unwrap().status(),
        ServingStatus::ServiceUnknown
    );

    let start = Instant::now();
    let shutdown = tokio::spawn(running.gateway.shutdown(PATIENCE));
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    assert!(watch.message().await.unwrap().is_none());
    timeout(PATIENCE, shutdown).await.unwrap().unwrap();
    assert!(
        start.elapsed() < PATIENCE / 2,
        "the open streams held up the drain"
    );
    assert!(!running.directory.path().join("ovfleet.sock").exists());
}

/// An orchestrator must send nobody to a gateway that has not looked at its
/// instances yet, but one dead host must not keep it out for ever.
#[tokio::test]
async fn ready_after_the_first_dials() {
    let running = Running::start(
        "[[instance]]\nname = \"gone\"\naddress = \"unix:@/gone.sock\"\n\
         [[instance]]\nname = \"mute\"\naddress = \"unix:@/mute.sock\"\n",
    )
    .await;
    assert_eq!(running.get("/healthz").await, (200, "ok\n".to_owned()));
    until("readiness", async || {
        (running.get("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let (code, metrics) = running.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(
        metrics.contains("ovfleet_instances{condition=\"UNREACHABLE\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("ovfleet_events_total{kind=\"instance.added\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("ovfleet_instance_sent_bytes_total{instance=\"gone\"} 0"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(running.get("/other").await.0, 404);
}

/// The services are reachable through the listener that callers use.
#[tokio::test]
async fn the_fleet_answers_on_the_socket() {
    let running =
        Running::start("name = \"g\"\n[[instance]]\nname = \"a\"\naddress = \"unix:@/a.sock\"\n")
            .await;
    let mut fleet = FleetServiceClient::new(running.channel().await);
    let summary = fleet
        .get_summary(GetSummaryRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(summary.totals.unwrap().instances, 1);
}

/// A daemon that begins to listen joins the fleet, though no one wrote it down.
#[tokio::test]
async fn a_discovered_socket_joins_the_fleet_at_once() {
    // By itself it would look again in an hour.
    let text = "[[discover]]\nglob = \"@/run-*.sock\"\nrefresh = \"1h\"";
    let running = Running::start(text).await;
    assert!(running.gateway.fleet().instances().is_empty());
    let _daemon = UnixListener::bind(running.directory.path().join("run-eu1.sock")).unwrap();
    let start = Instant::now();
    until("discovery", async || {
        running.gateway.fleet().instance("run-eu1")
    })
    .await;
    println!("joined {:?} after it was bound", start.elapsed());
}

/// A configuration that was refused comes into force when the file is mended that only it includes.
#[tokio::test]
async fn what_a_refused_configuration_includes_is_watched() {
    let running = Running::start("").await;
    let path = |name: &str| running.directory.path().join(name);
    fs::create_dir(path("conf.d")).unwrap();
    let text = fs::read_to_string(path("ovfleet.toml")).unwrap();
    let text = format!("include = \"conf.d/eu1.toml\"\n{text}");
    fs::write(path("ovfleet.toml"), text).unwrap();
    until("the refusal", async || {
        let (_, metrics) = running.get("/metrics").await;
        let refused = "ovfleet_config_reloads_total{result=\"refused\"} 1\n";
        metrics.contains(refused).then_some(())
    })
    .await;
    let instance = format!(
        "[[instance]]\nname = \"eu1\"\naddress = \"unix:{}\"\n",
        path("eu1.sock").display()
    );
    fs::write(path("conf.d/eu1.toml"), instance).unwrap();
    until("the instance", async || {
        running.gateway.fleet().instance("eu1")
    })
    .await;
}

/// A password file that others can read stops its instance, not the gateway.
#[tokio::test]
async fn a_bad_password_file_stops_its_instance_alone() {
    let text =
        "[[instance]]\nname = \"a\"\naddress = \"unix:@/a.sock\"\npassword_file = \"none\"\n";
    let running = Running::start(text).await;
    assert!(running.gateway.fleet().instance("a").is_some());
}

/// Two processes on one socket or one state directory would each hold half of the fleet.
#[tokio::test]
async fn a_second_gateway_does_not_start() {
    let running = Running::start("state_dir = \"@/state\"").await;
    let path = running.directory.path().join("ovfleet.toml");
    let same = Config::load(&path).unwrap();
    let error = Gateway::start(same.clone()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&error, StartError::State(_)), "{error}");
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    let elsewhere = Config {
        state_dir: None,
        ..same.clone()
    };
    let error = Gateway::start(elsewhere).await.map(|_| ()).unwrap_err();
    assert!(matches!(&error, StartError::Bind(_)), "{error}");
    running.gateway.shutdown(PATIENCE).await;
    let again = Gateway::start(same).await.unwrap();
    again.shutdown(PATIENCE).await;
}

/// `--idle-exit` must end a process that nobody needs, and no other.
#[tokio::test]
async fn idle_when_nothing_is_attached_and_nobody_calls() {
    let running = Running::start("").await;
    let (idle, quiet) = (running.gateway.idle_watch(), Duration::from_millis(100));
    let mut health = HealthClient::new(running.channel().await);
    health.check(request("")).await.unwrap();
    timeout(quiet * 5, idle.wait(quiet))
        .await
        .expect_err("somebody is connected");
    drop(health);
    timeout(PATIENCE, idle.wait(quiet))
        .await
        .expect("nobody is left");
}

/// The example that is shipped is what people copy.
#[test]
fn the_example_configuration_loads() {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../deploy/ovfleet.toml"]
        .iter()
        .collect();
    let config = Config::load(Path::new(&path)).unwrap();
    assert!(
        config.instances.len() >= 2 && config.discover.len() == 2,
        "{config:?}"
    );
}
