//! An attached session: replies, lanes, guards, snapshots, and how it ends.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::support::{
    Daemon, LOAD_STATS, Manager, STATUS, STATUS_REFUSED, Subject, attached, kill,
};
use crate::support::{control, read, within};
use openvpn_management::{Command, DaemonState, Notification, Reply, Signal};
use openvpn_session::{
    CONTROL_LANE_MAX, CallError, Condition, GuardRefused, Hint, HoldPolicy, Lane, Mode, Moment,
    NotSent, Observation, OutcomeUnknown,
};

/// What was asked on attach arrives as it was answered, and before the first call is taken.
#[tokio::test]
async fn attaching_hands_over_the_facts() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    let mut manager = daemon.accept().await;
    manager.greet().await;
    subject.wait_until(Condition::Syncing).await;
    let early = subject
        .handle
        .call(read(Command::Pid, 1))
        .await
        .unwrap_err();
    let condition = Condition::Syncing;
    assert!(
        matches!(early, CallError::NotSent(NotSent::Detached { condition: found }) if found == condition)
    );
    manager.synchronise(STATUS).await;
    subject
        .wait_for("facts", |observation| match observation {
            Observation::Synchronised(facts) => {
                assert_eq!(facts.pid, Some(4711));
                assert_eq!(facts.hold, Some(false));
                assert_eq!(facts.mode, Mode::Server);
                assert_eq!(facts.states[0].state, DaemonState::Connected);
                assert_eq!(facts.load_stats.unwrap().clients, 1);
                let snapshot = facts.snapshot.as_ref().unwrap();
                assert_eq!(snapshot.status.clients().len(), 1);
                assert!(snapshot.asked.monotonic <= snapshot.answered.monotonic);
                Some(())
            }
            _ => None,
        })
        .await;
    subject.wait_until(Condition::Attached).await;
}

/// A daemon that refuses what it does not know, or `status` in the middle of a restart, is attached anyway.
#[tokio::test]
async fn refusals_do_not_keep_from_attaching() {
    let daemon = Daemon::listen();
    let mut subject = Subject::start(daemon.config());
    let mut manager = daemon.accept().await;
    manager.greet().await;
    for _ in 0..10 {
        // `pid` no daemon refuses.
        let answer = match manager.read().await.as_str() {
            "pid" => "SUCCESS: pid=4711\r\n",
            _ => "ERROR: unknown command, enter 'help' for more options\r\n",
        };
        manager.write(answer).await;
    }
    manager.expect("status 3").await;
    manager.write(STATUS_REFUSED).await;
    subject
        .wait_for("facts", |observation| match observation {
            Observation::Synchronised(facts) => {
                assert!(facts.snapshot.is_none() && facts.version.is_none());
                assert_eq!(facts.mode, Mode::Unknown);
                Some(())
            }
            _ => None,
        })
        .await;
    subject.wait_until(Condition::Attached).await;
    // Once it serves, it is asked again without being told to.
    manager
        .write(">STATE:1795170000,CONNECTED,SUCCESS,10.8.0.1,,,,\r\n")
        .await;
    manager.expect("status 3").await;
}

/// The answer to a command that came too late would otherwise be taken for the answer to the next one.
#[tokio::test]
async fn late_reply_does_not_answer_the_next_command() {
    let daemon = Daemon::listen();
    let mut config = daemon.config();
    // Also what each answer of the attach has, on a machine that is busy.
    config.timings.reply_deadline = Duration::from_secs(1);
    let mut subject = Subject::start(config);
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;

    let handle = subject.handle.clone();
    let slow = tokio::spawn(async move { handle.call(control(kill(7))).await });
    manager.expect("client-kill 7").await;
    subject.wait_until(Condition::Unresponsive).await;
    let called = subject.handle.call(control(kill(8))).await.unwrap_err();
    let unresponsive = Condition::Unresponsive;
    assert!(
        matches!(called, CallError::NotSent(NotSent::Detached { condition }) if condition == unresponsive)
    );
    manager.expect("load-stats").await;
    manager.write("ERROR: client-kill command failed\r\n").await;
    manager.write(LOAD_STATS).await;
    subject.wait_until(Condition::Attached).await;

    // The late answer went to who asked, and the next one gets its own.
    let refused = within(slow).await.unwrap().unwrap_err();
    assert!(matches!(refused, CallError::Rejected { .. }), "{refused:?}");
    let handle = subject.handle.clone();
    let next = tokio::spawn(async move { handle.call(control(kill(9))).await });
    // Being back is worth a snapshot, which is asked first unless there was one a moment ago.
    let mut line = manager.read().await;
    if line == "status 3" {
        manager.write(STATUS).await;
        line = manager.read().await;
    }
    assert_eq!(line, "client-kill 9");
    manager
        .write("SUCCESS: client-kill command succeeded\r\n")
        .await;
    assert!(matches!(
        within(next).await.unwrap().unwrap().reply,
        Reply::Success(_)
    ));
}

