//! Daemons that lie, babble or are none: each is named for what it is, and no other
//! instance notices.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use openvpn_simulator::{ClientSpec, Daemon};
use ovfleet_proto::v1::{self, ClientFilter, Condition, ListClientsRequest};
use ovfleet_tests::{
    Api, Client, GatewayConfig, InstanceConfig, Management, Server,
    api::{by_name, named, timed},
    poll_until,
    random::{allowed, soak},
};

use super::{
    costs::resident_kib,
    zoo::{Verdict, Wrong, zoo},
};

/// A new client is known as soon as its daemon says so; this covers a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(15);
/// A slot without a greeting counts as busy after 5 s; a million rows take longer on a busy machine.
const NAMED: Duration = Duration::from_secs(60);
/// A call that concerns healthy daemons only.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// A daemon that can be attached to has its manager by then.
const ATTACHED: Duration = Duration::from_secs(5);
/// The same where it may have broken the protocol before, and is dialled after up to 30 s.
const ATTACHED_AGAIN: Duration = Duration::from_secs(35);
/// By then the gateway has seen what it will see of a provocation.
const PROVOKED_AGAIN: Duration = Duration::from_secs(2);
/// Forty evil daemons are no reason to use more than this.
const MEMORY_MAX_KIB: u64 = 400 * 1024;

/// Lets clients connect before the gateway's eyes, where the daemon has eyes for either.
pub(super) async fn provoke(daemon: &Daemon) {
    // Some greet nobody, and some are past serving anybody.
    let patience = if soak() { ATTACHED_AGAIN } else { ATTACHED };
    let _ = tokio::time::timeout(patience, daemon.wait_attached()).await;
    let_clients_connect(daemon).await;
}

pub(super) async fn let_clients_connect(daemon: &Daemon) {
    for number in 0..5 {
        let client = ClientSpec::new(format!("provoker {number}"));
        let _ = daemon.connect(client).await;
    }
}

/// Waits until the gateway has seen through a daemon, as far as there is anything to see.
///
/// It is provoked again until then: a session that was not there yet, or was lost just before, has seen nothing of what
/// it was provoked to the first time.
pub(super) async fn judge(api: &mut Api, daemon: &Daemon, verdict: Verdict) -> Result<()> {
    let name = daemon.name();
    let mut last = None;
    let mut provoked = Instant::now();
    let judged = poll_until(&format!("the verdict on {name}"), NAMED, async || {
        let status = api.status(name).await?;
        let attached = status.condition() == Condition::Attached;
        let says = |words| status.reason.contains(words) || status.last_error.contains(words);
        let is_there = match verdict {
            Verdict::Named(words) => says(words),
            Verdict::Lived => attached,
            Verdict::Either => attached || !status.reason.is_empty(),
        };
        if !is_there && daemon.is_attached() && provoked.elapsed() >= PROVOKED_AGAIN {
            let_clients_connect(daemon).await;
            provoked = Instant::now();
        }
        last = Some(status);
        Ok(is_there.then_some(()))
    })
    .await;
    judged.with_context(|| format!("{last:#?}"))
}

/// One endless line, one flood, one greeting from another world: if any of them stalled or
/// grew the gateway, every healthy daemon of the fleet would go dark with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evil_daemons_harm_nobody() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let zoo = zoo();
    let good = Server::builder("good").start().await?;
    let _client = Client::builder(&good, "alice").connect().await?;
    let mut config = GatewayConfig::new().instance(InstanceConfig::of(&good));
    let mut daemons = Vec::new();
    for Wrong { name, evil, .. } in &zoo {
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
    futures_util::future::join_all(daemons.iter().map(provoke)).await;

    for (Wrong { verdict, .. }, daemon) in zoo.iter().zip(&daemons) {
        judge(&mut api, daemon, *verdict).await?;
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
        let took = asked.elapsed();
        ensure!(took <= allowed(UNDISTURBED), "{took:?}");
        ensure!(
            answer.clients.len() == 1 && answer.unreachable.is_empty(),
            "{answer:#?}"
        );
    }
    let _second = Client::builder(&good, "bob").connect().await?;
    api.wait_clients(by_name("bob"), 1, SOON).await?;

    let fields = api.status("fields").await?;
    ensure!(fields.quarantined_rows > 0, "{fields:#?}");
    let huge = api.status("huge-status").await?;
    ensure!(huge.truncated, "{huge:#?}");
    let request = ListClientsRequest {
        selector: named(&["not-utf8"]),
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
        zoo.len(),
        memory / 1024
    );
    ensure!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    Ok(())
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
