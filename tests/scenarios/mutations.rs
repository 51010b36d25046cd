//! A thousand configurations and calls with something wrong in them: each is taken and does what it says, or is refused
//! with the place of the mistake and has no effect.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use openvpn_simulator::Daemon;
use ovfleet_proto::v1::{
    Condition, CreateInstanceRequest, DeleteInstanceRequest, DialIn, InstanceDefinition,
    ManagementTls, MuxSocket, PauseInstanceRequest, ReloadRequest, ReloadResponse,
    UpdateInstanceRequest,
};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig,
    api::{reason, timed},
    poll_until,
    random::{Random, soak},
};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Mutants of each kind, in the gate and in soak; both tests of a gate together make a thousand.
const MUTANTS: [usize; 2] = [500, 3_000];
/// Daemons of the fleet that must not notice.
const DAEMONS: usize = 5;
const SOON: Duration = Duration::from_secs(20);

/// What an operator could get wrong in a text.
const TEXTS: [&str; 18] = [
    "",
    " ",
    "a b",
    "eu/1",
    "i0",
    "i1",
    "mine",
    "new\r\nline",
    "nul\0",
    "\u{1b}[2J",
    "é",
    "{name}",
    "{nmae}",
    "unix:relative",
    "unix:/nonexistent/socket",
    "tcp:127.0.0.1:0",
    "ftp:host:1",
    "listen-unix:/nonexistent/socket",
];

struct Lab {
    gateway: Gateway,
    api: Api,
    daemons: Vec<Daemon>,
    random: Random,
    _directory: TempDir,
}

/// One instance as a change of others must leave it: uid, etag, sessions.
type Identity = (String, String, u64);
type Identities = BTreeMap<String, Identity>;

impl Lab {
    async fn start(what: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let start = (0..=DAEMONS).map(|number| {
            let name = format!("i{number}");
            let path = directory.path().join(&name);
            Daemon::builder(name).unix(path).start()
        });
        let daemons = try_join_all(start).await?;
        let mut defaults = toml::Table::new();
        defaults.insert("status_interval".to_owned(), "60s".into());
        let mut discover = toml::Table::new();
        let pattern = directory.path().join("found-*").display().to_string();
        discover.insert("glob".to_owned(), pattern.into());
        let config = GatewayConfig::new()
            .set("watch_config", false)
            .set("defaults", defaults)
            .set("discover", vec![toml::Value::from(discover)]);
        let config = daemons[..DAEMONS].iter().fold(config, |config, daemon| {
            let address = daemon.address().to_string();
            let instance = InstanceConfig::new(daemon.name(), &address).label("region", "eu");
            config.instance(instance.set("hold", "release"))
        });
        let gateway = config.start().await?;
        let mut api = Api::connect(&gateway).await?;
        api.wait_attached().await?;
        Ok(Self {
            gateway,
            api,
            daemons,
            random: Random::seeded(what),
            _directory: directory,
        })
    }

    async fn identities(&mut self) -> Result<Identities> {
        let instances = self.api.instances().await?.into_iter();
        Ok(instances
            .map(|instance| {
                let name = instance.spec.unwrap_or_default().name;
                let sessions = instance.status.unwrap_or_default().sessions;
                (name, (instance.uid, instance.etag, sessions))
            })
            .collect())
    }

    /// Waits until those that can be reached are, so that nothing changes by itself any more.
    async fn settle(&mut self) -> Result<Identities> {
        let daemons: Vec<_> = self
            .daemons
            .iter()
            .map(|it| it.address().to_string())
            .collect();
        poll_until("the sessions to settle", SOON, async || {
            let instances = self.api.instances().await?.into_iter();
            let is_settled = instances.into_iter().all(|instance| {
                let address = instance.spec.unwrap_or_default().address;
                let condition = instance.status.unwrap_or_default().condition();
                !daemons.contains(&address)
                    || matches!(condition, Condition::Attached | Condition::Paused)
            });
            Ok(is_settled.then_some(()))
        })
        .await?;
        self.identities().await
    }

