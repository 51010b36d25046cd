//! A gateway with a state and three daemons that outlive it, and its lives.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use openvpn_simulator::{ClientSpec, Daemon, How, Timing};
use ovfleet_proto::v1::{ClientFilter, Condition, ListClientsRequest};
use ovfleet_tests::{
    Api, Gateway, GatewayConfig, InstanceConfig, Signal, api::timed, poll_until, random::Random,
};

use super::{
    DIES,
    first_version::go_back,
    kills::{Asked, kill},
    registry::Registry,
};
use crate::faults::streams::{Carrier, DAEMONS, Said, note, take_back};

/// Kills under way at once.
const KILLS: usize = 6;
const SOON: Duration = Duration::from_secs(20);

pub(super) struct Lab {
    daemons: Vec<Daemon>,
    pub(super) gateway: Gateway,
    pub(super) said: Said,
    /// `client-kill` lines that each daemon received, in all its life.
    received: Vec<BTreeMap<String, u32>>,
    /// Lines that were looked at.
    looked_at: Vec<u64>,
    pub(super) registry: Registry,
    directory: tempfile::TempDir,
}

impl Lab {
    pub(super) async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let state = directory.path().join("state");
        let mut config = GatewayConfig::new().set("state_dir", state.display().to_string());
        let mut daemons = Vec::new();
        for lane in 0..DAEMONS {
            let name = format!("sim{lane}");
            let timing = Timing {
                delayed_exit: Duration::from_millis(100),
                ..Timing::default()
            };
            let builder = Daemon::builder(&name).unix(directory.path().join(&name));
            let daemon = builder.timing(timing).start().await?;
            config = config.instance(InstanceConfig::new(&name, &daemon.address().to_string()));
            daemons.push(daemon);
        }
        let gateway = config.start().await?;
        Api::connect(&gateway).await?.wait_attached().await?;
        Ok(Self {
            daemons,
            gateway,
            said: Said::new(std::sync::Mutex::new(vec![Vec::new(); DAEMONS])),
            received: vec![BTreeMap::new(); DAEMONS],
            looked_at: vec![0; DAEMONS],
            registry: Registry::new(),
            directory,
        })
    }

    /// Counts what the daemons have received since the last look. No command may come twice.
    pub(super) fn look(&mut self) -> Result<()> {
        for (lane, daemon) in self.daemons.iter().enumerate() {
            let (total, lines) = (daemon.commands_total(), daemon.commands());
            let news = usize::try_from(total - self.looked_at[lane])?;
            ensure!(
                news <= lines.len(),
                "{news} commands, and only the last are kept"
            );
            for line in &lines[lines.len() - news..] {
                let line = String::from_utf8_lossy(line).into_owned();
                if line.starts_with("client-kill ") {
                    let times = self.received[lane].entry(line.clone()).or_default();
                    *times += 1;
                    ensure!(*times == 1, "{:?} came {times} times", line);
                }
            }
            self.looked_at[lane] = total;
        }
        Ok(())
    }

    pub(super) fn was_received(&self, asked: &Asked) -> bool {
        let command = format!("client-kill {}", asked.cid);
        let mut lines = self.received[asked.lane].keys();
        lines.any(|line| {
            line.split_once(" HALT")
                .map_or(line.as_str(), |(head, _)| head)
                == command
                || *line == command
        })
    }

    /// Starts it again with a failpoint armed; it may die of it before it serves.
    async fn start_armed(&mut self, failpoint: &str) -> Result<Option<Api>> {
        self.gateway
            .set_environment("OVFLEET_FAILPOINT", Some(failpoint));
        let started = self.gateway.start_again().await;
        self.gateway.set_environment("OVFLEET_FAILPOINT", None);
        let serving = async {
            started?;
            let mut api = Api::connect(&self.gateway).await?;
            wait_attached(&mut api).await?;
            Ok(api)
        };
        let serving: Result<Api> = serving.await;
        if let Err(error) = serving {
            self.has_died().await.context(error)?;
            return Ok(None);
        }
        serving.map(Some)
    }

    /// It has ended, or is about to, and by its failpoint.
    async fn has_died(&mut self) -> Result<()> {
        let status = self.gateway.wait_ended(DIES).await?;
        let ended_by = status.signal();
        ensure!(ended_by == Some(Signal::KILL.as_raw()), "{status}");
        Ok(())
    }

    /// Lets it die at a start, in one of the migrations of a file of the first version.
    pub(super) async fn die_in_migration(
        &mut self,
        point: &str,
        random: &mut Random,
    ) -> Result<()> {
        let migrations = go_back(&self.directory.path().join("state/state.db"))?;
        let failpoint = format!("{point}=kill@{}", 1 + random.below(migrations));
        let serving = self.start_armed(&failpoint).await?;
        ensure!(
            serving.is_none(),
            "it served, and nothing had to be migrated"
        );
        Ok(())
    }

    /// Ends it as `kill -9` does. The daemons lose who is left of their clients, so that none has more than another day.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.gateway.signal(Signal::KILL)?;
        self.gateway.wait_ended(SOON).await?;
        for daemon in &self.daemons {
            for client in daemon.clients().await? {
                // One that was killed may just have gone by itself.
                let _ = daemon.leave(client.cid, How::PingTimeout).await;
            }
        }
        Ok(())
    }

    /// A gateway's life until it dies of its failpoint: kills and changes under way, facts from the daemons.
    pub(super) async fn live(
        &mut self,
        random: &mut Random,
        crash: usize,
        (point, time): (&str, u64),
    ) -> Result<Vec<Asked>> {
        let failpoint = format!("{point}=kill@{time}");
        let Some(mut api) = self.start_armed(&failpoint).await? else {
            return Ok(Vec::new());
        };
        let Self {
            daemons,
            gateway,
            said,
            registry,
            ..
        } = self;
        let calls = api.clone();
        let mut all = Vec::new();
        let mut victims = victims(daemons, &mut api, format!("{crash}.0")).await?;
        let asking = async {
            for round in 1.. {
                let answers =
                    join_all(victims.iter().map(|asked| kill(calls.clone(), asked))).await;
                for (mut asked, answer) in victims.into_iter().zip(answers) {
                    asked.answer = answer;
                    all.push(asked);
                }
                // On a busy machine some kills do not come as far as its point: more of them do.
                let comes_to_it = !point.starts_with("action.");
                if comes_to_it || calls.clone().instances().await.is_err() {
                    break;
                }
                victims = self::victims(daemons, &mut api, format!("{crash}.{round}")).await?;
            }
            Ok(())
        };
        let talk = async {
            // Until it dies: what the daemons say keeps its journal busy, and what is said of instances its registry.
            let died = poll_until("the gateway to die", DIES, async || {
                for (lane, daemon) in daemons.iter().enumerate() {
                    let carrier =
                        *random.pick(&[Carrier::Echo, Carrier::Info, Carrier::Unrecognized]);
                    let number = note(said, lane, carrier);
                    if daemon.raw(carrier.line(number)).await.is_err() {
                        // On nobody's wire: there is no manager.
                        take_back(said, lane);
                    }
                }
                registry.change(&calls, random).await;
                Ok(gateway.has_ended()?.then_some(()))
            });
            died.await
        };
        let (asked, died): (Result<()>, _) = tokio::join!(asking, talk);
        asked?;
        died?;
        self.has_died().await?;
        Ok(all)
    }
}

