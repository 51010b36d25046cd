//! The task that changes which instances there are.

use std::{collections::BTreeMap, sync::Arc};

use openvpn_fleet::{Condition, Detail, Fleet, InstanceName, InstanceSource, failpoint};
use openvpn_session::{DisconnectPolicy, SessionConfig};
use ovfleet_proto::v1::InstanceDefinition;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::{
    Done, Inventory, InventoryError, Order, Plan, REQUESTS_MAX, ReloadCause, Reloads, Request,
    View, Violation,
    compose::{Composition, compose, leave_out_virtual_sockets},
    files,
    plan::harm_of,
    runtime::{Definition, Entry, Runtime},
};
use crate::{
    config::{Clash, Config, ConfigErrors, ConfigFiles, Holder, Place},
    convert,
    discover::{Discovery, Scan, Sources},
    mux::MuxSockets,
    state::{CallKey, Registry, WriteError},
};

/// Most mistakes of a configuration in one event.
const MISTAKES_TOLD: usize = 20;

/// Changes which instances there are, one change after the other.
pub(crate) struct Keeper {
    fleet: Fleet,
    mux: MuxSockets,
    /// What the process was started with: some of it takes a restart.
    started: Config,
    /// What is in force of the files.
    config: Config,
    discovery: Discovery,
    /// What discovery found last.
    scan: Scan,
    registry: Registry,
    /// What is in force of the registry.
    runtime: Runtime,
    /// Everything together: what the fleet has.
    present: Composition,
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<View>>,
    reloads: watch::Sender<Reloads>,
    /// What is watched of the files.
    watched: watch::Sender<Option<ConfigFiles>>,
    /// Kept for the task that watches the files.
    inventory: Inventory,
}

