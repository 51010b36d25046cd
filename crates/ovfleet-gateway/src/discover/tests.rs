//! What the sources find, keep and forget.

use std::{fs, os::unix::net::UnixListener, path::PathBuf};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{
    config::Config,
    unprivileged::{set_mode, unprivileged},
};

/// What a new socket may take to be found.
const FOUND_WITHIN: Duration = Duration::from_secs(1);

/// The discovery of a configuration, whose `@` stands for the directory.
fn discovery(directory: &TempDir, text: &str) -> Discovery {
    let path = directory.path().join("main.toml");
    fs::write(
        &path,
        text.replace('@', &directory.path().display().to_string()),
    )
    .unwrap();
    let config = Config::load(&path).unwrap();
    Discovery::new(Sources::new(config.discover, &Sources::default()))
}

fn names(specs: &[InstanceConfig]) -> Vec<&str> {
    specs.iter().map(|found| found.spec.name.as_str()).collect()
}

fn bind(directory: &TempDir, name: &str) -> UnixListener {
    UnixListener::bind(directory.path().join(name)).unwrap()
}

/// Scans until `wanted` are the names; fails when that takes too long.
async fn wait_for(discovery: &mut Discovery, wanted: &[&str]) -> Scan {
    let waiting = async {
        loop {
            discovery.changed().await;
            let scan = discovery.scan();
            if names(&scan.found) == wanted {
                return scan;
            }
        }
    };
    timeout(FOUND_WITHIN, waiting).await.expect("found in time")
}

/// A daemon that starts is in the fleet within a second, though the next
/// regular look is 30 s away.
#[tokio::test]
async fn a_new_socket_is_found_within_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let mut discovery = discovery(
        &directory,
        "[[discover]]\nglob = \"@/*.sock\"\nlabels = { a = \"{stem}\" }",
    );
    let _first = bind(&directory, "eu1.sock");
    fs::write(directory.path().join("file.sock"), "not a socket").unwrap();
    assert_eq!(names(&discovery.scan().found), ["eu1"]);
    assert_eq!(
        discovery.interval(),
        Duration::from_secs(30),
        "the directory is watched"
    );
    let _second = bind(&directory, "eu2.sock");
    let specs = wait_for(&mut discovery, &["eu1", "eu2"]).await.found;
    assert_eq!(specs[1].spec.labels.get("a"), Some("eu2"));
}

/// The directory of a daemon that never ran yet does not exist: it must be found all the same.
#[tokio::test]
async fn a_socket_in_a_directory_that_appears_later_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let mut discovery = discovery(
        &directory,
        "[[discover]]\nglob = \"@/run/*.sock\"\n[[discover]]\nglob = \"@/*/deep/*.sock\"",
    );
    assert_eq!(names(&discovery.scan().found), [""; 0]);
    fs::create_dir_all(directory.path().join("run/deep")).unwrap();
    let _socket = bind(&directory, "run/eu1.sock");
    wait_for(&mut discovery, &["eu1"]).await;
    let _socket = bind(&directory, "run/deep/eu2.sock");
    wait_for(&mut discovery, &["eu1", "eu2"]).await;
}

/// OpenVPN removes its socket for every restart: the instance stays for a day, then it goes.
#[test]
fn a_vanished_socket_is_kept_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let hour = Duration::from_hours(1);
    let mut sockets = Sockets::new(directory.path().join("*.sock"), hour);
    drop(bind(&directory, "eu1.sock"));
    let (start, mut complaints) = (Instant::now(), BTreeSet::new());
    assert_eq!(sockets.scan(start, &mut complaints).len(), 1);
    fs::remove_file(directory.path().join("eu1.sock")).unwrap();
    assert_eq!(sockets.scan(start + hour / 2, &mut complaints).len(), 1);
    assert_eq!(sockets.scan(start + hour, &mut complaints).len(), 0);
}

