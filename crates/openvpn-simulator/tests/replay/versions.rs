//! Replays of what real servers of 2.4.12, 2.5.11 and 2.7.6 said.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use openvpn_simulator::{ClientSpec, Daemon, DaemonBuilder, How, Timing, Version};
use tokio::time::{sleep, timeout};

use crate::compare::Comparison;
use crate::manager::PATIENCE;
use crate::script::play;

/// What another certificate, another tunnel or another amount of traffic changes. These servers
/// ran on a tunnel device that was there already, so that they did not say `ASSIGN_IP`.
const NOISE: &[&str] = &[
    "BYTECOUNT_CLI",
    ",ASSIGN_IP,",
    ">CLIENT:ENV,X509_0_O",
    ">CLIENT:ENV,X509_0_C=",
    ">CLIENT:ENV,time_duration",
    ">CLIENT:ENV,redirect_gateway",
    "Max bcast/mcast queue length",
];

/// A server like those of the transcripts.
fn server(version: Version, network: u8, directory: &tempfile::TempDir) -> DaemonBuilder {
    let ipv6 = Ipv6Addr::new(0xfd00, u16::from(network) + 0x90 - 90, 0, 0, 0, 0, 0, 0);
    Daemon::builder(version.to_string())
        .version(version)
        .unix(directory.path().join("daemon.sock"))
        .dual_stack()
        .duplicate_cn()
        .network(Ipv4Addr::new(10, network, 0, 0), 16)
        .network_ipv6(ipv6)
}

/// Steps: `connect ADDRESS NAME`, `half-open`, `complete CID ADDRESS NAME`, `leave CID`,
/// `gone CID`, `reauthenticate CID`.
async fn step(daemon: &Daemon, step: &str, client: impl Fn(&str, &str) -> ClientSpec) {
    let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
    let (first, after) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "connect" => {
            daemon.connect(client(after, first)).await.unwrap();
        }
        "half-open" => {
            daemon.half_open().await.unwrap();
        }
        "complete" => {
            let (address, name) = after.split_once(' ').unwrap();
            let cid = first.parse().unwrap();
            daemon.complete(cid, client(name, address)).await.unwrap();
        }
        "leave" => {
            let cid = first.parse().unwrap();
            daemon.leave(cid, How::ExitNotify).await.unwrap();
        }
        "gone" => gone(daemon, first.parse().unwrap()).await,
        "reauthenticate" => {
            let cid = first.parse().unwrap();
            daemon.reauthenticate(cid).await.unwrap();
        }
        _ => panic!("unknown step {step}"),
    }
}

/// Waits until a client is no longer listed.
async fn gone(daemon: &Daemon, cid: u64) {
    let gone = async {
        while (daemon.clients().await.unwrap().iter()).any(|client| client.cid == cid) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the client stays");
}

fn comparison() -> Comparison {
    Comparison {
        noise: NOISE,
        ..Comparison::default()
    }
}

/// Every command in good and bad form: texts, forms of reply, what a version has not.
async fn commands(version: Version, transcript: &str) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = server(version, 90, &directory)
        .password("pw 1")
        .start()
        .await
        .unwrap();
    play(
        &daemon,
        "commands",
        transcript,
        comparison(),
        async |_, step| {
            panic!("unknown step {step}");
        },
    )
    .await;
}

/// Clients of both families in notifications and `status`, kills, a leave; then each signal.
async fn clients_and_signals(version: Version, transcript: &str) {
    let directory = tempfile::tempdir().unwrap();
    let timing = Timing {
        restart_pause: version.restart_pause(),
        delayed_exit: Duration::from_millis(100),
        ..Timing::default()
    };
    let daemon = server(version, 91, &directory)
        .timing(timing)
        .start()
        .await
        .unwrap();
    let client = |name: &str, address: &str| {
        ClientSpec::new(name)
            .real_address(address.parse::<SocketAddr>().unwrap())
            .stays_away()
    };
    play(
        &daemon,
        "clients",
        transcript,
        comparison(),
        async |daemon, text| {
            step(daemon, text, client).await;
        },
    )
    .await;
    daemon.wait_stopped().await;
}

/// A client that the manager approves, that negotiates new keys, and that it denies.
async fn client_auth(version: Version, transcript: &str) {
    let directory = tempfile::tempdir().unwrap();
    let timing = Timing {
        return_after_kill: Duration::from_millis(100),
        delayed_exit: Duration::from_secs(2),
        ..Timing::default()
    };
    let daemon = server(version, 96, &directory)
        .client_auth()
        .timing(timing)
        .start()
        .await
        .unwrap();
    let client = |name: &str, address: &str| {
        let mut client = ClientSpec::new(name)
            .username("alice-user")
            .real_address(address.parse::<SocketAddr>().unwrap());
        client.password = Some("hunter2, \"q\" \\ é".into());
        // That client negotiated another key before it noticed.
        if version == Version::V2_7 {
            client = client.stays_away();
        }
        client
    };
    play(
        &daemon,
        "client-auth",
        transcript,
        comparison(),
        async |daemon, text| {
            step(daemon, text, client).await;
        },
    )
    .await;
}

/// A held daemon, and how it takes a signal.
async fn hold(version: Version, transcript: &str) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = server(version, 98, &directory)
        .hold()
        .start()
        .await
        .unwrap();
    play(
        &daemon,
        "hold",
        transcript,
        comparison(),
        async |_, step| {
            panic!("unknown step {step}");
        },
    )
    .await;
}

macro_rules! replays {
    ($module:ident, $version:ident, $directory:literal) => {
        mod $module {
            use openvpn_simulator::Version;

            #[tokio::test]
            async fn commands() {
                let transcript =
                    include_str!(concat!("transcripts/", $directory, "/01-commands.txt"));
                super::commands(Version::$version, transcript).await;
            }

            #[tokio::test]
            async fn clients_and_signals() {
                let transcript = include_str!(concat!(
                    "transcripts/",
                    $directory,
                    "/02-clients-and-signals.txt"
                ));
                super::clients_and_signals(Version::$version, transcript).await;
            }

            #[tokio::test]
            async fn client_auth() {
                let transcript =
                    include_str!(concat!("transcripts/", $directory, "/04-client-auth.txt"));
                super::client_auth(Version::$version, transcript).await;
            }

            #[tokio::test]
            async fn hold() {
                let transcript = include_str!(concat!("transcripts/", $directory, "/05-hold.txt"));
                super::hold(Version::$version, transcript).await;
            }
        }
    };
}

replays!(v2_4, V2_4, "v2.4.12");
replays!(v2_5, V2_5, "v2.5.11");
replays!(v2_7, V2_7, "v2.7.6");