    async fn reload(&mut self, force: bool) -> Result<ReloadResponse, Status> {
        let request = ReloadRequest {
            validate_only: false,
            force,
            ..ReloadRequest::default()
        };
        let answer = self.api.inventory.reload(timed(request)).await?;
        Ok(answer.into_inner())
    }
}

/// A wrong configuration that is half in force is the fleet that nobody asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutated_configuration_works_or_has_no_effect() -> Result<()> {
    let mut lab = Lab::start("mutated configurations").await?;
    let path: PathBuf = lab.gateway.config_path();
    let good = fs::read_to_string(&path)?;
    let mut before = lab.settle().await?;
    let (mut taken, mut refused) = (0, 0);
    let mutants = MUTANTS[usize::from(soak())];
    for number in 0..mutants {
        let mutant = mutated_text(&good, &mut lab.random)?;
        let force = lab.random.below(2) == 0;
        fs::write(&path, &mutant)?;
        let shown = || format!("mutant {number}:\n{}", String::from_utf8_lossy(&mutant));
        match lab.reload(force).await {
            Err(status) => {
                refused += 1;
                check_refusal(&status).with_context(shown)?;
                let after = lab.identities().await?;
                ensure!(before == after, "{before:?}\n{after:?}\n{}", shown());
            }
            Ok(response) => {
                taken += 1;
                let after = lab.identities().await?;
                check_effect(&before, &after, &response).with_context(shown)?;
                fs::write(&path, &good)?;
                lab.reload(true).await.with_context(shown)?;
                before = lab.settle().await?;
                ensure!(before.len() == DAEMONS, "{before:?}\n{}", shown());
            }
        }
    }
    println!("{mutants} configurations: {taken} taken, {refused} refused");
    ensure!(taken > 0 && refused > mutants / 4, "{taken} {refused}");
    Ok(())
}

/// Every mistake has its file, and its line where it is in one; what is no mistake wants force.
fn check_refusal(status: &Status) -> Result<()> {
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    match reason(status).as_deref() {
        Some("NEEDS_FORCE") => Ok(()),
        Some("CONFIG_INVALID") => {
            let failure = status
                .get_details_precondition_failure()
                .context("no details")?;
            ensure!(!failure.violations.is_empty(), "{status:?}");
            for violation in &failure.violations {
                let (file, line) = violation.subject.rsplit_once(':').unwrap_or_default();
                let is_of_file = violation.description.contains("cannot read the file");
                let has_line = file.ends_with("ovfleet.toml") && line.parse::<u64>().is_ok();
                ensure!(is_of_file || has_line, "{violation:?}");
                ensure!(!violation.description.is_empty(), "{violation:?}");
            }
            Ok(())
        }
        _ => bail!("{status:?}"),
    }
}

/// The difference that was told is the difference there is.
fn check_effect(before: &Identities, after: &Identities, told: &ReloadResponse) -> Result<()> {
    let mut names: Vec<_> = before.keys().chain(&told.added).cloned().collect();
    names.retain(|name| !told.removed.contains(name));
    names.sort();
    ensure!(names.iter().eq(after.keys()), "{told:?}\n{after:?}");
    let mut untouched = 0;
    for (name, (uid, etag, sessions)) in before {
        let Some(now) = after.get(name) else { continue };
        match told.changed.iter().find(|change| change.name == *name) {
            None => {
                untouched += 1;
                ensure!(
                    (uid, etag, sessions) == (&now.0, &now.1, &now.2),
                    "{name}: {told:?}"
                );
            }
            Some(change) => {
                ensure!(*uid == now.0, "{name}: {told:?}");
                ensure!(change.reconnects || *sessions == now.2, "{name}: {told:?}");
            }
        }
    }
    ensure!(untouched == told.untouched, "{told:?}");
    Ok(())
}

