use std::fs;

use super::*;

fn open(directory: &Path) -> State {
    State::open(Some(directory)).expect("it opens")
}

async fn put(state: &State, key: &'static str) -> Result<usize, WriteError> {
    state
        .write(move |transaction| transaction.execute("INSERT INTO meta VALUES (?1, 7)", [key]))
        .await
}

async fn keys(state: &State) -> Vec<String> {
    let read = state.read(|connection| {
        let mut statement = connection.prepare("SELECT key FROM meta ORDER BY key")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect()
    });
    read.await.expect("it is read")
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = open(directory.path());
    put(&state, "a").await.expect("it is written");
    assert_eq!(keys(&state).await, ["a"]);
    state.close(Duration::from_secs(5)).await;
    assert_eq!(put(&state, "b").await, Err(WriteError::Closed));
    assert_eq!(keys(&open(directory.path())).await, ["a"]);
}

/// Without a directory everything works the same, for as long as the process lives.
#[tokio::test]
async fn a_directory_is_not_needed() {
    let state = State::open(None).expect("it opens");
    assert!(!state.is_durable());
    put(&state, "a").await.expect("it is written");
    assert_eq!(keys(&state).await, ["a"]);
}

/// A downgrade must not misread what it does not know, nor write into it.
#[test]
fn a_newer_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(open::FILE_NAME);
    drop(open(directory.path()));
    let connection = Connection::open(&path).expect("it opens");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("it is set");
    drop(connection);
    let error = State::open(Some(directory.path())).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("written by a newer ovfleet"),
        "{error}"
    );
    let connection = Connection::open(&path).expect("it opens");
    assert_eq!(schema::version(&connection), Ok(99));
}

/// Fails if a damaged file is lost, silently emptied, or keeps the gateway from starting.
#[tokio::test]
async fn a_damaged_file_is_set_aside_whole() {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[..100].fill(0),
        |bytes| bytes.truncate(0),
        |bytes| bytes.truncate(bytes.len() / 2 + 100),
        |bytes| bytes[4096..].fill(0x55),
    ];
    for damage in damages {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(open::FILE_NAME);
        let state = open(directory.path());
        put(&state, "a").await.expect("it is written");
        state.close(Duration::from_secs(5)).await;
        let mut bytes = fs::read(&path).expect("it is there");
        damage(&mut bytes);
        fs::write(&path, &bytes).expect("it is written");
        let state = open(directory.path());
        let aside = state.set_aside().expect("it was set aside").to_owned();
        assert_eq!(fs::read(&aside).expect("it is there"), bytes);
        assert!(keys(&state).await.is_empty());
        put(&state, "b").await.expect("the new one is written");
    }
}

/// A caller that was told "refused" must not find the change made later.
#[tokio::test]
async fn what_was_given_up_is_not_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = open(directory.path());
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let blocking = state.clone();
    let blocked = tokio::spawn(async move {
        blocking
            .write_patiently(move |_| {
                let _ = begun.send(());
                let _ = wait.recv();
                Ok(())
            })
            .await
    });
    has_begun.await.expect("it began");
    let started = std::time::Instant::now();
    let refused = put(&state, "late").await;
    assert!(
        matches!(refused, Err(WriteError::Slow { .. })),
        "{refused:?}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    // Known to hang, it refuses at once.
    let started = std::time::Instant::now();
    assert!(state.check().is_err());
    assert!(put(&state, "later").await.is_err());
    assert!(started.elapsed() < WRITE_WAIT_MAX);
    go_on.send(()).expect("it waits");
    blocked.await.expect("it ends").expect("it is done");
    put(&state, "after").await.expect("it is written");
    assert_eq!(keys(&state).await, ["after"]);
}

/// An instance that came back paused no more, or not at all, would be dialled, or missed.
#[tokio::test]
async fn what_was_said_of_instances_is_kept_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = Registry::new(open(directory.path()));
    let nothing = Registered::default;
    let defined = Registered {
        definition: Some(vec![0, 255]),
        pause: None,
    };
    let paused = Registered {
        pause: Some("for a while".to_owned()),
        ..defined.clone()
    };
    let put = |name, now: &Registered, before: &Registered| {
        registry.put(name, now.clone(), before.clone(), None)
    };
    assert_eq!(put("b", &defined, &nothing()).await, Ok(()));
    assert_eq!(put("a", &defined, &nothing()).await, Ok(()));
    assert_eq!(put("a", &paused, &defined).await, Ok(()));
    assert_eq!(put("b", &nothing(), &defined).await, Ok(()));
    assert_eq!(registry.list().await, Ok(vec![("a".to_owned(), paused)]));
}

