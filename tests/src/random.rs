//! Random runs that can be run again.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Numbers of the seed in `OVFLEET_SEED`, or of one that nobody chose. Prints it under
    /// `what`: a failing test shows it, and with it the run can be repeated.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "for tests")]
    pub fn seeded(what: &str) -> Self {
        let seed = match std::env::var("OVFLEET_SEED") {
            Ok(seed) => seed
                .parse()
                .unwrap_or_else(|_| panic!("OVFLEET_SEED={seed:?} is not a number below 2^64")),
            Err(_) => RandomState::new().hash_one(0),
        };
        eprintln!("{what}: OVFLEET_SEED={seed}");
        Self::new(seed)
    }

    /// Numbers of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Any number (splitmix64).
    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// An index into something of that length, which is not 0.
    #[expect(clippy::cast_possible_truncation, reason = "it is below a usize")]
    pub const fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True once in `times`.
    pub const fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`, of which there is one at least.
    pub const fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.index(end + 1));
        }
    }
}

/// Whether tests take their whole form (`make soak`) and not the short one of the gate.
#[must_use]
pub fn soak() -> bool {
    std::env::var_os("OVFLEET_SOAK").is_some_and(|value| value != "0")
}

/// How long something may take for which `promised` is promised: that in soak, and three times that in the gate, where
/// other tests have the processors too, and those may be slow.
#[must_use]
pub fn allowed(promised: Duration) -> Duration {
    if soak() { promised } else { promised * 3 }
}