/// Clients to kill, on all daemons in turn; the gateway knows them all, or has died.
async fn victims(daemons: &[Daemon], api: &mut Api, round: String) -> Result<Vec<Asked>> {
    let mut victims = Vec::new();
    for number in 0..KILLS {
        let lane = number % DAEMONS;
        let name = format!("victim {round}.{number}");
        let client = ClientSpec::new(name.as_str()).stays_away();
        let cid = daemons[lane].connect(client).await?;
        let id = format!("crash-{round}-{number}");
        victims.push(Asked {
            id,
            lane,
            cid,
            name,
            answer: None,
        });
    }
    let names = victims.iter().map(|victim| victim.name.clone()).collect();
    let request = ListClientsRequest {
        filter: Some(ClientFilter {
            common_names: names,
            ..Default::default()
        }),
        ..Default::default()
    };
    poll_until("the victims to be known, or the end", SOON, async || {
        let Ok(known) = api.fleet.list_clients(timed(request.clone())).await else {
            return Ok(Some(()));
        };
        Ok((known.into_inner().clients.len() == KILLS).then_some(()))
    })
    .await?;
    Ok(victims)
}

/// Waits for the daemons; what was defined at run time is nowhere.
pub(super) async fn wait_attached(api: &mut Api) -> Result<()> {
    for lane in 0..DAEMONS {
        let name = format!("sim{lane}");
        api.wait_condition(&name, Condition::Attached, SOON).await?;
    }
    Ok(())
}
