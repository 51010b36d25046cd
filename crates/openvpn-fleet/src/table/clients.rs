//! The client rows of one table, and how they are found by what a log calls them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};

use openvpn_management::Cid;

use crate::client::Client;

/// So many clients are looked for row by row between two snapshots, which takes no longer than making the index does:
/// mostly one leaves at a time.
const SCANS_MAX: usize = 8;

/// Client rows by CID, with the number of half-open ones.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    // Boxed, because a tree's nodes are half empty and pointers are all that is wasted then.
    rows: BTreeMap<Cid, Box<Client>>,
    half_open: usize,
    /// Searches since the last snapshot.
    scans: usize,
    /// Only while many leave: it takes a tenth of what the rows do.
    words: Option<Box<Words>>,
}

impl Clients {
    pub(crate) fn get(&self, cid: Cid) -> Option<&Client> {
        self.rows.get(&cid).map(Box::as_ref)
    }

    /// Not for changing whether it is half-open: put it in anew for that. Nor for changing its names, unless
    /// [`Self::forget_words`] comes before.
    pub(crate) fn get_mut(&mut self, cid: Cid) -> Option<&mut Client> {
        self.rows.get_mut(&cid).map(Box::as_mut)
    }

    pub(crate) fn insert(&mut self, client: Client) {
        self.remove(client.cid);
        self.half_open += usize::from(client.half_open);
        if let Some(words) = &mut self.words {
            words.add(&client);
        }
        self.rows.insert(client.cid, Box::new(client));
    }

