//! What the crowd does next. Pure: a seed in, deeds out.

use std::net::IpAddr;
use std::time::Duration;

use crate::random::Random;
use crate::{How, RestartSignal};

use super::people::{Device, Person, people, place};

/// Deeds between two troubles; the first comes after half as many.
const DEEDS_PER_TROUBLE: u64 = 40;

/// One thing that happens. People and daemons are indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// There is nobody, or nowhere to go.
    Nothing,
    Join {
        person: usize,
        daemon: usize,
        from: (IpAddr, u16),
    },
    Leave {
        person: usize,
        daemon: usize,
        how: How,
    },
    /// Comes back from another port before the daemon missed it.
    Reconnect { person: usize, daemon: usize },
    Restart {
        daemon: usize,
        signal: RestartSignal,
    },
    /// Hangs for a while.
    Freeze { daemon: usize, lasting: Duration },
    /// Dies, and is started again after a while.
    Outage { daemon: usize, lasting: Duration },
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) people: Vec<Person>,
    /// Where each person is meant to be.
    places: Vec<Option<usize>>,
    daemons: usize,
    /// How many people are to be connected, about.
    connected: usize,
    random: Random,
    deeds: u64,
    troubles: u64,
}

impl Plan {
    pub(super) fn new(seed: u64, daemons: usize, connected: usize) -> Self {
        let mut random = Random::new(seed);
        // Half as many again as are connected at a time, so that there is always somebody out.
        let people = people(&mut random, connected + connected.div_ceil(2));
        Self {
            places: vec![None; people.len()],
            people,
            daemons,
            connected,
            random,
            deeds: 0,
            troubles: 0,
        }
    }

    /// Those who are there when it begins.
    pub(super) fn arrivals(&mut self) -> Vec<Deed> {
        (0..self.connected.min(self.people.len()))
            .map(|person| self.join(person))
            .collect()
    }

    pub(super) fn next_deed(&mut self) -> Deed {
        if self.daemons == 0 || self.people.is_empty() {
            return Deed::Nothing;
        }
        self.deeds += 1;
        if self.deeds % DEEDS_PER_TROUBLE == DEEDS_PER_TROUBLE / 2 {
            return self.trouble();
        }
        let connected = self.places.iter().flatten().count();
        // The fewer are connected, the likelier is the next one to come.
        let wanted = self.connected.max(1) * 2;
        if self.random.index(wanted) >= connected {
            match self.pick(|place| place.is_none()) {
                Some(person) => self.join(person),
                None => Deed::Nothing,
            }
        } else {
            match self.pick(|place| place.is_some()) {
                Some(person) => self.go(person),
                None => Deed::Nothing,
            }
        }
    }

    /// Somebody at random among those the condition holds for.
    fn pick(&mut self, condition: impl Fn(Option<usize>) -> bool) -> Option<usize> {
        let candidates: Vec<usize> = (0..self.places.len())
            .filter(|person| condition(self.places[*person]))
            .collect();
        candidates.get(self.random.index(candidates.len())).copied()
    }

    fn join(&mut self, person: usize) -> Deed {
        if self.daemons == 0 {
            return Deed::Nothing;
        }
        let daemon = match self.people[person].device {
            // What is bolted to a wall always uses the same one.
            Device::Router => person % self.daemons,
            Device::Laptop | Device::Phone => self.random.index(self.daemons),
        };
        self.places[person] = Some(daemon);
        let away = match self.people[person].device {
            Device::Router => false,
            Device::Laptop => self.random.below(3) == 0,
            Device::Phone => self.random.below(3) != 0,
        };
        let address = if away {
            place(&mut self.random)
        } else {
            self.people[person].home
        };
        let port = u16::try_from(20_000 + self.random.below(40_000)).unwrap_or(u16::MAX);
        Deed::Join {
            person,
            daemon,
            from: (address.into(), port),
        }
    }

    fn go(&mut self, person: usize) -> Deed {
        let Some(daemon) = self.places[person] else {
            return Deed::Nothing;
        };
        let device = self.people[person].device;
        let reconnects = match device {
            Device::Router => true,
            Device::Phone => self.random.below(3) == 0,
            Device::Laptop => self.random.below(10) == 0,
        };
        if reconnects {
            return Deed::Reconnect { person, daemon };
        }
        self.places[person] = None;
        let how = match (device, self.random.below(10)) {
            // A phone in a tunnel says nothing.
            (Device::Phone, 0..=6) | (_, 0..=1) => How::PingTimeout,
            (_, 2) => How::TcpClose,
            (_, 3) => How::ExitNotifyData,
            _ => How::ExitNotify,
        };
        Deed::Leave {
            person,
            daemon,
            how,
        }
    }

    fn trouble(&mut self) -> Deed {
        let daemon = self.random.index(self.daemons);
        let lasting = Duration::from_millis(4_000 + self.random.below(6_000));
        self.troubles += 1;
        match self.troubles % 4 {
            1 => Deed::Restart {
                daemon,
                signal: RestartSignal::Sigusr1,
            },
            2 => Deed::Freeze { daemon, lasting },
            3 => Deed::Restart {
                daemon,
                signal: RestartSignal::Sighup,
            },
            _ => {
                // Its people are gone with it.
                for place in &mut self.places {
                    if *place == Some(daemon) {
                        *place = None;
                    }
                }
                Deed::Outage { daemon, lasting }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn deeds(seed: u64) -> Vec<Deed> {
        let mut plan = Plan::new(seed, 5, 40);
        let mut deeds = plan.arrivals();
        deeds.extend((0..1000).map(|_| plan.next_deed()));
        deeds
    }

    /// A demo or a soak that cannot be repeated cannot be debugged.
    #[test]
    fn the_seed_alone_decides() {
        assert_eq!(deeds(1), deeds(1));
        assert_ne!(deeds(1), deeds(2));
    }

    #[test]
    fn a_life_has_everything_in_it_and_goes_on() {
        let deeds = deeds(3);
        let kinds: HashSet<_> = deeds.iter().map(std::mem::discriminant).collect();
        for kind in [
            Deed::Join {
                person: 0,
                daemon: 0,
                from: (IpAddr::from([0, 0, 0, 0]), 0),
            },
            Deed::Leave {
                person: 0,
                daemon: 0,
                how: How::ExitNotify,
            },
            Deed::Reconnect {
                person: 0,
                daemon: 0,
            },
            Deed::Restart {
                daemon: 0,
                signal: RestartSignal::Sigusr1,
            },
            Deed::Freeze {
                daemon: 0,
                lasting: Duration::ZERO,
            },
            Deed::Outage {
                daemon: 0,
                lasting: Duration::ZERO,
            },
        ] {
            assert!(kinds.contains(&std::mem::discriminant(&kind)), "{kind:?}");
        }
        let mut plan = Plan::new(3, 5, 40);
        plan.arrivals();
        for _ in 0..1000 {
            plan.next_deed();
            let connected = plan.places.iter().flatten().count();
            assert!((10..=60).contains(&connected), "{connected}");
        }
    }

    #[test]
    fn nobody_and_nowhere_are_no_trouble() {
        assert_eq!(Plan::new(1, 0, 10).next_deed(), Deed::Nothing);
        assert_eq!(Plan::new(1, 3, 0).next_deed(), Deed::Nothing);
        assert_eq!(Plan::new(1, 0, 10).arrivals().len(), 10);
    }
}
