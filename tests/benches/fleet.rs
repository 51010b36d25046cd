//! Simulated daemons, and a gateway that holds them.

use std::{path::Path, time::Duration};

use anyhow::Result;
use openvpn_simulator::{Daemon, Timing};
use ovfleet_proto::v1::{Condition, ListInstancesRequest};
use ovfleet_tests::{Api, Gateway, GatewayConfig, InstanceConfig, api::timed, poll_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long a whole fleet may take to be attached.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(60);
/// Rows of a page.
const PAGE: i32 = 1_000;

/// Lets this process, and what it starts, have as many sockets as the system allows: a
/// simulated daemon has two.
pub(crate) fn raise_open_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(())
}

/// Daemons whose idle clients are silent, so that traffic does not blur the figures.
pub(crate) async fn start_daemons(directory: &Path, count: usize) -> Result<Vec<Daemon>> {
    let timing = Timing {
        keepalive: Duration::from_hours(1),
        ..Timing::default()
    };
    let mut daemons = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("node-{number:04}");
        let socket = directory.join(format!("{name}.sock"));
        // Of one name or of several: a daemon looks for no namesake.
        let builder = Daemon::builder(name)
            .unix(socket)
            .duplicate_cn()
            .timing(timing);
        daemons.push(builder.start().await?);
    }
    Ok(daemons)
}

/// The configuration of a gateway with these daemons.
pub(crate) fn config<'a>(daemons: impl IntoIterator<Item = &'a Daemon>) -> GatewayConfig {
    let instances = daemons
        .into_iter()
        .map(|daemon| InstanceConfig::new(daemon.name(), &daemon.address().to_string()));
    instances.fold(GatewayConfig::new(), GatewayConfig::instance)
}

/// Waits until all `count` instances are ATTACHED and `clients` clients are listed.
pub(crate) async fn wait_attached(gateway: &Gateway, count: usize, clients: u64) -> Result<()> {
    let mut api = Api::connect(gateway).await?;
    poll_until("all instances to be attached", ATTACH_TIMEOUT, async || {
        let (mut attached, mut listed) = (0, 0);
        let mut request = ListInstancesRequest {
            page_size: PAGE,
            ..Default::default()
        };
        loop {
            let page = api
                .fleet
                .list_instances(timed(request.clone()))
                .await?
                .into_inner();
            for status in page
                .instances
                .into_iter()
                .filter_map(|instance| instance.status)
            {
                attached += usize::from(status.condition() == Condition::Attached);
                listed += status.clients;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok((attached == count && listed == clients).then_some(()))
    })
    .await
}

/// How often managers have sent a daemon `command`.
pub(crate) fn times_sent(daemon: &Daemon, command: &[u8]) -> usize {
    let commands = daemon.commands();
    commands
        .iter()
        .filter(|line| line.starts_with(command))
        .count()
}
