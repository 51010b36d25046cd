//! The gateway as a whole: built from a configuration, run, drained.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use openvpn_fleet::{Detail, Fleet, FleetConfig, JournalConfig, Ledger};
use ovfleet_proto::FILE_DESCRIPTOR_SET;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tonic::service::Routes;

use crate::{
    config::{Config, GrpcListener, HttpListener, Limits},
    convert,
    cursor::Cursors,
    dependants::Dependants,
    health::{HealthReporter, HealthService, health},
    http::Port,
    idle::{Activity, IdleWatch},
    inventory::{Keeper, Order, ReloadCause},
    listen::{
        Admission, BindError, GrpcService, InheritError, InheritedSockets, Listener, Service,
        TlsError, load_tls,
    },
    log::LogBroadcast,
    metrics::Metrics,
    mux::MuxSockets,
    services::{self, Context, Streams},
    state::{self, Actions, Calls, EventStore, Keep, Registry, State},
    state_dir::{StateDir, StateError},
    state_lock::StateLock,
};

/// Connections of the HTTP port at once; one more is closed.
const HTTP_CONNECTIONS_MAX: usize = 64;
/// How often what has become too old is thrown away when nothing happens.
const AGING_INTERVAL: Duration = Duration::from_secs(30);
/// How long sessions may take to end once the callers are gone.
const SESSIONS_END_MAX: Duration = Duration::from_secs(5);
/// How long the last of what goes to the disk may take.
const KEEPING_END_MAX: Duration = Duration::from_secs(4);
/// How long the state may take to be written back at the end.
const STATE_CLOSE_MAX: Duration = Duration::from_secs(3);
/// How often a wait for something that does not tell looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Most running actions that a shutdown waits for; there are hardly ever two.
const ACTIONS_LOOKED_AT: usize = 100;

/// A running gateway. Dropped, it ends at once.
pub struct Gateway {
    context: Arc<Context>,
    addresses: Addresses,
    health: HealthReporter,
    activity: Activity,
    /// Listeners of gRPC; they end when `stop` is cancelled and their callers are served.
    grpc: JoinSet<()>,
    /// Everything else that runs along: HTTP, discovery, aging.
    background: JoinSet<()>,
    stop: CancellationToken,
    stop_background: CancellationToken,
    /// Take to the disk what nobody waits for, until `stop_keeping`.
    keeping: Vec<AbortOnDropHandle<()>>,
    stop_keeping: CancellationToken,
    /// Held until the end: the lock of the state directory.
    _directory: StateDir,
}

/// What a gateway has from before its start.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// The right to the state directory; `None`: it is taken at the start.
    pub lock: Option<StateLock>,
    /// Sockets that were handed down; each has to be a listener of the configuration.
    pub sockets: InheritedSockets,
}

/// Where a gateway answers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Addresses {
    /// gRPC, in the order of the configuration: `unix:/path`, `http://127.0.0.1:7600`, `https://…`.
    pub grpc: Vec<String>,
    /// `/metrics`, `/healthz` and `/readyz`: `http://127.0.0.1:7601`.
    pub http: Vec<String>,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The sockets that were handed down are not those of the configuration.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// TLS cannot be offered.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The instances that were defined at run time cannot be read.
    #[error("what was said of instances at run time cannot be read: {0}")]
    Registry(String),
    /// The services cannot be described: a bug of ours.
    #[error("cannot build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A part of the gateway that should run for ever ended: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("a part of the gateway failed")]
