use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ovfleet_proto::v1::{self, SetMuteRequest, SetMuteResponse};
use tokio::sync::{Notify, oneshot};

use crate::state::writer::JOBS_MAX;

use super::*;

async fn open(directory: &Path) -> (State, Calls) {
    let state = State::open(Some(directory)).expect("it opens");
    let calls = Calls::open(&state, b"key").await.expect("it opens");
    (state, calls)
}

fn request(lines: u32) -> SetMuteRequest {
    SetMuteRequest {
        instance: "eu1".to_owned(),
        lines,
        request_id: "x".to_owned(),
    }
}

fn done(text: &str) -> Result<SetMuteResponse, Status> {
    let text = text.to_owned();
    Ok(SetMuteResponse {
        text,
        ..Default::default()
    })
}

async fn once(
    calls: &Calls,
    lines: u32,
    work: impl Future<Output = Result<SetMuteResponse, Status>>,
) -> Result<String, Code> {
    let caller = CallerName::new("alice");
    let answer = calls
        .once(&caller, "SetMute", "x", &request(lines), work)
        .await;
    answer.map(|done| done.text).map_err(|status| status.code())
}

/// Fails if a repetition is carried out, now or after a restart, or another request passes for one.
#[tokio::test]
async fn the_first_answer_is_the_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let count = AtomicU32::new(0);
    let work = || async {
        count.fetch_add(1, Ordering::Relaxed);
        done("muted")
    };
    let (state, calls) = open(directory.path()).await;
    for _ in 0..2 {
        assert_eq!(once(&calls, 1, work()).await, Ok("muted".to_owned()));
    }
    assert_eq!(once(&calls, 2, work()).await, Err(Code::AlreadyExists));
    state.close(Duration::from_secs(5)).await;
    let (_state, calls) = open(directory.path()).await;
    assert_eq!(once(&calls, 1, work()).await, Ok("muted".to_owned()));
    assert_eq!(once(&calls, 2, work()).await, Err(Code::AlreadyExists));
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// Fails if an id stays taken though nothing was sent, or is free though something may have been.
#[tokio::test]
async fn an_id_is_free_only_if_nothing_was_sent() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let not_sent = async { Err(status::call_limit(1)) };
    assert_eq!(
        once(&calls, 1, not_sent).await,
        Err(Code::ResourceExhausted)
    );
    assert_eq!(
        once(&calls, 2, async { done("other") }).await,
        Ok("other".to_owned())
    );

    let (caller, other) = (CallerName::new("bob"), request(1));
    let begun = Notify::new();
    let cut = calls.once(&caller, "SetMute", "y", &other, async {
        begun.notify_one();
        std::future::pending::<Result<SetMuteResponse, Status>>().await
    });
    tokio::select! {
        answer = cut => panic!("{answer:?}"),
        () = begun.notified() => {}
    }
    let again = calls.once(&caller, "SetMute", "y", &other, async { done("again") });
    let again = again.await.map_err(|status| status.code());
    assert_eq!(again, Err(Code::DeadlineExceeded), "it may have been sent");
    // As after a kill -9 too: what was under way is unknown.
    state.close(Duration::from_secs(5)).await;
    let (_state, calls) = open(directory.path()).await;
    let again = calls
        .once(&caller, "SetMute", "y", &other, async { done("again") })
        .await;
    assert_eq!(
        again.map_err(|status| status.code()),
        Err(Code::DeadlineExceeded)
    );
}

