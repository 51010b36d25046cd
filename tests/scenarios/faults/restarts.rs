//! Event streams over gateways that end in order: readers keep their cursors, and the disk has what
//! memory forgot.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{
    Api, Gateway, poll_until,
    random::{Random, soak},
};
use tokio::sync::watch;

use super::streams::{Caller, DAEMONS, End, Fleet, READERS, SOON, Wish, read};

/// Events kept in memory: fewer than a round brings.
const EVENTS_MAX: usize = 2_000;

/// Waits until so many streams are open.
async fn wait_streams(gateway: &Gateway, count: usize) -> Result<()> {
    let line = format!("ovfleet_streams {count}");
    poll_until("the streams to be open or over", SOON, async || {
        let (_, metrics) = gateway.http_get("/metrics").await?;
        Ok(metrics.lines().any(|it| it == line).then_some(()))
    })
    .await
}

/// Numbered facts, to readers that are far behind or hold a stream while the gateway is told to end,
/// and go on at the next one with the cursor that they have. No run that ended in order leaves a gap,
/// and what lies before and behind its end is told once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_where_they_were_when_a_gateway_ended_in_order() -> Result<()> {
    let (rounds, facts) = if soak() { (20, 5_000) } else { (3, 400) };
    let mut random = Random::seeded("restarts");
    let started = Instant::now();
    // So little disk that a flood of log lines does not fit.
    let mut fleet = Fleet::start(EVENTS_MAX, Some("4MiB")).await?;
    let place = fleet.here().await?;
    let mut callers = Vec::new();
    for _ in 0..READERS {
        let wish = Wish::random(&mut random);
        let mut caller = Caller::begin(&fleet.said, watch::channel(true).1, wish, place.clone());
        caller.is_always_seen = true;
        callers.push(caller);
    }
    for round in 0..rounds {
        let (done, written) = watch::channel(false);
        let mut readers = Vec::new();
        for mut caller in callers {
            caller.written = written.clone();
            let api = Api::connect(&fleet.gateway).await?;
            readers.push(read(api, caller, Random::new(random.next())));
        }
        let writing = async {
            let mut seeds: Vec<Random> = (0..DAEMONS).map(|_| Random::new(random.next())).collect();
            let writers = seeds.iter_mut().enumerate();
            let writers = writers.map(|(lane, random)| fleet.write(lane, facts, random));
            futures_util::future::try_join_all(writers).await?;
            fleet.settle().await?;
            done.send_replace(true);
            Ok(())
        };
        let reading = futures_util::future::try_join_all(readers);
        let (read, ()) = futures_util::future::try_join(reading, writing)
            .await
            .with_context(|| format!("round {round}"))?;
        callers = read;

        // The first one holds a stream over the end; the others stay where they are.
        let (_unwritten, written) = watch::channel(false);
        let holder = &mut callers[0];
        holder.written = written;
        holder.wish.fails_on_gap = false;
        let mut api = Api::connect(&fleet.gateway).await?;
        wait_streams(&fleet.gateway, 0).await?;
        let holding = holder.stream(&mut api, true, usize::MAX);
        let gateway = &mut fleet.gateway;
        let ending = async {
            wait_streams(gateway, 1).await?;
            gateway.stop().await
        };
        let (end, status) = futures_util::future::try_join(holding, ending).await?;
        ensure!(status.success(), "{status}");
        ensure!(matches!(end, End::Drained), "no last word: {end:?}");
        fleet.everybody_leaves().await?;
        fleet.gateway.start_again().await?;
        Api::connect(&fleet.gateway).await?.wait_attached().await?;
    }
    let mut api = Api::connect(&fleet.gateway).await?;
    let (mut streams, mut gaps) = (0, 0);
    for caller in &mut callers {
        let wish = caller.wish.clone();
        let finished = caller.finish(&mut api).await;
        finished.with_context(|| format!("{wish:?}"))?;
        ensure!(
            caller.lost_runs == 0,
            "a run that ended in order left a gap"
        );
        streams += caller.streams;
        gaps += caller.gaps;
    }
    eprintln!(
        "{} facts, {READERS} readers, {rounds} ends in {:.1?}: {streams} streams, {gaps} gaps",
        fleet.said_in_all(),
        started.elapsed(),
    );
    Ok(())
}
