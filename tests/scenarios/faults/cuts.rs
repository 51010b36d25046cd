//! Connections between the gateway and real daemons that break at every byte: of an attach, of
//! answers, of a kill.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use ovfleet_proto::v1::{
    Condition, GetLoadStatsRequest, GetPidRequest, GetVersionRequest, KillClientsRequest, KillMode,
    ListClientsRequest, Outcome,
};
use ovfleet_tests::{
    Management,
    api::{by_name, named, reason, timed},
    chaos::{Cut, Direction, Manner},
    poll_until,
    random::{Random, soak},
};
use tonic::{Code, Status};

use super::lab::{Lab, Point, TRUE_AGAIN, are_shown};

/// A halted client ends when its daemon tells it; a killed one stays listed for 5 s.
const GONE: Duration = Duration::from_secs(20);
/// In soak, labs of each kind of socket that share the bytes: a cut is mostly waits.
const LABS: u64 = 12;
/// In soak, one cut in so many is silence, which takes seconds to be noticed.
const SILENT: u64 = 32;
/// Cuts of a gate for each kind of socket; an attach and an answer take less than a kill.
const FEW: usize = 16;

/// What one of several labs does of what they do together.
#[derive(Clone, Copy, Debug)]
struct Share {
    seed: u64,
    number: u64,
    count: u64,
}

impl Share {
    /// In soak the share of this lab of every offset in both directions; `few` at random in the
    /// gate. What becomes of an offset follows from the seed alone, however long the answers are.
    fn points(&self, what: &str, lengths: [u64; 2], few: usize) -> Vec<Point> {
        let mut points = Vec::new();
        for direction in [Direction::Forward, Direction::Backward] {
            for offset in 0..=lengths[direction as usize] {
                if offset % self.count == self.number {
                    points.push(self.point(direction, offset));
                }
            }
        }
        let mut random = Random::new(self.seed);
        random.shuffle(&mut points);
        if !soak() {
            // Half of each direction: to the daemon there is much less.
            let (mut forward, mut backward): (Vec<_>, Vec<_>) = points
                .into_iter()
                .partition(|point| point.direction == Direction::Forward);
            forward.truncate(few / 2);
            backward.truncate(few / 2);
            points = [forward, backward].concat();
        }
        eprintln!(
            "{what}, one of the labs: {} cuts, of {} bytes to the daemon and {} from it",
            points.len(),
            lengths[0],
            lengths[1],
        );
        points
    }

    fn point(&self, direction: Direction, offset: u64) -> Point {
        let mut random = Random::new(self.seed ^ ((2 * offset + direction as u64) << 8));
        let cut = if soak() && random.once_in(SILENT) {
            Cut::BlackHole
        } else {
            *random.pick(&[Cut::Close, Cut::Reset, Cut::HalfClose])
        };
        let manner = match random.below(4) {
            0 => Manner {
                piece: Some(1),
                delay: None,
            },
            1 => Manner {
                piece: None,
                delay: Some(Duration::from_millis(random.below(20))),
            },
            _ => Manner::default(),
        };
        Point {
            direction,
            offset,
            cut,
            manner,
        }
    }
}

/// Labs with a Unix socket and with TCP, at once; gives the results of all, one for each cut, and
/// prints what it took.
async fn everywhere<T>(
    what: &str,
    run: impl AsyncFn(&mut Lab, Share) -> Result<Vec<T>> + Copy,
) -> Result<Vec<T>> {
    let mut random = Random::seeded(what);
    let seeds = [random.next(), random.next()];
    let started = Instant::now();
    let count = if soak() { LABS } else { 1 };
    let labs = (0..2 * count).map(async |lab| {
        let (management, seed, kind) = match lab % 2 {
            0 => (Management::Unix, seeds[0], "unix"),
            _ => (Management::Tcp, seeds[1], "tcp"),
        };
        let number = lab / 2;
        let name = format!("{kind}{number}");
        let mut lab = Lab::start(&name, management).await?;
        let share = Share {
            seed,
            number,
            count,
        };
        let results = run(&mut lab, share).await.context(name)?;
        lab.check_log()?;
        eprintln!(
            "{what}, {kind}{number}: done after {:.0?}",
            started.elapsed()
        );
        Ok::<_, anyhow::Error>((results, lab.carried_out, lab.slowest))
    });
    let labs = try_join_all(labs).await?;
    let cuts: usize = labs.iter().map(|(results, ..)| results.len()).sum();
    let carried_out: usize = labs.iter().map(|(_, carried_out, _)| carried_out).sum();
    let slowest = labs.iter().map(|(.., slowest)| *slowest).max();
    eprintln!(
        "{what}: {cuts} cuts, {carried_out} of them carried out, in {:.1?}; the state shown was the daemon's within {:.1?}",
        started.elapsed(),
        slowest.unwrap_or_default(),
    );
    // Lengths vary a little: what is behind the last byte never comes.
    ensure!(
        carried_out * 10 >= cuts * 8,
        "{carried_out} of {cuts} cuts were carried out"
    );
    Ok(labs.into_iter().flat_map(|(results, ..)| results).collect())
}

