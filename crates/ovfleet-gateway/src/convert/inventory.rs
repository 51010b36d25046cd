//! What became of changes of the inventory, out.

use openvpn_session::Probe;
use ovfleet_proto::v1::{self, InstanceDefinition};

use crate::inventory::{InstanceChange, Plan, SetAside};

/// How well a change is kept.
pub(crate) const fn durability(is_durable: bool) -> v1::Durability {
    if is_durable {
        v1::Durability::Disk
    } else {
        v1::Durability::Memory
    }
}

/// What answers at an address.
pub(crate) fn reachability(probe: Probe) -> v1::Reachability {
    use v1::ReachabilityResult as Out;
    let (result, message) = match probe {
        Probe::Greeted { management_version } => {
            let version = management_version
                .map_or_else(String::new, |version| format!(" (management version {version})"));
            (Out::Greeted, format!("a daemon greeted{version}; its slot was free"))
        }
        Probe::PasswordAsked => (
            Out::PasswordAsked,
            "a daemon asked for the management password; its slot was free".to_owned(),
        ),
        Probe::Silent => (
            Out::Silent,
            "the connection was taken and nothing said: another manager holds the daemon's only slot, or it hangs"
                .to_owned(),
        ),
        Probe::Unreachable { reason } => (Out::Unreachable, reason),
        Probe::NotTried { reason } => (Out::NotTried, reason),
    };
    v1::Reachability {
        result: result.into(),
        message,
    }
}

/// What a reload did, or would do.
pub(crate) fn plan(
    plan: Plan,
    definitions: Vec<InstanceDefinition>,
    validate_only: bool,
) -> v1::ReloadResponse {
    let needs_force = plan.needs_force();
    let Plan {
        added,
        changed,
        removed,
        untouched,
        // In `needs_force`.
        harms: _,
        removes_much: _,
        takes_restart,
        problems,
        set_aside,
    } = plan;
    let changed = changed.into_iter().map(|change| {
        let InstanceChange {
            name,
            what,
            reconnects,
        } = change;
        v1::InstanceChange {
            name: name.to_string(),
            what: what.into_iter().map(str::to_owned).collect(),
            reconnects,
        }
    });
    let set_aside = set_aside.into_iter().zip(definitions);
    let set_aside = set_aside.map(|(aside, definition)| {
        let SetAside {
            // In its definition.
            name: _,
            reason,
        } = aside;
        v1::SetAside {
            instance: Some(definition),
            reason: reason.to_string(),
        }
    });
    v1::ReloadResponse {
        validate_only,
        added: added.iter().map(ToString::to_string).collect(),
        changed: changed.collect(),
        removed: removed.iter().map(ToString::to_string).collect(),
        untouched: untouched as u64,
        takes_restart: takes_restart.into_iter().map(str::to_owned).collect(),
        problems,
        set_aside: set_aside.collect(),
        needs_force: if validate_only {
            needs_force
        } else {
            Vec::new()
        },
        // Of the request id, which is not known here.
        durability: v1::Durability::Unspecified.into(),
    }
}
