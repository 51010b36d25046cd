//! The last check before a kill is written.

use openvpn_session::{Address, SessionConfig};

use super::*;
use crate::action::AsOf;
use crate::apply::told::{BEGIN, Told, status};
use crate::filter::ClientFilter;
use crate::ledger::Digest;
use crate::name::{CallerName, GatewayName, InstanceName, Labels, RequestId};
use crate::requests::Requests;
use crate::selector::Selector;
use crate::spec::{InstanceSource, InstanceSpec};

/// What happens between the moment a client is found and the moment its kill is written, and whether it is written.
type Case = (&'static str, Result<(), Outcome>, fn(&mut Told));

const CASES: &[Case] = &[
    ("nothing", Ok(()), |_| {}),
    ("it moves bytes", Ok(()), |told| {
        told.says(">BYTECOUNT_CLI:1,500,500")
    }),
    ("others come and go", Ok(()), |told| {
        told.established(6, "carol", BEGIN + 50);
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 0),
            (6, "carol", BEGIN + 50, 0),
        ]));
    }),
    ("it leaves", Err(Outcome::AlreadyGone), |told| {
        told.says(">CLIENT:DISCONNECT,1\n>CLIENT:ENV,END")
    }),
    ("the daemon restarts", Err(Outcome::Stale), |told| {
        told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,")
    }),
    (
        "a namesake takes its number at the same second",
        Err(Outcome::Stale),
        |told| {
            told.says(">STATE:1795186050,RECONNECTING,SIGUSR1,,,,,\n>STATE:1795186051,CONNECTED,SUCCESS,10.8.0.1,,,,");
            told.established(1, "alice", BEGIN + 1);
        },
    ),
    (
        "somebody takes its number and nothing was said",
        Err(Outcome::Stale),
        |told| told.established(1, "alice", BEGIN + 90),
    ),
];

/// A guard that lets one of these through kills a stranger.
#[test]
fn a_guard_lets_through_only_the_client_that_was_found() {
    for (name, expected, happens) in CASES {
        let mut told = Told::attached();
        told.shows(&status(&[
            (1, "alice", BEGIN + 1, 0),
            (5, "bob", BEGIN + 2, 0),
        ]));
        let target = Target {
            instance: Arc::new(instance()),
            generation: told.generation(),
            cid: Cid(1),
            common_name: b"alice".as_slice().into(),
            connected_since: Some(1_795_186_001),
        };
        happens(&mut told);
        target.instance.update(|table| *table = told.table);

        let guard = guard_of(&target);
        let found = guard().map_err(|GuardRefused(refused)| {
            let refused = refused.downcast::<Refused>().expect("ours");
            fate_of_refusal(&target.instance, &refused).outcome
        });
        assert_eq!(found, *expected, "{name}");
        let marked = target.instance.with_table(|table| {
            let mark = table.client(Cid(1)).and_then(|client| client.mark.as_ref());
            mark.is_some_and(|mark| mark.killed_by.is_some())
        });
        assert_eq!(
            marked,
            expected.is_ok(),
            "{name}: whoever is killed is marked, and nobody else"
        );
    }
}

fn guard_of(target: &Target) -> Guard {
    let action = ActionRef {
        request_id: RequestId::new("x").expect("an id"),
        caller: CallerName::new("tester"),
    };
    let report = KillReport {
        request_id: action.request_id.clone(),
        results: Vec::new(),
        instances: Vec::new(),
        validate_only: false,
        cut_short: false,
        as_of: AsOf {
            position: crate::journal::Position {
                run: crate::journal::RunId(1),
                sequence: 1,
            },
            time: SystemTime::UNIX_EPOCH,
        },
        durability: crate::action::Durability::Memory,
    };
    let requests = Requests::default();
    let empty = ActionResult::Kill(Arc::new(report));
    let Ok(Begun::New(running)) = requests.begin(
        action,
        Method::KillClients,
        Digest::default(),
        empty,
        Moment::now(),
    ) else {
        panic!("a new action")
    };
    let request = KillRequest {
        selector: Selector::all(),
        filter: ClientFilter::default(),
        every_client: true,
        message: KillMessage::Restart,
        validate_only: false,
        max_clients: 0,
        max_instances: 0,
        wait: false,
        request_id: None,
        digest: Digest::default(),
    };
    let kill = Kill {
        request: &request,
        running: &running,
        limits: &Limits::unlimited(),
    };
    kill.guard(target)
}

fn instance() -> Instance {
    let spec = InstanceSpec {
        name: InstanceName::new("eu1").expect("a name"),
        labels: Labels::default(),
        source: InstanceSource::File,
        session: SessionConfig::new(Address::Unix("/nowhere".into())).into(),
        paused: None,
        others: 0,
    };
    Instance::new(
        GatewayName::new("gw").expect("a name"),
        crate::name::InstanceUid::new(1),
        spec,
    )
}