    pub(crate) fn remove(&mut self, cid: Cid) -> Option<Box<Client>> {
        let client = self.rows.remove(&cid)?;
        self.half_open -= usize::from(client.half_open);
        if let Some(words) = &mut self.words {
            words.remove(&client);
        }
        Some(client)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Client> {
        self.rows.values().map(Box::as_ref)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn half_open(&self) -> usize {
        self.half_open
    }

    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The first client that a log calls this: `name/address`, or the address alone while it is half-open.
    pub(crate) fn called(&mut self, prefix: &[u8]) -> Option<Cid> {
        let is_called = |client: &Client| match prefix.strip_suffix(client.real_address()) {
            Some(b"") => client.half_open,
            Some(rest) => rest.strip_suffix(b"/") == Some(client.common_name()),
            None => false,
        };
        self.find(prefix, is_called, 1).first().copied()
    }

    /// Every connected client of that common name.
    pub(crate) fn named(&mut self, common_name: &[u8]) -> Vec<Cid> {
        let is_named = |client: &Client| !client.half_open && client.common_name() == common_name;
        self.find(common_name, is_named, usize::MAX)
    }

    /// A snapshot is about to come: it may change names, and tells by itself who has left.
    pub(crate) fn forget_words(&mut self) {
        self.scans = 0;
        self.words = None;
    }

    #[cfg(test)]
    pub(crate) fn is_indexed(&self) -> bool {
        self.words.is_some()
    }

    /// The first `most` of those that are meant with `wanted`, in order of CID.
    fn find(&mut self, wanted: &[u8], is_meant: impl Fn(&Client) -> bool, most: usize) -> Vec<Cid> {
        if self.words.is_none() && self.scans < SCANS_MAX {
            self.scans += 1;
            let meant = self.iter().filter(|client| is_meant(client));
            return meant.map(|client| client.cid).take(most).collect();
        }
        if self.words.is_none() {
            self.words = Some(Box::new(Words::of(self.iter())));
        }
        let known = self.words.iter().flat_map(|words| words.find(wanted));
        let meant = known.filter(|cid| self.get(*cid).is_some_and(&is_meant));
        meant.take(most).collect()
    }
}

/// What a log may call each client, as hashes: whoever finds one looks at its row.
#[derive(Debug, Default)]
struct Words {
    // Keyed: clients choose their names.
    hasher: RandomState,
    hashes: BTreeSet<(u64, Cid)>,
}

impl Words {
    fn of<'a>(clients: impl Iterator<Item = &'a Client>) -> Self {
        let hasher = RandomState::new();
        let hashes = clients.flat_map(|client| hashes(&hasher, client)).collect();
        Self { hasher, hashes }
    }

    fn add(&mut self, client: &Client) {
        self.hashes.extend(hashes(&self.hasher, client));
    }

    fn remove(&mut self, client: &Client) {
        for hash in hashes(&self.hasher, client) {
            self.hashes.remove(&hash);
        }
    }

    /// Perhaps meant, in order of CID.
    fn find(&self, wanted: &[u8]) -> impl Iterator<Item = Cid> {
        let hash = self.hasher.hash_one(wanted);
        let found = self.hashes.range((hash, Cid(0))..=(hash, Cid(u64::MAX)));
        found.map(|(_, cid)| *cid)
    }
}

/// Of `name/address`, and of what else its daemon's log may have: the address alone of one that is half-open, the name
/// alone of any other.
fn hashes(hasher: &RandomState, client: &Client) -> [(u64, Cid); 2] {
    let (name, address) = (client.common_name(), client.real_address());
    let alone = if client.half_open { address } else { name };
    [[name, b"/", address].concat().as_slice(), alone]
        .map(|words| (hasher.hash_one(words), client.cid))
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use openvpn_session::Moment;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::client::ClientTexts;

    /// So few that many clients are called the same, and some what others are by accident.
    const NAMES: [&str; 5] = ["", "bob", "a/b", "bob/192.0.2.7:1", "192.0.2.7:1"];
    const ADDRESSES: [&str; 4] = ["", "192.0.2.7:1", "b/192.0.2.7:1", "2001:db8::7"];

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, &'static str, &'static str, bool),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let insert = (0..8_u64, select(&NAMES), select(&ADDRESSES), any::<bool>());
        prop_oneof![
            3 => insert.prop_map(|(cid, name, address, half_open)| Step::Insert(cid, name, address, half_open)),
            1 => (0..8_u64).prop_map(Step::Remove),
        ]
    }

    fn client(cid: u64, common_name: &str, real_address: &str, half_open: bool) -> Client {
        let texts = ClientTexts {
            common_name: common_name.as_bytes(),
            real_address: real_address.as_bytes(),
            ..ClientTexts::default()
        };
        let now = Moment {
            wall: SystemTime::UNIX_EPOCH,
            monotonic: Instant::now(),
        };
        let mut client = Client::new(Cid(cid), texts, now);
        client.half_open = half_open;
        client
    }

    proptest! {
        /// Whoever leaves is found, whether rows are looked through or an index is, and however the rows have changed
        /// since it was made.
        #[test]
        fn an_index_finds_whom_a_search_does(steps in prop::collection::vec(step(), 0..40), index_at in 0..40_usize) {
            let (mut indexed, mut searched) = (Clients::default(), Clients::default());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(cid, name, address, half_open) => {
                        indexed.insert(client(cid, name, address, half_open));
                        searched.insert(client(cid, name, address, half_open));
                    }
                    Step::Remove(cid) => {
                        indexed.remove(Cid(cid));
                        searched.remove(Cid(cid));
                    }
                }
                if number < index_at {
                    continue;
                }
                indexed.scans = SCANS_MAX;
                for name in NAMES {
                    searched.forget_words();
                    prop_assert_eq!(indexed.named(name.as_bytes()), searched.named(name.as_bytes()));
                    for address in ADDRESSES {
                        for prefix in [address.to_owned(), format!("{name}/{address}")] {
                            searched.forget_words();
                            prop_assert_eq!(indexed.called(prefix.as_bytes()), searched.called(prefix.as_bytes()));
                        }
                    }
                }
                prop_assert!(indexed.words.is_some() && searched.words.is_none());
            }
        }
    }
}
