//! Who is meant by a kill, from a fresh status of each selected instance.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use openvpn_management::{Cid, Text};
use openvpn_session::{CallError, Mode};
use tokio::time::{Instant, sleep_until};

use crate::action::{
    ActionError, ActionResult, AsOf, CLIENTS_PER_KILL_DEFAULT, InstanceResult, KillReport,
    KillRequest, KillResult, Outcome, TargetError,
};
use crate::client::Client;
use crate::fleet::Shared;
use crate::instance::Instance;
use crate::name::{ClientRef, Generation, RequestId};
use crate::send::{INSTANCES_IN_FLIGHT_MAX, Limits, fate_of_error, not_attached};
use crate::table::Table;

pub(super) fn empty_report(
    shared: &Shared,
    request_id: RequestId,
    validate_only: bool,
) -> KillReport {
    KillReport {
        request_id,
        results: Vec::new(),
        instances: Vec::new(),
        validate_only,
        cut_short: false,
        as_of: AsOf {
            position: shared.journal.newest(),
            time: SystemTime::now(),
        },
        durability: shared.requests.durability(),
    }
}

/// What a request means, before anything is sent.
pub(super) struct Plan {
    pub(super) report: KillReport,
    /// Where the first results of `report` are to be sent; one per result, in the same order.
    pub(super) targets: Vec<Target>,
}

/// One client to end, as it was when it was found.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) instance: Arc<Instance>,
    pub(super) generation: Generation,
    pub(super) cid: Cid,
    pub(super) common_name: Box<[u8]>,
    pub(super) connected_since: Option<i64>,
}

impl Target {
    /// The client, if it is still the one that was found.
    pub(super) fn find<'a>(&self, table: &'a Table) -> Result<&'a Client, Refused> {
        if table.generation() != Some(self.generation) {
            return Err(Refused::Stale(table.generation()));
        }
        let client = table.client(self.cid).ok_or(Refused::Gone)?;
        let is_same = *client.common_name() == *self.common_name
            && client.connected_since() == self.connected_since;
        if is_same {
            Ok(client)
        } else {
            Err(Refused::Gone)
        }
    }
}

/// Why a guard lets nothing through.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the daemon began a new generation")]
    Stale(Option<Generation>),
    #[error("the client is gone")]
    Gone,
    #[error("the caller cancelled")]
    Cancelled,
}

/// How long one instance may take to list its clients, and never more than half of the time there is: one that hangs
/// must not keep the others' clients from being hit in time.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Finds out who is meant, from a fresh status of each selected instance.
pub(super) async fn resolve(
    shared: &Arc<Shared>,
    request: &KillRequest,
    limits: &Limits,
    request_id: RequestId,
) -> Result<Plan, ActionError> {
    let mut report = empty_report(shared, request_id, request.validate_only);
    let mut targets = Vec::new();
    let selection = shared.select(&request.selector);
    let named: &HashSet<&str> = &request
        .filter
        .refs
        .iter()
        .map(|named| named.instance.as_str())
        .collect();
    let now = Instant::now();
    let found: Vec<_> = stream::iter(selection.instances)
        .map(|instance: Arc<Instance>| async move {
            let is_meant = named.is_empty() || named.contains(instance.name().as_str());
            let error = if is_meant {
                ask(&instance, now, limits).await.err()
            } else {
                None
            };
            (instance, is_meant, error)
        })
        .buffered(INSTANCES_IN_FLIGHT_MAX)
        .collect()
        .await;
    for (instance, is_meant, error) in found {
        let asked = is_meant && error.is_none();
        let mut matched = 0;
        let mut snapshot_age = None;
        instance.with_table(|table| {
            let snapshot_time = table.status().snapshot_time;
            snapshot_age =
                snapshot_time.and_then(|time| SystemTime::now().duration_since(time).ok());
            let Some(generation) = table.generation().filter(|_| asked) else {
                return;
            };
            for client in table.clients() {
                if !request.filter.matches(
                    &shared.gateway,
                    &client.identity(instance.name(), generation),
                ) {
                    continue;
                }
                matched += 1;
                report
                    .results
                    .push(planned(shared, &instance, generation, client));
                targets.push(Target {
                    instance: Arc::clone(&instance),
                    generation,
                    cid: client.cid(),
                    common_name: client.common_name().into(),
                    connected_since: client.connected_since(),
                });
            }
        });
        report.instances.push(InstanceResult {
            gateway: shared.gateway.clone(),
            instance: instance.name().clone(),
            asked,
            matched,
            snapshot_age,
            error,
        });
    }
    for path in &selection.unknown {
        report.instances.push(InstanceResult {
            gateway: path
                .gateway
                .clone()
                .unwrap_or_else(|| shared.gateway.clone()),
            instance: path.instance.clone(),
            asked: false,
            matched: 0,
            snapshot_age: None,
            error: Some(TargetError::UnknownInstance {
                instance: path.clone(),
            }),
        });
    }
    let hit: BTreeSet<_> = report
        .results
        .iter()
        .map(|result| result.client.clone())
        .collect();
    let missing = request.filter.refs.difference(&hit);
    let missing: Vec<_> = missing
        .filter_map(|named| missing_ref(shared, &report, named))
        .collect();
    report.results.extend(missing);
    let plan = Plan { report, targets };
    check_limits(&plan, request)?;
    Ok(plan)
}

