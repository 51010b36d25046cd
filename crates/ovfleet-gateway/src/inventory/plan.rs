//! The difference between the instances there are and those there shall be.

use std::collections::BTreeMap;

use openvpn_fleet::{Fleet, InstanceName};
use openvpn_session::{DisconnectPolicy, SessionConfig};

use super::compose::SetAside;
use crate::{config::InstanceConfig, dependants};

/// The most instances, in percent, that a reload removes without `force`.
const REMOVED_PERCENT_MAX: usize = 20;
/// Most names in one line for people.
const NAMED_MAX: usize = 10;

/// What a reload does, or would do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Instances that join, in order of name.
    pub(crate) added: Vec<InstanceName>,
    /// Instances that are defined differently, in order of name.
    pub(crate) changed: Vec<InstanceChange>,
    /// Instances that leave, in order of name.
    pub(crate) removed: Vec<InstanceName>,
    /// How many are as they were.
    pub(crate) untouched: usize,
    /// What it does to daemons that the end of their session harms.
    pub(crate) harms: Vec<String>,
    /// That it removes more than a slip of the pen should.
    pub(crate) removes_much: Option<String>,
    /// Keys that take a restart.
    pub(crate) takes_restart: Vec<&'static str>,
    /// What keeps single instances from being attached or found.
    pub(crate) problems: Vec<String>,
    /// Definitions of the API that are not in force.
    pub(crate) set_aside: Vec<SetAside>,
}

/// How one instance differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct InstanceChange {
    pub(crate) name: InstanceName,
    /// What is written differently.
    pub(crate) what: Vec<&'static str>,
    /// Its session begins anew, or ends.
    pub(crate) reconnects: bool,
}

impl Plan {
    /// What leads from `present` to `wanted`, and what that would do to the daemons of `fleet`.
    pub(crate) fn new(
        present: &BTreeMap<InstanceName, InstanceConfig>,
        wanted: &BTreeMap<InstanceName, InstanceConfig>,
        fleet: &Fleet,
    ) -> Self {
        let mut plan = Self::default();
        for (name, instance) in wanted {
            match present.get(name) {
                None => plan.added.push(name.clone()),
                Some(before) => match difference(before, instance) {
                    Some(change) => plan.changed.push(change),
                    None => plan.untouched += 1,
                },
            }
        }
        let gone = present.keys().filter(|name| !wanted.contains_key(*name));
        plan.removed = gone.cloned().collect();
        if plan.removed.len() * 100 > present.len() * REMOVED_PERCENT_MAX {
            plan.removes_much = Some(format!(
                "it removes {} of {} instances, more than {REMOVED_PERCENT_MAX} %: {}",
                plan.removed.len(),
                present.len(),
                names(&plan.removed)
            ));
        }
        let ends = plan.changed.iter().filter(|change| change.reconnects);
        let ends = ends.map(|change| &change.name).chain(&plan.removed);
        plan.harms = ends.filter_map(|name| harm(fleet, name)).collect();
        plan
    }

    /// Why a reload of this wants `force`; empty where it does not.
    pub(crate) fn needs_force(&self) -> Vec<String> {
        self.removes_much
            .iter()
            .chain(&self.harms)
            .cloned()
            .collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// The plan in a line.
    pub(crate) fn summary(&self) -> String {
        let changed: Vec<_> = self.changed.iter().map(|change| &change.name).collect();
        let mut parts = Vec::new();
        let mut add = |what: &str, count: usize, names: String| {
            if count > 0 {
                parts.push(format!("{count} {what} ({names})"));
            }
        };
        add("added", self.added.len(), names(&self.added));
        add("changed", changed.len(), names(changed));
        add("removed", self.removed.len(), names(&self.removed));
        parts.push(format!("{} untouched", self.untouched));
        if !self.takes_restart.is_empty() {
            parts.push(format!(
                "takes a restart: {}",
                self.takes_restart.join(", ")
            ));
        }
        let aside = self.set_aside.iter().map(|aside| &aside.name);
        if !self.set_aside.is_empty() {
            parts.push(format!("set aside: {}", names(aside)));
        }
        parts.join(", ")
    }
}

fn names<'a>(names: impl IntoIterator<Item = &'a InstanceName>) -> String {
    let mut names = names.into_iter();
    let mut shown: Vec<&str> = names
        .by_ref()
        .take(NAMED_MAX)
        .map(InstanceName::as_str)
        .collect();
    let more = names.count();
    let more_words = format!("and {more} more");
    if more > 0 {
        shown.push(&more_words);
    }
    shown.join(" ")
}

/// What is written differently of an instance; `None` is nothing.
fn difference(before: &InstanceConfig, after: &InstanceConfig) -> Option<InstanceChange> {
    let (old, new) = (&before.spec, &after.spec);
    let mut what = Vec::new();
    if old.session.address != new.session.address {
        what.push("address");
    } else if old.session != new.session {
        what.push("session");
    }
    let reconnects = !what.is_empty() || old.paused.is_some() != new.paused.is_some();
    for (word, differs) in [
        ("labels", old.labels != new.labels),
        ("mux", before.mux != after.mux),
        ("source", old.source != new.source),
        ("paused", old.paused != new.paused),
    ] {
        if differs {
            what.push(word);
        }
    }
    (!what.is_empty()).then(|| InstanceChange {
        name: new.name.clone(),
        what,
        reconnects,
    })
}

/// What the end of an instance's session would do to its daemon, where that is more than nothing.
fn harm(fleet: &Fleet, name: &InstanceName) -> Option<String> {
    let instance = fleet.instance(name.as_str())?;
    let is_in = instance.with_table(|table| dependants::is_in(table.status().condition));
    harm_of(&instance.spec().session, name).filter(|_| is_in)
}

/// The same of one that may have no session now.
pub(crate) fn harm_of(session: &SessionConfig, name: &InstanceName) -> Option<String> {
    if session.address.is_dial_in() {
        return Some(format!(
            "the daemon of {name} dials in: it ends with its session, and when it finds nobody to dial in to"
        ));
    }
    match session.disconnect {
        DisconnectPolicy::Harmless => None,
        DisconnectPolicy::Destructive => Some(format!(
            "the end of its session harms the daemon of {name} (disconnect = \"destructive\"): it ends, restarts, \
             or forgets passwords"
        )),
    }
}