impl Keeper {
    /// Gives `fleet` the instances of the configuration, of its discovery sources and of the registry.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub(crate) async fn begin(
        fleet: Fleet,
        mux: MuxSockets,
        config: Config,
        registry: Registry,
    ) -> Result<(Self, Inventory), WriteError> {
        let runtime = Runtime::load(&registry, &config.defaults).await?;
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let (view, seen) = watch::channel(Arc::default());
        let (reloads, counted) = watch::channel(Reloads::default());
        let inventory = Inventory {
            requests,
            view: seen,
            reloads: counted,
        };
        let sources = Sources::new(config.discover.clone(), &Sources::default());
        let mut keeper = Self {
            mux,
            fleet,
            started: config.clone(),
            watched: watch::Sender::new(watched_files(&config)),
            config,
            discovery: Discovery::new(sources),
            scan: Scan::default(),
            registry,
            runtime,
            present: Composition::default(),
            requests: received,
            view,
            reloads,
            inventory: inventory.clone(),
        };
        keeper.look().await;
        Ok((keeper, inventory))
    }

    /// Carries out orders and follows discovery, until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let watching = files::watch(self.watched.subscribe(), self.inventory.clone());
        let keeping = async {
            loop {
                tokio::select! {
                    Some(request) = self.requests.recv() => {
                        let done = self.carry_out(request.order, request.call).await;
                        // Whoever asked may have gone.
                        let _ = request.reply.send(done);
                    }
                    () = self.discovery.changed() => self.look().await,
                }
            }
        };
        let never = async {
            tokio::join!(keeping, watching);
        };
        stop.run_until_cancelled(never).await;
        self.mux.close().await;
    }

    async fn carry_out(
        &mut self,
        order: Order,
        call: Option<CallKey>,
    ) -> Result<Done, InventoryError> {
        match order {
            Order::Create {
                definition,
                validate_only,
            } => self.create(*definition, validate_only, call).await,
            Order::Update {
                definition,
                mask,
                etag,
                validate_only,
                force,
            } => {
                let name = name_of(&definition)?;
                self.check_etag_of_definition(&name, &etag)?;
                let before = self.defined(&name)?;
                let merged = convert::definition::merge(before, *definition, &mask)?;
                let built = self.build(merged).await?;
                let address = self.new_address(&name, &built);
                let changed = Entry {
                    definition: Some(built),
                    ..self.runtime.entry(&name)
                };
                let done = self
                    .edit(&name, changed, force, validate_only, call)
                    .await?;
                Ok(Done {
                    new_address: address,
                    ..done
                })
            }
            Order::Delete {
                name,
                etag,
                validate_only,
                force,
            } => {
                self.check_etag_of_definition(&name, &etag)?;
                self.defined(&name)?;
                let was_set_aside = self.is_set_aside(&name);
                // A pause of what the file or discovery defines is not this one's.
                let source = self.source(&name);
                let is_elsewhere = source.is_some_and(|source| source != InstanceSource::Api);
                let pause = self.runtime.entry(&name).pause;
                let left = Entry {
                    definition: None,
                    pause: pause.filter(|_| is_elsewhere),
                };
                let done = self.edit(&name, left, force, validate_only, call).await?;
                Ok(Done {
                    was_set_aside,
                    ..done
                })
            }
            Order::Pause {
                name,
                etag,
                pause,
                validate_only,
                force,
            } => {
                self.check_etag(&name, &etag)?;
                self.pause(name, pause, validate_only, force, call).await
            }
            Order::Reload {
                cause,
                validate_only,
                force,
            } => self.reload(&cause, validate_only, force).await,
        }
    }

    async fn create(
        &mut self,
        definition: InstanceDefinition,
        validate_only: bool,
        call: Option<CallKey>,
    ) -> Result<Done, InventoryError> {
        let built = self.build(definition).await?;
        let name = name_of(&built.message)?;
        // One that is set aside has its name too, until it is deleted.
        let aside = self.runtime.entry(&name).definition;
        let present = self.present.instances.get(&name);
        let place = present.map(|instance| instance.place.clone());
        if let Some(place) = place.or_else(|| aside.map(|_| Place::api())) {
            let clash = Clash::Name(Holder { name, place });
            return Err(InventoryError::Taken { clash });
        }
        let address = self.new_address(&name, &built);
        let entry = Entry {
            definition: Some(built),
            // One that was paused and went away comes back in service.
            pause: None,
        };
        let done = self.edit(&name, entry, false, validate_only, call).await?;
        Ok(Done {
            new_address: address,
            ..done
        })
    }

    async fn pause(
        &mut self,
        name: InstanceName,
        pause: Option<String>,
        validate_only: bool,
        force: bool,
        call: Option<CallKey>,
    ) -> Result<Done, InventoryError> {
        let entry = self.runtime.entry(&name);
        let Some(instance) = self.present.instances.get(&name) else {
            // Paused, and gone since: the pause can still be taken back.
            if pause.is_some() || entry.pause.is_none() {
                return Err(InventoryError::Unknown(name.to_string()));
            }
            let entry = Entry { pause, ..entry };
            return self.edit(&name, entry, force, validate_only, call).await;
        };
        if pause.is_some() && entry.pause.is_none() && !force {
            // Also where there is no session now: a daemon that dials in ends when it finds nobody.
            if let Some(harm) = harm_of(&instance.spec.session, &name) {
                return Err(InventoryError::NeedsForce {
                    reasons: vec![harm],
                    plan: None,
                });
            }
        }
        // The first reason stays: it says since when and by whom.
        let pause = match (entry.pause.clone(), pause) {
            (Some(before), Some(_)) => Some(before),
            (_, pause) => pause,
        };
        let entry = Entry { pause, ..entry };
        self.edit(&name, entry, true, validate_only, call).await
    }

    /// Makes `entry` what is said of a name: checks what comes of it, keeps it, and makes it true.
    async fn edit(
        &mut self,
        name: &InstanceName,
        entry: Entry,
        force: bool,
        validate_only: bool,
        call: Option<CallKey>,
    ) -> Result<Done, InventoryError> {
        let (now, before) = (entry.registered(), self.runtime.entry(name).registered());
        let runtime = self.runtime.with(name.clone(), entry)?;
        let wanted = self.compose(&runtime, Some(name));
        // One that is set aside can be changed as it is; what it did not want before, it does not get either.
        let known = self.present.clashes(name);
        let mut clashes = wanted.clashes(name).iter();
        if let Some(clash) = clashes.find(|clash| !known.contains(clash)) {
            let clash = clash.clone();
            return Err(InventoryError::Taken { clash });
        }
        let plan = Plan::new(&self.present.instances, &wanted.instances, &self.fleet);
        if !force && !plan.harms.is_empty() {
            return Err(InventoryError::NeedsForce {
                reasons: plan.harms,
                plan: None,
            });
        }
        if !validate_only {
            if now != before {
                let name = name.as_str();
                self.registry.put(name, now, before, call).await?;
                failpoint::hit("inventory.after_write");
            }
            self.runtime = runtime;
            self.apply(wanted).await;
        }
        Ok(self.done(Some(name), Plan::default()))
    }

    async fn reload(
        &mut self,
        cause: &ReloadCause,
        validate_only: bool,
        force: bool,
    ) -> Result<Done, InventoryError> {
        let Some(files) = self.config.files.clone() else {
            return Err(InventoryError::NoFile);
        };
        let config = match load(&files).await {
            Ok(config) => config,
            Err((errors, read)) => {
                if !validate_only {
                    let mistakes = errors.as_slice().iter().take(MISTAKES_TOLD);
                    let mistakes: Vec<_> = mistakes.map(ToString::to_string).collect();
                    self.report_refusal(cause, &mistakes.join("; "));
                    self.note_read(read);
                }
                return Err(InventoryError::Config(errors));
            }
        };
        let runtime = self.runtime.with_defaults(&config.defaults);
        let mut sources = Sources::new(config.discover.clone(), self.discovery.sources());
        let (mut sources, mut scan) = blocking(move || {
            let scan = sources.scan();
            (sources, scan)
        })
        .await;
        let (configured, present) = (&config.instances, &self.present);
        let left_out = leave_out_virtual_sockets(&mut scan, configured, &runtime, present);
        sources.forget(&left_out);
        let wanted = compose(configured, &scan, &runtime, present, None);
        let mut plan = Plan::new(&self.present.instances, &wanted.instances, &self.fleet);
        plan.takes_restart = config.takes_restart(&self.started);
        plan.problems = problems(&config).await;
        plan.problems.extend(wanted.complaints.iter().cloned());
        plan.set_aside.clone_from(&wanted.set_aside);
        if validate_only {
            let definitions = definitions(&runtime, &plan);
            return Ok(Done {
                set_aside: definitions,
                ..self.done(None, plan)
            });
        }
        let reasons = plan.needs_force();
        if !force && !reasons.is_empty() {
            let plan = Some(Box::new(plan));
            let error = InventoryError::NeedsForce { reasons, plan };
            self.report_refusal(cause, &format!("{error} (`ovfleet reload --force`)"));
            self.note_read(config.files.unwrap_or(files));
            return Err(error);
        }
        let retried = self.retry_passwords();
        self.watched.send_replace(watched_files(&config));
        self.config = config;
        self.runtime = runtime;
        self.scan = scan;
        self.discovery.set_sources(sources);
        self.apply(wanted).await;
        self.report(cause, &plan, retried);
        let definitions = definitions(&self.runtime, &plan);
        Ok(Done {
            set_aside: definitions,
            ..self.done(None, plan)
        })
    }

    /// Notes what was read and not taken: it is read again when it changes.
    fn note_read(&self, files: ConfigFiles) {
        if self.config.watch_config {
            self.watched.send_replace(Some(files));
        }
    }

    /// Looks at what discovery finds, and makes it true.
    async fn look(&mut self) {
        let sources = Discovery::new(Sources::default());
        let mut discovery = std::mem::replace(&mut self.discovery, sources);
        (self.discovery, self.scan) = blocking(move || {
            let scan = discovery.scan();
            (discovery, scan)
        })
        .await;
        let (configured, present) = (&self.config.instances, &self.present);
        let scan = &mut self.scan;
        let left_out = leave_out_virtual_sockets(scan, configured, &self.runtime, present);
        self.discovery.forget(&left_out);
        let wanted = self.compose(&self.runtime, None);
        self.apply(wanted).await;
    }

    /// What `runtime` makes of the instances there are, `changed` the last.
    fn compose(&self, runtime: &Runtime, changed: Option<&InstanceName>) -> Composition {
        let (configured, scan) = (&self.config.instances, &self.scan);
        compose(configured, scan, runtime, &self.present, changed)
    }

    /// Makes `wanted` the instances there are, and lets their virtual sockets follow.
    async fn apply(&mut self, wanted: Composition) {
        for complaint in wanted.complaints.difference(&self.present.complaints) {
            tracing::warn!("discovery: {complaint}");
        }
        for aside in &wanted.set_aside {
            if !self.present.set_aside.contains(aside) {
                tracing::warn!(
                    instance = %aside.name,
                    reason = %aside.reason,
                    "an instance that the API defines is set aside: delete it there, or make room for it"
                );
            }
        }
        let specs = wanted.instances.values();
        let specs = specs.map(|instance| instance.spec.clone()).collect();
        if let Err(error) = self.fleet.set_instances(specs).await {
            // Names are the keys of a map.
            tracing::error!(%error, "the instances are left as they were: a bug of ours");
            return;
        }
        let sockets = wanted.instances.iter();
        let sockets = sockets.map(|(name, instance)| (name.clone(), instance.mux.clone()));
        self.mux.set(sockets.collect()).await;
        self.present = wanted;
        self.view.send_replace(Arc::new(self.view_now()));
    }

    fn view_now(&self) -> View {
        let instances = self.present.instances.iter();
        let of_api = self.runtime.definitions();
        View {
            places: instances
                .map(|(name, instance)| (name.clone(), instance.place.to_string()))
                .collect(),
            definitions: of_api
                .filter(|(name, _)| self.source(name) == Some(InstanceSource::Api))
                .map(|(name, definition)| (name.clone(), definition.message.clone()))
                .collect(),
        }
    }

    /// Instances whose password was refused may try again: somebody may have put it right.
    fn retry_passwords(&self) -> usize {
        let refused = self.fleet.instances().into_iter().filter(|instance| {
            instance.spec().session.disconnect == DisconnectPolicy::Harmless
                && instance.with_table(|table| table.status().condition == Condition::AuthFailed)
        });
        refused.inspect(|instance| instance.retry_now()).count()
    }

    fn report(&self, cause: &ReloadCause, plan: &Plan, passwords_tried: usize) {
        self.reloads.send_modify(|reloads| {
            reloads.taken += 1;
            reloads.is_last_refused = false;
        });
        let summary = plan.summary();
        for problem in &plan.problems {
            tracing::warn!("{problem}");
        }
        tracing::info!(%cause, summary, passwords_tried, "configuration read again");
        if plan.is_empty()
            && plan.takes_restart.is_empty()
            && matches!(cause, ReloadCause::FileChange)
        {
            return;
        }
        let message = format!("configuration read again for {cause}: {summary}");
        self.fleet.record(Detail::GatewayConfig { message });
    }

    fn report_refusal(&self, cause: &ReloadCause, reason: &str) {
        self.reloads.send_modify(|reloads| {
            reloads.refused += 1;
            reloads.is_last_refused = true;
        });
        tracing::error!(%cause, reason, "configuration not read again: the old one stays in force");
        let message = format!(
            "configuration not read again for {cause}, the old one stays in force: {reason}"
        );
        self.fleet.record(Detail::GatewayConfig { message });
    }

    /// What a definition amounts to, files that it names included.
    async fn build(&self, message: InstanceDefinition) -> Result<Definition, InventoryError> {
        let defaults = self.config.defaults.clone();
        blocking(move || {
            let instance = convert::definition::build(&message, &defaults);
            let instance = instance.map_err(InventoryError::Invalid)?;
            let problems = convert::definition::problems(&instance);
            if !problems.is_empty() {
                return Err(InventoryError::Invalid(problems));
            }
            let built = Ok(instance);
            Ok(Definition { message, built })
        })
        .await
    }

    /// What the API says of a name, if it does.
    fn defined(&self, name: &InstanceName) -> Result<InstanceDefinition, InventoryError> {
        if let Some(definition) = self.runtime.entry(name).definition {
            return Ok(definition.message);
        }
        Err(match self.present.instances.get(name) {
            Some(instance) => InventoryError::ReadOnly {
                name: name.clone(),
                place: instance.place.to_string(),
            },
            None => InventoryError::Unknown(name.to_string()),
        })
    }

    fn source(&self, name: &InstanceName) -> Option<InstanceSource> {
        let instance = self.present.instances.get(name);
        instance.map(|instance| instance.spec.source)
    }

    fn is_set_aside(&self, name: &InstanceName) -> bool {
        let mut aside = self.present.set_aside.iter();
        aside.any(|aside| aside.name == *name)
    }

    /// The same as [`check_etag`](Self::check_etag) for what the API says of a name: where that is set aside, the
    /// instance of that name is another one, or there is none.
    fn check_etag_of_definition(
        &self,
        name: &InstanceName,
        etag: &str,
    ) -> Result<(), InventoryError> {
        let Entry { definition, pause } = self.runtime.entry(name);
        let Some(definition) = definition else {
            return self.check_etag(name, etag);
        };
        let present = definition.built.map(|mut instance| {
            instance.spec.paused = pause;
            instance.spec.etag()
        });
        // One that is not valid any more is not what anybody has seen.
        compare_etags(name, etag, present.as_deref().unwrap_or("none"))
    }

    fn check_etag(&self, name: &InstanceName, etag: &str) -> Result<(), InventoryError> {
        let Some(instance) = self.fleet.instance(name.as_str()) else {
            return Ok(());
        };
        compare_etags(name, etag, &instance.spec_and_etag().1)
    }

    /// How a definition reaches its daemon, unless a session of ours does so already.
    fn new_address(&self, name: &InstanceName, wanted: &Definition) -> Option<Arc<SessionConfig>> {
        let session = &wanted.built.as_ref().ok()?.spec.session;
        let present = self.present.instances.get(name);
        let is_same =
            present.is_some_and(|present| present.spec.session.address == session.address);
        (!is_same).then(|| Arc::clone(session))
    }

    fn done(&self, name: Option<&InstanceName>, plan: Plan) -> Done {
        Done {
            instance: name.and_then(|name| self.fleet.instance(name.as_str())),
            new_address: None,
            is_durable: self.registry.is_durable(),
            was_set_aside: false,
            plan,
            set_aside: Vec::new(),
        }
    }
}