fn mutated_text(good: &str, random: &mut Random) -> Result<Vec<u8>> {
    let mut root: toml::Table = toml::from_str(good)?;
    for _ in 0..=random.below(3) {
        mutate_table(&mut root, random, 0);
    }
    let mut text = toml::to_string(&root)?.into_bytes();
    match random.below(8) {
        // An editor that was interrupted.
        0 => text.truncate(random.index(text.len() + 1)),
        1 => {
            let at = random.index(text.len() + 1);
            let junk: &[u8] = [
                &b"\0"[..],
                b"\xff",
                b"\r",
                b"[[",
                b"]",
                b"\"",
                b"=",
                b"{{}}",
            ][random.index(8)];
            text.splice(at..at, junk.iter().copied());
        }
        2 => {
            let mut lines: Vec<_> = text
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            let line = random.index(lines.len());
            match random.below(2) {
                0 => drop(lines.remove(line)),
                _ => lines.insert(line, lines[line].clone()),
            }
            text = lines.join(&b'\n');
        }
        3 => text.extend(format!("deep = {}{}", "[".repeat(200), "]".repeat(200)).bytes()),
        _ => {}
    }
    Ok(text)
}

/// Changes one thing somewhere below a table.
fn mutate_table(table: &mut toml::Table, random: &mut Random, depth: usize) {
    let keys: Vec<String> = table.keys().cloned().collect();
    let Some(key) = pick(&keys, random) else {
        table.insert("stray".to_owned(), true.into());
        return;
    };
    // Where it listens takes a restart anyway.
    if depth == 0 && key == "listen" {
        return;
    }
    match random.below(7) {
        0 => drop(table.remove(&key)),
        1 => {
            if let Some(value) = table.remove(&key) {
                let names = [
                    "nmae", "name", "address", "hold", "tls", "mux", "dial_in", "instance",
                ];
                let name = names[random.index(8)];
                table.insert(name.to_owned(), value);
            }
        }
        2 => drop(table.insert(key, wrong_value(random))),
        _ => {
            if let Some(value) = table.get_mut(&key) {
                mutate_value(value, random, depth);
            }
        }
    }
}

fn mutate_value(value: &mut toml::Value, random: &mut Random, depth: usize) {
    match value {
        toml::Value::Table(table) => mutate_table(table, random, depth + 1),
        toml::Value::Array(array) if !array.is_empty() => {
            let at = random.index(array.len());
            match random.below(4) {
                0 => drop(array.remove(at)),
                1 => array.push(array[at].clone()),
                _ => mutate_value(&mut array[at], random, depth + 1),
            }
        }
        toml::Value::String(text) if random.below(3) == 0 => {
            let at = text.char_indices().map(|(at, _)| at).nth(random.index(8));
            let junk = ["\r\n", "\0", "/", "{", " ", "\u{202e}", "::"];
            text.insert_str(at.unwrap_or_default(), junk[random.index(7)]);
        }
        other => *other = wrong_value(random),
    }
}

fn wrong_value(random: &mut Random) -> toml::Value {
    match random.below(6) {
        0 => toml::Value::Boolean(false),
        1 => toml::Value::Integer(i64::MAX),
        2 => toml::Value::Float(f64::NAN),
        3 => toml::Value::Array(Vec::new()),
        4 => toml::Value::Table(toml::Table::new()),
        _ => toml::Value::String(wrong_text(random)),
    }
}

fn wrong_text(random: &mut Random) -> String {
    if random.once_in(20) {
        return "x".repeat(300);
    }
    (*random.pick(&TEXTS)).to_owned()
}

fn pick(keys: &[String], random: &mut Random) -> Option<String> {
    (!keys.is_empty()).then(|| random.pick(keys).clone())
}

