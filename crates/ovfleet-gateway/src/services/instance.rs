//! InstanceService: one daemon's management protocol.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use openvpn_fleet::{ActionContext, Instance, VerbRequest};
use openvpn_management::{Command, HoldRequest, RawCommand, RemoteEntryRange, Reply, Text};
use ovfleet_proto::v1::{self, instance_service_server::InstanceService};
use prost::Message;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use super::{Context, deadline};
use crate::{
    caller::Caller,
    convert::{self, instance as convert_instance, kept::Kept, request},
    status,
};

/// Most certificates of tokens that are asked for; each is a command.
const PKCS11_IDS_MAX: u32 = 64;

/// The service.
#[derive(Debug)]
pub(crate) struct Instances {
    context: Arc<Context>,
}

/// One call to one instance.
struct Ask<'a> {
    context: &'a Context,
    instance: Arc<Instance>,
    action: ActionContext,
    /// Dropped with the call: what is not yet sent is not sent then.
    _guard: DropGuard,
}

impl Instances {
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// A call that changes nothing.
    fn read<T>(&self, request: &Request<T>, instance: &str) -> Result<Ask<'_>, Status> {
        let cancel = CancellationToken::new();
        Ok(Ask {
            context: &self.context,
            instance: self.context.find(&request::instance_path(instance)?)?,
            action: ActionContext {
                caller: Caller::of(request).name().clone(),
                deadline: deadline::of(request),
                cancel: cancel.clone(),
            },
            _guard: cancel.drop_guard(),
        })
    }

    /// A call that changes something.
    fn change<T>(&self, request: &Request<T>, instance: &str) -> Result<Ask<'_>, Status> {
        self.context.admit_change(&Caller::of(request))?;
        self.read(request, instance)
    }

    /// Does what a call asks for, once for each request id.
    async fn once<M: Kept>(
        &self,
        ask: &Ask<'_>,
        method: &'static str,
        request_id: &str,
        request: &impl Message,
        work: impl Future<Output = Result<M, Status>>,
    ) -> Result<Response<M>, Status> {
        let (calls, caller) = (&self.context.calls, &ask.action.caller);
        let answer = calls.once(caller, method, request_id, request, work).await;
        answer.map(Response::new)
    }

    /// The newest rows that fit an answer, and whether there were more.
    fn newest<M: Message>(&self, mut rows: Vec<M>, last: u32) -> (Vec<M>, bool) {
        let dropped = rows.len() - self.fitting(rows.iter().rev());
        rows.drain(..dropped);
        let is_capped = last == 0 && rows.len() >= openvpn_management::limits::HISTORY_LINES_MAX;
        (rows, dropped > 0 || is_capped)
    }

    /// The first rows that fit an answer, and whether there were more.
    fn first<M: Message>(&self, mut rows: Vec<M>, truncated: bool) -> (Vec<M>, bool) {
        let (all, fitting) = (rows.len(), self.fitting(rows.iter()));
        rows.truncate(fitting);
        (rows, truncated || fitting < all)
    }

    fn fitting<'a, M: Message + 'a>(&self, rows: impl Iterator<Item = &'a M>) -> usize {
        let mut left = self.context.rows_bytes_max;
        rows.take_while(|row| {
            // Each is an element of a list: its tag and its length come before it.
            let length = row.encoded_len() + 6;
            let fits = length <= left;
            left = left.saturating_sub(length);
            fits
        })
        .count()
    }
}

impl Ask<'_> {
    async fn send(&self, command: Command) -> Result<Reply, Status> {
        let fleet = &self.context.fleet;
        let reply = fleet.command(&self.instance, command, &self.action).await;
        reply.map_err(|error| status::of_command(&error))
    }

    /// Sends a command that changes something and gives the daemon's words.
    async fn set(&self, command: Command) -> Result<String, Status> {
        words(self.send(command).await?)
    }
}

/// The daemon's words of consent.
fn words(reply: Reply) -> Result<String, Status> {
    match reply {
        Reply::Success(text) => Ok(convert::lossy(&text)),
        Reply::None => Ok(String::new()),
        _ => Err(status::reply_unreadable()),
    }
}

/// Takes out what a reply holds.
macro_rules! expect {
    ($reply:expr, $pattern:pat => $value:expr) => {
        match $reply {
            $pattern => $value,
            _ => return Err(status::reply_unreadable()),
        }
    };
}

#[tonic::async_trait]
impl InstanceService for Instances {
    async fn get_log(
        &self,
        request: Request<v1::GetLogRequest>,
    ) -> Result<Response<v1::GetLogResponse>, Status> {
        let v1::GetLogRequest { instance, last } = request.get_ref();
        let ask = self.read(&request, instance)?;
        let reply = ask
            .send(Command::Log(convert_instance::history(*last)))
            .await?;
        let history = expect!(reply, Reply::Log(history) => history);
        let lines = history.records.into_iter().map(convert_instance::log_line);
        let (lines, truncated) = self.newest(lines.collect(), *last);
        Ok(Response::new(v1::GetLogResponse { lines, truncated }))
    }

