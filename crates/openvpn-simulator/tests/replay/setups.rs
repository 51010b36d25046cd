//! The servers that the recordings want.

use openvpn_simulator::ClientMode;

use crate::people::Person;
use crate::setup::{Partner, Setup};

/// One with nothing special about it.
pub(crate) const PLAIN: Setup = Setup {
    network: 82,
    ipv6: true,
    status_version: 2,
    password: false,
    dials: false,
    management_signal: false,
    hold: false,
    locked: false,
    echoes: &[],
    client_auth: false,
    ping: 2,
    silence: 20,
    dual_stack: false,
    tcp: false,
    port_taken: false,
    clients: &[],
    guests: &[],
    partner: None,
    any_order: false,
    noise: &[],
};
pub(crate) const PASSWORD: Setup = Setup {
    network: 81,
    status_version: 1,
    password: true,
    ..PLAIN
};
/// One that has echoed, as the recordings of single commands want it.
pub(crate) const ECHOING: Setup = Setup {
    echoes: &["server side echo text", "forget-passwords"],
    ..PLAIN
};
pub(crate) const HELD: Setup = Setup {
    network: 84,
    ipv6: false,
    hold: true,
    ..PLAIN
};
pub(crate) const RESTARTED: Setup = Setup {
    network: 85,
    ipv6: false,
    ..PLAIN
};
pub(crate) const MINDING: Setup = Setup {
    management_signal: true,
    ..RESTARTED
};
pub(crate) const DIALLING: Setup = Setup {
    network: 86,
    ipv6: false,
    dials: true,
    ..PLAIN
};
pub(crate) const DIALLING_TCP: Setup = Setup {
    password: true,
    ..DIALLING
};
/// One that will not get the port it is to serve.
pub(crate) const TOO_LATE: Setup = Setup {
    network: 93,
    ipv6: false,
    hold: true,
    port_taken: true,
    ..PLAIN
};
/// One that serves over TCP.
pub(crate) const OVER_TCP: Setup = Setup {
    network: 87,
    ipv6: false,
    tcp: true,
    ..PLAIN
};
pub(crate) const LOCKED: Setup = Setup {
    network: 93,
    ipv6: false,
    locked: true,
    ..PLAIN
};

const ALICE: Person = Person::new("alice", "10.250.7.2");
const BOB: Person = Person::new("bob", "127.0.0.1:39931");
const CAROL: Person = Person::new("carol", "127.0.0.1");
pub(crate) const ONE_CLIENT: Setup = Setup {
    clients: &[ALICE],
    guests: &[BOB, CAROL],
    ..PASSWORD
};
pub(crate) const THREE_CLIENTS: Setup = Setup {
    clients: &[ALICE, CAROL, BOB],
    ..PASSWORD
};
/// Three that are counted while all they send is keepalives.
pub(crate) const COUNTED: Setup = Setup {
    ping: 1,
    // A packet may pass before the command that ends the counts.
    noise: &[">BYTECOUNT_CLI:"],
    ..KILLED
};
/// Three whose handshakes are in the log.
pub(crate) const LOGGED: Setup = Setup {
    any_order: true,
    ..THREE_CLIENTS
};
/// One whose client goes through its restarts.
pub(crate) const SIGNALLED: Setup = Setup {
    silence: 6,
    ipv6: true,
    status_version: 1,
    clients: &[Person::new("alice", "127.0.0.1")],
    // At each packet that passes when the interval is over.
    noise: &[">BYTECOUNT_CLI:"],
    ..RESTARTED
};
/// As `client-kill` was recorded: they have come in another order, and each kill lets somebody come back.
pub(crate) const KILLED: Setup = Setup {
    clients: &[CAROL, Person::new("bob", "127.0.0.1"), ALICE],
    silence: 6,
    any_order: true,
    ..PASSWORD
};
pub(crate) const ODD_NAMES: Setup = Setup {
    dual_stack: true,
    clients: &[
        Person::new("bob", "fd00:250::2"),
        Person::new("alice", "127.0.0.1"),
        Person::new("eve, \"the\" one's;x#y", "127.0.0.1"),
        Person::new("alice:1234", "127.0.0.1"),
        Person::new("Jürgen Größe 東京", "127.0.0.1"),
        Person::new("smith, john", "127.0.0.1"),
        Person::new("tab\there", "127.0.0.1"),
    ],
    ..PLAIN
};

/// A server that asks its manager about whoever comes.
pub(crate) const ASKING: Setup = Setup {
    network: 83,
    client_auth: true,
    silence: 6,
    guests: &[Person::with_login("alice", "joe", "secret")],
    any_order: true,
    ..PLAIN
};

/// The same, with more of them.
pub(crate) const ASKING_ABOUT_THREE: Setup = Setup {
    guests: &[
        Person::with_login("alice", "user, \"name\"x", "pass word"),
        Person::with_login("bob", "joe", "secret"),
        Person::with_login("carol", "joe", "secret"),
    ],
    ..ASKING
};
/// The same, with two that come again after a restart; in what order they are let go is a matter of hashes.
pub(crate) const ASKING_AGAIN: Setup = Setup {
    network: 89,
    ipv6: false,
    guests: &[
        Person::new("alice", "127.0.0.1"),
        Person::new("bob", "127.0.0.1"),
    ],
    ..ASKING
};

/// One that decides late, and the client that waits for that.
pub(crate) const PENDING: Setup = Setup {
    guests: &[Person::with_login("alice", "joe", "secret").peer_info("IV_SSO", "crtext,webauth")],
    partner: Some(Partner {
        config: "setenv IV_SSO crtext,webauth\n\
                 <auth-user-pass>\njoe\nsecret\n</auth-user-pass>\n",
        mode: || {
            let client = ClientMode::new().remote("127.0.0.1", 21196, "udp4");
            client.awaits_server().exit_notify()
        },
    }),
    noise: &[
        // At times of its own.
        ">BYTECOUNT:",
        // A real one that changes nothing in the kernel does not say it.
        ",ASSIGN_IP,",
        // Keepalives so far.
        "Auth read bytes,",
    ],
    ..ASKING
};
/// One that denies, and a client that asks its manager for everything.
pub(crate) const PROMPTING: Setup = Setup {
    guests: &[Person::new("alice", "127.0.0.1")],
    partner: Some(Partner {
        config: "auth-user-pass\nauth-retry interact\nstatic-challenge \"Enter PIN, please\" 1\n\
                 management-query-passwords\nmanagement-query-remote\n\
                 remote 127.0.0.1 21223 udp4\n",
        mode: || {
            ClientMode::new()
                .remote("127.0.0.1", 21222, "udp4")
                .remote("127.0.0.1", 21223, "udp4")
                .query_remote()
                .credentials("us er", "SCRV1:cHc=:MTIzNA==")
                .static_challenge("1,Enter PIN, please")
                .dynamic_challenge(
                    "R,E:state42:dXMgZXI=:Second factor",
                    "CRV1::state42::8675309",
                )
        },
    }),
    ..ASKING
};
