//! `instance` and `reload`: which instances there are.

use ovfleet_proto::v1::{
    CreateInstanceRequest, DeleteInstanceRequest, Durability, InstanceChange, PauseInstanceRequest,
    Reachability, ReachabilityResult, ReloadRequest, ReloadResponse, ResumeInstanceRequest,
    UpdateInstanceRequest,
};
use prost::Message;
use tonic::{Response, Status};

use crate::{
    action::{self, Consent, number_of},
    args::{
        Format, InstanceAddArgs, InstanceCommand, InstancePauseArgs, InstanceRemoveArgs,
        InstanceResumeArgs, InstanceSetArgs, ReloadArgs,
    },
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    output::{Output, note},
    table::{Table, column},
    text::{enum_name, escape},
};

/// What is missing on the command line, before anything is asked of anybody.
pub(crate) fn check(command: &InstanceCommand) -> Result<(), Failure> {
    match command {
        InstanceCommand::Set(args)
            if args.definition.mask(args.address.is_some()).is_empty() && args.clear.is_empty() =>
        {
            Err(Failure::Usage(
                "instance set wants to know what: `ovfleet instance set --help` lists the options"
                    .to_owned(),
            ))
        }
        InstanceCommand::Remove(InstanceRemoveArgs { names, request, .. })
        | InstanceCommand::Pause(InstancePauseArgs { names, request, .. })
        | InstanceCommand::Resume(InstanceResumeArgs { names, request, .. })
            if names.len() > 1 && request.is_given() =>
        {
            Err(Failure::Usage(
                "a request id is that of one change: give --request-id with one instance"
                    .to_owned(),
            ))
        }
        _ => Ok(()),
    }
}

pub(crate) async fn run(
    gateway: &Gateway,
    command: InstanceCommand,
    output: &mut Output,
) -> Outcome {
    match command {
        InstanceCommand::Add(args) => add(gateway, *args, output).await,
        InstanceCommand::Set(args) => set(gateway, *args, output).await,
        InstanceCommand::Remove(args) => remove(gateway, args, output).await,
        InstanceCommand::Pause(args) => pause(gateway, args, output).await,
        InstanceCommand::Resume(args) => resume(gateway, args, output).await,
    }
}

async fn add(gateway: &Gateway, args: InstanceAddArgs, output: &mut Output) -> Outcome {
    let definition = args
        .definition
        .definition(args.name.clone(), Some(args.address))
        .map_err(Failure::Usage)?;
    let id = args.request.id()?;
    let request = CreateInstanceRequest {
        instance: Some(definition),
        validate_only: args.dry_run,
        check_reachable: args.check,
        request_id: id.clone(),
    };
    let mut service = gateway.inventory();
    let answer = service.create_instance(gateway.request(request)).await;
    let response = answered(gateway, &id, answer)?;
    if output.format() == Format::Table {
        reachability(response.reachability.as_ref());
        tell(&args.name, "added", args.dry_run, response.durability);
    } else {
        show(output, "CreateInstanceResponse", &response)?;
    }
    Ok(Verdict::Done)
}

async fn set(gateway: &Gateway, args: InstanceSetArgs, output: &mut Output) -> Outcome {
    let mut paths = args.definition.mask(args.address.is_some());
    paths.extend(args.clear);
    let definition = args
        .definition
        .definition(args.name.clone(), args.address)
        .map_err(Failure::Usage)?;
    let id = args.request.id()?;
    let request = UpdateInstanceRequest {
        instance: Some(definition),
        update_mask: Some(prost_types::FieldMask { paths }),
        etag: args.etag.unwrap_or_default(),
        validate_only: args.dry_run,
        check_reachable: args.check,
        force: args.force,
        request_id: id.clone(),
    };
    let mut service = gateway.inventory();
    let answer = service.update_instance(gateway.request(request)).await;
    let response = answered(gateway, &id, answer)?;
    if output.format() == Format::Table {
        reachability(response.reachability.as_ref());
        tell(&args.name, "changed", args.dry_run, response.durability);
    } else {
        show(output, "UpdateInstanceResponse", &response)?;
    }
    Ok(Verdict::Done)
}

async fn remove(gateway: &Gateway, args: InstanceRemoveArgs, output: &mut Output) -> Outcome {
    if !args.yes && !args.dry_run {
        let many = number_of(args.names.len(), "instance");
        let names = escape(&args.names.join(" "));
        match action::ask(&format!(
            "This will end the sessions of {many} and forget them: {names}. Go on?"
        ))? {
            Consent::Given => {}
            Consent::Refused => return Err(Failure::Failed("nothing was removed".to_owned())),
            Consent::NobodyToAsk => {
                return Err(Failure::Usage(
                    "nothing was removed: there is no terminal to ask on. --yes acts without \
                     asking, --dry-run only checks"
                        .to_owned(),
                ));
            }
        }
    }
    let mut service = gateway.inventory();
    for name in args.names {
        let id = args.request.id()?;
        let request = DeleteInstanceRequest {
            name: name.clone(),
            etag: String::new(),
            validate_only: args.dry_run,
            force: args.force,
            request_id: id.clone(),
        };
        let answer = service.delete_instance(gateway.request(request)).await;
        let response = answered(gateway, &id, answer)?;
        if output.format() == Format::Table {
            tell(&name, "removed", args.dry_run, response.durability);
        } else {
            show(output, "DeleteInstanceResponse", &response)?;
        }
    }
    Ok(Verdict::Done)
}

