//! What real daemons said, and the events it amounts to.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::apply::told::Told;

/// Set, the expected events are written anew instead of compared; they are to be read before they are committed.
const WRITE_ANEW: &str = "OVFLEET_WRITE_EXPECTED";

/// Each transcript gives the events beside it, whatever the version of the daemon.
#[test]
fn transcripts_give_their_events() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apply/transcripts");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("there are transcripts")
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 8);
    for path in files {
        let events = fold(&fs::read_to_string(&path).expect("a transcript is UTF-8"));
        let expected = path.with_extension("events");
        if std::env::var_os(WRITE_ANEW).is_some() {
            fs::write(&expected, &events).expect("it can be written");
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert!(events == expected, "{}: got\n{events}", path.display());
    }
}

/// Folds a transcript as a session would have: notifications as they come, each `status` when its `END` comes.
fn fold(transcript: &str) -> String {
    let mut told = Told::attached();
    let mut status: Option<String> = None;
    for line in transcript.lines() {
        let Some(line) = line.strip_prefix("S: ") else {
            continue;
        };
        if let Some(time) = time_of(line) {
            let now = told.now();
            if let Ok(later) = time.duration_since(now) {
                told.advance(later);
            }
        }
        if line.starts_with('>') {
            told.says(line);
        } else if line.starts_with("TITLE,") || line.starts_with("TITLE\t") {
            status = Some(format!("{line}\n"));
        } else if let Some(text) = &mut status {
            text.push_str(line);
            text.push('\n');
            if line == "END" {
                told.shows(&status.take().unwrap_or_default());
            }
        }
    }
    let mut events = told.events();
    // The lines themselves are in the transcript.
    events.retain(|event| !event.starts_with("instance.log "));
    events.join("\n") + "\n"
}

/// The time a line carries, by the daemon's clock.
fn time_of(line: &str) -> Option<SystemTime> {
    let time = line
        .strip_prefix(">LOG:")
        .or_else(|| line.strip_prefix(">STATE:"))
        .and_then(|rest| rest.split(',').next())
        .or_else(|| {
            line.strip_prefix("TIME")
                .and_then(|rest| rest.rsplit([',', '\t']).next())
        })
        .or_else(|| line.strip_prefix(">CLIENT:ENV,time_unix="))?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(time.parse().ok()?))
}
