//! No more open files: what is held stays held, nothing spins, and it is over when it is over.

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_tests::{Api, Gateway, GatewayConfig, InstanceConfig, poll_until, random::allowed};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// What comes without delay; this covers a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long the gateway is watched at its limit.
const WATCHED: Duration = Duration::from_secs(2);
/// Share of one core that it may take there, in percent.
const CPU_MAX: f64 = 5.0;
/// From the leaving of those who filled it up to the next answer.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
/// Descriptors that are left when the limit is lowered.
const LEFT: usize = 8;
/// What the gateway says of it, once.
const FULL: &str = "too many open files";

fn open_files(gateway: &Gateway) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", gateway.pid()))?.count())
}

fn limit(gateway: &Gateway, files: usize) -> Result<()> {
    let pid = Pid::from_raw(gateway.pid().cast_signed());
    let files = Some(u64::try_from(files)?);
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    prlimit(pid, Resource::Nofile, limit)?;
    Ok(())
}

/// Processor time of the process so far, user and system.
pub(super) fn processor_time(gateway: &Gateway) -> Result<Duration> {
    /// `USER_HZ`, which is 100 on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{}/stat", gateway.pid()))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let [user, system] = [fields[11], fields[12]];
    Ok(TICK * (user.parse::<u32>()? + system.parse::<u32>()?))
}

/// A caller that says as much as it takes to be kept.
fn visitor(socket: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])?;
    Ok(stream)
}

/// Callers who take every descriptor must not cost the sessions, nor the processor; and the day that they leave, the
/// gateway must notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_of_open_files_sessions_stay() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config = GatewayConfig::new();
    let mut daemons = Vec::new();
    for name in ["one", "two", "three"] {
        let path = directory.path().join(name);
        let daemon = Daemon::builder(name).unix(path).start().await?;
        config = config.instance(InstanceConfig::new(name, &daemon.address().to_string()));
        daemons.push(daemon);
    }
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_attached().await?;
    let log = api.follow().await?;

    let held = open_files(&gateway)?;
    limit(&gateway, held + LEFT)?;
    let mut visitors = Vec::new();
    for _ in 0..LEFT * 4 {
        visitors.push(visitor(&gateway.socket())?);
    }
    poll_until("the limit", SOON, async || {
        Ok(gateway.log().contains(FULL).then_some(()))
    })
    .await?;

    let (began, before) = (Instant::now(), processor_time(&gateway)?);
    // Not a wait for anything: this is how long it is watched.
    tokio::time::sleep(WATCHED).await;
    let spent = processor_time(&gateway)? - before;
    let share = spent.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    eprintln!("{share:.1} % of a core at the limit");
    ensure!(share <= CPU_MAX, "{share:.1} % of a core");
    // Those who are in get what they came for.
    for daemon in &daemons {
        let cid = daemon.connect(ClientSpec::new("alice")).await?;
        log.wait_event("the client", SOON, |event| {
            let client = event
                .client
                .as_ref()
                .and_then(|client| client.r#ref.as_ref());
            event.kind == "client.established"
                && client.is_some_and(|r| r.instance == daemon.name() && r.cid == cid)
        })
        .await?;
        ensure!(
            daemon.sessions() == 1,
            "{}: {}",
            daemon.name(),
            daemon.sessions()
        );
    }
    let said = gateway.log().matches(FULL).count();
    ensure!(said == 1, "said {said} times: {}", gateway.log());

    let left = Instant::now();
    drop(visitors);
    Api::connect(&gateway).await?.instances().await?;
    let took = left.elapsed();
    eprintln!("answers {took:?} after they left");
    ensure!(took <= allowed(RECOVERY_MAX), "{took:?}");
    let (code, metrics) = gateway.http_get("/metrics").await?;
    ensure!(code == 200, "{code}");
    let failures = metrics.lines().find_map(|line| {
        let count = line.strip_prefix("ovfleet_accept_failures_total ")?;
        count.parse::<f64>().ok()
    });
    ensure!(
        failures.is_some_and(|failures| failures >= 1.0),
        "{metrics}"
    );
    poll_until("the end of it to be said", SOON, async || {
        Ok(gateway
            .log()
            .contains("connections are accepted again")
            .then_some(()))
    })
    .await?;
    ensure!(daemons.iter().all(|daemon| daemon.sessions() == 1));
    Ok(())
}

/// A limit that cannot hold the sessions must be found at the start, not on the worst day; one that callers could use
/// up must at least be named.
#[tokio::test]
async fn a_limit_that_is_too_low_is_found_at_the_start() -> Result<()> {
    let config = |open_files| {
        let instances = (0..40).map(|number| {
            let path = Path::new("/nonexistent").join(number.to_string());
            InstanceConfig::new(&format!("eu{number}"), &format!("unix:{}", path.display()))
        });
        instances.fold(
            GatewayConfig::new().open_files(open_files),
            GatewayConfig::instance,
        )
    };
    match config(64).start().await {
        Ok(_) => bail!("it started"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(
                said.contains("open files is 64") && said.contains("LimitNOFILE"),
                "{said}"
            );
        }
    }
    let gateway = config(1_000).start().await?;
    let said = gateway.log();
    ensure!(
        said.contains("open_files_max=1000") && said.contains("LimitNOFILE"),
        "{said}"
    );
    Ok(())
}
