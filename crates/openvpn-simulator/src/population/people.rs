//! Who lives on the daemons.

use std::net::Ipv4Addr;

use crate::random::Random;

/// What kind of device a person connects with, which decides how it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// Comes and goes with its owner, from home, office and trains.
    Laptop,
    /// Changes networks all the time.
    Phone,
    /// Never moves and hardly ever leaves.
    Router,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) common_name: Vec<u8>,
    pub(super) username: Option<String>,
    pub(super) device: Device,
    pub(super) version: &'static str,
    pub(super) platform: &'static str,
    /// Where it usually connects from.
    pub(super) home: Ipv4Addr,
    /// Network behind a router.
    pub(super) network: Option<Ipv4Addr>,
}

const FIRST_NAMES: [&str; 24] = [
    "alice", "amira", "bob", "carol", "chen", "dave", "elena", "emeka", "erin", "fatima", "grace",
    "hiro", "ines", "ivan", "judy", "kofi", "lena", "mallory", "niaj", "olivia", "peggy", "rupert",
    "sybil", "trent",
];

const LAST_NAMES: [&str; 12] = [
    "adams", "bauer", "costa", "diallo", "eriksen", "fischer", "garcia", "haddad", "ito", "jones",
    "kowalski", "lopez",
];

const SITES: [&str; 8] = [
    "berlin", "lisbon", "nairobi", "osaka", "oslo", "quito", "rennes", "toronto",
];

/// The names that trip programs up, and the one that is there twice.
const ODD_NAMES: [(&str, Device); 4] = [
    ("kiosk-lobby", Device::Router),
    ("kiosk-lobby", Device::Router),
    ("Müller, Zoë (home office)", Device::Laptop),
    ("o'brien \"the boss\"; x#1", Device::Laptop),
];

/// The first `count` people of the seed.
pub(super) fn people(random: &mut Random, count: usize) -> Vec<Person> {
    (0..count).map(|number| person(random, number)).collect()
}

fn person(random: &mut Random, number: usize) -> Person {
    let first = FIRST_NAMES[random.index(FIRST_NAMES.len())];
    let last = LAST_NAMES[random.index(LAST_NAMES.len())];
    let odd = number
        .checked_sub(3)
        .and_then(|number| ODD_NAMES.get(number));
    let (common_name, device) = match (odd, random.below(10)) {
        (Some((name, device)), _) => ((*name).to_owned(), *device),
        (None, 0..=4) => (format!("{first}.{last}-laptop"), Device::Laptop),
        (None, 5..=7) => (format!("{first}.{last}-phone"), Device::Phone),
        (None, _) => {
            let site = SITES[random.index(SITES.len())];
            (format!("router-{site}-{number}"), Device::Router)
        }
    };
    let (version, platform) = match device {
        Device::Laptop => {
            [("2.6.14", "win"), ("2.6.12", "linux"), ("3.11.3", "mac")][random.index(3)]
        }
        Device::Phone => [("3.11.1", "ios"), ("3.10.4", "android")][random.index(2)],
        Device::Router => ("2.5.9", "linux"),
    };
    let network = (device == Device::Router).then(|| {
        let [_, _, high, low] = u32::try_from(number).unwrap_or(0).to_be_bytes();
        Ipv4Addr::new(10, 100_u8.saturating_add(high), low, 0)
    });
    Person {
        common_name: common_name.into_bytes(),
        username: (device != Device::Router).then(|| format!("{first}.{last}")),
        device,
        version,
        platform,
        home: place(random),
        network,
    }
}

/// An address of the ranges set aside for documentation.
pub(super) fn place(random: &mut Random) -> Ipv4Addr {
    let [a, b, c] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]][random.index(3)];
    Ipv4Addr::new(a, b, c, random.byte().clamp(1, 254))
}
