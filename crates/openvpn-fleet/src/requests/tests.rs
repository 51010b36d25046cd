//! Ids, bounds and ages.

use std::sync::LazyLock;

use super::*;
use crate::action::{AsOf, KillReport};
use crate::journal::{Position, RunId};

fn result(id: &RequestId, results: usize) -> ActionResult {
    let as_of = AsOf {
        position: Position {
            run: RunId(1),
            sequence: 1,
        },
        time: SystemTime::UNIX_EPOCH,
    };
    let mut report = KillReport {
        request_id: id.clone(),
        results: Vec::new(),
        instances: Vec::new(),
        validate_only: false,
        cut_short: false,
        as_of,
        durability: Durability::Memory,
    };
    report.results.resize(
        results,
        KillResult {
            client: crate::name::ClientRef {
                gateway: crate::name::GatewayName::new("gw").expect("a name"),
                instance: crate::name::InstanceName::new("eu1").expect("a name"),
                generation: crate::name::Generation(1),
                cid: openvpn_management::Cid(0),
            },
            common_name: "alice".into(),
            username: "".into(),
            real_address: "".into(),
            virtual_address: "".into(),
            outcome: crate::action::Outcome::Accepted,
            error: None,
            sent: None,
            successor: None,
        },
    );
    ActionResult::Kill(Arc::new(report))
}

fn id(id: &str) -> RequestId {
    RequestId::new(id).expect("an id")
}

fn begin(
    requests: &Requests,
    caller: &str,
    request: &str,
    digest: u8,
    seconds: u64,
) -> Result<(Arc<Running>, bool), ActionError> {
    let action = ActionRef {
        request_id: id(request),
        caller: CallerName::new(caller),
    };
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = Duration::from_secs(seconds);
    let now = Moment {
        // Which day it is does not matter.
        wall: SystemTime::UNIX_EPOCH,
        monotonic: *START + since,
    };
    let begun = requests.begin(
        action,
        Method::KillClients,
        Digest([digest; 32]),
        result(&id(request), 0),
        now,
    )?;
    Ok(match begun {
        Begun::New(running) => (running, true),
        Begun::Joined(running) => (running, false),
    })
}

/// Two callers may use the same id; one caller may not use it for two things.
#[test]
fn an_id_is_of_one_caller_and_one_request() {
    let requests = Requests::default();
    let (first, is_new) = begin(&requests, "alice", "x", 1, 0).expect("begins");
    assert!(is_new);
    let (again, is_new) = begin(&requests, "alice", "x", 1, 1).expect("joins");
    assert!(!is_new && Arc::ptr_eq(&first, &again));
    assert!(begin(&requests, "bob", "x", 2, 2).expect("begins").1);
    assert!(matches!(
        begin(&requests, "alice", "x", 2, 3),
        Err(ActionError::RequestIdReused { .. })
    ));
    let found = requests
        .action(&CallerName::new("alice"), &id("x"))
        .expect("known");
    assert_eq!(found.caller.as_str(), "alice");
    let found = requests
        .action(&CallerName::new("carol"), &id("x"))
        .expect("known");
    assert_eq!(
        found.caller.as_str(),
        "bob",
        "the newest, if there is none of one's own"
    );
}

/// Ids are kept for a day, and no longer; what is under way is never forgotten.
#[test]
fn finished_actions_are_forgotten_after_a_day() {
    let requests = Requests::default();
    let day = ACTION_AGE_MAX.as_secs();
    begin(&requests, "alice", "running", 1, 0).expect("begins");
    let (done, _) = begin(&requests, "alice", "done", 1, 0).expect("begins");
    done.finish(Ok(result(&id("done"), 1)));
    begin(&requests, "alice", "later", 1, day).expect("begins");
    assert!(
        requests
            .action(&CallerName::new("alice"), &id("done"))
            .is_some()
    );
    begin(&requests, "alice", "later-still", 1, day + 1).expect("begins");
    assert!(
        requests
            .action(&CallerName::new("alice"), &id("done"))
            .is_none()
    );
    assert!(
        requests
            .action(&CallerName::new("alice"), &id("running"))
            .is_some()
    );
}

/// At the bound the oldest finished action makes room; if none is finished there is none.
#[test]
fn the_number_of_actions_is_bounded() {
    let requests = Requests::default();
    for number in 0..ACTIONS_MAX {
        begin(&requests, "alice", &format!("r{number}"), 1, 0).expect("begins");
    }
    assert!(matches!(
        begin(&requests, "alice", "more", 1, 0),
        Err(ActionError::TooManyActions { .. })
    ));
    let (fifth, _) = begin(&requests, "alice", "r5", 1, 0).expect("joins");
    fifth.finish(Ok(result(&id("r5"), 1)));
    begin(&requests, "alice", "more", 1, 0).expect("there is room");
    assert!(
        requests
            .action(&CallerName::new("alice"), &id("r5"))
            .is_none()
    );
    let newest = requests.actions(None, 2);
    assert_eq!(newest.len(), 2);
    assert_eq!(newest[0].request_id, id("more"));
    assert!(newest[0].number > newest[1].number);
    assert_eq!(
        requests.actions(Some(newest[1].number), 1)[0].number,
        newest[1].number - 1
    );
}

/// Many large answers must not fill the memory.
#[test]
fn the_number_of_results_is_bounded() {
    let requests = Requests::default();
    for number in 0..5 {
        let (running, _) = begin(&requests, "alice", &format!("r{number}"), 1, 0).expect("begins");
        running.finish(Ok(result(&id("x"), ACTION_RESULTS_MAX / 3)));
    }
    let kept: usize = requests
        .actions(None, 100)
        .iter()
        .map(|action| match &action.result {
            ActionResult::Kill(report) => report.results.len(),
            ActionResult::Signal(report) => report.results.len(),
        })
        .sum();
    assert!(
        kept <= ACTION_RESULTS_MAX + ACTION_RESULTS_MAX / 3,
        "{kept}"
    );
}
