use std::path::Path;

use openvpn_fleet::{
    ActionResult, AsOf, ClientRef, Durability, GatewayName, Generation, KillReport, KillResult,
    Outcome, Position, RunId,
};
use openvpn_management::{Cid, Text};

use super::*;

async fn open(directory: &Path) -> (State, Actions) {
    let state = State::open(Some(directory)).expect("it opens");
    let cursors = Arc::new(Cursors::new("gw", b"key"));
    let actions = Actions::open(&state, cursors).await.expect("it opens");
    (state, actions)
}

fn intent(number: u64, id: &str) -> Intent {
    Intent {
        number,
        caller: CallerName::new("alice"),
        method: Method::KillClients,
        request_id: RequestId::new(id).expect("an id"),
        digest: Digest([7; 32]),
        started: SystemTime::now(),
    }
}

fn result(cid: u64, outcome: Outcome) -> KillResult {
    KillResult {
        client: ClientRef {
            gateway: GatewayName::new("gw").expect("a name"),
            instance: InstanceName::new("eu1").expect("a name"),
            generation: Generation(1),
            cid: Cid(cid),
        },
        common_name: Text::from("bob"),
        username: Text::default(),
        real_address: Text::default(),
        virtual_address: Text::default(),
        outcome,
        error: None,
        sent: None,
        successor: None,
    }
}

fn action(number: u64, id: &str, outcomes: &[Outcome]) -> Action {
    let Intent {
        caller,
        method,
        request_id,
        started,
        ..
    } = intent(number, id);
    let results = outcomes
        .iter()
        .zip(0..)
        .map(|(outcome, cid)| result(cid, *outcome));
    let report = KillReport {
        request_id: request_id.clone(),
        results: results.collect(),
        instances: Vec::new(),
        validate_only: false,
        cut_short: false,
        as_of: AsOf {
            position: Position {
                run: RunId(1),
                sequence: 1,
            },
            time: started,
        },
        durability: Durability::Ledger,
    };
    Action {
        request_id,
        caller,
        method,
        number,
        started,
        finished: None,
        result: ActionResult::Kill(Arc::new(report)),
    }
}

async fn found(actions: &Actions, id: &str) -> Option<v1::Action> {
    let id = RequestId::new(id).expect("an id");
    let found = actions.find(&CallerName::new("alice"), &id).await;
    found.expect("it is read").map(|stored| stored.action)
}

fn outcomes(action: &v1::Action) -> Vec<v1::Outcome> {
    let Some(v1::action::Result::KillClients(report)) = &action.result else {
        panic!("{action:?}")
    };
    report.results.iter().map(v1::KillResult::outcome).collect()
}

/// Fails if what a crash cut off passes for something that it is not.
#[tokio::test]
async fn a_start_finishes_what_the_last_run_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, actions) = open(directory.path()).await;
    actions
        .intend(intent(1, "intended"))
        .await
        .expect("it is free");
    actions
        .intend(intent(2, "sending"))
        .await
        .expect("it is free");
    let planned = action(
        2,
        "sending",
        &[Outcome::NotSent, Outcome::NotSent, Outcome::AlreadyGone],
    );
    actions.plan(planned, 2).await.expect("it is kept");
    actions.note(2, 0, TargetResult::Kill(&result(0, Outcome::Accepted)));
    actions.write_pending().await.expect("it is written");
    assert_eq!(found(&actions, "sending").await, None, "it is under way");
    state.close(Duration::from_secs(5)).await;

    let (_state, actions) = open(directory.path()).await;
    let intended = found(&actions, "intended").await.expect("it is known");
    assert_eq!(intended.settled(), v1::Outcome::NotSent);
    assert_eq!(outcomes(&intended), []);
    let sending = found(&actions, "sending").await.expect("it is known");
    assert_eq!(sending.settled(), v1::Outcome::Unknown);
    // The last one was never to be sent.
    let known = [
        v1::Outcome::Accepted,
        v1::Outcome::Unknown,
        v1::Outcome::AlreadyGone,
    ];
    assert_eq!(outcomes(&sending), known);
    assert!(sending.finished_time.is_some());
    assert_eq!(actions.last_action(), 2);
    assert_eq!(
        actions.intend(intent(3, "sending")).await,
        Err(LedgerError::Known)
    );
}

/// Fails if an action whose task was lost stays under way for ever, or passes for something that it is not.
#[tokio::test]
async fn a_lost_action_is_finished_by_what_is_known() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, actions) = open(directory.path()).await;
    actions.intend(intent(1, "x")).await.expect("it is free");
    let planned = action(1, "x", &[Outcome::NotSent, Outcome::NotSent]);
    actions.plan(planned, 2).await.expect("it is kept");
    actions.note(1, 0, TargetResult::Kill(&result(0, Outcome::Accepted)));
    actions.write_pending().await.expect("it is written");
    actions.lose(1);
    let lost = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(lost) = found(&actions, "x").await {
                return lost;
            }
        }
    });
    let lost = lost.await.expect("it is finished");
    assert_eq!(lost.settled(), v1::Outcome::Unknown);
    assert_eq!(
        outcomes(&lost),
        [v1::Outcome::Accepted, v1::Outcome::Unknown]
    );
    assert_eq!(
        actions.intend(intent(2, "x")).await,
        Err(LedgerError::Known)
    );
}