/// A caller that went away must not find later that its command was carried out.
#[tokio::test]
async fn a_caller_that_left_the_queue_is_never_sent() {
    let (_daemon, subject, mut manager) = attached().await;
    let handle = subject.handle.clone();
    let first = tokio::spawn(async move { handle.call(control(kill(1))).await });
    manager.expect("client-kill 1").await;

    let handle = subject.handle.clone();
    let gone = tokio::spawn(async move { handle.call(control(kill(2))).await });
    let mut late = control(kill(3));
    late.deadline = Moment::now().monotonic + Duration::from_millis(20);
    let late = subject.handle.call(late).await.unwrap_err();
    assert!(
        matches!(late, CallError::NotSent(NotSent::Deadline)),
        "{late:?}"
    );
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());

    let handle = subject.handle.clone();
    let last = tokio::spawn(async move { handle.call(control(kill(4))).await });
    manager
        .write("SUCCESS: client-kill command succeeded\r\n")
        .await;
    within(first).await.unwrap().unwrap();
    manager.expect("client-kill 4").await;
    manager
        .write("SUCCESS: client-kill command succeeded\r\n")
        .await;
    within(last).await.unwrap().unwrap();
}

/// A restart that the kernel already holds for us makes every CID void: the guard must know of it.
#[tokio::test]
async fn guard_runs_after_the_socket_is_drained() {
    #[derive(Debug, thiserror::Error)]
    #[error("the daemon restarted")]
    struct Restarted;

    let daemon = Daemon::listen();
    let restarted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&restarted);
    let mut subject = Subject::start_with(daemon.config(), move |observation| {
        if let Observation::Notification(Notification::State(record)) = observation {
            seen.store(record.state == DaemonState::Reconnecting, Ordering::SeqCst);
        }
        Hint::None
    });
    let (stream, _) = within(daemon.listener.accept()).await.unwrap();
    let stream = stream.into_std().unwrap();
    let mut wire = stream.try_clone().unwrap();
    let mut manager = Manager::new(UnixStream::from_std(stream).unwrap());
    manager.greet().await;
    manager.synchronise(STATUS).await;
    subject.wait_until(Condition::Attached).await;

    // While the first guard runs, the daemon restarts. Nothing runs between the two guards but the session, which on
    // this runtime of one thread cannot have been told by a poll.
    let mut first = control(kill(1));
    first.guard = Some(Box::new(move || {
        wire.write_all(b">STATE:1795170000,RECONNECTING,SIGUSR1,,,,,\r\n")
            .unwrap();
        Err(GuardRefused("not this one".into()))
    }));
    let mut second = control(kill(2));
    second.guard = Some(Box::new(move || match restarted.load(Ordering::SeqCst) {
        true => Err(GuardRefused(Box::new(Restarted))),
        false => Ok(()),
    }));
    let calls = async {
        // Polled in this order, so that the first is first in its lane.
        tokio::join!(biased; subject.handle.call(first), subject.handle.call(second))
    };
    let (_, second) = within(calls).await;
    let Err(CallError::NotSent(NotSent::Guard(GuardRefused(reason)))) = second else {
        panic!("{second:?}");
    };
    assert!(reason.is::<Restarted>());
    manager.expect_silence().await;
}

/// Who changes something goes first; who reads takes turns, however much one of them asks.
#[tokio::test]
async fn control_goes_first_and_readers_take_turns() {
    let (_daemon, subject, mut manager) = attached().await;
    let mut calls = tokio::task::JoinSet::new();
    let mut enqueue = |call| {
        let handle = subject.handle.clone();
        let mut call = Box::pin(async move { handle.call(call).await });
        // Polled once, so that it is in its lane before the next.
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        assert!(call.as_mut().poll(&mut context).is_pending());
        calls.spawn(call);
    };
    enqueue(control(kill(1)));
    manager.expect("client-kill 1").await;
    for (caller, mute) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30)] {
        enqueue(read(Command::Mute(Some(mute)), caller));
    }
    enqueue(control(kill(2)));
    manager
        .write("SUCCESS: client-kill command succeeded\r\n")
        .await;
    for expected in [
        "client-kill 2",
        "mute 10",
        "mute 20",
        "mute 30",
        "mute 11",
        "mute 12",
    ] {
        manager.expect(expected).await;
        manager.write("SUCCESS: done\r\n").await;
    }
    while let Some(answered) = within(calls.join_next()).await {
        answered.unwrap().unwrap();
    }
}

