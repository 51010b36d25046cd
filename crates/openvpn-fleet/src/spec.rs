//! What an operator or a discovery source says of an instance.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use openvpn_session::SessionConfig;

use crate::name::{InstanceName, Labels};

/// What an operator or a discovery source says of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceSpec {
    /// Name, unique on its gateway.
    pub name: InstanceName,
    /// Labels for selection and roll-up.
    pub labels: Labels,
    /// Where it was defined.
    pub source: InstanceSource,
    /// Where its management socket is, and how to treat it; shared with the session.
    pub session: Arc<SessionConfig>,
    /// Why an operator took it out of service, for a person; `None` is in service. There is no session while it is set.
    pub paused: Option<String>,
    /// Stands for what else was said of it and does not concern the fleet: another number tells that it changed.
    pub others: u64,
}

/// Where an instance was defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceSource {
    /// The configuration file.
    File,
    /// A discovery source.
    Discovery,
    /// The API.
    Api,
}

impl InstanceSpec {
    /// Changes with the spec; equal specs have equal tags within one build of the program.
    #[must_use]
    pub fn etag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}