/// An attach that breaks at any byte must neither leave half a table nor be given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_cut_anywhere_ends_in_the_truth() -> Result<()> {
    everywhere("attaches", async |lab, share| {
        let _ = lab.chaos.take_passed();
        lab.reattach().await?;
        let lengths = lab.chaos.take_passed();
        let points = share.points("attaches", lengths, FEW);
        for point in &points {
            lab.chaos.set_manner(point.manner);
            let (cuts, connections) = (lab.chaos.cuts(), lab.chaos.connections());
            lab.chaos.arm_next(point.direction, point.offset, point.cut);
            // The next session is cut, or its attach had fewer bytes than the one measured.
            poll_until("the attach to be cut", TRUE_AGAIN, async || {
                let attached = lab.chaos.connections() > connections
                    && lab.status().await?.condition() == Condition::Attached;
                Ok((lab.chaos.cuts() > cuts || attached).then_some(()))
            })
            .await
            .with_context(|| format!("{point:?}"))?;
            // That one, and the one behind it.
            let mended = lab.mend(point, connections + 1).await;
            mended.with_context(|| format!("{point:?}"))?;
        }
        Ok(points)
    })
    .await?;
    Ok(())
}

/// Answers that break off: each caller gets its own or an error, never another's, and a list
/// that is not whole says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_cut_anywhere_reaches_nobody_else() -> Result<()> {
    let answered = everywhere("answers", async |lab, share| {
        let _ = lab.chaos.take_passed();
        let answered = ask(lab).await?;
        ensure!(answered == 4, "without a cut {answered} of 4 are answered");
        let lengths = lab.chaos.take_passed();
        let mut answered = Vec::new();
        for point in share.points("answers", lengths, FEW) {
            let connections = lab.chaos.connections();
            lab.chaos.set_manner(point.manner);
            lab.chaos.arm(point.direction, point.offset, point.cut);
            let context = || format!("{point:?}");
            answered.push(ask(lab).await.with_context(context)?);
            lab.mend(&point, connections).await.with_context(context)?;
        }
        Ok(answered)
    })
    .await?;
    let with = |wanted| answered.iter().filter(|count| **count == wanted).count();
    eprintln!(
        "answers: of four callers all got theirs {} times, 3 {}, 2 {}, 1 {}, none {} times",
        with(4),
        with(3),
        with(2),
        with(1),
        with(0),
    );
    Ok(())
}

/// Four callers at once, each with another question; gives how many were answered.
async fn ask(lab: &Lab) -> Result<usize> {
    let instance = || lab.server.name().to_owned();
    let (mut a, mut b, mut c, mut d) = (
        lab.api.clone(),
        lab.api.clone(),
        lab.api.clone(),
        lab.api.clone(),
    );
    let (pid, load, version, rows) = tokio::join!(
        a.instance.get_pid(timed(GetPidRequest {
            instance: instance()
        })),
        b.instance.get_load_stats(timed(GetLoadStatsRequest {
            instance: instance()
        })),
        c.instance.get_version(timed(GetVersionRequest {
            instance: instance()
        })),
        d.fleet.list_clients(timed(ListClientsRequest {
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        })),
    );
    let mut answered = 0;
    if let Some(pid) = or_broken(pid)? {
        ensure!(pid.pid == lab.server.pid(), "{pid:?}");
        answered += 1;
    }
    if let Some(load) = or_broken(load)? {
        ensure!(load.clients == 2 && load.bytes_received > 0, "{load:?}");
        answered += 1;
    }
    if let Some(version) = or_broken(version)? {
        let text = &version.daemon_version;
        ensure!(text.starts_with("OpenVPN 2."), "{version:?}");
        answered += 1;
    }
    // A list does not fail: it names who is missing.
    let rows = rows?.into_inner();
    let truth = lab.server.status().await?;
    ensure!(
        are_shown(&truth, &rows.clients),
        "{rows:#?} is not {truth:#?}"
    );
    answered += usize::from(rows.unreachable.is_empty());
    Ok(answered)
}