/// A call that is refused and does something all the same is one that nobody will look into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutated_call_works_or_has_no_effect() -> Result<()> {
    let mut lab = Lab::start("mutated calls").await?;
    let mine = InstanceDefinition {
        name: "mine".to_owned(),
        address: lab.daemons[DAEMONS].address().to_string(),
        ..InstanceDefinition::default()
    };
    let create = |instance: &InstanceDefinition| CreateInstanceRequest {
        instance: Some(instance.clone()),
        ..CreateInstanceRequest::default()
    };
    lab.api
        .inventory
        .create_instance(timed(create(&mine)))
        .await?;
    let mut before = lab.settle().await?;
    let (mut taken, mut refused) = (0, 0);
    let mutants = MUTANTS[usize::from(soak())];
    for number in 0..mutants {
        let call = Call::mutated(&mine, &before, &mut lab.random);
        let shown = || format!("call {number}: {call:?}");
        let answer = call.send(&mut lab.api).await;
        let after = lab.identities().await?;
        match answer {
            Err(status) => {
                refused += 1;
                check_call_refusal(&status, &call).with_context(shown)?;
                ensure!(before == after, "{before:?}\n{after:?}\n{}", shown());
            }
            Ok(()) => {
                taken += 1;
                for (name, identity) in &before {
                    let is_meant = !call.is_validation() && call.name() == *name;
                    ensure!(
                        is_meant || after.get(name) == Some(identity),
                        "{name}\n{}",
                        shown()
                    );
                }
                let stranger = after.keys().find(|name| !before.contains_key(*name));
                let is_meant = |name: &String| call.name() == *name && !call.is_validation();
                ensure!(stranger.is_none_or(is_meant), "{after:?}\n{}", shown());
                // As it was, for the next one.
                for name in after.keys().filter(|name| !before.contains_key(*name)) {
                    let delete = DeleteInstanceRequest {
                        name: name.clone(),
                        force: true,
                        ..DeleteInstanceRequest::default()
                    };
                    lab.api.inventory.delete_instance(timed(delete)).await?;
                }
                if !call.is_validation() {
                    let reset = UpdateInstanceRequest {
                        instance: Some(mine.clone()),
                        update_mask: Some(prost_types::FieldMask {
                            paths: vec!["*".to_owned()],
                        }),
                        force: true,
                        ..UpdateInstanceRequest::default()
                    };
                    if after.contains_key("mine") {
                        lab.api.inventory.update_instance(timed(reset)).await?;
                    } else {
                        lab.api
                            .inventory
                            .create_instance(timed(create(&mine)))
                            .await?;
                    }
                }
                before = lab.settle().await?;
                ensure!(before.len() == DAEMONS + 1, "{before:?}\n{}", shown());
            }
        }
    }
    println!("{mutants} calls: {taken} taken, {refused} refused");
    ensure!(taken > 0 && refused > mutants / 4, "{taken} {refused}");
    Ok(())
}

#[derive(Clone, Debug)]
enum Call {
    Create(CreateInstanceRequest),
    Update(UpdateInstanceRequest),
    Delete(DeleteInstanceRequest),
    Pause(PauseInstanceRequest),
}

impl Call {
    fn mutated(mine: &InstanceDefinition, now: &Identities, random: &mut Random) -> Self {
        let names: Vec<String> = now.keys().cloned().collect();
        let name = match random.below(3) {
            0 => wrong_text(random),
            1 => pick(&names, random).unwrap_or_default(),
            _ => "new".to_owned(),
        };
        let etag = match random.below(4) {
            0 => wrong_text(random),
            1 => now
                .get(&name)
                .map(|identity| identity.1.clone())
                .unwrap_or_default(),
            _ => String::new(),
        };
        let validate_only = random.below(5) == 0;
        match random.below(8) {
            0 => Self::Delete(DeleteInstanceRequest {
                name,
                etag,
                validate_only,
                ..DeleteInstanceRequest::default()
            }),
            // A pause changes an instance of the file too, and is wrong in its reason here.
            1 => Self::Pause(PauseInstanceRequest {
                name,
                etag,
                reason: "x\n".to_owned(),
                ..PauseInstanceRequest::default()
            }),
            2..=4 => {
                let mut instance = InstanceDefinition {
                    name,
                    address: "unix:/nonexistent/new".to_owned(),
                    ..InstanceDefinition::default()
                };
                (0..random.below(3)).for_each(|_| mutate_definition(&mut instance, random));
                Self::Create(CreateInstanceRequest {
                    instance: Some(instance),
                    validate_only,
                    ..CreateInstanceRequest::default()
                })
            }
            _ => {
                let mut instance = mine.clone();
                (0..=random.below(2)).for_each(|_| mutate_definition(&mut instance, random));
                let paths = (0..random.below(3)).map(|_| match random.below(4) {
                    0 => wrong_text(random),
                    1 => "*".to_owned(),
                    2 => "tls".to_owned(),
                    _ => "labels.region".to_owned(),
                });
                Self::Update(UpdateInstanceRequest {
                    update_mask: Some(prost_types::FieldMask {
                        paths: paths.collect(),
                    }),
                    etag: match instance.name.as_str() {
                        "mine" if random.below(2) == 0 => now["mine"].1.clone(),
                        _ => etag,
                    },
                    instance: Some(instance),
                    validate_only,
                    ..UpdateInstanceRequest::default()
                })
            }
        }
    }

