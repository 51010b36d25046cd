//! A gateway that says what a test wants said, and remembers what it was asked.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use ovfleet_proto::v1::{
    Client, ClientRef, Condition, GetActionRequest, GetActionResponse, GetInstanceRequest,
    GetInstanceResponse, GetSummaryRequest, GetSummaryResponse, InstanceResult, KillClientsRequest,
    KillClientsResponse, KillResult, ListActionsRequest, ListActionsResponse, ListClientsRequest,
    ListClientsResponse, ListInstancesRequest, ListInstancesResponse, ListRoutesRequest,
    ListRoutesResponse, Outcome, SignalInstancesRequest, SignalInstancesResponse,
    StreamEventsRequest, StreamEventsResponse, Totals, Unreachable, WatchFleetRequest,
    WatchFleetResponse,
    control_service_server::{ControlService, ControlServiceServer},
    event_service_server::{EventService, EventServiceServer},
    fleet_service_server::{FleetService, FleetServiceServer},
    stream_events_request::Start,
};
use tokio::net::UnixListener;
use tokio_stream::{Empty, Iter, wrappers::UnixListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What the gateway knows and what it was asked.
#[derive(Default)]
pub(crate) struct State {
    /// Its clients, by common name, all on one instance; the index is the CID.
    pub(crate) clients: Vec<&'static str>,
    /// It cannot see one more instance.
    pub(crate) one_unreachable: bool,
    /// What becomes of every client that is killed.
    pub(crate) outcome: Outcome,
    /// Every call of KillClients that came.
    pub(crate) kills: Vec<KillClientsRequest>,
    /// What each stream of events sends before it ends, in order of the calls.
    pub(crate) streams: VecDeque<Vec<Result<StreamEventsResponse, Status>>>,
    /// From where each stream was asked for.
    pub(crate) starts: Vec<Start>,
}

/// The gateway, until it is dropped.
pub(crate) struct FakeGateway {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeGateway {
    pub(crate) fn start(state: State) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gateway.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(state));
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&socket).unwrap()
        };
        let service = Service(state.clone());
        runtime.spawn(
            Server::builder()
                .add_service(FleetServiceServer::new(service.clone()))
                .add_service(ControlServiceServer::new(service.clone()))
                .add_service(EventServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self {
            state,
            socket,
            _dir: dir,
            _runtime: runtime,
        }
    }

    /// The program with these arguments, calling this gateway.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovfleet"));
        command
            .args(args)
            .env("OVFLEET_GATEWAY", format!("unix:{}", self.socket.display()));
        command
    }

    /// Runs it without a terminal.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(args)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    }

    /// The calls of KillClients that came so far.
    pub(crate) fn kills(&self) -> Vec<KillClientsRequest> {
        self.state.lock().unwrap().kills.clone()
    }

    /// From where each stream of events was asked for.
    pub(crate) fn starts(&self) -> Vec<Start> {
        self.state.lock().unwrap().starts.clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

fn client_ref(cid: usize) -> ClientRef {
    ClientRef {
        gateway: "vpn1".into(),
        instance: "eu1".into(),
        generation: "7".into(),
        cid: cid as u64,
    }
}

#[tonic::async_trait]
impl FleetService for Service {
    async fn get_summary(
        &self,
        _: Request<GetSummaryRequest>,
    ) -> Result<Response<GetSummaryResponse>, Status> {
        let totals = Some(Totals {
            instances: 5,
            instances_attached: 4,
            ..Totals::default()
        });
        Ok(Response::new(GetSummaryResponse {
            totals,
            ..GetSummaryResponse::default()
        }))
    }

    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let labels = request.into_inner().selector.unwrap_or_default().labels;
        if labels.contains("((") {
            let mut details = ErrorDetails::with_error_info("LABELS_INVALID", "ovfleet", []);
            details.add_bad_request_violation("selector.labels", "a name must follow at 1");
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                "bad label expression",
                details,
            ));
        }
        Ok(Response::new(ListInstancesResponse::default()))
    }

    async fn get_instance(
        &self,
        _: Request<GetInstanceRequest>,
    ) -> Result<Response<GetInstanceResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let state = self.0.lock().unwrap();
        let names = request.into_inner().filter.unwrap_or_default().common_names;
        let clients = state.clients.iter().enumerate();
        let clients = clients
            .filter(|(_, name)| names.is_empty() || names.iter().any(|other| other == *name))
            .map(|(cid, name)| Client {
                r#ref: Some(client_ref(cid)),
                common_name: (*name).into(),
                ..Client::default()
            })
            .collect();
        let lost = Unreachable {
            gateway: "vpn1".into(),
            instance: "eu2".into(),
            condition: Condition::SlotBusy.into(),
            message: "held by socat".into(),
            ..Unreachable::default()
        };
        Ok(Response::new(ListClientsResponse {
            clients,
            unreachable: state.one_unreachable.then_some(lost).into_iter().collect(),
            ..ListClientsResponse::default()
        }))
    }

    async fn list_routes(
        &self,
        _: Request<ListRoutesRequest>,
    ) -> Result<Response<ListRoutesResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    type WatchFleetStream = Empty<Result<WatchFleetResponse, Status>>;

    async fn watch_fleet(
        &self,
        _: Request<WatchFleetRequest>,
    ) -> Result<Response<Self::WatchFleetStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl EventService for Service {
    type StreamEventsStream = Iter<std::vec::IntoIter<Result<StreamEventsResponse, Status>>>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let mut state = self.0.lock().unwrap();
        state.starts.extend(request.into_inner().start);
        let frames = state.streams.pop_front().unwrap_or_default();
        Ok(Response::new(tokio_stream::iter(frames)))
    }
}

