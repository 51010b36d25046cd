//! Memory and disk together against a model: one writer, readers that dawdle, are cut off and come back, a disk that is
//! late, throws away what is too much or too old, and a gateway that ends in order or dies.
//!
//! The model is a list of everything that ever happened, over all runs. What of it can still be had is looked up where
//! it is kept; what each reader is told goes through the judge of the scenarios, and besides each gap must stand for
//! something that this reader wants and that is gone.

mod caller;
mod truth;

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use openvpn_fleet::RunId;
use ovfleet_tests::random::{Random, soak};

use self::{
    caller::Caller,
    truth::{Truth, Wish},
};
use super::*;

const READERS: usize = 8;

fn random_start(truth: &Truth, random: &mut Random) -> Start {
    match random.below(8) {
        0 => Start::Now,
        1 | 2 => Start::Oldest,
        3 => Start::Position(Position {
            run: RunId(7),
            sequence: u64::MAX,
        }),
        4 if !truth.facts.is_empty() => {
            let back = 1 + random.index(truth.facts.len().min(2_000));
            let fact = &truth.facts[truth.facts.len() - back];
            Start::Time(fact.what.observed + Duration::from_micros(random.below(2)))
        }
        _ => {
            let index = random.index(truth.sequences.len() + 1);
            let sequence = index.checked_sub(1).map_or(0, |at| truth.sequences[at]);
            let run = truth.journal.run();
            Start::Position(Position { run, sequence })
        }
    }
}

/// Whatever is appended, written late, thrown away, read, cut off, resumed and restarted, in whatever order: every reader
/// is told all it asked for, once, in order, or of the hole first; and of no hole in what it did not ask for.
#[tokio::test(start_paused = true)]
async fn memory_and_disk_keep_their_promises_through_restarts() {
    let (lives, steps) = if soak() { (100, 10_000) } else { (1, 4_000) };
    let mut random = Random::seeded("memory and disk");
    let started = std::time::Instant::now();
    let mut count = Count::default();
    for life in 0..lives {
        // Each with a disk and a seed of its own: what one fails on is repeated without those before.
        let next = random.next();
        live(steps, &mut random, &mut count).await;
        random = Random::new(next);
        let done = (life + 1) * steps;
        eprintln!(
            "{done} steps in {:.1?}, then OVFLEET_SEED={next}",
            started.elapsed()
        );
    }
    eprintln!(
        "{} steps in {:.1?}: {count}",
        lives * steps,
        started.elapsed()
    );
}

/// Fails if a seed does not tell the whole run: a failure of a night could not be looked at by day.
#[tokio::test(start_paused = true)]
async fn a_seed_repeats_memory_and_disk_to_the_last_byte() {
    let mut stories = Vec::new();
    for seed in [1, 1, 2] {
        let mut count = Count::default();
        live(400, &mut Random::new(seed), &mut count).await;
        stories.push(count.to_string());
    }
    assert_eq!(stories[0], stories[1]);
    assert_ne!(stories[0], stories[2]);
}

/// What happened in all.
#[derive(Default)]
struct Count {
    facts: usize,
    gaps: usize,
    ends_in_order: usize,
    crashes: usize,
    /// Of what happened and what readers were told, in order.
    digest: DefaultHasher,
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} facts, {} gaps, {} ends in order, {} crashes; digest {:016x}",
            self.facts,
            self.gaps,
            self.ends_in_order,
            self.crashes,
            self.digest.finish()
        )
    }
}

impl Count {
    fn told(&mut self, piece: &Piece) {
        match piece {
            Piece::Event { sequence, wire } => (sequence, wire).hash(&mut self.digest),
            // Without the number of the run, which is never the same.
            Piece::Gap { gap, resume } => {
                (format!("{gap:?}"), resume.sequence).hash(&mut self.digest);
            }
        }
    }

    fn happened(&mut self, truth: &Truth) {
        self.facts += truth.facts.len();
        for (fact, sequence) in truth.facts.iter().zip(&truth.sequences) {
            (&fact.what, sequence).hash(&mut self.digest);
        }
    }
}

async fn live(steps: usize, random: &mut Random, count: &mut Count) {
    let mut truth = Truth::new().await;
    let mut callers = Vec::new();
    for _ in 0..READERS {
        let wish = Wish::random(random);
        callers.push(Caller::new(wish, &truth, Start::Oldest, random.once_in(5)));
    }
    for _ in 0..steps {
        let chosen = random.index(READERS);
        let caller = &mut callers[chosen];
        match random.below(1_000) {
            0..440 => truth.append(random).await,
            // A few never hurry.
            440..890 if chosen.is_multiple_of(3) && !random.once_in(20) => {}
            // Who waits for the disk waits in vain, in no time.
            440..890 => {
                if !caller.read(&truth, random, count).await {
                    caller.resume(&truth, random);
                }
            }
            890..950 => truth.write().await,
            950..975 => caller.resume(&truth, random),
            975..990 => {
                let (wish, start) = (Wish::random(random), random_start(&truth, random));
                *caller = Caller::new(wish, &truth, start, random.once_in(5));
            }
            _ => {
                let is_orderly = random.once_in(2);
                count.ends_in_order += usize::from(is_orderly);
                count.crashes += usize::from(!is_orderly);
                truth.restart(random, is_orderly).await;
                for caller in &mut callers {
                    caller.resume(&truth, random);
                }
            }
        }
    }
    count.happened(&truth);
}
