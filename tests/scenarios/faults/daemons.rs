//! Daemons that lie, babble or are none: each is named for what it is, and no other
//! instance notices.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon, Misbehaviour};
use ovfleet_proto::v1::{self, ClientFilter, Condition, ListClientsRequest};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, Management, Server,
    api::{by_name, named, timed},
    poll_until,
};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// A slot without a greeting counts as busy after 5 s.
const NAMED: Duration = Duration::from_secs(25);
/// A call that concerns healthy daemons only.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// Twenty evil daemons are no reason to use more than this.
const MEMORY_MAX_KIB: u64 = 400 * 1024;

/// What a kind of evil has to end in.
enum Verdict {
    /// In this condition, with a reason.
    Is(Condition),
    /// In any condition but ATTACHED, with a reason or a last error.
    IsNotAttached,
    /// It can be lived with, or not; what is shown of it must be well-formed.
    Either,
}

/// One endless line, one flood, one greeting from another world: if any of them stalled or
/// grew the gateway, every healthy daemon of the fleet would go dark with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evil_daemons_harm_nobody() -> Result<()> {
    use Misbehaviour as Evil;
    use Verdict::{Either, Is, IsNotAttached};
    let directory = tempfile::tempdir()?;
    let evils: Vec<(&str, Evil, Verdict)> = vec![
        (
            "ssh",
            Evil::Banner(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            IsNotAttached,
        ),
        (
            "http",
            Evil::Banner(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            IsNotAttached,
        ),
        ("mute", Evil::NeverGreets, Is(Condition::SlotBusy)),
        ("silent", Evil::SilentAfterGreeting, IsNotAttached),
        ("endless", Evil::EndlessLine, IsNotAttached),
        ("garbage", Evil::Garbage { bytes: 1 << 20 }, Either),
        (
            "early",
            Evil::EarlyClose { after_bytes: 300 },
            IsNotAttached,
        ),
        (
            "huge",
            Evil::HugeStatus { rows: 30_000 },
            Is(Condition::Attached),
        ),
        ("no-end", Evil::MissingEnd, IsNotAttached),
        ("two-ends", Evil::ExtraEnd, Is(Condition::Attached)),
        ("prompt", Evil::PasswordPromptMidSession, Either),
        ("unasked", Evil::UnaskedReplies, Either),
        ("cid-reuse", Evil::CidReuse, Is(Condition::Attached)),
        (
            "clock",
            Evil::NonsenseClock {
                jump_max: Duration::from_secs(86_400),
            },
            Is(Condition::Attached),
        ),
        ("names", Evil::InvalidNames, Is(Condition::Attached)),
        ("fields", Evil::WrongFieldCount, Is(Condition::Attached)),
        ("env", Evil::EndlessEnv, Either),
        (
            "flood",
            Evil::LogFlood {
                lines_per_second: 20_000,
            },
            Is(Condition::Attached),
        ),
    ];
    let good = Server::builder("good").start().await?;
    let _client = Client::builder(&good, "alice").connect().await?;
    let mut config = GatewayConfig::new().instance(InstanceConfig::of(&good));
    let mut daemons = Vec::new();
    for (name, evil, _) in &evils {
        let socket = directory.path().join(name);
        let daemon = Daemon::builder(*name)
            .unix(socket)
            .misbehave(evil.clone())
            .start()
            .await?;
        config = config.instance(InstanceConfig::new(name, &daemon.address().to_string()));
        daemons.push(daemon);
    }
    // Gateway first, clients second: their notifications are part of the trouble.
    let gateway = config.start().await?;
    let mut api = Api::connect(&gateway).await?;
    api.wait_condition("good", Condition::Attached, SOON)
        .await?;
    for daemon in &daemons {
        for number in 0..5 {
            // Some are past serving anybody.
            let _ = daemon
                .connect(ClientSpec::new(format!("client {number}")))
                .await;
        }
    }

    for (name, _, verdict) in &evils {
        let mut last = None;
        let judged = poll_until(&format!("the verdict on {name}"), NAMED, async || {
            let status = api.status(name).await?;
            let explained = !status.reason.is_empty() || !status.last_error.is_empty();
            let condition = status.condition();
            last = Some(status);
            Ok(match verdict {
                Is(Condition::Attached) => condition == Condition::Attached,
                Is(wanted) => condition == *wanted && explained,
                IsNotAttached => condition != Condition::Attached && explained,
                Either => true,
            }
            .then_some(()))
        })
        .await;
        judged.with_context(|| format!("{last:#?}"))?;
    }

    // The healthy one answers as before, in the middle of it.
    for _ in 0..10 {
        let asked = Instant::now();
        let request = ListClientsRequest {
            selector: named(&["good"]),
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let answer = api.fleet.list_clients(timed(request)).await?.into_inner();
        ensure!(asked.elapsed() <= UNDISTURBED, "{:?}", asked.elapsed());
        ensure!(
            answer.clients.len() == 1 && answer.unreachable.is_empty(),
            "{answer:#?}"
        );
    }
    let _second = Client::builder(&good, "bob").connect().await?;
    api.wait_clients(by_name("bob"), 1, SOON).await?;

    let fields = api.status("fields").await?;
    ensure!(fields.quarantined_rows > 0, "{fields:#?}");
    let huge = api.status("huge").await?;
    ensure!(huge.truncated, "{huge:#?}");
    let request = ListClientsRequest {
        selector: named(&["names"]),
        ..Default::default()
    };
    let names = api
        .fleet
        .list_clients(timed(request))
        .await?
        .into_inner()
        .clients;
    ensure!(!names.is_empty(), "no invalid names");
    for row in &names {
        ensure!(!row.common_name_raw.is_empty(), "{row:?}");
        ensure!(row.common_name.contains('\u{fffd}'), "{row:?}");
    }
    let memory = resident_kib(gateway.pid())?;
    eprintln!(
        "{} evil daemons: gateway RSS {} MiB",
        evils.len(),
        memory / 1024
    );
    ensure!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(number.parse()?)
}

/// A daemon that cannot be reached has to say why in its condition, and what would mend
/// it has to mend it.
#[tokio::test]
async fn unreachable_daemons_say_why() -> Result<()> {
    let locked = Server::builder("locked")
        .management(Management::Tcp)
        .password("right")
        .start()
        .await?;
    let open = Server::builder("open").password("right").start().await?;
    let directory = tempfile::tempdir()?;
    let wrong = directory.path().join("wrong");
    fs::write(&wrong, "wrong\n")?;
    fs::set_permissions(&wrong, Permissions::from_mode(0o600))?;
    let public = directory.path().join("public");
    fs::write(&public, "right\n")?;
    fs::set_permissions(&public, Permissions::from_mode(0o644))?;
    let missing = directory.path().join("missing.sock");

    let gateway = GatewayConfig::new()
        .instance(
            InstanceConfig::new("wrong", &locked.address())
                .set("password_file", wrong.display().to_string()),
        )
        .instance(
            InstanceConfig::new("public", &open.address())
                .set("password_file", public.display().to_string()),
        )
        .instance(InstanceConfig::new(
            "missing",
            &format!("unix:{}", missing.display()),
        ))
        .instance(InstanceConfig::new("refused", "tcp:127.0.0.1:9"))
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    for (name, condition) in [
        ("wrong", Condition::AuthFailed),
        ("public", Condition::AuthFailed),
        ("missing", Condition::Unreachable),
        ("refused", Condition::Unreachable),
    ] {
        let status = api.wait_condition(name, condition, SOON).await?;
        ensure!(!status.reason.is_empty(), "{status:?}");
    }
    // One wrong try per connection, and no further one until something changes.
    ensure!(
        open.log_count("MANAGEMENT: Client connected") <= 1,
        "the public file was used"
    );
    let list = api
        .fleet
        .list_clients(timed(ListClientsRequest::default()))
        .await?
        .into_inner();
    ensure!(list.unreachable.len() == 4, "{list:#?}");
    ensure!(
        list.unreachable.iter().all(|it| !it.message.is_empty()),
        "{list:#?}"
    );
    let summary = api
        .fleet
        .get_summary(timed(v1::GetSummaryRequest::default()))
        .await?;
    let totals = summary.into_inner().totals.context("no totals")?;
    ensure!(
        (totals.instances, totals.instances_attached) == (4, 0),
        "{totals:?}"
    );
    let instances = gateway.cli(&["instances"]).await?;
    ensure!(instances.stdout.contains("AUTH_FAILED"), "{instances:?}");

    // The right password in the file is noticed.
    fs::write(&wrong, "right\n")?;
    api.wait_condition("wrong", Condition::Attached, SOON)
        .await?;
    fs::set_permissions(&public, Permissions::from_mode(0o600))?;
    api.wait_condition("public", Condition::Attached, SOON)
        .await?;
    ensure!(api.clients(ClientFilter::default()).await?.is_empty());
    Ok(())
}
