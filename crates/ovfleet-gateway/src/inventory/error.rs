//! Why the inventory is left as it is.

use openvpn_fleet::InstanceName;

use super::plan::Plan;
use crate::{
    config::{Clash, ConfigErrors},
    state::WriteError,
};

/// Why the inventory is left as it is: nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// What was said of an instance has mistakes.
    #[error("{} mistakes in what is said of the instance", .0.len())]
    Invalid(Vec<Violation>),
    /// There is no such instance.
    #[error("there is no instance {0}; ListInstances names those there are")]
    Unknown(String),
    /// Another instance has its name or an address of it.
    #[error("{clash}")]
    Taken {
        /// What is taken, and by whom.
        clash: Clash,
    },
    /// It is not the API's to change.
    #[error("instance {name} is defined at {place}: change it there, and it is read again")]
    ReadOnly {
        /// The instance.
        name: InstanceName,
        /// The file, or the source of a discovery.
        place: String,
    },
    /// It changed since the caller looked.
    #[error("instance {name} has changed: its etag is {present} now")]
    EtagMismatch {
        /// The instance.
        name: InstanceName,
        /// Its etag.
        present: String,
    },
    /// It would harm daemons, or remove much.
    #[error("{}; nothing was changed. If that is meant, use force", reasons.join("; "))]
    NeedsForce {
        /// What it would do.
        reasons: Vec<String>,
        /// Everything it would do, where that is more than one change.
        plan: Option<Box<Plan>>,
    },
    /// The configuration has mistakes: the old one stays in force.
    #[error("the configuration has mistakes, and the old one stays in force: {0}")]
    Config(ConfigErrors),
    /// There is no file to read.
    #[error("this gateway has no configuration file to read again")]
    NoFile,
    /// As many instances are defined at run time as are kept.
    #[error("{max} instances are defined at run time already: define others in the file")]
    Limit {
        /// As many as are kept.
        max: usize,
    },
    /// The change cannot be kept.
    #[error("the change cannot be kept, so nothing was changed: {0}")]
    State(#[from] WriteError),
    /// The gateway is going away.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

/// One mistake in a request.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Violation {
    /// The field of the request, such as `instance.address`.
    pub(crate) field: String,
    /// What is wrong and what would be right.
    pub(crate) description: String,
}