/// Two at the same time are one.
#[tokio::test]
async fn a_repetition_joins_what_is_under_way() {
    let (state, calls) = (State::open(None).expect("it opens"), b"key");
    let calls = Calls::open(&state, calls).await.expect("it opens");
    let (go_on, wait) = oneshot::channel();
    let (begun, has_begun) = oneshot::channel();
    let first = once(&calls, 1, async {
        let _ = begun.send(());
        let _ = wait.await;
        done("first")
    });
    let second = async {
        let _ = has_begun.await;
        let joined = once(&calls, 1, async { done("second") });
        let other = once(&calls, 2, async { done("other") }).await;
        assert_eq!(other, Err(Code::AlreadyExists));
        let _ = go_on.send(());
        joined.await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(
        (first, second),
        (Ok("first".to_owned()), Ok("first".to_owned()))
    );
}

/// Fails if an id is free again because somebody set the clock, or is not after its day.
#[tokio::test]
async fn an_id_is_taken_for_a_day_that_passes() {
    use crate::state::tests::{let_pass, put_the_clock_right};

    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let other = |calls: Calls, id: &'static str| async move {
        let caller = CallerName::new("bob");
        let work = async { done("other") };
        let answer = calls.once(&caller, "SetMute", id, &request(1), work).await;
        answer.expect("it is done");
    };
    assert_eq!(
        once(&calls, 1, async { done("first") }).await.as_deref(),
        Ok("first")
    );
    put_the_clock_right(&state).await;
    other(calls.clone(), "a").await;
    assert_eq!(
        once(&calls, 1, async { done("second") }).await.as_deref(),
        Ok("first")
    );

    let_pass(&state, 23).await;
    state.close(Duration::from_secs(5)).await;
    let (state, calls) = open(directory.path()).await;
    other(calls.clone(), "b").await;
    assert_eq!(
        once(&calls, 1, async { done("second") }).await.as_deref(),
        Ok("first")
    );
    let_pass(&state, 2).await;
    state.close(Duration::from_secs(5)).await;
    let (_state, calls) = open(directory.path()).await;
    other(calls.clone(), "c").await;
    assert_eq!(
        once(&calls, 1, async { done("second") }).await.as_deref(),
        Ok("second")
    );
}

/// A call that changes the state: `change` is whether its write comes to be.
async fn once_in_state(
    calls: &Calls,
    state: &State,
    change: bool,
) -> Result<v1::DeleteInstanceResponse, Status> {
    let caller = CallerName::new("alice");
    let request = v1::DeleteInstanceRequest {
        name: "eu1".to_owned(),
        request_id: "x".to_owned(),
        ..Default::default()
    };
    let done = Notify::new();
    let work = async |key: CallKey| {
        if change {
            let noting = state.write(move |transaction| note_done(transaction, &key));
            noting.await.expect("it is written");
        }
        done.notify_one();
        // The process ends here.
        std::future::pending().await
    };
    tokio::select! {
        answer = calls.once_in_state(&caller, "DeleteInstance", "x", &request, work) => answer,
        () = done.notified() => Err(status::shutting_down()),
    }
}

/// Fails if a change that is on disk is made again, or one that is not passes for made.
#[tokio::test]
async fn what_changes_the_state_is_done_or_free() {
    let directory = tempfile::tempdir().expect("a directory");
    for (change, expected) in [
        (false, Err(Code::Unavailable)),
        (true, Err(Code::Unavailable)),
        (true, Ok(())),
    ] {
        let (state, calls) = open(directory.path()).await;
        let answer = once_in_state(&calls, &state, change).await;
        let answer = answer.map(drop).map_err(|status| status.code());
        assert_eq!(answer, expected);
        state.close(Duration::from_secs(5)).await;
    }
}

/// Holds the disk until the sender is told to go on or dropped, and fills the queue: nothing more is written till then.
async fn hang(state: &State) -> std::sync::mpsc::Sender<()> {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = oneshot::channel();
    tokio::spawn(state.write_patiently(move |_| {
        let _ = begun.send(());
        let _ = wait.recv();
        Ok(())
    }));
    has_begun.await.expect("it hangs");
    for _ in 0..JOBS_MAX {
        tokio::spawn(state.write_patiently(|_| Ok(())));
    }
    go_on
}