/// Fails if a finished action is sent again, or one that was taken back blocks its id.
#[tokio::test]
async fn an_id_is_taken_by_what_was_sent() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, actions) = open(directory.path()).await;
    actions.intend(intent(1, "x")).await.expect("it is free");
    actions
        .intend(intent(2, "x"))
        .await
        .expect("nothing of the first was sent");
    actions
        .plan(action(2, "x", &[Outcome::NotSent]), 1)
        .await
        .expect("it is kept");
    assert_eq!(
        actions.intend(intent(3, "x")).await,
        Err(LedgerError::Known)
    );
    assert!(actions.finish(action(2, "x", &[Outcome::Confirmed])).await);
    assert_eq!(
        actions.intend(intent(3, "x")).await,
        Err(LedgerError::Known)
    );
    let known = found(&actions, "x").await.expect("it is known");
    assert_eq!(outcomes(&known), [v1::Outcome::Confirmed]);
    assert_eq!(known.settled(), v1::Outcome::Unspecified);
    let listed = actions.list(None, 10).await.expect("it is read");
    assert_eq!(listed.iter().map(|one| one.number).collect::<Vec<_>>(), [2]);
    assert_eq!(actions.list(Some(2), 10).await, Ok(Vec::new()));
}

/// Fails if an action is forgotten because somebody set the clock, or is not after its day.
#[tokio::test]
async fn an_action_is_known_for_a_day_that_passes() {
    use crate::state::tests::{let_pass, put_the_clock_right};

    let directory = tempfile::tempdir().expect("a directory");
    let (state, actions) = open(directory.path()).await;
    let first = action(1, "x", &[Outcome::Confirmed]);
    actions.intend(intent(1, "x")).await.expect("it is free");
    actions.plan(first.clone(), 1).await.expect("it is kept");
    assert!(actions.finish(first).await);
    put_the_clock_right(&state).await;
    actions.intend(intent(2, "y")).await.expect("it is free");
    assert_eq!(
        actions.intend(intent(3, "x")).await,
        Err(LedgerError::Known)
    );

    let mut state = state;
    for (hours, known) in [(23, true), (2, false)] {
        let_pass(&state, hours).await;
        state.close(Duration::from_secs(5)).await;
        let actions;
        (state, actions) = open(directory.path()).await;
        let number = actions.last_action() + 1;
        let id = format!("other-{hours}");
        actions
            .intend(intent(number, &id))
            .await
            .expect("it is free");
        assert_eq!(found(&actions, "x").await.is_some(), known, "{hours}");
    }
}

/// Fails if an id is forgotten for others that came to nothing.
#[tokio::test]
async fn what_came_to_nothing_counts_for_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, actions) = open(directory.path()).await;
    let first = action(1, "x", &[Outcome::Confirmed]);
    actions.intend(intent(1, "x")).await.expect("it is free");
    actions.plan(first.clone(), 1).await.expect("it is kept");
    assert!(actions.finish(first).await);
    let number = ACTIONS_MAX as u64 + 2;
    actions
        .intend(intent(number, "y"))
        .await
        .expect("it is free");
    assert_eq!(
        actions.intend(intent(number + 1, "x")).await,
        Err(LedgerError::Known)
    );
}

/// Fails if an id is still taken by an action that was refused: its caller has been told so, and may ask again at once.
#[tokio::test]
async fn the_id_of_a_refused_action_is_free_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, actions) = open(directory.path()).await;
    let first = intent(1, "refused");
    actions.intend(first).await.expect("it is free");
    // Whoever planned was told that the disk is too slow; the plan came to be all the same.
    let planned = action(1, "refused", &[Outcome::NotSent]);
    actions.plan(planned, 1).await.expect("it is kept");
    actions.forget(1);
    let again = actions.intend(intent(2, "refused")).await;
    assert_eq!(again, Ok(()));
    actions.write_pending().await.expect("it is written");
    let planned = action(2, "refused", &[Outcome::NotSent]);
    actions
        .plan(planned, 1)
        .await
        .expect("the second one is there");
    // One that nobody asks for again goes too.
    actions.forget(2);
    actions.write_pending().await.expect("it is written");
    state.close(Duration::from_secs(5)).await;
    let (_state, actions) = open(directory.path()).await;
    assert_eq!(found(&actions, "refused").await, None);
}
