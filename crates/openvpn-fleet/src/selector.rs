//! Which instances are meant.

use std::collections::BTreeSet;

use crate::label::LabelExpression;
use crate::name::{GatewayName, InstanceName, Labels};

/// Most names in one selector.
pub const SELECTOR_NAMES_MAX: usize = 10_000;

/// Which instances are meant. Names and labels may be combined: an instance must then satisfy both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// Names, each with or without its gateway. Empty: whatever the name.
    pub names: BTreeSet<InstancePath>,
    /// What the labels must be like. Empty: whatever the labels.
    pub labels: LabelExpression,
    /// Every instance was asked for in so many words; reads take an empty selector for it, actions do not.
    pub all: bool,
}

/// Name of an instance, perhaps with its gateway: `eu1` or `vpn1/eu1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstancePath {
    /// The gateway; `None`: whichever is asked.
    pub gateway: Option<GatewayName>,
    /// The instance.
    pub instance: InstanceName,
}

impl std::str::FromStr for InstancePath {
    type Err = crate::name::NameError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let (gateway, instance) = match path.split_once('/') {
            Some((gateway, instance)) => (Some(GatewayName::new(gateway)?), instance),
            None => (None, path),
        };
        Ok(Self {
            gateway,
            instance: InstanceName::new(instance)?,
        })
    }
}

impl std::fmt::Display for InstancePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.gateway {
            Some(gateway) => write!(f, "{gateway}/{}", self.instance),
            None => self.instance.fmt(f),
        }
    }
}

impl Selector {
    /// Every instance.
    #[must_use]
    pub fn all() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// Whether it says nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.labels.is_empty()
    }

    /// Whether every instance is meant, whatever its name and labels.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.names.is_empty() && self.labels.is_empty()
    }

    /// Whether an instance is meant.
    #[must_use]
    pub fn matches(&self, gateway: &GatewayName, instance: &InstanceName, labels: &Labels) -> bool {
        self.names_match(gateway, instance) && self.labels.matches(labels)
    }

    fn names_match(&self, gateway: &GatewayName, instance: &InstanceName) -> bool {
        let mut path = InstancePath {
            gateway: None,
            instance: instance.clone(),
        };
        if self.names.is_empty() || self.names.contains(&path) {
            return true;
        }
        path.gateway = Some(gateway.clone());
        self.names.contains(&path)
    }
}
