//! What the fuzzer starts from, and what it found: every input of the committed corpus through the fuzz targets' bodies.

use std::fs;
use std::path::Path;
use std::time::Instant;

use openvpn_management::fuzzing;

/// Gives every input of a target to its body.
fn replay(target: &str, body: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus is in the repository") {
        let path = entry.expect("the corpus can be listed").path();
        // A fuzzer that runs meanwhile adds and removes others.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("seed-") && !name.starts_with("found-") {
            continue;
        }
        // Named in the test's output, should the body panic.
        eprintln!("{}", path.display());
        body(&fs::read(&path).expect("an input can be read"));
        inputs += 1;
    }
    assert!(inputs >= 20, "{inputs} inputs in {}", corpus.display());
}

/// A bug that the fuzzer found once must not come back.
#[test]
#[expect(clippy::disallowed_methods, reason = "any point in time will do")]
fn parser_corpus_holds() {
    replay("parser", |input| fuzzing::parser(input, Instant::now()));
}

/// The same for the encoder.
#[test]
fn encoder_corpus_holds() {
    replay("encoder", fuzzing::encoder);
}
