//! Judges what a reader of events was told against what happened.
//!
//! What happened is a list of facts for each *lane*: a lane is whatever has an order of its
//! own that we know, the whole journal for whoever writes it, one daemon for whoever sees only
//! daemons. A [`Follower`] is told what one reader was told, item by item, and refuses what
//! breaks a promise: a fact lost without a gap before the next event, told twice, out of
//! order, never asked for, or made up; and a gap where nothing is missing.
//!
//! It knows nothing of how a journal forgets, but that each class forgets its oldest first.

use thiserror::Error;

/// Classes of retention: those of events, and one for gaps that have a place of their own.
pub const CLASSES: usize = 4;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<W> {
    /// Class of retention, below [`CLASSES`].
    pub class: usize,
    /// What it was: what a reader is told must be equal.
    pub what: W,
}

/// What a reader must not be told, or should have been.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A fact that the reader wants was skipped, and no gap came first.
    #[error("fact {index} of lane {lane} was lost without a gap before fact {next}")]
    Lost {
        /// Of which lane.
        lane: usize,
        /// Which.
        index: usize,
        /// What was told instead; the end, where nothing was.
        next: usize,
    },
    /// A fact was told a second time, or after a later one.
    #[error("fact {index} of lane {lane} came when {next} was due: twice, or out of order")]
    Repeated {
        /// Of which lane.
        lane: usize,
        /// Which.
        index: usize,
        /// The first that was not behind yet.
        next: usize,
    },
    /// A fact was told that the reader did not ask for.
    #[error("fact {index} of lane {lane} was not asked for")]
    Unwanted {
        /// Of which lane.
        lane: usize,
        /// Which.
        index: usize,
    },
    /// Something was told that never happened, or not like this.
    #[error("fact {index} of lane {lane} is not what happened")]
    Invented {
        /// Of which lane.
        lane: usize,
        /// Which.
        index: usize,
    },
    /// A gap, and nothing is missing.
    #[error("a gap of class {class}, of which nothing is missing")]
    FalseGap {
        /// Of which class.
        class: usize,
    },
}

/// One reader, from its start or its last resumption on.
#[derive(Clone, Debug)]
pub struct Follower {
    lanes: Vec<Progress>,
}

#[derive(Clone, Debug)]
struct Progress {
    /// Everything before is behind the reader.
    next: usize,
    /// By class: a gap accounts for everything before.
    excused: [usize; CLASSES],
}

impl Follower {
    /// A reader that was told everything before `next`, lane by lane.
    #[must_use]
    pub fn new(next: &[usize]) -> Self {
        let progress = |next: &usize| Progress {
            next: *next,
            excused: [0; CLASSES],
        };
        Self {
            lanes: next.iter().map(progress).collect(),
        }
    }

    /// It is told fact `index` of `lane`, and that it was `what`. `wants` says of a fact whether
    /// the reader asked for it.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn event<W: PartialEq>(
        &mut self,
        lane: usize,
        facts: &[Fact<W>],
        wants: impl Fn(usize, &Fact<W>) -> bool,
        index: usize,
        what: &W,
    ) -> Result<(), Violation> {
        let progress = &mut self.lanes[lane];
        let next = progress.next;
        if index < next {
            return Err(Violation::Repeated { lane, index, next });
        }
        let Some(fact) = facts.get(index).filter(|fact| fact.what == *what) else {
            return Err(Violation::Invented { lane, index });
        };
        if !wants(index, fact) {
            return Err(Violation::Unwanted { lane, index });
        }
        progress.skip_to(lane, facts, wants, index)?;
        progress.next = index + 1;
        // Each class forgets its oldest first: what is behind a fact that was kept was kept too.
        let excused = &mut progress.excused[fact.class];
        *excused = (*excused).min(index);
        Ok(())
    }

    /// It is told that facts of `class` are missing. `horizon` is the first of the lane that is
    /// not, where that is known, and `usize::MAX` otherwise.
    pub fn gap(&mut self, lane: usize, class: usize, horizon: usize) {
        let excused = &mut self.lanes[lane].excused[class];
        *excused = (*excused).max(horizon);
    }

    /// As [`gap`](Self::gap), where `horizon` is known and something must be missing before it.
    ///
    /// # Errors
    /// [`Violation::FalseGap`] when nothing that it may want is.
    pub fn true_gap<W>(
        &mut self,
        lane: usize,
        facts: &[Fact<W>],
        may_want: impl Fn(usize, &Fact<W>) -> bool,
        class: usize,
        horizon: usize,
    ) -> Result<(), Violation> {
        let progress = &self.lanes[lane];
        let from = progress.next.max(progress.excused[class]);
        let missing = (from..horizon.min(facts.len()))
            .any(|index| facts[index].class == class && may_want(index, &facts[index]));
        if !missing {
            return Err(Violation::FalseGap { class });
        }
        self.gap(lane, class, horizon);
        Ok(())
    }

    /// It is told that there is nothing more.
    ///
    /// # Errors
    /// [`Violation::Lost`] when there was.
    pub fn caught_up<W>(
        &mut self,
        lane: usize,
        facts: &[Fact<W>],
        wants: impl Fn(usize, &Fact<W>) -> bool,
    ) -> Result<(), Violation> {
        let progress = &mut self.lanes[lane];
        progress.skip_to(lane, facts, wants, facts.len())?;
        progress.next = facts.len();
        Ok(())
    }
}

