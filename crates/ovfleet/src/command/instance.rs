//! What is said to single daemons, by instance or over many: `exec`, `hold`, `verb`, `mute`, `log`, `state`, `echo`,
//! `load-stats`, `version`, `pid`, `push-update`.

use futures_util::{StreamExt as _, stream};
use ovfleet_proto::v1::{
    ExecuteCommandRequest, ForgetPasswordsRequest, GetEchoesRequest, GetLoadStatsRequest,
    GetLogRequest, GetPidRequest, GetSettingsRequest, GetStatesRequest, GetVersionRequest,
    HistoryLine, HistoryState, HoldAction, ListInstancesRequest, ListInstancesResponse,
    PushUpdateRequest, SetHoldRequest, SetMuteRequest, SetVerbRequest, TextLine,
};
use prost::Message;
use serde_json::json;
use tonic::Status;

use crate::{
    action::{is_fate_unknown, new_request_id},
    args::{
        EchoArgs, ExecArgs, Format, HistoryArgs, HoldArgs, HoldWord, InstancesOnlyArgs, MuteArgs,
        PushUpdateArgs, VerbArgs,
    },
    failure::{Failure, Outcome, Verdict, is_transport, reason},
    gateway::Gateway,
    json,
    listing::{Page, collect, full_name, report_unreachable},
    output::{Output, note},
    selection::InstanceArgs,
    text::{bytes, count, escape, instant, outside},
    value::proto_duration,
};

/// Daemons spoken to at once.
const IN_FLIGHT_MAX: usize = 32;

/// Refuses a change that does not say where.
fn require(instances: &InstanceArgs, command: &str) -> Result<(), Failure> {
    if instances.is_empty() {
        return Err(Failure::Usage(format!(
            "{command} wants to know where: --all, -l LABELS or --instance NAME"
        )));
    }
    Ok(())
}

/// The answers of the selected instances, in order of name.
struct Answers<M> {
    rows: Vec<(String, Result<M, Status>)>,
    verdict: Verdict,
}

/// Calls each selected instance, many at a time; one that fails is a row, not the end.
async fn each<M>(
    gateway: &Gateway,
    instances: &InstanceArgs,
    call: impl AsyncFn(String) -> Result<M, Status>,
) -> Result<Answers<M>, Failure> {
    let selector = instances.selector();
    let listing = collect(None, async |page_size, page_token| {
        let request = ListInstancesRequest {
            selector: Some(selector.clone()),
            page_size,
            page_token,
            conditions: Vec::new(),
        };
        let response = gateway
            .fleet()
            .list_instances(gateway.request(request))
            .await?;
        let ListInstancesResponse {
            instances,
            next_page_token,
            unreachable,
            as_of,
        } = response.into_inner();
        Ok(Page {
            rows: instances,
            next_page_token,
            // Those that are not in session say so themselves, when they are called.
            unreachable: unreachable
                .into_iter()
                .filter(|one| one.condition == 0)
                .collect(),
            as_of,
        })
    })
    .await
    .map_err(|status| gateway.failure(status))?;
    let named = report_unreachable(gateway, &selector, &listing.unreachable).await;
    let names = listing.rows.into_iter().map(|instance| {
        let name = instance.spec.unwrap_or_default().name;
        (
            full_name(&instance.gateway, &name),
            format!("{}/{name}", instance.gateway),
        )
    });
    let call = &call;
    let rows: Vec<_> = stream::iter(names)
        .map(async |(shown, name)| (shown, call(name).await))
        .buffered(IN_FLIGHT_MAX)
        .collect()
        .await;
    if let Some((_, Err(status))) = rows
        .iter()
        .find(|(_, answer)| answer.as_ref().is_err_and(is_transport))
    {
        return Err(gateway.failure(status.clone()));
    }
    if rows.is_empty() {
        note("ovfleet: no instance matches");
    }
    let all = rows.iter().all(|(_, answer)| answer.is_ok());
    let found = !rows.is_empty() || !instances.is_narrow();
    Ok(Answers {
        rows,
        verdict: Verdict::done_if(all && found).and(named),
    })
}

impl<M: Message> Answers<M> {
    /// Writes the answers: as JSON under the name of the instance, else the lines that `lines` makes of one, each behind
    /// the name of its instance unless there is only one.
    fn show(
        self,
        output: &mut Output,
        message: &str,
        lines: impl Fn(&M) -> Vec<String>,
    ) -> Outcome {
        let mut documents = Vec::new();
        let single = self.rows.len() == 1;
        for (name, answer) in &self.rows {
            match (output.format(), answer) {
                (Format::Table, Ok(answer)) => {
                    for line in lines(answer) {
                        if single {
                            output.line(&line)?;
                        } else {
                            output.line(&format!("{}: {line}", escape(name)))?;
                        }
                    }
                }
                (Format::Table, Err(status)) => note(&format!("ovfleet: {}", failed(name, status))),
                (_, Ok(answer)) => documents.push(json!({
                    "instance": name,
                    "response": json::value(message, answer)?,
                })),
                (_, Err(status)) => documents.push(json!({
                    "instance": name,
                    "error": {
                        "code": format!("{:?}", status.code()),
                        "reason": reason(status),
                        "message": status.message(),
                    },
                })),
            }
        }
        match output.format() {
            Format::Table => {}
            Format::Json => output.line(&format!("{:#}", json!({ "results": documents })))?,
            Format::Jsonl => {
                for document in documents {
                    output.line(&document.to_string())?;
                }
            }
        }
        Ok(self.verdict)
    }
}

