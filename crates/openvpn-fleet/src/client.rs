//! One row of a client table, kept small: a fleet has hundreds of thousands of them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use openvpn_management::{Cid, Env};
use openvpn_session::Moment;

use crate::event::{DisconnectCause, EventClient};
use crate::filter::ClientIdentity;
use crate::name::{ActionRef, Generation, InstanceName};

/// Most bytes of peer information kept of one client; further values are left out.
pub(crate) const PEER_INFO_BYTES_MAX: usize = 4 * 1024;
/// Most different values in an [`Interner`]; beyond, and with nothing unused to throw away, values are not shared.
pub(crate) const INTERNED_MAX: usize = 4_096;

/// What a client said of itself: its `IV_*` and `UV_*` values. Shared between clients that said the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerInfo(Option<Arc<[u8]>>);

impl PeerInfo {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.0.as_deref().unwrap_or_default();
        // Values come from lines, so that they cannot contain the separator.
        lines
            .split(|byte| *byte == b'\n')
            .filter_map(|line| {
                line.iter()
                    .position(|byte| *byte == b'=')
                    .map(|equals| (line, equals))
            })
            .map(|(line, equals)| (&line[..equals], &line[equals + 1..]))
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.as_deref().map_or(0, <[u8]>::len)
    }

    pub(crate) fn of_env(env: &Env, interner: &Interner) -> Self {
        let mut lines = Vec::new();
        for (name, value) in env.iter() {
            if !(name.starts_with(b"IV_") || name.starts_with(b"UV_"))
                || lines.len() + name.len() + value.len() + 2 > PEER_INFO_BYTES_MAX
            {
                continue;
            }
            if !lines.is_empty() {
                lines.push(b'\n');
            }
            lines.extend_from_slice(name);
            lines.push(b'=');
            lines.extend_from_slice(value);
        }
        Self((!lines.is_empty()).then(|| interner.intern(&lines)))
    }
}

/// Keeps one copy of what many clients have in common: peer information, ciphers.
#[derive(Debug, Default)]
pub struct Interner {
    /// Locked for one look-up.
    values: Mutex<HashSet<Arc<[u8]>>>,
}

impl Interner {
    /// The shared copy of `value`.
    #[must_use]
    pub fn intern(&self, value: &[u8]) -> Arc<[u8]> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = values.get(value) {
            return Arc::clone(known);
        }
        if values.len() >= INTERNED_MAX {
            values.retain(|value| Arc::strong_count(value) > 1);
        }
        let shared: Arc<[u8]> = value.into();
        if values.len() < INTERNED_MAX {
            values.insert(Arc::clone(&shared));
        }
        shared
    }
}

/// The texts of a client, before they are packed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ClientTexts<'a> {
    pub(crate) common_name: &'a [u8],
    pub(crate) username: &'a [u8],
    pub(crate) real_address: &'a [u8],
    pub(crate) virtual_address: &'a [u8],
    pub(crate) virtual_ipv6_address: &'a [u8],
}

/// One VPN client, connected to one instance.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) cid: Cid,
    /// The table's revision when the row last changed.
    pub(crate) revision: u64,
    /// Common name, username, real address, IPv4 and IPv6 address, one behind the other: one allocation for all.
    text: Box<[u8]>,
    /// Where the first four of them end.
    ends: [u16; 4],
    pub(crate) half_open: bool,
    /// `u32::MAX` for none, which is also how a daemon writes it.
    peer_id: u32,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// By the daemon's clock, in seconds since 1970; -1 when unknown.
    connected_since: i64,
    /// Microseconds since 1970.
    observed: u64,
    /// The same by the clock that nobody sets: what came first is asked of it.
    came: Instant,
    cipher: Option<Arc<[u8]>>,
    pub(crate) peer_info: PeerInfo,
    /// What is known about its end; boxed because few rows have one.
    pub(crate) mark: Option<Box<Mark>>,
}

/// What is known about a client's end before it comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mark {
    /// The evidence that it leaves.
    pub(crate) leaving: Option<DisconnectCause>,
    /// The action of ours that killed it.
    pub(crate) killed_by: Option<ActionRef>,
}

impl Client {
    pub(crate) fn new(cid: Cid, texts: ClientTexts<'_>, observed: Moment) -> Self {
        let mut client = Self {
            cid,
            revision: 0,
            text: Box::default(),
            ends: [0; 4],
            half_open: false,
            peer_id: u32::MAX,
            bytes_received: 0,
            bytes_sent: 0,
            connected_since: -1,
            observed: micros(observed.wall),
            came: observed.monotonic,
            cipher: None,
            peer_info: PeerInfo::default(),
            mark: None,
        };
        client.set_texts(texts);
        client
    }

