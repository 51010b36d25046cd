//! Daemons that end when this process does.

use openvpn_fleet::{Condition, Fleet, Instance, InstanceName};
use openvpn_session::DisconnectPolicy;

use crate::config::Config;

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
        let ends_with_it = |session: &openvpn_session::SessionConfig| {
            session.address.is_dial_in() || session.disconnect == DisconnectPolicy::Destructive
        };
        let instances = config.instances.iter();
        instances
            .filter(|instance| ends_with_it(&instance.spec.session))
            .map(|instance| instance.spec.name.clone())
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