    async fn get_states(
        &self,
        request: Request<v1::GetStatesRequest>,
    ) -> Result<Response<v1::GetStatesResponse>, Status> {
        let v1::GetStatesRequest { instance, last } = request.get_ref();
        let ask = self.read(&request, instance)?;
        let reply = ask
            .send(Command::State(convert_instance::history(*last)))
            .await?;
        let history = expect!(reply, Reply::States(history) => history);
        let states = history.records.into_iter().map(convert_instance::state);
        let (states, truncated) = self.newest(states.collect(), *last);
        Ok(Response::new(v1::GetStatesResponse { states, truncated }))
    }

    async fn get_echoes(
        &self,
        request: Request<v1::GetEchoesRequest>,
    ) -> Result<Response<v1::GetEchoesResponse>, Status> {
        let v1::GetEchoesRequest { instance, last } = request.get_ref();
        let ask = self.read(&request, instance)?;
        let reply = ask
            .send(Command::Echo(convert_instance::history(*last)))
            .await?;
        let history = expect!(reply, Reply::Echo(history) => history);
        let lines = history.records.into_iter().map(convert_instance::echo_line);
        let (lines, truncated) = self.newest(lines.collect(), *last);
        Ok(Response::new(v1::GetEchoesResponse { lines, truncated }))
    }

    async fn get_status_text(
        &self,
        request: Request<v1::GetStatusTextRequest>,
    ) -> Result<Response<v1::GetStatusTextResponse>, Status> {
        let v1::GetStatusTextRequest { instance, format } = request.get_ref();
        let ask = self.read(&request, instance)?;
        let line = match format {
            0 => "status".to_owned(),
            1..=3 => format!("status {format}"),
            _ => {
                let words = "a format is 1, 2 or 3, or 0 for the daemon's own";
                return Err(status::invalid("format", "FORMAT_INVALID", words));
            }
        };
        let command = RawCommand::parse(line.as_bytes()).map_err(|_| status::reply_unreadable())?;
        let reply = ask.send(Command::Raw(command)).await?;
        let reply = expect!(reply, Reply::Raw(reply) => reply);
        let mut lines: Vec<_> = reply.lines().collect();
        if let Some(refusal) = lines.first().and_then(|line| line.strip_prefix(b"ERROR: ")) {
            return Err(status::daemon_refused(&convert::lossy(refusal)));
        }
        lines.pop_if(|line| *line == b"END");
        let lines = lines.into_iter().map(convert_instance::text_line).collect();
        let (lines, truncated) = self.first(lines, reply.truncated);
        Ok(Response::new(v1::GetStatusTextResponse {
            lines,
            truncated,
        }))
    }