/// Waits until the disk knows all that is over.
async fn settled(calls: &Calls) {
    while !calls.lock_left().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Fails if what was sent is sent again because the disk hung when its caller went away.
#[tokio::test]
async fn a_hanging_disk_forgets_nothing_that_was_sent() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let begun = Notify::new();
    let mut cut = Box::pin(once(&calls, 1, async {
        begun.notify_one();
        std::future::pending().await
    }));
    tokio::select! {
        answer = &mut cut => panic!("{answer:?}"),
        () = begun.notified() => {}
    }
    let go_on = hang(&state).await;
    drop(cut);
    for _ in 0..2 {
        let again = once(&calls, 1, async { done("again") }).await;
        assert_eq!(again, Err(Code::DeadlineExceeded), "it may have been sent");
    }
    drop(go_on);
    settled(&calls).await;
    let again = once(&calls, 1, async { done("again") }).await;
    assert_eq!(again, Err(Code::DeadlineExceeded), "it may have been sent");
}

/// Fails if an id of which nothing was sent stays taken because the disk did not take that.
#[tokio::test]
async fn a_hanging_disk_forgets_what_was_not_sent_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let mut hanging = None;
    let refused = once(&calls, 1, async {
        hanging = Some(hang(&state).await);
        Err(status::call_limit(1))
    });
    assert_eq!(refused.await, Err(Code::ResourceExhausted));
    drop(hanging);
    settled(&calls).await;
    state.close(Duration::from_secs(5)).await;
    let (_state, calls) = open(directory.path()).await;
    let again = once(&calls, 2, async { done("again") }).await;
    assert_eq!(again, Ok("again".to_owned()));
}

/// Fails if a caller that goes away while its call is written, before anything is sent, takes the id with it.
#[tokio::test]
async fn who_leaves_before_anything_is_sent_leaves_the_id_free() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let name = Name::new(&CallerName::new("alice"), "SetMute", "x").expect("a name");
    let (of, key) = (name.clone(), CallKey(1));
    calls.0.latest.store(1, Ordering::Relaxed);
    let writing = state.write(move |transaction| {
        let now = (SystemTime::now(), 0);
        begin(
            transaction,
            &of,
            &key,
            Digest::default(),
            Stage::Sending,
            now,
        )
    });
    writing.await.map(drop).expect("it is written");
    drop(Call {
        calls: &calls,
        name,
        key: CallKey(1),
        digest: Digest::default(),
        stage: Stage::Sending,
        step: Step::Unsent,
        sender: watch::Sender::new(None),
    });
    let again = once(&calls, 2, async { done("again") }).await;
    assert_eq!(again, Ok("again".to_owned()));
}

/// Fails if ids are forgotten for others that came to nothing.
#[tokio::test]
async fn what_came_to_nothing_counts_for_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_state, calls) = open(directory.path()).await;
    let first = once(&calls, 1, async { done("first") }).await;
    assert_eq!(first, Ok("first".to_owned()));
    let most = i64::try_from(ACTIONS_MAX).expect("a small number");
    calls.0.latest.fetch_add(most + 1, Ordering::Relaxed);
    let again = once(&calls, 1, async { done("again") }).await;
    assert_eq!(again, Ok("first".to_owned()));
}

/// Fails if an id stays taken because the disk was slow or full when the call was refused.
#[tokio::test]
async fn what_was_refused_for_the_disk_leaves_its_id_free() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, calls) = open(directory.path()).await;
    let (go_on, wait) = std::sync::mpsc::channel();
    // Whoever waits for this one's commit is told that nothing was done; it comes to be all the same.
    let name = Name::new(&CallerName::new("alice"), "SetMute", "x").expect("a name");
    // The number that the next attempt has.
    let key = CallKey(1);
    let hanging = state.write_patiently(move |transaction| {
        let digest = Digest::default();
        let now = (SystemTime::now(), 0);
        begin(transaction, &name, &key, digest, Stage::Sending, now)?;
        let _ = wait.recv();
        Ok(())
    });
    assert_eq!(
        once(&calls, 1, async { done("first") }).await,
        Err(Code::Unavailable)
    );
    go_on.send(()).expect("it waits");
    hanging.await.expect("it is written");
    assert_eq!(
        once(&calls, 2, async { done("again") }).await,
        Ok("again".to_owned())
    );
}