impl Progress {
    /// Nothing from here to `index` may be wanted and not excused.
    fn skip_to<W>(
        &self,
        lane: usize,
        facts: &[Fact<W>],
        wants: impl Fn(usize, &Fact<W>) -> bool,
        index: usize,
    ) -> Result<(), Violation> {
        let mut skipped = self.next..index;
        let lost = skipped.find(|skipped| {
            let fact = &facts[*skipped];
            *skipped >= self.excused[fact.class] && wants(*skipped, fact)
        });
        match lost {
            Some(lost) => Err(Violation::Lost {
                lane,
                index: lost,
                next: index,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one reader was told, in order.
    #[derive(Clone, Debug, PartialEq)]
    enum Told {
        Event(usize, u64),
        /// Of a class, up to a fact.
        Gap(usize, usize),
        End,
    }

    const FORGOTTEN: usize = 10;

    /// Forty facts of three classes in turn; those of class 1 before [`FORGOTTEN`] are forgotten.
    fn facts() -> Vec<Fact<u64>> {
        let fact = |index: u64| Fact {
            class: usize::try_from(index % 3).expect("small"),
            what: 1_000 + index,
        };
        (0..40).map(fact).collect()
    }

    /// The reader wants everything but every seventh.
    fn wants(index: usize, _: &Fact<u64>) -> bool {
        index % 7 != 3
    }

    fn faultless() -> Vec<Told> {
        let facts = facts();
        let kept = |(index, fact): &(usize, &Fact<u64>)| {
            wants(*index, fact) && (fact.class != 1 || *index >= FORGOTTEN)
        };
        let events = facts.iter().enumerate().filter(kept);
        let events = events.map(|(index, fact)| Told::Event(index, fact.what));
        [Told::Gap(1, FORGOTTEN)]
            .into_iter()
            .chain(events)
            .chain([Told::End])
            .collect()
    }

    fn judge(history: &[Told]) -> Result<(), Violation> {
        let facts = facts();
        let mut follower = Follower::new(&[0]);
        history.iter().try_for_each(|told| match told {
            Told::Event(index, what) => follower.event(0, &facts, wants, *index, what),
            Told::Gap(class, horizon) => follower.true_gap(0, &facts, wants, *class, *horizon),
            Told::End => follower.caught_up(0, &facts, wants),
        })
    }

    #[test]
    fn a_faultless_history_is_accepted() {
        assert_eq!(judge(&faultless()), Ok(()));
    }

    /// A judge that accepts everything proves nothing: each fault, planted anywhere, is caught.
    #[test]
    fn every_planted_fault_is_refused() {
        let faultless = faultless();
        let last = faultless.len() - 1;
        for place in 1..last {
            let mut loss = faultless.clone();
            loss.remove(place);
            assert!(
                matches!(judge(&loss), Err(Violation::Lost { .. })),
                "{loss:?}"
            );

            let mut twice = faultless.clone();
            twice.insert(place, faultless[place].clone());
            assert!(
                matches!(judge(&twice), Err(Violation::Repeated { .. })),
                "{twice:?}"
            );

            if place + 1 < last {
                let mut reorder = faultless.clone();
                reorder.swap(place, place + 1);
                assert!(judge(&reorder).is_err(), "{reorder:?}");
            }

            let mut altered = faultless.clone();
            if let Told::Event(_, what) = &mut altered[place] {
                *what += 1;
            }
            assert!(
                matches!(judge(&altered), Err(Violation::Invented { .. })),
                "{altered:?}"
            );
        }
        let mut unwanted = faultless.clone();
        unwanted.insert(3, Told::Event(3, 1_003));
        assert_eq!(
            judge(&unwanted),
            Err(Violation::Unwanted { lane: 0, index: 3 })
        );

        // Two events after the gap of what lies before them is too late.
        let mut late = faultless.clone();
        late.swap(0, 1);
        late.swap(1, 2);
        assert!(matches!(judge(&late), Err(Violation::Lost { .. })));

        let mut no_gap = faultless.clone();
        no_gap.remove(0);
        assert!(matches!(judge(&no_gap), Err(Violation::Lost { .. })));

        let mut false_gap = faultless.clone();
        false_gap.insert(0, Told::Gap(2, 2));
        assert_eq!(judge(&false_gap), Err(Violation::FalseGap { class: 2 }));

        // A gap excuses its own class and no other.
        let mut wrong_class = faultless.clone();
        wrong_class[0] = Told::Gap(0, FORGOTTEN);
        assert!(matches!(judge(&wrong_class), Err(Violation::Lost { .. })));

        // What a gap accounts for ends with the first fact of its class that was kept.
        let mut behind_kept = faultless;
        let kept = |told: &Told| matches!(told, Told::Event(index, _) if *index == 16);
        behind_kept[0] = Told::Gap(1, usize::MAX);
        behind_kept.retain(|told| !kept(told));
        assert_eq!(
            judge(&behind_kept),
            Err(Violation::Lost {
                lane: 0,
                index: 16,
                next: 18
            })
        );
    }
}