pub struct Failed(#[source] Option<tokio::task::JoinError>);

impl Gateway {
    /// Opens the listeners, begins the sessions and serves.
    ///
    /// # Errors
    /// [`StartError`]; then nothing is left behind.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Inheritance::default()).await
    }

    /// What would keep it from starting, as far as files tell: whether addresses are free, and the state directory, is
    /// seen at the start.
    ///
    /// # Errors
    /// [`StartError`], the first there is.
    pub fn check(config: &Config, sockets: &InheritedSockets) -> Result<(), StartError> {
        for files in config.listen.grpc.iter().filter_map(GrpcListener::tls) {
            load_tls(files, None)?;
        }
        Ok(sockets.check(config)?)
    }

    /// The same as [`start`](Self::start), with what others have prepared.
    ///
    /// # Errors
    /// [`StartError`]; then nothing is left behind.
    pub async fn start_with(config: Config, inheritance: Inheritance) -> Result<Self, StartError> {
        let Inheritance { lock, mut sockets } = inheritance;
        sockets.check(&config)?;
        for problem in config.problems() {
            tracing::warn!("{problem}");
        }
        let Config {
            name,
            state_dir,
            listen,
            journal,
            limits,
            ..
        } = config.clone();
        let directory = StateDir::open(state_dir.as_deref(), name.as_str(), lock)?;
        let keep = Keep {
            bytes: journal.disk,
            age: journal.disk_age,
        };
        let (state, store) = state::begin(state_dir, keep, SystemTime::now())
            .await
            .map_err(StateError::from)?;
        // First the listeners: what is wrong with them shall not cost sessions.
        let grpc_listeners = listen
            .grpc
            .iter()
            .map(|listener| open(listener, &mut sockets))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        let mut http_listeners = Vec::new();
        for listener in &listen.http {
            match listener {
                HttpListener::Tcp(address) => http_listeners.push(Listener::tcp(*address, true)?),
                HttpListener::Inherited(name) => {
                    for socket in sockets.take(name) {
                        http_listeners.push(Listener::inherited(socket, true)?);
                    }
                }
            }
        }

        let cursors = Arc::new(Cursors::new(name.as_str(), &directory.cursor_key));
        let (actions, calls) = open_actions(&state, &cursors, &directory.cursor_key).await?;
        let ledger = actions.clone();
        let ledger = ledger.map(|actions| Arc::new(actions) as Arc<dyn Ledger>);
        let fleet_config = FleetConfig {
            gateway: name.clone(),
            journal: JournalConfig {
                memory_bytes: journal.memory,
                events_max: journal.events,
                age_max: journal.age,
                start: store.as_ref().map(EventStore::start),
                encode: |event| services::batch_element(&convert::event::event(event)),
            },
        };
        let fleet = Fleet::with_ledger(&fleet_config, ledger);
        if let Some(aside) = state.set_aside() {
            let aside = aside.display();
            let message =
                format!("the state was damaged: it is set aside as {aside}, and a new one begun");
            fleet.record(Detail::GatewayConfig { message });
        }
        let admission = Admission::new(&limits);
        let mux = MuxSockets::new(fleet.clone(), admission.clone());
        let mux_figures = mux.figures();
        let registry = Registry::new(state.clone());
        let (keeper, inventory) = Keeper::begin(fleet.clone(), mux, config, registry)
            .await
            .map_err(|error| StartError::Registry(error.to_string()))?;

        let context = Arc::new(Context {
            fleet: fleet.clone(),
            inventory,
            cursors,
            // The rest is for what stands beside the rows.
            rows_bytes_max: limits.response_size / 8 * 7,
            streams: Streams::new(limits.streams),
            state,
            store: store.clone(),
            actions: actions.clone(),
            calls,
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            drain: CancellationToken::new(),
        });
        let (health, health_service) = health();
        let activity = Activity::new();
        let routes = routes(&context, health_service, &limits)?;
        let service = GrpcService::new(routes, activity.clone(), &limits);
        let metrics = Metrics::new(
            Arc::clone(&context),
            activity.clone(),
            mux_figures,
            admission.clone(),
        );
        let port = Port::new(Arc::clone(&context), metrics).router();

        let mut gateway = Self {
            context,
            addresses: Addresses {
                grpc: grpc_listeners.iter().map(Listener::address).collect(),
                http: http_listeners.iter().map(Listener::address).collect(),
            },
            health,
            activity,
            grpc: JoinSet::new(),
            background: JoinSet::new(),
            stop: CancellationToken::new(),
            stop_background: CancellationToken::new(),
            keeping: Vec::new(),
            stop_keeping: CancellationToken::new(),
            _directory: directory,
        };
        if let Some(store) = store {
            let (journal, stop) = (Arc::clone(fleet.journal()), gateway.stop_keeping.clone());
            let task = tokio::spawn(store.run(journal, stop));
            gateway.keeping.push(AbortOnDropHandle::new(task));
            let (state, stop) = (gateway.context.state.clone(), gateway.stop_keeping.clone());
            let task = tokio::spawn(state::keep_generations(fleet.clone(), state, stop));
            gateway.keeping.push(AbortOnDropHandle::new(task));
        }
        if let Some(actions) = actions {
            let task = tokio::spawn(actions.run(gateway.stop_keeping.clone()));
            gateway.keeping.push(AbortOnDropHandle::new(task));
        }
        for listener in grpc_listeners {
            let service = Service::Grpc(service.clone());
            gateway
                .grpc
                .spawn(listener.run(service, admission.clone(), gateway.stop.clone()));
        }
        let admission = admission.with_connections(HTTP_CONNECTIONS_MAX);
        for listener in http_listeners {
            let service = Service::Http(port.clone());
            let stop = gateway.stop_background.clone();
            gateway
                .background
                .spawn(listener.run(service, admission.clone(), stop));
        }
        let stop = gateway.stop_background.clone();
        gateway.background.spawn(keeper.run(stop));
        let stop = gateway.stop_background.clone();
        gateway.background.spawn(async move {
            while stop
                .run_until_cancelled(sleep(AGING_INTERVAL))
                .await
                .is_some()
            {
                fleet.journal().handle_time(SystemTime::now());
            }
        });
        Ok(gateway)
    }

    /// Where it answers.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The instances it watches.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.context.fleet
    }

    /// Adds the process's own log to the events, as `gateway.log`.
    pub fn broadcast(&mut self, log: LogBroadcast) {
        let (fleet, stop) = (self.context.fleet.clone(), self.stop_background.clone());
        self.background.spawn(async move {
            stop.run_until_cancelled(log.run(|detail| fleet.record(detail)))
                .await;
        });
    }

    /// Waits for ever, or until a part of the gateway fails. Cancel safe.
    pub async fn wait(&mut self) -> Failed {
        let ended = tokio::select! {
            Some(ended) = self.grpc.join_next() => ended,
            Some(ended) = self.background.join_next() => ended,
            else => return std::future::pending().await,
        };
        Failed(ended.err())
    }

    /// Has the configuration read again, as SIGHUP asks for, whether or not somebody waits for the end of it. What comes
    /// of it is logged, and an event.
    pub fn reload(&self) -> impl Future<Output = ()> + Send + use<> {
        let inventory = self.context.inventory.clone();
        let order = Order::Reload {
            cause: ReloadCause::Signal,
            validate_only: false,
            force: false,
        };
        // What went wrong is told there, and nothing is lost if we end meanwhile.
        let tasks = &self.context.tasks;
        let reading = tasks.spawn(async move { inventory.order(order, None).await });
        async move {
            let _ = reading.await;
        }
    }

    /// Tells when nobody needs this process any more.
    #[must_use]
    pub fn idle_watch(&self) -> IdleWatch {
        IdleWatch::new(self.context.fleet.clone(), self.activity.clone())
    }

    /// The daemons that end when it does.
    #[must_use]
    pub fn dependants(&self) -> Dependants {
        Dependants::new(self.context.fleet.clone())
    }

    /// Says that it is about to end: it is not ready any more, and refuses calls that would change something. Those
    /// under way, reads and streams go on until [`shutdown`](Self::shutdown).
    pub fn leave(&self) {
        self.context.leaving.cancel();
        self.health.leave();
    }

    /// Ends it: takes no new calls, lets streams say farewell and actions
    /// finish for at most `grace`, then cuts what is left and ends the sessions.
    pub async fn shutdown(self, grace: Duration) {
        self.leave();
        let Self {
            context,
            mut grpc,
            mut background,
            stop,
            stop_background,
            activity,
            keeping,
            stop_keeping,
            ..
        } = self;
        let deadline = Instant::now() + grace;
        tracing::info!(callers = activity.connections(), "draining");
        let message = "the gateway is shutting down".to_owned();
        context.fleet.record(Detail::GatewayDrain { message });
        context.drain.cancel();
        context.tasks.close();
        stop.cancel();
        let drained = async {
            while grpc.join_next().await.is_some() {}
            context.tasks.wait().await;
            while has_running_actions(&context.fleet) {
                sleep(LOOK_INTERVAL).await;
            }
        };
        if timeout(deadline - Instant::now(), drained).await.is_err() {
            tracing::warn!(
                callers = activity.connections(),
                "callers did not leave in time: cut"
            );
        }
        grpc.shutdown().await;
        stop_background.cancel();
        context.fleet.shutdown(SESSIONS_END_MAX).await;
        background.shutdown().await;
        stop_keeping.cancel();
        let until = Instant::now() + KEEPING_END_MAX;
        for keeping in keeping {
            // They take only so long, and say what they could not keep.
            let _ = timeout_at(until, keeping).await;
        }
        context.state.close(STATE_CLOSE_MAX).await;
        tracing::info!("ended");
    }
}

