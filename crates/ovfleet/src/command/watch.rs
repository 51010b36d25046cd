//! `watch`: the fleet as it is now, kept current.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use jiff::Timestamp;
use ovfleet_proto::v1::{
    Client, ClientRef, Condition, DeleteReason, FleetChanges, Instance, WatchFleetRequest,
    watch_fleet_response::Frame,
};

use crate::{
    args::{Format, WatchArgs},
    failure::{Failure, Outcome, Verdict, is_passing},
    gateway::Gateway,
    listing::{full_name, report_unreachable},
    output::{Output, note},
    rows::{self, Focus},
    table::Tone,
    text::{bytes, count, enum_name, escape, outside},
    value::proto_duration,
};

/// Wait before a lost watch is called again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Home, and clear what follows: the table is drawn over itself.
const REDRAW: &str = "\x1b[H\x1b[J";
/// Lines of the screen that belong to the headings.
const HEADING_LINES: usize = 4;

pub(crate) async fn run(gateway: &Gateway, args: WatchArgs, output: &mut Output) -> Outcome {
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut watched_before = false;
    loop {
        let mut watch = Watch {
            fleet: Fleet::default(),
            live: output.is_live() && !args.lines,
        };
        let end = tokio::select! {
            end = watch.follow(gateway, &args, output) => end?,
            _ = &mut interrupted => {
                if watch.live {
                    // What follows begins below the table.
                    output.line("")?;
                }
                return Ok(Verdict::Done);
            }
        };
        match end {
            End::Complete(verdict) => return Ok(verdict),
            End::Again => {}
            End::Lost(status) => {
                if !is_passing(&status) || !(watched_before || watch.fleet.synced) {
                    return Err(gateway.failure(status));
                }
                note(&format!(
                    "ovfleet: lost the watch ({})",
                    escape(status.message())
                ));
            }
        }
        watched_before = true;
        tokio::select! {
            () = tokio::time::sleep(RETRY_DELAY) => {}
            _ = &mut interrupted => return Ok(Verdict::Done),
        }
    }
}

/// What one call of WatchFleet shows.
struct Watch {
    fleet: Fleet,
    /// A table that is drawn over itself, not a line per change.
    live: bool,
}

enum End {
    Complete(Verdict),
    /// The gateway goes away.
    Again,
    Lost(tonic::Status),
}

impl Watch {
    async fn follow(
        &mut self,
        gateway: &Gateway,
        args: &WatchArgs,
        output: &mut Output,
    ) -> Result<End, Failure> {
        let selector = args.instances.selector();
        let request = WatchFleetRequest {
            selector: Some(selector.clone()),
            filter: Some(args.filter.filter()),
            min_interval: Some(proto_duration(args.interval)),
            once: args.once,
            instances_only: args.instances_only,
            view: 0,
        };
        let mut frames = match gateway.fleet().watch_fleet(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(End::Lost(status)),
        };
        let mut verdict = Verdict::Done;
        loop {
            let response = match frames.message().await {
                Ok(Some(response)) => response,
                Ok(None) if args.once => return Ok(End::Complete(verdict)),
                Ok(None) => return Ok(End::Again),
                Err(status) => return Ok(End::Lost(status)),
            };
            if output.format() != Format::Table {
                output.json_line("WatchFleetResponse", &response)?;
            }
            match response.frame {
                Some(Frame::Changes(changes)) => {
                    if output.format() == Format::Table && !self.live {
                        output.text(&self.fleet.lines(&changes, output))?;
                    }
                    self.fleet.apply(changes);
                }
                Some(Frame::Synced(synced)) => {
                    self.fleet.synced = true;
                    if !self.live {
                        verdict = report_unreachable(gateway, &selector, &synced.unreachable).await;
                    } else if !synced.unreachable.is_empty() {
                        // The table shows them.
                        verdict = Verdict::Incomplete;
                    }
                }
                Some(Frame::Drain(_)) => return Ok(End::Again),
                Some(Frame::Heartbeat(_)) | None => {}
            }
            if self.live && self.fleet.synced {
                output.text(&self.fleet.screen(args, output))?;
            }
        }
    }
}

/// Gateway, instance, generation, CID: the order of lists.
type Key = (String, String, String, u64);

fn key(client: &ClientRef) -> Key {
    let ClientRef {
        gateway,
        instance,
        generation,
        cid,
    } = client.clone();
    (gateway, instance, generation, cid)
}

/// The fleet as the watch has told it so far.
#[derive(Default)]
struct Fleet {
    instances: BTreeMap<(String, String), Instance>,
    clients: BTreeMap<Key, Client>,
    synced: bool,
}

