//! All instances there shall be, from the file, from discovery, and from what was said at run time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use openvpn_fleet::{InstanceName, InstanceSource};
use openvpn_session::Address;

use super::runtime::Runtime;
use crate::{
    config::{Clash, InstanceConfig, Taken},
    discover::Scan,
};

/// All instances there shall be, and what is left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Composition {
    pub(crate) instances: BTreeMap<InstanceName, InstanceConfig>,
    /// What discovery found and is left out, and why.
    pub(crate) complaints: BTreeSet<String>,
    /// What was defined at run time and is not in force.
    pub(crate) set_aside: Vec<SetAside>,
}

/// An instance that was defined at run time and is not in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SetAside {
    pub(crate) name: InstanceName,
    pub(crate) reason: AsideReason,
}

/// Why a definition is not in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum AsideReason {
    /// It is not valid, with the present defaults.
    Invalid(String),
    /// Others have its name or addresses: all that they have, never empty.
    Clashes(Vec<Clash>),
}

impl fmt::Display for AsideReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(mistakes) => f.write_str(mistakes),
            Self::Clashes(clashes) => {
                let told: Vec<_> = clashes.iter().map(ToString::to_string).collect();
                f.write_str(&told.join("; "))
            }
        }
    }
}

/// What was written down goes first, then what was found, then what was defined at run time: first what `present` has
/// in force, and of both `changed` the last. The first of every name and address stays.
pub(crate) fn compose(
    configured: &[InstanceConfig],
    scan: &Scan,
    runtime: &Runtime,
    present: &Composition,
    changed: Option<&InstanceName>,
) -> Composition {
    let mut composition = Composition {
        complaints: scan.complaints.clone(),
        ..Composition::default()
    };
    let mut taken = Taken::default();
    for instance in configured {
        taken.take(instance);
        composition.add(instance);
    }
    for instance in &scan.found {
        let clashes = taken.clashes(instance);
        let (place, address) = (&instance.place, &instance.spec.session.address);
        if let Some(Clash::Address(_, first)) = clashes
            .iter()
            .find(|clash| matches!(clash, Clash::Address(..)))
        {
            // The same socket in two sources is one instance, that of the first.
            tracing::debug!(%address, first = %first.place, second = %place, "found twice");
        } else if let Some(Clash::Name(first)) = clashes.first() {
            let (name, first) = (&first.name, &first.place);
            composition.complaints.insert(format!(
                "{place}: {address} is left out: an instance called {name} is at {first} already"
            ));
        } else {
            // A virtual socket that another one has is tried again until it is free; it costs nobody a session.
            taken.take(instance);
            composition.add(instance);
        }
    }
    let mut defined: Vec<_> = runtime.definitions().collect();
    // Otherwise one that is set aside would end the session of another by its name alone.
    defined.sort_by_key(|(name, _)| (!present.has_of_api(name), changed == Some(*name)));
    for (name, definition) in defined {
        let reason = match &definition.built {
            Err(mistakes) => Some(AsideReason::Invalid(mistakes.clone())),
            Ok(instance) => match taken.clashes(instance) {
                clashes if clashes.is_empty() => {
                    taken.take(instance);
                    composition.add(instance);
                    None
                }
                clashes => Some(AsideReason::Clashes(clashes)),
            },
        };
        let name = name.clone();
        let aside = reason.map(|reason| SetAside { name, reason });
        composition.set_aside.extend(aside);
    }
    for (name, pause) in runtime.pauses() {
        if let Some(instance) = composition.instances.get_mut(name) {
            instance.spec.paused = Some(pause.to_owned());
        }
    }
    composition
}

/// Leaves out of `scan` what is no daemon but a virtual socket: one that is open, was open before a crash, or will be.
/// What `present` has as a daemon stays one. Gives the paths that were left out.
pub(super) fn leave_out_virtual_sockets(
    scan: &mut Scan,
    configured: &[InstanceConfig],
    runtime: &Runtime,
    present: &Composition,
) -> BTreeSet<PathBuf> {
    let mut left_out = BTreeSet::new();
    if scan.found.is_empty() {
        return left_out;
    }
    let mut defined = compose(configured, &Scan::default(), runtime, present, None);
    for SetAside { name, .. } in &present.set_aside {
        // It opens no sockets.
        if defined.has_of_api(name) {
            defined.instances.remove(name);
        }
    }
    let mut sockets = Taken::default();
    let others = present.instances.values().chain(&scan.found);
    for instance in others.chain(defined.instances.values()) {
        sockets.take_sockets(instance);
    }
    scan.found.retain(|instance| {
        let is_virtual = sockets.has_address_of(instance) && !present.has_found(instance);
        if is_virtual && let Address::Unix(path) = &instance.spec.session.address {
            left_out.insert(path.clone());
        }
        !is_virtual
    });
    left_out
}

impl Composition {
    /// What others have that a definition wants, which is not in force for that.
    pub(super) fn clashes(&self, name: &InstanceName) -> &[Clash] {
        let mut aside = self.set_aside.iter();
        match aside.find(|aside| aside.name == *name) {
            Some(SetAside {
                reason: AsideReason::Clashes(clashes),
                ..
            }) => clashes,
            _ => &[],
        }
    }

    fn has_of_api(&self, name: &InstanceName) -> bool {
        let instance = self.instances.get(name);
        instance.is_some_and(|instance| instance.spec.source == InstanceSource::Api)
    }

    /// Whether discovery found it before.
    fn has_found(&self, found: &InstanceConfig) -> bool {
        let instance = self.instances.get(&found.spec.name);
        instance.is_some_and(|instance| {
            instance.spec.source == InstanceSource::Discovery
                && instance.spec.session.address == found.spec.session.address
        })
    }

    fn add(&mut self, instance: &InstanceConfig) {
        let name = instance.spec.name.clone();
        self.instances.insert(name, instance.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;
    use crate::{config::Config, discover::Sources};

    /// What was written down goes first, and the complaint leads to both places.
    #[test]
    fn a_clash_with_the_file_names_both() {
        let directory = tempfile::tempdir().unwrap();
        let shown = directory.path().display().to_string();
        let text = "[[instance]]\nname = \"eu1\"\naddress = \"unix:@/other.sock\"\n\
                    [[instance]]\nname = \"mine\"\naddress = \"unix:@/eu2.sock\"\n\
                    [[discover]]\nglob = \"@/eu*.sock\"";
        let path = directory.path().join("main.toml");
        fs::write(&path, text.replace('@', &shown)).unwrap();
        let config = Config::load(&path).unwrap();
        let bind = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap();
        let _sockets = (bind("eu1.sock"), bind("eu2.sock"));
        let scan = Sources::new(config.discover, &Sources::default()).scan();
        let composition = compose(
            &config.instances,
            &scan,
            &Runtime::default(),
            &Composition::default(),
            None,
        );
        // eu2.sock is known as mine already.
        let names: Vec<_> = composition
            .instances
            .keys()
            .map(InstanceName::as_str)
            .collect();
        assert_eq!(names, ["eu1", "mine"]);
        let complaint = format!(
            "{shown}/eu1.sock: unix:{shown}/eu1.sock is left out: \
             an instance called eu1 is at {shown}/main.toml:1 already"
        );
        assert_eq!(composition.complaints, BTreeSet::from([complaint]));
    }
}