fn compare_etags(name: &InstanceName, etag: &str, present: &str) -> Result<(), InventoryError> {
    if etag.is_empty() || etag == present {
        return Ok(());
    }
    Err(InventoryError::EtagMismatch {
        name: name.clone(),
        present: present.to_owned(),
    })
}

fn name_of(definition: &InstanceDefinition) -> Result<InstanceName, InventoryError> {
    InstanceName::new(&definition.name).map_err(|error| {
        InventoryError::Invalid(vec![Violation {
            field: "instance.name".to_owned(),
            description: error.to_string(),
        }])
    })
}

fn definitions(runtime: &Runtime, plan: &Plan) -> Vec<InstanceDefinition> {
    let of_api: BTreeMap<_, _> = runtime.definitions().collect();
    let aside = plan.set_aside.iter();
    aside
        .filter_map(|aside| Some(of_api.get(&aside.name)?.message.clone()))
        .collect()
}

/// The files whose change is a reload.
fn watched_files(config: &Config) -> Option<ConfigFiles> {
    config.files.clone().filter(|_| config.watch_config)
}

/// Reads the files again; with the mistakes comes what was read.
async fn load(files: &ConfigFiles) -> Result<Config, (ConfigErrors, ConfigFiles)> {
    let main = files.main.clone();
    blocking(move || Config::load_files(&main)).await
}

async fn problems(config: &Config) -> Vec<String> {
    let config = config.clone();
    let problems = blocking(move || config.problems()).await;
    problems.iter().map(ToString::to_string).collect()
}

/// Runs what may block where that is allowed.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    let running = spawn_blocking(job).await;
    running.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

#[cfg(test)]
mod tests;