fn failed(name: &str, status: &Status) -> String {
    let doubt = if is_fate_unknown(status) {
        " (it may have been carried out)"
    } else {
        ""
    };
    format!("{}: {}{doubt}", escape(name), escape(status.message()))
}

/// Calls a method of InstanceService on each instance and gives its messages.
macro_rules! each {
    ($gateway:expr, $instances:expr, $method:ident, $request:expr) => {{
        let (gateway, request) = ($gateway, $request);
        each(gateway, $instances, async |instance| {
            let request = request(instance);
            let mut service = gateway.instances();
            let answer = service.$method(gateway.request(request)).await?;
            Ok(answer.into_inner())
        })
        .await?
    }};
}

pub(crate) async fn exec(gateway: &Gateway, args: ExecArgs, output: &mut Output) -> Outcome {
    require(&args.instances, "exec")?;
    let line = args.line.join(" ");
    let request = |instance| ExecuteCommandRequest {
        instance,
        line: line.clone(),
        request_id: fresh_request_id(),
    };
    let mut answers = each!(gateway, &args.instances, execute_command, request);
    // A refusal is a reply, but nothing was done.
    let refused = answers
        .rows
        .iter()
        .flat_map(|(_, answer)| answer)
        .any(|reply| {
            let last = reply.lines.last();
            last.is_some_and(|line| line.text.starts_with("ERROR:"))
        });
    answers.verdict = answers.verdict.and(Verdict::done_if(!refused));
    answers.show(output, "ExecuteCommandResponse", |reply| {
        text_lines(&reply.lines)
    })
}

pub(crate) async fn hold(gateway: &Gateway, args: HoldArgs, output: &mut Output) -> Outcome {
    let Some(word) = args.action else {
        return settings(gateway, &args.instances, output, |settings| {
            format!("hold {}", if settings.hold { "on" } else { "off" })
        })
        .await;
    };
    require(&args.instances, "hold on, off or release")?;
    let action = match word {
        HoldWord::On => HoldAction::On,
        HoldWord::Off => HoldAction::Off,
        HoldWord::Release => HoldAction::Release,
    };
    let request = |instance| SetHoldRequest {
        instance,
        action: action.into(),
        request_id: fresh_request_id(),
    };
    let answers = each!(gateway, &args.instances, set_hold, request);
    answers.show(output, "SetHoldResponse", |done| vec![escape(&done.text)])
}

pub(crate) async fn verb(gateway: &Gateway, args: VerbArgs, output: &mut Output) -> Outcome {
    let Some(level) = args.level else {
        return settings(gateway, &args.instances, output, |settings| {
            format!("verb {}", settings.verb)
        })
        .await;
    };
    require(&args.instances, "verb LEVEL")?;
    let request = |instance| SetVerbRequest {
        instance,
        level,
        force: args.force,
        reset_after: args.reset_after.map(proto_duration),
        request_id: fresh_request_id(),
    };
    let answers = each!(gateway, &args.instances, set_verb, request);
    answers.show(output, "SetVerbResponse", |done| vec![escape(&done.text)])
}

pub(crate) async fn mute(gateway: &Gateway, args: MuteArgs, output: &mut Output) -> Outcome {
    let Some(lines) = args.lines else {
        return settings(gateway, &args.instances, output, |settings| {
            format!("mute {}", settings.mute)
        })
        .await;
    };
    require(&args.instances, "mute N")?;
    let request = |instance| SetMuteRequest {
        instance,
        lines,
        request_id: fresh_request_id(),
    };
    let answers = each!(gateway, &args.instances, set_mute, request);
    answers.show(output, "SetMuteResponse", |done| vec![escape(&done.text)])
}

/// What is set, without changing it.
async fn settings(
    gateway: &Gateway,
    instances: &InstanceArgs,
    output: &mut Output,
    line: impl Fn(&ovfleet_proto::v1::GetSettingsResponse) -> String,
) -> Outcome {
    let request = |instance| GetSettingsRequest { instance };
    let answers = each!(gateway, instances, get_settings, request);
    answers.show(output, "GetSettingsResponse", |settings| {
        vec![line(settings)]
    })
}

pub(crate) async fn log(gateway: &Gateway, args: HistoryArgs, output: &mut Output) -> Outcome {
    let last = args.last;
    let request = |instance| GetLogRequest { instance, last };
    let answers = each!(gateway, &args.instances, get_log, request);
    answers.show(output, "GetLogResponse", |log| {
        log.lines.iter().map(history_line).collect()
    })
}

