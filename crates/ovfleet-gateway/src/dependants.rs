//! Daemons that end when this process does.

use openvpn_fleet::{Condition, Fleet, Instance, InstanceName};
use openvpn_session::{DisconnectPolicy, SessionConfig};

use crate::config::{Config, Place};

/// The daemons that dialled in (`--management-client`): each ends when its session does.
#[derive(Clone, Debug)]
pub struct Dependants(Fleet);

impl Dependants {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self(fleet)
    }

    /// Instances of a configuration whose daemons do not outlive their session unharmed: they dial in, or
    /// `disconnect` says so. No other gateway can take them over.
    #[must_use]
    pub fn configured(config: &Config) -> Vec<InstanceName> {
        let instances = config.instances.iter();
        instances
            .filter(|instance| is_fragile(&instance.spec.session))
            .map(|instance| instance.spec.name.clone())
            .collect()
    }

    /// Where the discovery sources of a configuration are written that find such instances, as far as `disconnect`
    /// tells. What else is one of theirs is known only when they are read.
    #[must_use]
    pub fn sources(config: &Config) -> Vec<Place> {
        let sources = config.discover.iter();
        sources
            .filter(|source| source.is_destructive())
            .map(|source| source.place.clone())
            .collect()
    }

    /// The same instances of those there are now, whoever defined them, but for the paused ones, which have no session.
    #[must_use]
    pub fn fragile(&self) -> Vec<InstanceName> {
        let specs = self.0.instances().into_iter().map(|it| it.spec());
        specs
            .filter(|spec| spec.paused.is_none() && is_fragile(&spec.session))
            .map(|spec| spec.name.clone())
            .collect()
    }

    /// Their instances' names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<InstanceName> {
        let instances = self.0.instances();
        instances
            .iter()
            .filter(|instance| depends(instance))
            .map(|instance| instance.name().clone())
            .collect()
    }

    /// Waits until those of now are gone. Cancel safe.
    pub async fn gone(&self) {
        for instance in self.0.instances() {
            if depends(&instance) {
                instance
                    .wait_for(|table| (!is_in(table.status().condition)).then_some(()))
                    .await;
            }
        }
    }
}

fn is_fragile(session: &SessionConfig) -> bool {
    session.address.is_dial_in() || session.disconnect == DisconnectPolicy::Destructive
}

fn depends(instance: &Instance) -> bool {
    instance.spec().session.address.is_dial_in()
        && instance.with_table(|table| is_in(table.status().condition))
}

/// Whether there is a session that could end.
pub(crate) fn is_in(condition: Condition) -> bool {
    match condition {
        Condition::Syncing
        | Condition::Attached
        | Condition::Unresponsive
        | Condition::AuthFailed => true,
        Condition::Connecting
        | Condition::SlotBusy
        | Condition::Unreachable
        | Condition::Paused => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A daemon that nobody can take over must not be forgotten because it is a table of discovery that finds it, or
    /// because `[defaults]` say so.
    #[test]
    fn sources_are_told_by_what_they_find() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.toml");
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            Config::load(&path).unwrap()
        };
        let lines = |config: &Config| {
            let places = Dependants::sources(config);
            places.iter().map(|place| place.line).collect::<Vec<_>>()
        };
        let sources = "[[discover]]\nglob = \"/run/a/*\"\ndisconnect = \"destructive\"\n\
                       [[discover]]\nglob = \"/run/b/*\"\n\
                       [[discover]]\nglob = \"/run/c/*\"\ndisconnect = \"harmless\"\n";
        assert_eq!(lines(&load(sources)), [1]);
        let defaults = format!("{sources}[defaults]\ndisconnect = \"destructive\"");
        assert_eq!(lines(&load(&defaults)), [1, 4]);
    }
}