fn has_running_actions(fleet: &Fleet) -> bool {
    fleet
        .actions(None, ACTIONS_LOOKED_AT)
        .iter()
        .any(|action| action.finished.is_none())
}

/// What became of actions and calls so far.
async fn open_actions(
    state: &State,
    cursors: &Arc<Cursors>,
    key: &[u8],
) -> Result<(Option<Actions>, Calls), StateError> {
    let unusable = |error: state::WriteError| StateError::from(state.unusable(&error));
    let calls = Calls::open(state, key).await.map_err(unusable)?;
    if !state.is_durable() {
        return Ok((None, calls));
    }
    let actions = Actions::open(state, Arc::clone(cursors)).await;
    Ok((Some(actions.map_err(unusable)?), calls))
}

/// The listeners that one of the configuration means: one, or all sockets that were handed down under its name.
fn open(
    config: &GrpcListener,
    sockets: &mut InheritedSockets,
) -> Result<Vec<Listener>, StartError> {
    let tls = config.tls().map(|files| load_tls(files, Some(b"h2")));
    let tls = tls.transpose()?;
    let listeners = match config {
        GrpcListener::Unix(socket) => vec![Listener::unix(socket)?],
        GrpcListener::Plaintext { address, control }
        | GrpcListener::Tls {
            address, control, ..
        } => {
            vec![Listener::tcp(*address, !control)?]
        }
        GrpcListener::Inherited { name, tls, control } => {
            let mut listeners = Vec::new();
            for socket in sockets.take(name) {
                let read_only = socket.is_read_only(name, tls.as_ref(), *control)?;
                if read_only && socket.is_unix() {
                    tracing::warn!(
                        listener = %socket,
                        "every user of this machine may open this socket, so that it is for reads only: \
                         give it SocketMode=0660, or this listener plaintext_control = true"
                    );
                }
                listeners.push(Listener::inherited(socket, read_only)?);
            }
            listeners
        }
    };
    let with_tls = |listener: Listener| match &tls {
        Some(tls) => listener.with_tls(Arc::clone(tls)),
        None => listener,
    };
    Ok(listeners.into_iter().map(with_tls).collect())
}

/// Our services, and those that every gRPC server has.
fn routes(
    context: &Arc<Context>,
    health: tonic_health::pb::health_server::HealthServer<HealthService>,
    limits: &Limits,
) -> Result<Routes, tonic_reflection::server::Error> {
    // Many tools speak only the older version of reflection.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(services::add_to(routes, context, limits.request_size))
}
