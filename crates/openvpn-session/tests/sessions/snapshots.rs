//! When `status` and `load-stats` are asked.

use std::time::Duration;

use openvpn_management::{Command, Notification};
use openvpn_session::{CallError, Condition, Hint, Moment, NotSent, Observation};

use crate::support::{
    Daemon, LOAD_STATS, PATIENCE, STATUS, STATUS_REFUSED, Subject, attached, read, within,
};

/// The daemon does nothing else while it writes a status: all who wait share one.
#[tokio::test]
async fn all_who_wait_share_one_status() {
    let (_daemon, subject, mut manager) = attached().await;
    let now = Moment::now().monotonic;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let handle = subject.handle.clone();
        waiting.spawn(async move { handle.refresh(now, now + PATIENCE).await });
    }
    manager.expect("status 3").await;
    manager.write(STATUS).await;
    while let Some(refreshed) = within(waiting.join_next()).await {
        assert!(refreshed.unwrap().unwrap().monotonic >= now);
    }
    // It is still fresh enough for who asks for no later one.
    within(subject.handle.refresh(now, now + PATIENCE))
        .await
        .unwrap();
    manager.expect_silence().await;
}

/// A status asked before a caller's moment does not show what happened up to then.
#[tokio::test]
async fn an_older_status_does_not_serve_a_later_caller() {
    let (_daemon, subject, mut manager) = attached().await;
    let refresh = |subject: &Subject| {
        let handle = subject.handle.clone();
        let now = Moment::now().monotonic;
        tokio::spawn(async move { handle.refresh(now, now + PATIENCE).await })
    };
    let first = refresh(&subject);
    manager.expect("status 3").await;
    let second = refresh(&subject);
    tokio::task::yield_now().await;
    manager.write(STATUS).await;
    let first = within(first).await.unwrap().unwrap();
    manager.expect("status 3").await;
    manager.write(STATUS).await;
    let second = within(second).await.unwrap().unwrap();
    // At most five a second, whoever asks.
    let apart = second.monotonic - first.monotonic;
    assert!(apart >= Duration::from_millis(200), "{apart:?}");
}

/// Whoever has to throw somebody out waits for no spacing.
#[tokio::test]
async fn haste_does_not_wait_for_the_spacing() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.refresh_spacing = Duration::from_secs(3_600);
    let mut subject = Subject::start(config);
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    for _ in 0..3 {
        let handle = subject.handle.clone();
        let now = Moment::now().monotonic;
        let refreshed =
            tokio::spawn(async move { handle.refresh_at_once(now, now + PATIENCE).await });
        manager.expect("status 3").await;
        manager.write(STATUS).await;
        within(refreshed).await.unwrap().unwrap();
    }
}

/// When a refresh returns, the observer has seen the snapshot; a refused one is an error and not an old snapshot.
#[tokio::test]
async fn a_refresh_returns_after_the_observer_has_seen_it() {
    let (_daemon, mut subject, mut manager) = attached().await;
    let now = Moment::now().monotonic;
    let handle = subject.handle.clone();
    let refreshed = tokio::spawn(async move { handle.refresh(now, now + PATIENCE).await });
    manager.expect("status 3").await;
    manager.write(STATUS).await;
    let asked = within(refreshed).await.unwrap().unwrap();
    let seen = subject
        .wait_for("snapshot", |observation| match observation {
            Observation::Snapshot(snapshot) => Some(snapshot.asked),
            _ => None,
        })
        .await;
    assert_eq!(seen, asked);

    let now = Moment::now().monotonic;
    let handle = subject.handle.clone();
    let refused = tokio::spawn(async move { handle.refresh(now, now + PATIENCE).await });
    manager.expect("status 3").await;
    manager.write(STATUS_REFUSED).await;
    let refused = within(refused).await.unwrap().unwrap_err();
    assert!(matches!(refused, CallError::Rejected { .. }), "{refused:?}");

    let now = Moment::now().monotonic;
    let late = subject
        .handle
        .refresh(now, now + Duration::from_millis(20))
        .await;
    assert!(
        matches!(late, Err(CallError::NotSent(NotSent::Deadline))),
        "{late:?}"
    );
}

/// A client that leaves is gone from the list only after the daemon's delayed exit: one look is not enough.
#[tokio::test]
async fn a_leaving_client_is_looked_for_twice() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.leaving_polls = [Duration::from_millis(100), Duration::from_millis(400)];
    config.timings.hint_spacing = Duration::from_millis(10);
    let mut subject = Subject::start_with(config, |observation| match observation {
        Observation::Notification(Notification::Log(_)) => Hint::Leaving,
        _ => Hint::None,
    });
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    // Several at once are looked for together.
    let left = Moment::now().monotonic;
    for _ in 0..3 {
        manager.write(">LOG:1795170000,,alice leaves\r\n").await;
    }
    for at_least in [100, 400] {
        manager.expect("status 3").await;
        manager.write(STATUS).await;
        assert!(left.elapsed() >= Duration::from_millis(at_least));
    }
    manager.expect_silence().await;
}

/// A hint brings a snapshot at once, many hints bring few, and one that comes while a snapshot is on its way another.
#[tokio::test]
async fn hints_are_answered_together_and_none_is_lost() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.hint_spacing = Duration::from_millis(100);
    let mut subject = Subject::start_with(config, |observation| match observation {
        Observation::Notification(Notification::Echo(_)) => Hint::Poll,
        _ => Hint::None,
    });
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    for _ in 0..100 {
        manager.write(">ECHO:1795170000,news\r\n").await;
    }
    manager.expect("status 3").await;
    manager.write(">ECHO:1795170000,more\r\n").await;
    manager.write(STATUS).await;
    manager.expect("status 3").await;
    manager.write(STATUS).await;
    manager.expect_silence().await;
}

/// The daemon is asked whether it lives and what it lists, without anybody calling for it.
#[tokio::test]
async fn it_asks_by_itself() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.timings.liveness_interval = Duration::from_millis(30);
    config.status_interval = Duration::from_millis(500);
    let mut subject = Subject::start(config);
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    let (mut probes, mut polls) = (0, 0);
    while polls < 2 {
        match manager.read().await.as_str() {
            "load-stats" => {
                probes += 1;
                manager.write(LOAD_STATS).await;
            }
            "status 3" => {
                polls += 1;
                manager.write(STATUS).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(probes >= 3, "{probes}");
    let clients = subject
        .wait_for("load-stats", |observation| match observation {
            Observation::LoadStats(stats) => Some(stats.clients),
            _ => None,
        })
        .await;
    assert_eq!(clients, 1);
}

/// Reads wait for the session's own questions, but not for longer than those take.
#[tokio::test]
async fn a_read_goes_out_between_two_polls() {
    let (_daemon, subject, mut manager) = attached().await;
    let now = Moment::now().monotonic;
    let handle = subject.handle.clone();
    let refreshed = tokio::spawn(async move { handle.refresh(now, now + PATIENCE).await });
    manager.expect("status 3").await;
    let handle = subject.handle.clone();
    let call = tokio::spawn(async move { handle.call(read(Command::Pid, 1)).await });
    manager.expect_silence().await;
    manager.write(STATUS).await;
    manager.expect("pid").await;
    manager.write("SUCCESS: pid=1\r\n").await;
    within(call).await.unwrap().unwrap();
    within(refreshed).await.unwrap().unwrap();
}
