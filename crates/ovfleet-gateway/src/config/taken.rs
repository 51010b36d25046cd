//! Names and addresses that are taken: two sessions to one address would fight for the daemon's only slot.

use std::{collections::BTreeMap, fmt};

use openvpn_fleet::InstanceName;

use super::{InstanceConfig, Mistakes, Place};

/// Who has which name and which address.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    names: BTreeMap<InstanceName, Place>,
    addresses: BTreeMap<String, Holder>,
}

/// An instance that has what another one wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Holder {
    pub(crate) name: InstanceName,
    pub(crate) place: Place,
}

/// What an instance wants and another one has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Clash {
    /// Its name.
    Name(Holder),
    /// Its management address.
    Address(String, Holder),
    /// The address of one of its virtual sockets.
    Mux(String, Holder),
}

impl Taken {
    /// Takes what `instance` wants, as far as it is free, and gives what is not.
    pub(crate) fn take(&mut self, instance: &InstanceConfig) -> Vec<Clash> {
        let mut clashes = self.take_identity(instance);
        clashes.extend(self.take_sockets(instance));
        clashes
    }

    /// What `instance` wants and others have; nothing is taken.
    pub(crate) fn clashes(&self, instance: &InstanceConfig) -> Vec<Clash> {
        let name = &instance.spec.name;
        let by_name = self.names.get(name).map(|place| {
            let (name, place) = (name.clone(), place.clone());
            Clash::Name(Holder { name, place })
        });
        let holder = |address: &str| self.addresses.get(&port(address)).cloned();
        let address = instance.spec.session.address.to_string();
        let by_address = holder(&address).map(|holder| Clash::Address(address, holder));
        let sockets = instance.mux.iter().filter_map(|socket| {
            let address = socket.address.shown();
            holder(&address).map(|holder| Clash::Mux(address, holder))
        });
        by_name
            .into_iter()
            .chain(by_address)
            .chain(sockets)
            .collect()
    }

    /// Whether another one has the management address of `instance`.
    pub(crate) fn has_address_of(&self, instance: &InstanceConfig) -> bool {
        let address = instance.spec.session.address.to_string();
        let holder = self.addresses.get(&port(&address));
        holder.is_some_and(|holder| *holder != Holder::of(instance))
    }

    fn take_identity(&mut self, instance: &InstanceConfig) -> Vec<Clash> {
        let mut clashes = Vec::new();
        let name = &instance.spec.name;
        if let Some(place) = self.names.insert(name.clone(), instance.place.clone()) {
            let name = name.clone();
            clashes.push(Clash::Name(Holder { name, place }));
        }
        let address = instance.spec.session.address.to_string();
        if let Some(holder) = self.take_address(&address, instance) {
            clashes.push(Clash::Address(address, holder));
        }
        clashes
    }

    /// The same for its virtual sockets alone.
    pub(crate) fn take_sockets(&mut self, instance: &InstanceConfig) -> Vec<Clash> {
        let mut clashes = Vec::new();
        for socket in &instance.mux {
            let address = socket.address.shown();
            if let Some(holder) = self.take_address(&address, instance) {
                clashes.push(Clash::Mux(address, holder));
            }
        }
        clashes
    }

    fn take_address(&mut self, address: &str, instance: &InstanceConfig) -> Option<Holder> {
        self.addresses.insert(port(address), Holder::of(instance))
    }
}

impl Holder {
    fn of(instance: &InstanceConfig) -> Self {
        Self {
            name: instance.spec.name.clone(),
            place: instance.place.clone(),
        }
    }
}

impl Clash {
    /// The key that is to blame.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Name(_) => "instance.name",
            Self::Address(..) => "instance.address",
            Self::Mux(..) => "instance.mux",
        }
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(Holder { name, place }) => {
                write!(
                    f,
                    "two instances are called {name}: the other is at {place}"
                )
            }
            Self::Address(address, Holder { name, place }) => {
                write!(
                    f,
                    "{address} is the address of instance {name} too, at {place}"
                )
            }
            Self::Mux(address, Holder { name, place }) => {
                write!(
                    f,
                    "{address} is an address of instance {name} too, at {place}"
                )
            }
        }
    }
}

/// An address without whether it speaks TLS: a port is taken by either.
fn port(address: &str) -> String {
    address
        .strip_prefix("tls:")
        .map_or_else(|| address.to_owned(), |port| format!("tcp:{port}"))
}

/// Reports each instance whose name or address another one before it has.
pub(super) fn find_clashes(instances: &[InstanceConfig], mistakes: &Mistakes) {
    let mut taken = Taken::default();
    let report = |instance: &InstanceConfig, clashes: Vec<Clash>| {
        for clash in clashes {
            mistakes.add(&instance.place, clash.key(), clash.to_string());
        }
    };
    for instance in instances {
        report(instance, taken.take_identity(instance));
    }
    // Those of the daemons first: a virtual socket is the one that can be elsewhere.
    for instance in instances {
        report(instance, taken.take_sockets(instance));
    }
}
