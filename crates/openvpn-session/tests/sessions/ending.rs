//! How sessions end, and how they come back.

use std::time::{Duration, SystemTime};

use openvpn_management::Command;
use openvpn_session::{
    CallError, Condition, DisconnectPolicy, NotSent, Observation, OutcomeUnknown,
};

use crate::support::{Daemon, Subject, attached, control, kill, read, within};

fn detached(observation: &Observation) -> Option<String> {
    match observation {
        Observation::Detached { reason } => Some(reason.clone()),
        _ => None,
    }
}

/// A command on the wire when the session breaks may have been carried out; one that waited was not.
#[tokio::test]
async fn an_end_tells_the_sent_from_the_unsent() {
    let (daemon, mut subject, mut manager) = attached().await;
    let handle = subject.handle.clone();
    let sent = tokio::spawn(async move { handle.call(control(kill(1))).await });
    manager.expect("client-kill 1").await;
    let handle = subject.handle.clone();
    let waiting = tokio::spawn(async move { handle.call(read(Command::Pid, 1)).await });
    manager.expect_silence().await;
    manager.write(">FATAL:Cannot open TUN/TAP dev\r\n").await;
    drop(manager);

    let sent = within(sent).await.unwrap().unwrap_err();
    let CallError::OutcomeUnknown {
        why: OutcomeUnknown::SessionEnded { reason },
        ..
    } = sent
    else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("Cannot open TUN/TAP dev"), "{reason}");
    let waiting = within(waiting).await.unwrap().unwrap_err();
    assert!(
        matches!(waiting, CallError::NotSent(NotSent::Detached { .. })),
        "{waiting:?}"
    );

    // It was observed once, and it comes back by itself.
    assert_eq!(subject.wait_for("end", detached).await, reason);
    assert_eq!(subject.wait_until(Condition::Connecting).await, reason);
    let _manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
}

/// Whoever waits when the session is told to end gets an answer; so does whoever comes later.
#[tokio::test]
async fn cancelling_answers_everybody() {
    let (_daemon, mut subject, mut manager) = attached().await;
    let handle = subject.handle.clone();
    let sent = tokio::spawn(async move { handle.call(control(kill(1))).await });
    manager.expect("client-kill 1").await;
    let handle = subject.handle.clone();
    let waiting = tokio::spawn(async move { handle.call(control(kill(2))).await });
    manager.expect_silence().await;
    subject.cancel.cancel();
    manager.expect_end().await;
    subject.wait_for("end", detached).await;
    let sent = within(sent).await.unwrap();
    assert!(
        matches!(sent, Err(CallError::OutcomeUnknown { .. })),
        "{sent:?}"
    );
    let waiting = within(waiting).await.unwrap();
    assert!(
        matches!(waiting, Err(CallError::NotSent(NotSent::Closed))),
        "{waiting:?}"
    );
    let later = subject.handle.call(control(kill(3))).await;
    assert!(
        matches!(later, Err(CallError::NotSent(NotSent::Closed))),
        "{later:?}"
    );
}

/// A missed deadline alone never ends a session; minutes of them do, but not where leaving harms the daemon.
#[tokio::test]
async fn only_a_long_silence_ends_a_session_and_only_where_it_harms_nobody() {
    for policy in [DisconnectPolicy::Harmless, DisconnectPolicy::Destructive] {
        let daemon = Daemon::listen();
        let mut config = daemon.config();
        config.disconnect = policy;
        config.timings.liveness_interval = Duration::from_millis(10);
        config.timings.reply_deadline = Duration::from_millis(200);
        config.timings.unresponsive_reconnect = Duration::from_millis(400);
        let mut subject = Subject::start(config);
        let mut manager = daemon.attach().await;
        subject.wait_until(Condition::Unresponsive).await;
        manager.expect("load-stats").await;
        // The fence behind it.
        manager.expect("pid").await;
        match policy {
            DisconnectPolicy::Harmless => {
                manager.expect_end().await;
                assert!(
                    subject
                        .wait_for("end", detached)
                        .await
                        .contains("no answer")
                );
            }
            DisconnectPolicy::Destructive => {
                for _ in 0..10 {
                    manager.expect_silence().await;
                }
                manager.write(crate::support::LOAD_STATS).await;
                manager.write("SUCCESS: pid=4711\r\n").await;
                subject.wait_until(Condition::Attached).await;
            }
        }
    }
}

/// A flapping daemon is a few lines of log for each change, and dialled less and less often.
#[tokio::test]
async fn a_failure_that_repeats_is_reported_once() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    for _ in 0..4 {
        drop(daemon.accept().await);
    }
    let mut changes = 0;
    let mut attempts = 0;
    subject
        .wait_for("attempts", |observation| {
            match observation {
                Observation::Condition(change) if change.condition == Condition::Unreachable => {
                    changes += 1;
                }
                Observation::NextAttempt(_) => attempts += 1,
                _ => {}
            }
            (attempts == 3).then_some(())
        })
        .await;
    assert_eq!(changes, 1);
}

/// A daemon that ends every session before it is in step must not be dialled twice a second for ever.
#[tokio::test]
async fn a_daemon_that_keeps_no_session_is_dialled_less_and_less() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.local_retry_min = Duration::from_millis(1);
    config.timings.local_retry_max = Duration::from_millis(1);
    config.timings.watched_retry_max = Duration::from_secs(3_600);
    let mut subject = Subject::start(config);
    let mut sessions = 0;
    let greets_and_leaves = async {
        loop {
            let mut manager = daemon.accept().await;
            sessions += 1;
            manager.greet().await;
        }
    };
    let far = subject.wait_for("wait", |observation| {
        let at = match observation {
            Observation::Condition(change) => change.next_attempt?,
            Observation::NextAttempt(at) => *at,
            _ => return None,
        };
        let wait = at.duration_since(SystemTime::now()).ok()?;
        (wait > Duration::from_secs(60)).then_some(())
    });
    tokio::select! {
        () = far => {}
        () = greets_and_leaves => {}
    }
    assert_eq!(sessions, 20);
}

/// The same for one that breaks the protocol, which costs more: at once.
#[tokio::test]
async fn a_daemon_that_breaks_the_protocol_is_not_dialled_like_a_local_one() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.remote_retry_min = Duration::from_secs(600);
    let mut subject = Subject::start(config);
    let mut manager = daemon.accept().await;
    manager.greet().await;
    manager.write(&"x".repeat(20_000)).await;
    let next = subject.wait_for("wait", |observation| match observation {
        Observation::Condition(change) => change.next_attempt,
        _ => None,
    });
    let wait = next.await.duration_since(SystemTime::now()).unwrap();
    assert!(wait > Duration::from_secs(300), "{wait:?}");
}
