//! A gateway that dies at the worst moments, with actions under way: nothing is sent twice, what
//! was promised is there, and no stream has a hole that it was not told of.

mod first_version;
mod kills;
mod lab;
mod registry;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use ovfleet_proto::v1::{self, Durability, KillClientsResponse};
use ovfleet_tests::{
    Api,
    api::timed,
    random::{Random, allowed, soak},
};

use self::{
    kills::{action, outcome, settle},
    lab::{Lab, wait_attached},
    registry::Registry,
};
use super::streams::{Caller, Carrier, DAEMONS, Wish};

/// Where it dies in the middle of its life, and how often it passes there at most before it does.
const POINTS: [(&str, u64); 6] = [
    ("action.after_intent", 4),
    ("action.after_send", 4),
    ("action.before_outcome", 4),
    ("journal.in_batch", 5),
    ("state.registry", 24),
    ("state.committed", 40),
];
/// At a start, on a file that an older version left.
const IN_MIGRATION: &str = "state.in_migration";
/// Gateways that live and die side by side, each with a state and daemons of its own: one of them mostly waits. As many
/// as the smallest machine has cores, so that a start is as fast as ever.
const LANES: usize = 2;
/// The gateway comes to its failpoint by then: at most after 40 writes, and one that takes 0.8 s is given up. Whatever is
/// refused is asked for again, so that no other reason keeps it from there.
const DIES: Duration = Duration::from_secs(40);
/// From its start to the first answer: a tenth of a second is usual.
const SERVES: Duration = Duration::from_secs(2);
/// The share of starts, in percent, that may take longer where much else is tested at the same time.
const LATE_MAX: usize = 5;

/// What there is to tell of some deaths.
#[derive(Default)]
struct Tally {
    deaths: BTreeMap<&'static str, usize>,
    /// How long each start took until it served.
    served: Vec<Duration>,
    /// What became of kills, by the point of the death.
    outcomes: BTreeMap<(&'static str, String), usize>,
    gaps: u64,
    kept: usize,
    made: usize,
    cut: [usize; 2],
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (point, count) in other.deaths {
            *self.deaths.entry(point).or_default() += count;
        }
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.served.extend(other.served);
        self.gaps += other.gaps;
        self.kept += other.kept;
        self.made += other.made;
        for (cut, count) in self.cut.iter_mut().zip(other.cut) {
            *cut += count;
        }
    }

    fn print(&mut self, took: Duration) {
        let crashes = self.served.len();
        self.served.sort();
        let [usual, slowest] = [self.served[crashes / 2], self.served[crashes - 1]];
        eprintln!(
            "{crashes} crashes in {took:.0?}; serving again within {usual:.1?}, at most {slowest:.1?}"
        );
        eprintln!("{} gaps told; {} actions kept", self.gaps, self.kept);
        let (made, [undone, done]) = (self.made, self.cut);
        eprintln!("{made} changes of the registry answered; cut off: {done} done, {undone} not");
        for (point, deaths) in &self.deaths {
            eprintln!("  {point:24} {deaths}");
        }
        for ((point, outcome), count) in &self.outcomes {
            eprintln!("  {point:24} {outcome:16} {count}");
        }
    }
}

/// `kill -9` at every point where it hurts, again and again, on the same states.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_anywhere_sends_nothing_twice_and_forgets_nothing() -> Result<()> {
    let each = if soak() { 200 } else { 50 };
    let crashes = each * (POINTS.len() + 1);
    let mut random = Random::seeded("crashes");
    let mut lanes = vec![Vec::new(); LANES];
    for crash in 0..crashes {
        lanes[crash % LANES].push((crash, Random::new(random.next())));
    }
    let started = Instant::now();
    // All on the test's own thread, with which gateways end.
    let tallies = try_join_all(lanes.into_iter().map(lane)).await?;
    let mut all = Tally::default();
    tallies.into_iter().for_each(|tally| all.add(tally));
    all.print(started.elapsed());

    let late_max = if soak() { 0 } else { crashes * LATE_MAX / 100 };
    let serves = allowed(SERVES);
    let late = all.served.iter().filter(|served| **served > serves).count();
    ensure!(late <= late_max, "{late} starts took more than {serves:?}");
    ensure!(all.deaths.len() == POINTS.len() + 1, "{:?}", all.deaths);
    for (point, deaths) in all.deaths {
        ensure!(deaths == each, "{point}: {deaths} deaths");
    }
    let (made, cut) = (all.made, all.cut);
    ensure!(made > crashes && cut[0] + cut[1] > 0, "{made}, {cut:?}");
    Ok(())
}