impl Fleet {
    fn apply(&mut self, changes: FleetChanges) {
        let FleetChanges {
            instances,
            clients,
            deleted_instances,
            deleted_clients,
        } = changes;
        for instance in instances {
            let name = instance
                .spec
                .as_ref()
                .map(|spec| spec.name.clone())
                .unwrap_or_default();
            self.instances
                .insert((instance.gateway.clone(), name), instance);
        }
        for client in clients {
            self.clients
                .insert(client.r#ref.as_ref().map(key).unwrap_or_default(), client);
        }
        for deleted in deleted_instances {
            self.instances.remove(&(deleted.gateway, deleted.instance));
        }
        for deleted in deleted_clients {
            self.clients
                .remove(&deleted.r#ref.as_ref().map(key).unwrap_or_default());
        }
    }

    /// Changes as lines: `+` new, `~` changed, `-` gone.
    fn lines(&self, changes: &FleetChanges, output: &Output) -> String {
        let mut text = String::new();
        let mut line = |tone: Tone, words: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", output.paint(tone, words));
        };
        for instance in &changes.instances {
            let name = instance
                .spec
                .as_ref()
                .map(|spec| spec.name.clone())
                .unwrap_or_default();
            let status = instance.status.clone().unwrap_or_default();
            let known = self
                .instances
                .contains_key(&(instance.gateway.clone(), name.clone()));
            let (sign, tone) = sign(known);
            line(
                tone,
                &format!(
                    "{sign} {}  {} {}  {} clients  {} in, {} out",
                    full_name(&instance.gateway, &name),
                    enum_name!(Condition, "CONDITION_", status.condition),
                    escape(&status.state),
                    count(status.clients),
                    bytes(status.bytes_received),
                    bytes(status.bytes_sent),
                ),
            );
        }
        for client in &changes.clients {
            let reference = client.r#ref.clone().unwrap_or_default();
            let (sign, tone) = sign(self.clients.contains_key(&key(&reference)));
            line(
                tone,
                &format!(
                    "{sign} {}  {} {} from {}  {} in, {} out{}",
                    client_name(&reference),
                    outside(&client.common_name, &client.common_name_raw),
                    escape(&client.virtual_address),
                    escape(&client.real_address),
                    bytes(client.bytes_received),
                    bytes(client.bytes_sent),
                    if client.stale { "  (stale)" } else { "" },
                ),
            );
        }
        for deleted in &changes.deleted_clients {
            let reference = deleted.r#ref.clone().unwrap_or_default();
            let name = self
                .clients
                .get(&key(&reference))
                .map_or_else(String::new, |client| {
                    outside(&client.common_name, &client.common_name_raw)
                });
            let reason = enum_name!(DeleteReason, "DELETE_REASON_", deleted.reason);
            line(
                Tone::Dim,
                &format!("- {}  {name} ({reason})", client_name(&reference)),
            );
        }
        for deleted in &changes.deleted_instances {
            line(
                Tone::Dim,
                &format!("- {}", full_name(&deleted.gateway, &deleted.instance)),
            );
        }
        text
    }

    /// The whole screen: what does not fit is left out, and said.
    fn screen(&self, args: &WatchArgs, output: &Output) -> String {
        let (columns, lines) = output.size().unwrap_or((80, 24));
        let now = Timestamp::now();
        let instances: Vec<Instance> = self.instances.values().cloned().collect();
        let mut by_bytes: Vec<&Client> = self.clients.values().collect();
        by_bytes.sort_by_key(|client| std::cmp::Reverse(client.bytes_received + client.bytes_sent));

        let attached = instances
            .iter()
            .filter_map(|instance| instance.status.as_ref())
            .filter(|status| status.condition == i32::from(Condition::Attached))
            .count();
        let mut text = format!(
            "{REDRAW}{attached} of {} instances attached, {} clients, {}; Ctrl-C ends\n\n",
            instances.len(),
            count(self.clients.len() as u64),
            now.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%H:%M:%S"),
        );
        let space = lines.saturating_sub(HEADING_LINES);
        // The unwell ones first, when not all fit.
        let mut shown = instances;
        let room = if args.instances_only {
            space
        } else {
            space / 2
        };
        if shown.len() > room {
            shown.sort_by_key(|instance| {
                let condition = instance.status.as_ref().map(|status| status.condition);
                condition == Some(Condition::Attached.into())
            });
            shown.truncate(room.max(1));
        }
        text += &rows::instances(&shown, false, now).render(Some(columns), output.paints());
        if !args.instances_only {
            let room = space.saturating_sub(shown.len() + 2).max(1);
            let top: Vec<Client> = by_bytes.into_iter().take(room).cloned().collect();
            text.push('\n');
            text += &rows::clients(&top, Focus::Traffic, false, now)
                .render(Some(columns), output.paints());
        }
        // No newline at the end: the screen must not scroll.
        text.trim_end().to_owned()
    }
}

fn sign(known: bool) -> (char, Tone) {
    if known {
        ('~', Tone::Plain)
    } else {
        ('+', Tone::Good)
    }
}

fn client_name(client: &ClientRef) -> String {
    format!(
        "{}#{}",
        full_name(&client.gateway, &client.instance),
        client.cid
    )
}

#[cfg(test)]
mod tests {
    use ovfleet_proto::v1::{ClientDelete, InstanceSpec};

    use super::*;

    fn client(cid: u64) -> Client {
        let r#ref = ClientRef {
            gateway: "vpn1".into(),
            instance: "eu1".into(),
            generation: "7".into(),
            cid,
        };
        Client {
            r#ref: Some(r#ref),
            common_name: format!("name{cid}"),
            ..Client::default()
        }
    }

    /// What is on the screen is the snapshot plus every change since.
    #[test]
    fn changes_build_the_fleet() {
        let mut fleet = Fleet::default();
        let spec = InstanceSpec {
            name: "eu1".into(),
            ..InstanceSpec::default()
        };
        fleet.apply(FleetChanges {
            instances: vec![Instance {
                gateway: "vpn1".into(),
                spec: Some(spec),
                ..Instance::default()
            }],
            clients: vec![client(1), client(2)],
            ..FleetChanges::default()
        });
        fleet.apply(FleetChanges {
            clients: vec![Client {
                bytes_sent: 5,
                ..client(2)
            }],
            deleted_clients: vec![ClientDelete {
                r#ref: client(1).r#ref,
                reason: 1,
            }],
            ..FleetChanges::default()
        });
        assert_eq!(fleet.instances.len(), 1);
        let left: Vec<_> = fleet
            .clients
            .values()
            .map(|client| client.bytes_sent)
            .collect();
        assert_eq!(left, [5]);
    }
}
