//! Instances that are defined, changed, paused and deleted while the gateway dies: what was answered is there, and what
//! was not is there whole or not at all.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use ovfleet_proto::v1::{
    CreateInstanceRequest, DeleteInstanceRequest, InstanceDefinition, InstanceSource, InstanceSpec,
    PauseInstanceRequest, ResumeInstanceRequest, UpdateInstanceRequest,
};
use ovfleet_tests::{
    Api,
    api::{reason, timed},
    random::Random,
};
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
    /// What changes since then would have made of it that were refused, or cut off.
    may_be: Vec<Option<Defined>>,
    /// The last change had no answer.
    is_cut_off: bool,
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
            may_be: Vec::new(),
            is_cut_off: false,
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
        let sure = self.names.iter_mut().filter(|name| !name.is_cut_off);
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
            let may_be = std::mem::take(&mut name.may_be);
            ensure!(
                found == name.is || may_be.contains(&found),
                "{}: {found:#?}, which is neither {:#?} nor of {may_be:#?}",
                name.name,
                name.is
            );
            if std::mem::take(&mut name.is_cut_off) {
                self.cut[usize::from(may_be.last() == Some(&found))] += 1;
            }
            name.is = found;
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
                self.may_be.push(Some(new(false)));
                let request = CreateInstanceRequest {
                    instance: Some(definition),
                    ..Default::default()
                };
                let created = api.inventory.create_instance(timed(request)).await;
                created.map(drop)
            }
            (Some(is), 0) => {
                self.may_be.push(Some(new(is.is_paused)));
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
                self.may_be.push(None);
                let request = DeleteInstanceRequest {
                    name,
                    ..Default::default()
                };
                let deleted = api.inventory.delete_instance(timed(request)).await;
                deleted.map(drop)
            }
            (Some(is), _) => {
                self.may_be.push(Some(Defined {
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
        match &answered {
            Ok(()) => {
                self.is = self.may_be.pop().flatten();
                self.may_be.clear();
            }
            // A disk that a busy machine makes wait. Another change may follow; a crash first may leave this one there.
            Err(status) if reason(status).as_deref() == Some("STATE_UNAVAILABLE") => {}
            Err(_) => self.is_cut_off = true,
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