/// A full lane refuses at once and without harm to those in it.
#[tokio::test]
async fn a_full_lane_refuses() {
    let (_daemon, subject, mut manager) = attached().await;
    let mut calls = tokio::task::JoinSet::new();
    for cid in 0..=CONTROL_LANE_MAX as u64 {
        let handle = subject.handle.clone();
        calls.spawn(async move { handle.call(control(kill(cid))).await });
        if cid == 0 {
            manager.expect("client-kill 0").await;
        }
    }
    // The one on the wire has left its lane, so that these fill it exactly.
    tokio::task::yield_now().await;
    let refused = subject.handle.call(control(kill(99))).await.unwrap_err();
    assert!(
        matches!(
            refused,
            CallError::NotSent(NotSent::LaneFull {
                lane: Lane::Control,
                capacity: CONTROL_LANE_MAX
            })
        ),
        "{refused:?}"
    );
    manager.write("SUCCESS: done\r\n").await;
    for cid in 1..=CONTROL_LANE_MAX {
        manager.expect(&format!("client-kill {cid}")).await;
        manager.write("SUCCESS: done\r\n").await;
    }
    while let Some(answered) = within(calls.join_next()).await {
        answered.unwrap().unwrap();
    }
}

/// A caller hears at its own deadline; the command runs to its end, and the next one waits for that.
#[tokio::test]
async fn a_deadline_in_flight_is_an_unknown_outcome() {
    let (_daemon, subject, mut manager) = attached().await;
    let mut call = control(Command::Signal(Signal::Sigusr1));
    call.deadline = Moment::now().monotonic + Duration::from_secs(1);
    let unknown = subject.handle.call(call).await.unwrap_err();
    assert!(
        matches!(
            unknown,
            CallError::OutcomeUnknown {
                why: OutcomeUnknown::Deadline { .. },
                ..
            }
        ),
        "{unknown:?}"
    );
    manager.expect("signal SIGUSR1").await;
    let handle = subject.handle.clone();
    let next = tokio::spawn(async move { handle.call(control(kill(1))).await });
    manager.expect_silence().await;
    manager.write("SUCCESS: signal SIGUSR1 thrown\r\n").await;
    manager.expect("client-kill 1").await;
    manager.write("ERROR: client-kill command failed\r\n").await;
    assert!(matches!(
        within(next).await.unwrap(),
        Err(CallError::Rejected { .. })
    ));
}

/// What cannot be put on the wire never reaches it, and says so.
#[tokio::test]
async fn an_argument_that_cannot_be_sent_is_refused() {
    let (_daemon, subject, mut manager) = attached().await;
    let refused = subject
        .handle
        .call(control(Command::Kill("a\nb".into())))
        .await;
    assert!(
        matches!(refused, Err(CallError::NotSent(NotSent::Encode(_)))),
        "{refused:?}"
    );
    manager.expect_silence().await;
}

/// A held daemon is released each time it holds; with `keep` that is left to a caller.
#[tokio::test]
async fn a_hold_is_released_unless_it_is_to_be_kept() {
    let hold = ">HOLD:Waiting for hold release:0\r\n";
    let (_daemon, mut subject, mut manager) = attached().await;
    for _ in 0..2 {
        manager.write(hold).await;
        manager.expect("hold release").await;
        manager.write("SUCCESS: hold release succeeded\r\n").await;
        subject
            .wait_for("release", |observation| {
                matches!(observation, Observation::Released).then_some(())
            })
            .await;
    }

    let daemon = Daemon::listen();
    let mut config = daemon.config();
    config.hold = HoldPolicy::Keep;
    let mut subject = Subject::start(config);
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    manager.write(hold).await;
    manager.expect_silence().await;
}

/// A daemon may have something to tell in every byte: if all that was read at once were one turn, the calls and the
/// other sessions of the thread would wait for tens of thousands of notifications.
#[tokio::test]
async fn others_have_their_turn_between_many_lines() {
    const LINES: usize = 9_000;
    let daemon = Daemon::listen();
    let told = Arc::new(AtomicUsize::new(0));
    let (counted, others) = (Arc::clone(&told), Arc::clone(&told));
    let mut subject = Subject::start_with(daemon.config(), move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Hint::None
    });
    let mut manager = daemon.attach().await;
    subject.wait_until(Condition::Attached).await;
    let other = tokio::spawn(async move {
        let mut most = 0;
        let mut seen = others.load(Ordering::Relaxed);
        let last = seen + LINES;
        while seen < last {
            tokio::task::yield_now().await;
            let now = others.load(Ordering::Relaxed);
            most = most.max(now - seen);
            seen = now;
        }
        most
    });
    manager.write(&"\n".repeat(LINES)).await;
    let most = within(other).await.unwrap();
    assert!(most <= 512, "{most} of {LINES} in a row");
}