/// One state, the gateways that die over it, and a reader who goes on with each.
struct Lane {
    lab: Lab,
    caller: Caller,
    /// What was answered under which id.
    old: Vec<(String, KillClientsResponse)>,
    tally: Tally,
}

async fn lane(crashes: Vec<(usize, Random)>) -> Result<Tally> {
    let lab = Lab::start().await?;
    let everything = Wish {
        lanes: (0..DAEMONS).collect(),
        carriers: Carrier::ALL.to_vec(),
        fails_on_gap: false,
    };
    let mut api = Api::connect(&lab.gateway).await?;
    let request = timed(v1::GetSummaryRequest::default());
    let summary = api.fleet.get_summary(request).await?.into_inner();
    let cursor = summary.as_of.context("no as_of")?.cursor;
    let mut caller = Caller::new(&lab.said, everything, cursor, &[0; DAEMONS]);
    // What was lost was lost with a gateway: that its successor had to attach first is no excuse.
    caller.is_always_seen = true;
    let mut lane = Lane {
        caller,
        lab,
        old: Vec::new(),
        tally: Tally::default(),
    };
    for (crash, mut random) in crashes {
        lane.lab.kill().await?;
        let point = POINTS.get(crash % (POINTS.len() + 1));
        // A migration finds what another death left unfinished.
        let &(first, most) = point.unwrap_or_else(|| random.pick(&POINTS));
        let time = 1 + random.below(most);
        let point = point.map_or(IN_MIGRATION, |_| first);
        lane.crash(crash, &mut random, (first, time), point)
            .await
            .with_context(|| format!("crash {crash}, {point}, {first}=kill@{time}"))?;
    }
    let Lane {
        lab,
        caller,
        old,
        mut tally,
    } = lane;
    let mut api = Api::connect(&lab.gateway).await?;
    for (id, answer) in &old {
        is_known(&mut api, id, answer).await?;
    }
    tally.kept = old.len();
    tally.gaps = caller.gaps;
    let Registry { made, cut, .. } = lab.registry;
    (tally.made, tally.cut) = (made, cut);
    Ok(tally)
}

impl Lane {
    /// Lives until `first`, and dies of that or later of `point`; then everything has to be as it was promised.
    async fn crash(
        &mut self,
        crash: usize,
        random: &mut Random,
        first: (&str, u64),
        point: &'static str,
    ) -> Result<()> {
        let Self {
            lab,
            caller,
            old,
            tally,
        } = self;
        let asked = lab.live(random, crash, first).await?;
        if point == IN_MIGRATION {
            lab.die_in_migration(point, random).await?;
        }
        *tally.deaths.entry(point).or_default() += 1;

        let started = Instant::now();
        lab.gateway.start_again().await?;
        let mut api = Api::connect(&lab.gateway).await?;
        lab.registry.check(&mut api).await?;
        tally.served.push(started.elapsed());
        wait_attached(&mut api).await?;
        lab.look()?;
        for asked in &asked {
            let (answer, outcome) = settle(lab, &mut api, asked).await?;
            *tally.outcomes.entry((point, outcome)).or_default() += 1;
            if let Some(answer) = answer
                && answer.durability() != Durability::Memory
            {
                old.push((asked.id.clone(), answer));
            }
        }
        lab.look()?;
        // Nothing of before is forgotten.
        for _ in 0..old.len().min(3) {
            let (id, answer) = random.pick(old);
            is_known(&mut api, id, answer).await?;
        }
        caller.finish(&mut api).await
    }
}

/// What was answered once is answered still.
async fn is_known(api: &mut Api, id: &str, answer: &KillClientsResponse) -> Result<()> {
    let now = action(api, id).await?;
    let now = now.with_context(|| format!("{id} is forgotten"))?;
    let (then, now) = (outcome(answer), outcome(&now));
    ensure!(then == now, "{id}: {then:?}, and now {now:?}");
    Ok(())
}