/// As if the clock of the machine had been a month behind when everything was written, and was then put right.
pub(super) async fn put_the_clock_right(state: &State) {
    let written = state.write(|transaction| {
        transaction.execute_batch(
            "UPDATE actions SET started = started - 2592000000000;
             UPDATE calls SET started = started - 2592000000000;
             UPDATE events SET observed = observed - 2592000000000;
             UPDATE gaps SET observed = observed - 2592000000000;",
        )
    });
    written.await.expect("it is written");
}

/// As if a gateway ran for `hours` without a word. What is open already does not notice.
pub(super) async fn let_pass(state: &State, hours: i64) {
    let written = state.write(move |transaction| {
        transaction.execute("UPDATE clock SET age = age + ?1 * 3600000000", [hours])
    });
    written.await.expect("it is written");
}

/// Fails if a crash makes the state younger than by what is not noted yet, or a restart makes it older.
#[tokio::test]
async fn the_state_grows_older_while_somebody_runs_on_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let began = std::time::Instant::now();
    let is_young =
        |age: i64| (0..=began.elapsed().as_micros()).contains(&age.cast_unsigned().into());
    let first = open(directory.path());
    let age = first.age();
    assert!(is_young(age), "{age}");
    let_pass(&first, 3).await;
    first.close(Duration::from_secs(5)).await;
    let second = open(directory.path());
    let grown = second.age() - 3 * 3_600_000_000;
    assert!(is_young(grown), "{grown}");
    let later = second.age() + 11_000_000;
    let noting = second.write(move |transaction| age::note(transaction, later));
    noting.await.expect("it is written");
    drop(second);
    assert!(open(directory.path()).age() >= later);
}

/// Fails if a write that had nothing to write passes for one that the disk took.
#[test]
fn what_writes_nothing_says_nothing_of_the_disk() {
    let health = Health::new(None);
    let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(13), None);
    assert!(health.end(health.begin(), Err(&full)).is_some());
    assert_eq!(health.end(health.begin(), Ok(false)), None);
    assert!(health.check().is_err());
    assert_eq!(health.end(health.begin(), Ok(true)), None);
    assert!(health.check().is_ok());
}

/// Keeps the one thread that writes busy until it is told to go on; then what it wrote comes to be.
async fn hang(state: &State, sql: &'static str) -> std::sync::mpsc::Sender<()> {
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let hanging = state.write_patiently(move |transaction| {
        transaction.execute_batch(sql)?;
        let _ = begun.send(());
        let _ = wait.recv();
        Ok(())
    });
    tokio::spawn(hanging);
    has_begun.await.expect("it began");
    go_on
}

/// Fails if a restart brings back a change that was refused, or loses one that was made after it.
#[tokio::test]
async fn what_was_refused_for_a_slow_disk_is_undone() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = open(directory.path());
    let registry = Registry::new(state.clone());
    let registered = |pause: &str| Registered {
        definition: None,
        pause: Some(pause.to_owned()),
    };
    let put = |now: &Registered, before: &Registered| {
        registry.put("a", now.clone(), before.clone(), None)
    };
    let (before, refused, made) = (
        registered("before"),
        registered("refused"),
        registered("made"),
    );
    assert_eq!(put(&before, &Registered::default()).await, Ok(()));
    // As where the disk hangs at the very end: what was refused comes to be.
    let go_on = hang(&state, "UPDATE registry SET pause = 'refused'").await;
    let slow = put(&refused, &before).await;
    assert!(matches!(slow, Err(WriteError::Slow { .. })), "{slow:?}");
    let none = put(&made, &before).await;
    assert!(none.is_err(), "it still hangs: {none:?}");
    go_on.send(()).expect("it waits");
    // In the queue behind what hangs.
    state
        .write_patiently(|_| Ok(()))
        .await
        .expect("it is written");
    assert_eq!(
        registry.list().await,
        Ok(vec![("a".to_owned(), before.clone())])
    );
    assert_eq!(put(&made, &before).await, Ok(()));
    state.close(Duration::from_secs(5)).await;
    let registry = Registry::new(open(directory.path()));
    assert_eq!(registry.list().await, Ok(vec![("a".to_owned(), made)]));
}
