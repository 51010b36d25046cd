//! Instances that are defined, changed, paused and deleted while the gateway dies: what was answered is there, and what
//! was not is there whole or not at all.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use ovfleet_proto::v1::{
    CreateInstanceRequest, DeleteInstanceRequest, InstanceDefinition, InstanceSource, InstanceSpec,
    PauseInstanceRequest, ResumeInstanceRequest, UpdateInstanceRequest,
};
use ovfleet_tests::{Api, api::timed, random::Random};
use prost_types::FieldMask;

/// Names under which instances come and go.
const NAMES: usize = 4;

/// What the registry has to hold.
pub(super) struct Registry {
    names: Vec<Name>,
    /// Changes that were answered.
    pub(super) made: usize,
    /// Changes that were cut off: those that are not there, and those that are.
    pub(super) cut: [usize; 2],
}

struct Name {
    name: String,
    /// What was answered last.
    is: Option<Defined>,
    /// What a change without an answer would have made of it.
    may_be: Option<Option<Defined>>,
    number: u64,
}

/// A definition: its number is all over it, so that half a change shows.
#[derive(Clone, Debug, PartialEq)]
struct Defined {
    address: String,
    labels: HashMap<String, String>,
    is_paused: bool,
}

impl Registry {
    pub(super) fn new() -> Self {
        let names = (0..NAMES).map(|name| Name {
            name: format!("run{name}"),
            is: None,
            may_be: None,
            number: 0,
        });
        Self {
            names: names.collect(),
            made: 0,
            cut: [0; 2],
        }
    }

    /// One change under each name at the same time. A name whose change had no answer is left alone until
    /// [`check`](Self::check).
    pub(super) async fn change(&mut self, api: &Api, random: &mut Random) {
        let sure = self.names.iter_mut().filter(|name| name.may_be.is_none());
        let changes = sure.map(|name| {
            let wish = random.below(4);
            name.change(api.clone(), wish)
        });
        let made = join_all(changes).await;
        self.made += made.into_iter().filter(|made| *made).count();
    }

    /// Compares what a gateway has with what it may have.
    pub(super) async fn check(&mut self, api: &mut Api) -> Result<()> {
        let mut found: HashMap<String, InstanceSpec> = HashMap::new();
        for instance in api.instances().await? {
            let spec = instance.spec.context("no spec")?;
            if spec.source() == InstanceSource::Api {
                found.insert(spec.name.clone(), spec);
            }
        }
        for name in &mut self.names {
            let found = found.remove(&name.name).map(Defined::from);
            if let Some(may_be) = name.may_be.take() {
                ensure!(
                    found == name.is || found == may_be,
                    "{}: {found:#?}, which is neither {:#?} nor {may_be:#?}",
                    name.name,
                    name.is
                );
                self.cut[usize::from(found == may_be)] += 1;
                name.is = found;
            } else {
                let is = &name.is;
                ensure!(found == *is, "{}: {found:#?}, not {is:#?}", name.name);
            }
        }
        ensure!(found.is_empty(), "from nowhere: {found:#?}");
        Ok(())
    }
}

impl Name {
    /// Defines, changes, deletes, pauses or resumes it; whether that was answered.
    async fn change(&mut self, mut api: Api, wish: u64) -> bool {
        self.number += 1;
        let name = self.name.clone();
        let definition = InstanceDefinition {
            name: name.clone(),
            address: format!("unix:/nonexistent/{name}/{}", self.number),
            labels: [("number", self.number), ("again", self.number)]
                .map(|(key, number)| (key.to_owned(), number.to_string()))
                .into(),
            ..Default::default()
        };
        let new = |is_paused| Defined {
            address: definition.address.clone(),
            labels: definition.labels.clone().into_iter().collect(),
            is_paused,
        };
        let answered = match (self.is.clone(), wish) {
            (None, _) => {
                self.may_be = Some(Some(new(false)));
                let request = CreateInstanceRequest {
                    instance: Some(definition),
                    ..Default::default()
                };
                let created = api.inventory.create_instance(timed(request)).await;
                created.map(drop)
            }
            (Some(is), 0) => {
                self.may_be = Some(Some(new(is.is_paused)));
                let paths = ["address", "labels"].map(str::to_owned).into();
                let request = UpdateInstanceRequest {
                    instance: Some(definition),
                    update_mask: Some(FieldMask { paths }),
                    ..Default::default()
                };
                let updated = api.inventory.update_instance(timed(request)).await;
                updated.map(drop)
            }
            (Some(_), 1) => {
                self.may_be = Some(None);
                let request = DeleteInstanceRequest {
                    name,
                    ..Default::default()
                };
                let deleted = api.inventory.delete_instance(timed(request)).await;
                deleted.map(drop)
            }
            (Some(is), _) => {
                self.may_be = Some(Some(Defined {
                    is_paused: !is.is_paused,
                    ..is
                }));
                if is.is_paused {
                    let request = ResumeInstanceRequest {
                        name,
                        ..Default::default()
                    };
                    let resumed = api.inventory.resume_instance(timed(request)).await;
                    resumed.map(drop)
                } else {
                    let request = PauseInstanceRequest {
                        name,
                        ..Default::default()
                    };
                    let paused = api.inventory.pause_instance(timed(request)).await;
                    paused.map(drop)
                }
            }
        };
        if answered.is_ok() {
            self.is = self.may_be.take().flatten();
        }
        answered.is_ok()
    }
}

impl From<InstanceSpec> for Defined {
    fn from(spec: InstanceSpec) -> Self {
        Self {
            address: spec.address,
            labels: spec.labels,
            is_paused: spec.paused,
        }
    }
}