/// Makes sure that an instance's table is as fresh as the question.
pub(super) async fn ask(
    instance: &Instance,
    not_before: Instant,
    limits: &Limits,
) -> Result<(), TargetError> {
    limits.check()?;
    let now = Instant::now();
    let patience = ANSWER_MAX.min(limits.stop.duration_since(now) / 2);
    let refreshed = instance.refresh_at_once(not_before.into_std(), limits.stop.into_std());
    let refreshed = tokio::select! {
        refreshed = refreshed => refreshed,
        () = limits.cancelled() => return Err(TargetError::Cancelled),
        () = sleep_until(now + patience) => {
            return Err(TargetError::Silent {
                instance: instance.name().clone(),
                waited: patience,
            });
        }
    };
    let no_clients = |text: String| TargetError::NoClients {
        instance: instance.name().clone(),
        text,
    };
    match refreshed {
        Ok(_) if instance.with_table(|table| table.status().mode) == Mode::Client => {
            Err(no_clients("it is a client itself".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(CallError::Rejected { text, .. }) => Err(no_clients(text.to_string())),
        Err(error) => Err(fate_of_error(instance, error)
            .error
            .unwrap_or_else(|| not_attached(instance))),
    }
}

fn planned(
    shared: &Shared,
    instance: &Instance,
    generation: Generation,
    client: &Client,
) -> KillResult {
    KillResult {
        client: ClientRef {
            gateway: shared.gateway.clone(),
            instance: instance.name().clone(),
            generation,
            cid: client.cid(),
        },
        common_name: Text::copy_from(client.common_name()),
        username: Text::copy_from(client.username()),
        real_address: Text::copy_from(client.real_address()),
        virtual_address: Text::copy_from(client.virtual_address()),
        outcome: Outcome::Planned,
        error: None,
        sent: None,
        successor: None,
    }
}

/// The result for a ref that is no target; `None` if it names somebody whom the rest of the filter spares.
fn missing_ref(shared: &Shared, report: &KillReport, named: &ClientRef) -> Option<KillResult> {
    let asked = report
        .instances
        .iter()
        .find(|asked| asked.instance == named.instance && asked.gateway == named.gateway);
    let instance = shared
        .instances
        .get(&named.instance)
        .map(|entry| Arc::clone(entry.value()))
        .filter(|_| named.gateway == shared.gateway);
    let (outcome, error) = match (asked, instance) {
        (Some(asked), Some(instance)) => {
            let (current, is_there) = instance
                .with_table(|table| (table.generation(), table.client(named.cid).is_some()));
            if current.is_some_and(|current| current != named.generation) {
                let instance = named.instance.clone();
                (Outcome::Stale, TargetError::Stale { instance, current })
            } else if let Some(error) = &asked.error {
                (Outcome::NotSent, error.clone())
            } else if is_there {
                return None;
            } else {
                (Outcome::AlreadyGone, TargetError::Gone)
            }
        }
        // Not selected, or not an instance.
        _ => {
            let instance = crate::selector::InstancePath {
                gateway: Some(named.gateway.clone()),
                instance: named.instance.clone(),
            };
            (Outcome::NotSent, TargetError::UnknownInstance { instance })
        }
    };
    Some(KillResult {
        client: named.clone(),
        common_name: Text::default(),
        username: Text::default(),
        real_address: Text::default(),
        virtual_address: Text::default(),
        outcome,
        error: Some(error),
        sent: None,
        successor: None,
    })
}

fn check_limits(plan: &Plan, request: &KillRequest) -> Result<(), ActionError> {
    let max = match request.max_clients {
        0 => CLIENTS_PER_KILL_DEFAULT,
        max => max,
    };
    let found = plan.targets.len();
    if found > max as usize {
        let plan = Arc::new(plan.report.clone());
        return Err(ActionError::TooManyClients { found, max, plan });
    }
    let max = request.max_instances;
    let found = plan
        .report
        .instances
        .iter()
        .filter(|instance| instance.matched > 0)
        .count();
    if max > 0 && found > max as usize {
        let plan = ActionResult::Kill(Arc::new(plan.report.clone()));
        return Err(ActionError::TooManyInstances { found, max, plan });
    }
    Ok(())
}