    /// The instance that it is about.
    fn name(&self) -> String {
        let of = |instance: &Option<InstanceDefinition>| instance.clone().unwrap_or_default().name;
        match self {
            Self::Create(request) => of(&request.instance),
            Self::Update(request) => of(&request.instance),
            Self::Delete(request) => request.name.clone(),
            Self::Pause(request) => request.name.clone(),
        }
    }

    fn is_validation(&self) -> bool {
        match self {
            Self::Create(request) => request.validate_only,
            Self::Update(request) => request.validate_only,
            Self::Delete(request) => request.validate_only,
            Self::Pause(request) => request.validate_only,
        }
    }

    async fn send(&self, api: &mut Api) -> Result<(), Status> {
        let service = &mut api.inventory;
        match self.clone() {
            Self::Create(request) => service.create_instance(timed(request)).await.map(drop),
            Self::Update(request) => service.update_instance(timed(request)).await.map(drop),
            Self::Delete(request) => service.delete_instance(timed(request)).await.map(drop),
            Self::Pause(request) => service.pause_instance(timed(request)).await.map(drop),
        }
    }
}

fn check_call_refusal(status: &Status, call: &Call) -> Result<()> {
    let reason = reason(status).context("no reason")?;
    let reason = reason.as_str();
    match status.code() {
        Code::InvalidArgument => {
            let bad = status.get_details_bad_request().context("no details")?;
            let roots = ["instance", "update_mask", "name", "reason"];
            ensure!(!bad.field_violations.is_empty(), "{status:?}");
            for violation in &bad.field_violations {
                let root = violation.field.split('.').next().unwrap_or_default();
                ensure!(roots.contains(&root), "{violation:?}");
                ensure!(!violation.description.is_empty(), "{violation:?}");
            }
        }
        Code::AlreadyExists => ensure!(["NAME_TAKEN", "ADDRESS_TAKEN"].contains(&reason)),
        Code::NotFound => ensure!(reason == "INSTANCE_UNKNOWN"),
        Code::Aborted => ensure!(reason == "ETAG_MISMATCH"),
        Code::FailedPrecondition => {
            ensure!(["INSTANCE_READ_ONLY", "NEEDS_FORCE"].contains(&reason))
        }
        _ => bail!("{call:?}: {status:?}"),
    }
    Ok(())
}

fn mutate_definition(instance: &mut InstanceDefinition, random: &mut Random) {
    let text = wrong_text(random);
    let span = prost_types::Duration {
        seconds: [-1, 0, 5, i64::MAX][random.index(4)],
        nanos: [0, 1, -1, 1_000_000][random.index(4)],
    };
    match random.below(14) {
        0 => instance.name = text,
        1 | 2 => instance.address = text,
        3 => drop(instance.labels.insert(text.clone(), text)),
        4 => instance.password_file = text,
        5 => instance.hold = i32::try_from(random.below(5)).unwrap_or_default(),
        6 => instance.disconnect = i32::try_from(random.below(2) * 99).unwrap_or_default(),
        7 => instance.bytecount = Some(span),
        8 => instance.status_interval = Some(span),
        9 => instance.clients_max = [1, u32::MAX][random.index(2)],
        10 => instance.unresponsive_reconnect = Some(span),
        11 => {
            instance.dial_in = Some(DialIn {
                peer_user: text,
                ..DialIn::default()
            });
        }
        12 => {
            instance.tls = Some(ManagementTls {
                pin: text,
                ..ManagementTls::default()
            });
        }
        _ => instance.mux.push(MuxSocket {
            address: text.clone(),
            policy: text,
            ..MuxSocket::default()
        }),
    }
}