    pub(crate) fn texts(&self) -> ClientTexts<'_> {
        let [common_name, username, real_address, virtual_address] = self.ends.map(usize::from);
        ClientTexts {
            common_name: &self.text[..common_name],
            username: &self.text[common_name..username],
            real_address: &self.text[username..real_address],
            virtual_address: &self.text[real_address..virtual_address],
            virtual_ipv6_address: &self.text[virtual_address..],
        }
    }

    /// Replaces the texts; whether any differs.
    pub(crate) fn set_texts(&mut self, texts: ClientTexts<'_>) -> bool {
        let parts = [
            texts.common_name,
            texts.username,
            texts.real_address,
            texts.virtual_address,
            texts.virtual_ipv6_address,
        ];
        let mut text = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        let mut ends = [0; 4];
        for (index, part) in parts.into_iter().enumerate() {
            // All five come from one line of at most 16 KiB, or from an environment whose values a daemon cuts far
            // shorter; whatever else claims to be one is cut here.
            let room = usize::from(u16::MAX) - text.len();
            text.extend_from_slice(&part[..part.len().min(room)]);
            if let Some(end) = ends.get_mut(index) {
                *end = u16::try_from(text.len()).unwrap_or(u16::MAX);
            }
        }
        if *text == *self.text && ends == self.ends {
            return false;
        }
        self.text = text.into();
        self.ends = ends;
        true
    }

    /// Sets the cipher; whether it differs.
    pub(crate) fn set_cipher(&mut self, cipher: Option<&[u8]>, interner: &Interner) -> bool {
        let cipher = cipher.filter(|cipher| !cipher.is_empty());
        if cipher == self.cipher.as_deref() {
            return false;
        }
        self.cipher = cipher.map(|cipher| interner.intern(cipher));
        true
    }

    pub(crate) fn set_connected_since(&mut self, time: Option<i64>) {
        self.connected_since = time.unwrap_or(-1);
    }

    /// Sets the peer ID; whether it differs.
    pub(crate) fn set_peer_id(&mut self, peer_id: Option<u32>) -> bool {
        let peer_id = peer_id.unwrap_or(u32::MAX);
        std::mem::replace(&mut self.peer_id, peer_id) != peer_id
    }

    /// Takes new values of the counters and gives what they rose by, if they did. Lower ones are of somebody else, and
    /// are left to the next snapshot to explain.
    pub(crate) fn raise_bytes(&mut self, received: u64, sent: u64) -> Option<(u64, u64)> {
        let more = (
            received.checked_sub(self.bytes_received)?,
            sent.checked_sub(self.bytes_sent)?,
        );
        if more == (0, 0) {
            return None;
        }
        (self.bytes_received, self.bytes_sent) = (received, sent);
        Some(more)
    }

    pub(crate) fn mark_mut(&mut self) -> &mut Mark {
        self.mark.get_or_insert_default()
    }

    /// Its number in the present generation.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The table's revision when the row last changed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Common name of its certificate; empty while half-open.
    #[must_use]
    pub fn common_name(&self) -> &[u8] {
        self.texts().common_name
    }

    /// The name it authenticated with; empty when it used none.
    #[must_use]
    pub fn username(&self) -> &[u8] {
        self.texts().username
    }

    /// Where it comes from, as the daemon writes it.
    #[must_use]
    pub fn real_address(&self) -> &[u8] {
        self.texts().real_address
    }

    /// Its IPv4 address inside the VPN; empty when it has none.
    #[must_use]
    pub fn virtual_address(&self) -> &[u8] {
        self.texts().virtual_address
    }

    /// Its IPv6 address inside the VPN; empty when it has none.
    #[must_use]
    pub fn virtual_ipv6_address(&self) -> &[u8] {
        self.texts().virtual_ipv6_address
    }

    /// Bytes the daemon received from it since `connected_since`.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Bytes the daemon sent to it since `connected_since`.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// When it connected, by the daemon's clock, in seconds since 1970.
    #[must_use]
    pub fn connected_since(&self) -> Option<i64> {
        (self.connected_since >= 0).then_some(self.connected_since)
    }

    /// When we first saw it.
    #[must_use]
    pub fn observed(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.observed)
    }

    /// The same by the clock that nobody sets.
    pub(crate) fn came(&self) -> Instant {
        self.came
    }

    /// Cipher of the data channel; empty when unknown.
    #[must_use]
    pub fn cipher(&self) -> &[u8] {
        match &self.cipher {
            // What a daemon shows before the handshake has chosen one is a placeholder (BF-CBC).
            Some(cipher) if !self.half_open => cipher,
            _ => b"",
        }
    }

    /// Its peer ID, where the daemon has one.
    #[must_use]
    pub fn peer_id(&self) -> Option<u32> {
        (self.peer_id != u32::MAX).then_some(self.peer_id)
    }

    /// Whether it has begun a handshake and is not connected yet.
    #[must_use]
    pub fn is_half_open(&self) -> bool {
        self.half_open
    }

    /// What it said of itself; only known of clients whose connecting we saw.
    #[must_use]
    pub fn peer_info(&self) -> &PeerInfo {
        &self.peer_info
    }

    /// What a [`ClientFilter`](crate::ClientFilter) looks at.
    #[must_use]
    pub fn identity<'a>(
        &'a self,
        instance: &'a InstanceName,
        generation: Generation,
    ) -> ClientIdentity<'a> {
        let texts = self.texts();
        ClientIdentity {
            instance,
            generation,
            cid: self.cid,
            common_name: texts.common_name,
            username: texts.username,
            real_address: texts.real_address,
            virtual_address: texts.virtual_address,
            virtual_ipv6_address: texts.virtual_ipv6_address,
            half_open: self.half_open,
        }
    }

    pub(crate) fn to_event(&self, generation: Generation) -> EventClient {
        // One copy for all five.
        let text = Bytes::copy_from_slice(&self.text);
        let [common_name, username, real_address, virtual_address] = self.ends.map(usize::from);
        EventClient {
            generation,
            cid: self.cid,
            common_name: text.slice(..common_name).into(),
            username: text.slice(common_name..username).into(),
            real_address: text.slice(username..real_address).into(),
            virtual_address: text.slice(real_address..virtual_address).into(),
            virtual_ipv6_address: text.slice(virtual_address..).into(),
            half_open: self.half_open,
        }
    }
}

/// Microseconds since 1970; 0 for a time before.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