/// A list is followed as it changes; while it is broken, its last good content holds.
#[tokio::test]
async fn a_list_is_followed_and_survives_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("vpn.json");
    let write = |text: &str| {
        // As a careful writer does: a reader never sees half of it.
        let new = directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &list).unwrap();
    };
    write(
        r#"[{"targets": ["10.0.0.1:7505", "tcp:vpn.example:7505"], "labels": {"site": "ams", "__rack": "7"}},
              {"targets": ["unix:/run/a.sock", "[::1]:7505"]}]"#,
    );
    let text = "[[discover]]\nfile = \"@/*.json\"\nname = \"{host}\"\nlabels = { rack = \"{label.__rack}\" }";
    let mut first = discovery(&directory, text);
    let Scan {
        found: specs,
        complaints,
    } = first.scan();
    // Two targets have no rack, so that their label has no value.
    assert_eq!(names(&specs), ["10.0.0.1", "vpn.example"]);
    assert_eq!(
        specs[0].spec.labels.iter().collect::<Vec<_>>(),
        [("rack", "7"), ("site", "ams")]
    );
    assert!(
        complaints
            .iter()
            .all(|text| text.contains("`{label.__rack}` has no value here")),
        "{complaints:?}"
    );

    let text = "[[discover]]\nfile = \"@/*.json\"\nname = \"{host}\"";
    let mut second = discovery(&directory, text);
    write(r#"[{"targets": ["10.0.0.1:7505", "10.0.0.2:7505"]}]"#);
    assert_eq!(names(&second.scan().found), ["10.0.0.1", "10.0.0.2"]);
    write(r#"[{"targets": ["10.0.0.3:7505"#);
    let scan = second.scan();
    let last_good = ["10.0.0.1", "10.0.0.2"];
    assert_eq!(names(&scan.found), last_good);
    let complaint = scan.complaints.first().unwrap();
    assert!(
        complaint.contains("vpn.json: EOF while parsing"),
        "{complaint}"
    );
    // Also for sources of a configuration that was read again: they look at the same.
    let again = fs::read_to_string(directory.path().join("main.toml")).unwrap();
    fs::write(
        directory.path().join("main.toml"),
        again + "\nlabels = { a = \"b\" }",
    )
    .unwrap();
    let config = Config::load(&directory.path().join("main.toml")).unwrap();
    let mut sources = Sources::new(config.discover, second.sources());
    let scan = sources.scan();
    assert_eq!(names(&scan.found), last_good);
    assert_eq!(scan.found[0].spec.labels.get("a"), Some("b"));
    second.set_sources(sources);

    write(r#"[{"targets": ["10.0.0.3:7505"]}]"#);
    let scan = wait_for(&mut second, &["10.0.0.3"]).await;
    assert!(scan.complaints.is_empty(), "{:?}", scan.complaints);
}

/// A source of lists, each with one target, in a directory of a directory.
struct Lists {
    _directory: TempDir,
    outer: PathBuf,
    targets: Targets,
}

impl Lists {
    fn new(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        let outer = directory.path().join("outer");
        let lists = outer.join("lists");
        fs::create_dir_all(&lists).unwrap();
        for name in names {
            let text = format!(r#"[{{"targets": ["{name}.example:7505"]}}]"#);
            fs::write(lists.join(name), text).unwrap();
        }
        Self {
            _directory: directory,
            targets: Targets::new(lists.join("*")),
            outer,
        }
    }

    fn lists(&self) -> PathBuf {
        self.outer.join("lists")
    }

    /// The hosts of the targets, and the complaints.
    fn scan(&mut self) -> (Vec<String>, String) {
        let mut complaints = BTreeSet::new();
        let found = unprivileged(|| self.targets.scan(&mut complaints));
        let hosts = found.iter().map(|found| found.address.to_string());
        let complaints: Vec<String> = complaints.into_iter().collect();
        (hosts.collect(), complaints.join("\n"))
    }
}

/// A directory that cannot be read for a moment must not take all of its instances out of the fleet.
#[test]
fn lists_that_cannot_be_looked_at_stay_in_force() {
    let mut lists = Lists::new(&["a", "b"]);
    let directory = lists.lists();
    let (all, complaints) = lists.scan();
    assert_eq!(all, ["tcp:a.example:7505", "tcp:b.example:7505"]);
    assert_eq!(complaints, "");
    for (closed, mode) in [
        (&directory, 0o333),
        (&directory, 0o000),
        (&lists.outer.clone(), 0o000),
    ] {
        set_mode(closed, mode);
        let (found, complaints) = lists.scan();
        set_mode(closed, 0o755);
        assert_eq!(found, all, "{mode:o}");
        let complaint = format!(
            "{0}/*: cannot read {0}: Permission denied (os error 13): make it readable for the user that the gateway \
             runs as; the last good content of its files stays in force",
            directory.display()
        );
        assert!(complaints.contains(&complaint), "{mode:o}: {complaints}");
    }
    // One that was removed is seen to be gone also where nobody can say which there are.
    set_mode(&directory, 0o333);
    fs::remove_file(directory.join("b")).unwrap();
    let (found, _) = lists.scan();
    set_mode(&directory, 0o755);
    assert_eq!(found, ["tcp:a.example:7505"]);
    // No directory is no lists, and no mistake.
    fs::remove_dir_all(&lists.outer).unwrap();
    assert_eq!(lists.scan(), (Vec::new(), String::new()));
}

/// The mode of a file is no part of its content: once it may be read it has to be, though nothing was written.
#[test]
fn a_list_that_becomes_readable_is_read() {
    let mut lists = Lists::new(&["a"]);
    let list = lists.lists().join("a");
    set_mode(&list, 0o000);
    for _ in 0..2 {
        let (found, complaints) = lists.scan();
        assert_eq!(found, [""; 0]);
        let complaint = format!(
            "{}: Permission denied (os error 13): make it readable for the user that the gateway runs as; \
             its last good content stays in force",
            list.display()
        );
        assert_eq!(complaints, complaint);
    }
    set_mode(&list, 0o644);
    let (found, complaints) = lists.scan();
    assert_eq!(found, ["tcp:a.example:7505"]);
    assert_eq!(complaints, "");
}

/// Sockets that cannot be seen vanish like others, but somebody has to hear why.
#[test]
fn a_directory_of_sockets_that_cannot_be_read_is_told() {
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    let mut sockets = Sockets::new(directory.path().join("*.sock"), Duration::from_hours(1));
    let _daemon = bind(&directory, "eu1.sock");
    let mut scan = || {
        let mut complaints = BTreeSet::new();
        let found = unprivileged(|| sockets.scan(Instant::now(), &mut complaints));
        (found.len(), complaints)
    };
    assert_eq!(scan(), (1, BTreeSet::new()));
    set_mode(directory.path(), 0o000);
    let (found, complaints) = scan();
    set_mode(directory.path(), 0o755);
    assert_eq!(found, 1, "it is kept for a while");
    let complaint = complaints.first().unwrap();
    assert!(complaint.contains("cannot read"), "{complaint}");
}
