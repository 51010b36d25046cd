//! What was said at run time: definitions of instances, and pauses.

use std::collections::BTreeMap;

use openvpn_fleet::InstanceName;
use ovfleet_proto::v1::InstanceDefinition;
use prost::Message as _;

use super::error::InventoryError;
use crate::{
    config::{Defaults, InstanceConfig},
    convert,
    state::{Registered, Registry, WriteError},
};

/// Most names of which something is said at run time.
pub(super) const NAMES_MAX: usize = 20_000;

/// What was said at run time, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runtime(BTreeMap<InstanceName, Entry>);

/// What was said of one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// `None`: the file or discovery defines it.
    pub(super) definition: Option<Definition>,
    /// Why it is paused.
    pub(super) pause: Option<String>,
}

/// An instance that the API defines.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    pub(super) message: InstanceDefinition,
    /// What it amounts to with the present defaults, or every mistake.
    pub(super) built: Result<InstanceConfig, String>,
}

impl Definition {
    fn new(message: InstanceDefinition, defaults: &Defaults) -> Self {
        let built = convert::definition::build(&message, defaults);
        let built = built.map_err(|violations| {
            let told = violations
                .into_iter()
                .map(|violation| format!("{}: {}", violation.field, violation.description));
            told.collect::<Vec<_>>().join("; ")
        });
        Self { message, built }
    }
}

impl Runtime {
    /// What was said before the last restart. What cannot be read is reported and left where it is.
    pub(super) async fn load(registry: &Registry, defaults: &Defaults) -> Result<Self, WriteError> {
        let mut runtime = Self::default();
        for (name, registered) in registry.list().await? {
            match read(&name, registered, defaults) {
                Ok((name, entry)) => drop(runtime.0.insert(name, entry)),
                Err(reason) => {
                    tracing::error!(
                        instance = name,
                        reason,
                        "what was said of it at run time cannot be read"
                    );
                }
            }
        }
        Ok(runtime)
    }

    /// The same with other defaults.
    pub(super) fn with_defaults(&self, defaults: &Defaults) -> Self {
        let entries = self.0.iter().map(|(name, entry)| {
            let definition = entry.definition.as_ref();
            let definition = definition.map(|it| Definition::new(it.message.clone(), defaults));
            let pause = entry.pause.clone();
            (name.clone(), Entry { definition, pause })
        });
        Self(entries.collect())
    }

    /// The same with another entry; an empty one is none.
    pub(super) fn with(&self, name: InstanceName, entry: Entry) -> Result<Self, InventoryError> {
        let mut other = self.clone();
        if entry.definition.is_none() && entry.pause.is_none() {
            other.0.remove(&name);
        } else if other.0.len() >= NAMES_MAX && !other.0.contains_key(&name) {
            return Err(InventoryError::Limit { max: NAMES_MAX });
        } else {
            other.0.insert(name, entry);
        }
        Ok(other)
    }

    pub(super) fn entry(&self, name: &InstanceName) -> Entry {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Definitions, in order of name.
    pub(super) fn definitions(&self) -> impl Iterator<Item = (&InstanceName, &Definition)> {
        let entries = self.0.iter();
        entries.filter_map(|(name, entry)| Some((name, entry.definition.as_ref()?)))
    }

    /// Why instances are paused, in order of name.
    pub(super) fn pauses(&self) -> impl Iterator<Item = (&InstanceName, &str)> {
        let entries = self.0.iter();
        entries.filter_map(|(name, entry)| Some((name, entry.pause.as_deref()?)))
    }
}

impl Entry {
    /// As it is kept.
    pub(super) fn registered(&self) -> Registered {
        let definition = self.definition.as_ref();
        Registered {
            definition: definition.map(|definition| definition.message.encode_to_vec()),
            pause: self.pause.clone(),
        }
    }
}

fn read(
    name: &str,
    registered: Registered,
    defaults: &Defaults,
) -> Result<(InstanceName, Entry), String> {
    let Registered { definition, pause } = registered;
    let name = InstanceName::new(name).map_err(|error| error.to_string())?;
    let definition = match definition {
        None => None,
        Some(bytes) => {
            let message = InstanceDefinition::decode(&*bytes).map_err(|error| error.to_string())?;
            Some(Definition::new(message, defaults))
        }
    };
    Ok((name, Entry { definition, pause }))
}