async fn pause(gateway: &Gateway, args: InstancePauseArgs, output: &mut Output) -> Outcome {
    let mut service = gateway.inventory();
    for name in args.names {
        let id = args.request.id()?;
        let request = PauseInstanceRequest {
            name: name.clone(),
            etag: String::new(),
            reason: args.reason.clone().unwrap_or_default(),
            validate_only: args.dry_run,
            force: args.force,
            request_id: id.clone(),
        };
        let answer = service.pause_instance(gateway.request(request)).await;
        let response = answered(gateway, &id, answer)?;
        if output.format() == Format::Table {
            tell(&name, "paused", args.dry_run, response.durability);
        } else {
            show(output, "PauseInstanceResponse", &response)?;
        }
    }
    Ok(Verdict::Done)
}

async fn resume(gateway: &Gateway, args: InstanceResumeArgs, output: &mut Output) -> Outcome {
    let mut service = gateway.inventory();
    for name in args.names {
        let id = args.request.id()?;
        let request = ResumeInstanceRequest {
            name: name.clone(),
            etag: String::new(),
            validate_only: args.dry_run,
            request_id: id.clone(),
        };
        let answer = service.resume_instance(gateway.request(request)).await;
        let response = answered(gateway, &id, answer)?;
        if output.format() == Format::Table {
            tell(&name, "resumed", args.dry_run, response.durability);
        } else {
            show(output, "ResumeInstanceResponse", &response)?;
        }
    }
    Ok(Verdict::Done)
}

pub(crate) async fn reload(gateway: &Gateway, args: ReloadArgs, output: &mut Output) -> Outcome {
    let id = args.request.id()?;
    let request = ReloadRequest {
        validate_only: args.dry_run,
        force: args.force,
        request_id: id.clone(),
    };
    let mut service = gateway.inventory();
    let answer = service.reload(gateway.request(request)).await;
    let response = answered(gateway, &id, answer)?;
    let verdict = Verdict::done_if(response.needs_force.is_empty() || args.force);
    if output.format() != Format::Table {
        show(output, "ReloadResponse", &response)?;
        return Ok(verdict);
    }
    let table = differences(&response);
    if let Some(table) = table {
        output.table(&table, false)?;
    }
    let untouched = number_of(
        usize::try_from(response.untouched).unwrap_or(usize::MAX),
        "instance",
    );
    note(&format!("ovfleet: {untouched} untouched"));
    if !response.takes_restart.is_empty() {
        let keys = escape(&response.takes_restart.join(", "));
        note(&format!(
            "ovfleet: takes a restart, and is as it was: {keys}"
        ));
    }
    for aside in &response.set_aside {
        let name = aside
            .instance
            .as_ref()
            .map_or("", |instance| &instance.name);
        let (name, reason) = (escape(name), escape(&aside.reason));
        note(&format!("ovfleet: {name} is set aside: {reason}"));
    }
    for problem in &response.problems {
        note(&format!("ovfleet: {}", escape(problem)));
    }
    for reason in &response.needs_force {
        note(&format!(
            "ovfleet: it would need --force: {}",
            escape(reason)
        ));
    }
    Ok(verdict)
}

/// What a reload changes, a row per instance; `None` where that is nothing.
fn differences(response: &ReloadResponse) -> Option<Table> {
    let mut table = Table::new([
        column("INSTANCE"),
        column("WHAT"),
        column("NOTE").optional(),
    ]);
    let mut is_empty = true;
    let mut row = |name: &str, what: &str, note: String| {
        is_empty = false;
        table.row([escape(name).into(), what.into(), note.into()]);
    };
    for name in &response.added {
        row(name, "added", String::new());
    }
    for change in &response.changed {
        let InstanceChange {
            name,
            what,
            reconnects,
        } = change;
        let mut words = escape(&what.join(", "));
        if *reconnects {
            words += "; its session begins anew";
        }
        row(name, "changed", words);
    }
    for name in &response.removed {
        row(name, "removed", String::new());
    }
    (!is_empty).then_some(table)
}

fn answered<R>(
    gateway: &Gateway,
    request_id: &str,
    answer: Result<Response<R>, Status>,
) -> Result<R, Failure> {
    let response = answer.map_err(|status| match gateway.failure(status) {
        Failure::Unreached(message) => Failure::Unreached(format!(
            "{message}\n  the change may have been made: the same command with --request-id {request_id} makes it \
             once, now or then"
        )),
        other => other,
    });
    Ok(response?.into_inner())
}

fn show<M: Message>(output: &mut Output, name: &str, response: &M) -> Result<(), Failure> {
    match output.format() {
        Format::Json => output.document(name, response, &[]),
        Format::Table | Format::Jsonl => output.json_line(name, response),
    }
}

fn tell(name: &str, what: &str, dry_run: bool, durability: i32) {
    let name = escape(name);
    if dry_run {
        note(&format!("ovfleet: {name} would be {what}"));
        return;
    }
    let kept = match Durability::try_from(durability) {
        Ok(Durability::Memory) => "; a restart forgets that: this gateway has no state_dir",
        _ => "",
    };
    note(&format!("ovfleet: {name} {what}{kept}"));
}

fn reachability(found: Option<&Reachability>) {
    if let Some(found) = found {
        let result = enum_name!(ReachabilityResult, "REACHABILITY_RESULT_", found.result);
        note(&format!("ovfleet: {result}: {}", escape(&found.message)));
    }
}