pub(crate) async fn echo(gateway: &Gateway, args: EchoArgs, output: &mut Output) -> Outcome {
    let last = args.last;
    let request = |instance| GetEchoesRequest { instance, last };
    let answers = each!(gateway, &args.instances, get_echoes, request);
    answers.show(output, "GetEchoesResponse", |echo| {
        echo.lines.iter().map(history_line).collect()
    })
}

pub(crate) async fn state(gateway: &Gateway, args: EchoArgs, output: &mut Output) -> Outcome {
    let last = args.last;
    let request = |instance| GetStatesRequest { instance, last };
    let answers = each!(gateway, &args.instances, get_states, request);
    answers.show(output, "GetStatesResponse", |states| {
        states.states.iter().map(state_line).collect()
    })
}

pub(crate) async fn load_stats(
    gateway: &Gateway,
    args: InstancesOnlyArgs,
    output: &mut Output,
) -> Outcome {
    let request = |instance| GetLoadStatsRequest { instance };
    let answers = each!(gateway, &args.instances, get_load_stats, request);
    answers.show(output, "GetLoadStatsResponse", |stats| {
        vec![format!(
            "{} clients, {} received, {} sent",
            count(stats.clients),
            bytes(stats.bytes_received),
            bytes(stats.bytes_sent)
        )]
    })
}

pub(crate) async fn version(
    gateway: &Gateway,
    args: InstancesOnlyArgs,
    output: &mut Output,
) -> Outcome {
    let request = |instance| GetVersionRequest { instance };
    let answers = each!(gateway, &args.instances, get_version, request);
    answers.show(output, "GetVersionResponse", |version| {
        vec![format!(
            "{} (management {})",
            escape(&version.daemon_version),
            version.management_version
        )]
    })
}

pub(crate) async fn pid(
    gateway: &Gateway,
    args: InstancesOnlyArgs,
    output: &mut Output,
) -> Outcome {
    let request = |instance| GetPidRequest { instance };
    let answers = each!(gateway, &args.instances, get_pid, request);
    answers.show(output, "GetPidResponse", |pid| vec![pid.pid.to_string()])
}

pub(crate) async fn forget_passwords(
    gateway: &Gateway,
    args: InstancesOnlyArgs,
    output: &mut Output,
) -> Outcome {
    require(&args.instances, "forget-passwords")?;
    let request = |instance| ForgetPasswordsRequest {
        instance,
        request_id: fresh_request_id(),
    };
    let answers = each!(gateway, &args.instances, forget_passwords, request);
    answers.show(output, "ForgetPasswordsResponse", |done| {
        vec![escape(&done.text)]
    })
}

pub(crate) async fn push_update(
    gateway: &Gateway,
    args: PushUpdateArgs,
    output: &mut Output,
) -> Outcome {
    if let Some(client) = &args.client {
        let instance = format!("{}/{}", client.gateway, client.instance);
        let request = PushUpdateRequest {
            instance,
            client: Some(client.clone()),
            every_client: false,
            options: args.options.clone(),
            request_id: fresh_request_id(),
        };
        let call = gateway
            .instances()
            .push_update(gateway.request(request))
            .await;
        let answers = Answers {
            verdict: Verdict::done_if(call.is_ok()),
            rows: vec![(
                full_name(&client.gateway, &client.instance),
                call.map(tonic::Response::into_inner),
            )],
        };
        return answers.show(output, "PushUpdateResponse", |done| {
            vec![escape(&done.text)]
        });
    }
    require(&args.instances, "push-update")?;
    if !args.every_client {
        return Err(Failure::Usage(
            "push-update wants to know to whom: --ref CLIENT or --every-client".to_owned(),
        ));
    }
    let request = |instance| PushUpdateRequest {
        instance,
        client: None,
        every_client: true,
        options: args.options.clone(),
        request_id: fresh_request_id(),
    };
    let answers = each!(gateway, &args.instances, push_update, request);
    answers.show(output, "PushUpdateResponse", |done| {
        vec![escape(&done.text)]
    })
}

fn text_lines(lines: &[TextLine]) -> Vec<String> {
    // A TAB of `status 3` parts columns; everything else from outside is made harmless.
    let shown = |line: &TextLine| outside(&line.text, &line.text_raw).replace("\\t", "\t");
    lines.iter().map(shown).collect()
}

fn history_line(line: &HistoryLine) -> String {
    let text = outside(&line.text, &line.text_raw);
    let time = instant(line.daemon_time.as_ref());
    // The daemon counts whole seconds.
    let time = time.trim_end_matches(".000");
    if line.flags.is_empty() {
        format!("{time} {text}")
    } else {
        format!("{time} [{}] {text}", escape(&line.flags))
    }
}

fn state_line(state: &HistoryState) -> String {
    let time = instant(state.daemon_time.as_ref());
    let words = [
        time.trim_end_matches(".000").to_owned(),
        escape(&state.state),
        escape(&state.detail),
        escape(&state.virtual_address),
        escape(&state.virtual_ipv6_address),
        escape(&state.remote_address),
    ];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Each instance is asked under an id of its own; without randomness under none.
fn fresh_request_id() -> String {
    new_request_id().unwrap_or_default()
}