/// An answer, or the errors that tell of a connection that broke: before the question was sent, and
/// behind it.
fn or_broken<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) => {
            let expected = status.code() == Code::Unavailable
                || reason(&status).as_deref() == Some("OUTCOME_UNKNOWN");
            ensure!(expected, "{status:?}");
            Ok(None)
        }
    }
}

/// A kill that breaks off at any byte: what its result says is so, the other client stays, and
/// what may have been sent is never said not to have been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_cut_anywhere_tells_the_truth() -> Result<()> {
    let outcomes = everywhere("kills", async |lab, share| {
        let _ = lab.chaos.take_passed();
        let outcome = kill(lab).await.context("without a cut")?;
        ensure!(outcome == Outcome::Confirmed, "without a cut {outcome:?}");
        let lengths = lab.chaos.take_passed();
        lab.revive().await?;
        let mut outcomes = Vec::new();
        for point in share.points("kills", lengths, FEW / 2) {
            let context = || format!("{point:?}");
            let (connections, log) = (lab.chaos.connections(), lab.server.log_end());
            lab.chaos.set_manner(point.manner);
            lab.chaos.arm(point.direction, point.offset, point.cut);
            let outcome = kill(lab).await.with_context(context)?;
            lab.mend(&point, connections).await.with_context(context)?;
            lab.revive().await.with_context(context)?;
            // Also of what was on its way when the result came.
            let sent = lab.server.log_count_since(log, COMMAND);
            let allowed = usize::from(!matches!(outcome, Outcome::NotSent | Outcome::Stale));
            ensure!(sent <= allowed, "{point:?}: {outcome:?}, and {sent} sent");
            outcomes.push(outcome);
        }
        Ok(outcomes)
    })
    .await?;
    let with = |wanted| {
        let of_these = outcomes.iter().filter(|outcome| **outcome == wanted);
        of_these.count()
    };
    eprintln!(
        "kills: {} confirmed, {} accepted, {} unknown, {} not sent; nobody else hit",
        with(Outcome::Confirmed),
        with(Outcome::Accepted),
        with(Outcome::Unknown),
        with(Outcome::NotSent),
    );
    // Otherwise it was not cut where it matters.
    ensure!(!soak() || with(Outcome::Unknown) > 0 && with(Outcome::NotSent) > 0);
    Ok(())
}

const COMMAND: &str = "MANAGEMENT: CMD 'client-kill";

/// Kills the victim, and compares the result with what became of it.
async fn kill(lab: &mut Lab) -> Result<Outcome> {
    let log = lab.server.log_end();
    let request = KillClientsRequest {
        selector: named(&[lab.server.name()]),
        filter: Some(by_name("victim")),
        mode: KillMode::Halt.into(),
        wait: true,
        ..Default::default()
    };
    let mut call = timed(request);
    call.set_timeout(Duration::from_secs(12));
    let killed = lab.api.control.kill_clients(call).await?.into_inner();
    let outcome = match killed.results.as_slice() {
        [result] => result.outcome(),
        // The daemon could not be asked who its clients are.
        [] => {
            ensure!(
                !killed.instances.is_empty(),
                "neither a client nor an instance: {killed:#?}"
            );
            Outcome::NotSent
        }
        _ => bail!("{killed:#?}"),
    };
    let sent = lab.server.log_count_since(log, COMMAND);
    match outcome {
        Outcome::Confirmed => {
            ensure!(sent == 1, "confirmed, and {sent} sent");
            // Told to halt, it ends; whether the daemon lists it is seen when it is back.
            lab.victim.wait_ended(GONE).await?;
        }
        Outcome::Accepted | Outcome::AlreadyGone => lab.victim.wait_ended(GONE).await?,
        Outcome::NotSent | Outcome::Stale => {
            ensure!(lab.victim.is_running()?, "{outcome:?}, and it is dead");
        }
        Outcome::Unknown => {}
        other => bail!("{other:?}: {killed:#?}"),
    }
    ensure!(
        lab.bystander.is_running()? && lab.bystander.connections() == 1,
        "the other was hit"
    );
    Ok(outcome)
}