#[tonic::async_trait]
impl ControlService for Service {
    async fn kill_clients(
        &self,
        request: Request<KillClientsRequest>,
    ) -> Result<Response<KillClientsResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        let request = request.into_inner();
        state.kills.push(request.clone());
        let filter = request.filter.unwrap_or_default();
        let outcome = if request.validate_only {
            Outcome::Planned
        } else {
            state.outcome
        };
        let matches = |cid: usize, name: &str| {
            request.every_client
                || filter.refs.contains(&client_ref(cid))
                || filter.common_names.iter().any(|other| other == name)
        };
        let results: Vec<_> = state
            .clients
            .iter()
            .enumerate()
            .filter(|(cid, name)| matches(*cid, name))
            .map(|(cid, name)| KillResult {
                r#ref: Some(client_ref(cid)),
                common_name: (*name).into(),
                outcome: outcome.into(),
                ..KillResult::default()
            })
            .collect();
        let instance = InstanceResult {
            gateway: "vpn1".into(),
            instance: "eu1".into(),
            asked: true,
            matched: results.len() as u64,
            ..InstanceResult::default()
        };
        Ok(Response::new(KillClientsResponse {
            request_id: request.request_id,
            results,
            instances: vec![instance],
            validate_only: request.validate_only,
            ..KillClientsResponse::default()
        }))
    }

    async fn signal_instances(
        &self,
        _: Request<SignalInstancesRequest>,
    ) -> Result<Response<SignalInstancesResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_action(
        &self,
        request: Request<GetActionRequest>,
    ) -> Result<Response<GetActionResponse>, Status> {
        let id = request.into_inner().request_id;
        let details = ErrorDetails::with_error_info("ACTION_UNKNOWN", "ovfleet", []);
        Err(Status::with_error_details(
            Code::NotFound,
            format!("no action {id}"),
            details,
        ))
    }

    async fn list_actions(
        &self,
        _: Request<ListActionsRequest>,
    ) -> Result<Response<ListActionsResponse>, Status> {
        Ok(Response::new(ListActionsResponse::default()))
    }
}