    async fn get_help(
        &self,
        request: Request<v1::GetHelpRequest>,
    ) -> Result<Response<v1::GetHelpResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let help = expect!(ask.send(Command::Help).await?, Reply::Lines(help) => help);
        let lines = help.records.iter();
        let lines = lines.map(|line| convert_instance::text_line(line.as_bytes()));
        let (lines, truncated) = self.first(lines.collect(), help.truncated);
        Ok(Response::new(v1::GetHelpResponse { lines, truncated }))
    }

    async fn get_version(
        &self,
        request: Request<v1::GetVersionRequest>,
    ) -> Result<Response<v1::GetVersionResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let version =
            expect!(ask.send(Command::Version).await?, Reply::Version(version) => version);
        Ok(Response::new(v1::GetVersionResponse {
            daemon_version: convert::lossy(&version.openvpn),
            management_version: version.management.unwrap_or_default(),
        }))
    }

    async fn get_pid(
        &self,
        request: Request<v1::GetPidRequest>,
    ) -> Result<Response<v1::GetPidResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let pid = expect!(ask.send(Command::Pid).await?, Reply::Pid(pid) => pid);
        Ok(Response::new(v1::GetPidResponse { pid }))
    }

    async fn get_load_stats(
        &self,
        request: Request<v1::GetLoadStatsRequest>,
    ) -> Result<Response<v1::GetLoadStatsResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let stats = expect!(ask.send(Command::LoadStats).await?, Reply::LoadStats(stats) => stats);
        Ok(Response::new(v1::GetLoadStatsResponse {
            clients: stats.clients,
            bytes_received: stats.bytes_received,
            bytes_sent: stats.bytes_sent,
        }))
    }

    async fn get_client_count(
        &self,
        request: Request<v1::GetClientCountRequest>,
    ) -> Result<Response<v1::GetClientCountResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let reply = ask.send(Command::ClientCount).await?;
        let clients = expect!(reply, Reply::ClientCount(clients) => clients);
        Ok(Response::new(v1::GetClientCountResponse { clients }))
    }

    async fn get_settings(
        &self,
        request: Request<v1::GetSettingsRequest>,
    ) -> Result<Response<v1::GetSettingsResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let verb = expect!(ask.send(Command::Verb(None)).await?, Reply::Verb(verb) => verb);
        let mute = expect!(ask.send(Command::Mute(None)).await?, Reply::Mute(mute) => mute);
        let hold = ask.send(Command::Hold(HoldRequest::Query)).await?;
        let hold = expect!(hold, Reply::Hold(hold) => hold);
        let auth_retry = ask.send(Command::AuthRetry(None)).await?;
        let auth_retry = expect!(auth_retry, Reply::AuthRetry(mode) => mode);
        Ok(Response::new(v1::GetSettingsResponse {
            verb,
            mute,
            hold,
            auth_retry: convert::lossy(&auth_retry),
        }))
    }

    async fn set_verb(
        &self,
        request: Request<v1::SetVerbRequest>,
    ) -> Result<Response<v1::SetVerbResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::SetVerbRequest {
                level,
                force,
                reset_after,
                ..
            } = request.get_ref();
            let verb = VerbRequest {
                // Out of range either way.
                level: u8::try_from(*level).unwrap_or(u8::MAX),
                force: *force,
                reset_after: reset_after
                    .map(|span| request::span("reset_after", span))
                    .transpose()?
                    .filter(|span| !span.is_zero()),
            };
            let fleet = &self.context.fleet;
            let reply = fleet.set_verb(&ask.instance, verb, &ask.action).await;
            let reply = reply.map_err(|error| status::of_command(&error))?;
            let text = words(reply)?;
            Ok(v1::SetVerbResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "SetVerb", &asked.request_id, asked, work)
            .await
    }

    async fn set_mute(
        &self,
        request: Request<v1::SetMuteRequest>,
    ) -> Result<Response<v1::SetMuteResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::SetMuteRequest { lines, .. } = request.get_ref();
            let text = ask.set(Command::Mute(Some(*lines))).await?;
            Ok(v1::SetMuteResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "SetMute", &asked.request_id, asked, work)
            .await
    }

    async fn set_hold(
        &self,
        request: Request<v1::SetHoldRequest>,
    ) -> Result<Response<v1::SetHoldResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::SetHoldRequest { action, .. } = request.get_ref();
            let text = ask
                .set(Command::Hold(convert_instance::hold(*action)?))
                .await?;
            Ok(v1::SetHoldResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "SetHold", &asked.request_id, asked, work)
            .await
    }

    async fn set_auth_retry(
        &self,
        request: Request<v1::SetAuthRetryRequest>,
    ) -> Result<Response<v1::SetAuthRetryResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::SetAuthRetryRequest { mode, .. } = request.get_ref();
            let mode = convert_instance::auth_retry(*mode)?;
            let text = ask.set(Command::AuthRetry(Some(mode))).await?;
            Ok(v1::SetAuthRetryResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "SetAuthRetry", &asked.request_id, asked, work)
            .await
    }

    async fn set_bytecount(
        &self,
        request: Request<v1::SetBytecountRequest>,
    ) -> Result<Response<v1::SetBytecountResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::SetBytecountRequest {
                interval_seconds, ..
            } = request.get_ref();
            let text = ask.set(Command::Bytecount(*interval_seconds)).await?;
            Ok(v1::SetBytecountResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "SetBytecount", &asked.request_id, asked, work)
            .await
    }

    async fn forget_passwords(
        &self,
        request: Request<v1::ForgetPasswordsRequest>,
    ) -> Result<Response<v1::ForgetPasswordsResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let text = ask.set(Command::ForgetPasswords).await?;
            Ok(v1::ForgetPasswordsResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "ForgetPasswords", &asked.request_id, asked, work)
            .await
    }

    async fn refresh(
        &self,
        request: Request<v1::RefreshRequest>,
    ) -> Result<Response<v1::RefreshResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let asked = self.context.fleet.refresh(&ask.instance, &ask.action).await;
        let asked = asked.map_err(|error| status::of_command(&error))?;
        // The moment by both clocks: a test may have its own monotonic one.
        let ago = Instant::now().saturating_duration_since(asked.monotonic);
        let asked_time = SystemTime::now().checked_sub(ago).unwrap_or(asked.wall);
        Ok(Response::new(v1::RefreshResponse {
            asked_time: Some(convert::timestamp(asked_time)),
        }))
    }

    async fn list_remote_entries(
        &self,
        request: Request<v1::ListRemoteEntriesRequest>,
    ) -> Result<Response<v1::ListRemoteEntriesResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let reply = ask
            .send(Command::RemoteEntryGet(RemoteEntryRange::All))
            .await?;
        let entries = expect!(reply, Reply::RemoteEntries(entries) => entries);
        let truncated = entries.truncated;
        let entries = entries.records.into_iter();
        let entries = entries.map(convert_instance::remote_entry).collect();
        let (entries, truncated) = self.first(entries, truncated);
        Ok(Response::new(v1::ListRemoteEntriesResponse {
            entries,
            truncated,
        }))
    }

    async fn list_pkcs11_ids(
        &self,
        request: Request<v1::ListPkcs11IdsRequest>,
    ) -> Result<Response<v1::ListPkcs11IdsResponse>, Status> {
        let ask = self.read(&request, &request.get_ref().instance)?;
        let reply = ask.send(Command::Pkcs11IdCount).await?;
        let count = expect!(reply, Reply::Pkcs11IdCount(count) => count);
        let mut ids = Vec::new();
        for index in 0..count.min(PKCS11_IDS_MAX) {
            let reply = ask.send(Command::Pkcs11IdGet(index)).await?;
            let entry = expect!(reply, Reply::Pkcs11Id(entry) => entry);
            ids.extend(convert_instance::pkcs11_id(entry));
        }
        let (ids, truncated) = self.first(ids, count > PKCS11_IDS_MAX);
        Ok(Response::new(v1::ListPkcs11IdsResponse { ids, truncated }))
    }

    async fn notify_network_change(
        &self,
        request: Request<v1::NotifyNetworkChangeRequest>,
    ) -> Result<Response<v1::NotifyNetworkChangeResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::NotifyNetworkChangeRequest { same_network, .. } = request.get_ref();
            let command = Command::NetworkChange {
                same_network: *same_network,
            };
            let text = ask.set(command).await?;
            Ok(v1::NotifyNetworkChangeResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "NotifyNetworkChange", &asked.request_id, asked, work)
            .await
    }

    async fn push_update(
        &self,
        request: Request<v1::PushUpdateRequest>,
    ) -> Result<Response<v1::PushUpdateResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::PushUpdateRequest {
                client,
                every_client,
                options,
                ..
            } = request.get_ref();
            if client.is_some() == *every_client {
                let words = "give either a client or `every_client`";
                return Err(status::invalid("client", "CLIENT_INVALID", words));
            }
            let client = client
                .clone()
                .map(|client| request::client_ref_of("client", &ask.instance, client))
                .transpose()?;
            let options = Text::from(options.clone());
            let fleet = &self.context.fleet;
            let reply = fleet
                .push_update(&ask.instance, client, options, &ask.action)
                .await;
            let text = words(reply.map_err(|error| status::of_command(&error))?)?;
            Ok(v1::PushUpdateResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "PushUpdate", &asked.request_id, asked, work)
            .await
    }

    async fn answer_question(
        &self,
        request: Request<v1::AnswerQuestionRequest>,
    ) -> Result<Response<v1::AnswerQuestionResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::AnswerQuestionRequest {
                question_id,
                answer,
                ..
            } = request.get_ref().clone();
            let answer = convert_instance::answer(answer)?;
            let fleet = &self.context.fleet;
            let reply = fleet
                .answer(&ask.instance, question_id, answer, &ask.action)
                .await;
            let text = words(reply.map_err(|error| status::of_command(&error))?)?;
            Ok(v1::AnswerQuestionResponse {
                text,
                ..Default::default()
            })
        };
        self.once(&ask, "AnswerQuestion", &asked.request_id, asked, work)
            .await
    }

    async fn execute_command(
        &self,
        request: Request<v1::ExecuteCommandRequest>,
    ) -> Result<Response<v1::ExecuteCommandResponse>, Status> {
        let asked = request.get_ref();
        let ask = self.change(&request, &asked.instance)?;
        let work = async {
            let v1::ExecuteCommandRequest { line, .. } = request.get_ref();
            let fleet = &self.context.fleet;
            let reply = fleet
                .raw_command(&ask.instance, line.as_bytes(), &ask.action)
                .await;
            let reply = reply.map_err(|error| status::of_command(&error))?;
            let reply = expect!(reply, Reply::Raw(reply) => reply);
            let (lines, truncated) =
                self.first(convert_instance::raw_lines(&reply), reply.truncated);
            Ok(v1::ExecuteCommandResponse {
                lines,
                truncated,
                ..Default::default()
            })
        };
        self.once(&ask, "ExecuteCommand", &asked.request_id, asked, work)
            .await
    }
}
