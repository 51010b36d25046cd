//! The lab itself, without a gateway: what the other scenarios stand on.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ovfleet_tests::{Client, Management, ODD_COMMON_NAMES, Proto, Server, Signal, Tap, poll_until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long a daemon may take to notice anything it notices at once.
const SOON: Duration = Duration::from_secs(10);

/// Odd names must reach the daemon's status unchanged, or no scenario about them means
/// anything; and a username need not be UTF-8.
#[tokio::test]
async fn odd_names_survive_openvpn() -> Result<()> {
    const USERNAME: &[u8] = b"caf\xe9 \xff\xfe";
    let mut server = Server::builder("odd").any_username().start().await?;
    let mut clients = Vec::new();
    for name in ODD_COMMON_NAMES {
        clients.push(Client::builder(&server, name).username(USERNAME).start()?);
    }
    for client in &mut clients {
        client.wait_connected(1).await?;
    }
    let status = server.fresh_status().await?;
    let mut seen: Vec<&[u8]> = status
        .clients
        .values()
        .map(|row| row.common_name.as_slice())
        .collect();
    let mut expected: Vec<&[u8]> = ODD_COMMON_NAMES
        .iter()
        .map(|name| name.as_bytes())
        .collect();
    seen.sort_unstable();
    expected.sort_unstable();
    ensure!(seen == expected, "{seen:?}");
    for row in status.clients.values() {
        ensure!(row.username == USERNAME, "{row:?}");
        ensure!(row.virtual_address.starts_with("10.24"), "{row:?}");
        ensure!(row.cipher == "AES-256-GCM", "{row:?}");
    }
    server.kill();
    Ok(())
}

/// Every kind of management address must work, and a client must be able to come and
/// to leave in each way there is.
#[tokio::test]
async fn clients_come_and_leave_in_every_way() -> Result<()> {
    // The server's ping timeout, 10 s, must not overtake the delayed exit, 5 s.
    let mut udp = Server::builder("udp")
        .keepalive(1, 5)
        .duplicate_cn()
        .start()
        .await?;
    let mut tcp = Server::builder("tcp")
        .proto(Proto::Tcp)
        .management(Management::Tcp)
        .password("s3cret pass")
        .start()
        .await?;
    let mut polite = Client::builder(&udp, "alice")
        .exit_notify()
        .connect()
        .await?;
    let mut silent = Client::builder(&udp, "alice").connect().await?;
    let mut stream = Client::builder(&tcp, "alice").connect().await?;
    ensure!(udp.fresh_status().await?.clients.len() == 2);
    ensure!(tcp.fresh_status().await?.clients.len() == 1);

    polite.leave().await?;
    // 2.6 on both sides: the notice comes on the control channel, the end 5 s later.
    udp.wait_log("CC-EEN exit message received by peer", 1, SOON)
        .await?;
    udp.wait_log("SIGTERM[soft,delayed-exit]", 1, SOON).await?;
    stream.vanish();
    tcp.wait_log("SIGUSR1[soft,connection-reset]", 1, SOON)
        .await?;
    silent.vanish();
    let silence = udp.silence_timeout() + SOON;
    udp.wait_log("Inactivity timeout (--ping-restart)", 1, silence)
        .await?;
    poll_until("the table to be empty", silence, async || {
        Ok(udp.fresh_status().await?.clients.is_empty().then_some(()))
    })
    .await
}

/// A restart keeps the management socket, a crash does not; clients come back by
/// themselves either way.
#[tokio::test]
async fn servers_restart_crash_and_hold() -> Result<()> {
    let mut server = Server::builder("phoenix").keepalive(1, 4).start().await?;
    let mut client = Client::builder(&server, "alice").connect().await?;
    server.signal(Signal::USR1)?;
    server
        .wait_log("Initialization Sequence Completed", 2, SOON)
        .await?;
    client.wait_connected(2).await?;

    let (pid, first) = (server.pid(), server.listening_since()?);
    server.kill();
    server.start_again().await?;
    ensure!(server.pid() != pid && server.listening_since()? > first);
    client.wait_connected(3).await?;

    let held = Server::builder("held").hold().start().await?;
    ensure!(!held.log_contains("Initialization Sequence Completed"));
    let mut manager = UnixStream::connect(held.socket_path())?;
    manager.set_read_timeout(Some(SOON))?;
    let mut lines = BufReader::new(manager.try_clone()?).lines();
    let greeting = lines.next().context("no greeting")??;
    ensure!(
        greeting.starts_with(">INFO:OpenVPN Management Interface"),
        "{greeting}"
    );
    let hold = lines.next().context("no hold")??;
    ensure!(hold.starts_with(">HOLD:"), "{hold}");
    manager.write_all(b"hold release\n")?;
    let mut held = held;
    held.wait_log("Initialization Sequence Completed", 1, SOON)
        .await
}

/// Whoever measures with a tap needs it to be transparent, to stamp, hold and cut; and
/// a TCP client that waits in one must finish its handshake after a later one.
#[tokio::test]
async fn taps_relay_hold_and_cut() -> Result<()> {
    let server = Server::builder("tapped")
        .proto(Proto::Tcp)
        .management(Management::Tcp)
        .start()
        .await?;
    let tap = Tap::tcp(&server.address()).await?;
    let mut manager = TcpStream::connect(("127.0.0.1", tap.port().context("no port")?)).await?;
    poll_until("the greeting", SOON, async || {
        Ok(tap.find(|line| line.starts_with(b">INFO:")))
    })
    .await?;
    manager.write_all(b"pid\n").await?;
    let pid = format!("SUCCESS: pid={}", server.pid());
    poll_until("the pid", SOON, async || {
        Ok(tap.find(|line| line == pid.as_bytes()))
    })
    .await?;
    tap.cut();
    let mut rest = Vec::new();
    manager.read_to_end(&mut rest).await?;

    let slow_path = Tap::tcp(&format!("tcp:127.0.0.1:{}", server.vpn_port())).await?;
    slow_path.hold();
    let port = slow_path.port().context("no port")?;
    let mut early = Client::builder(&server, "early").port(port).start()?;
    let mut server = server;
    server
        .wait_log("TCP connection established with", 1, SOON)
        .await?;
    let _late = Client::builder(&server, "late").connect().await?;
    slow_path.release();
    early.wait_connected(1).await?;
    let status = server.fresh_status().await?;
    let name = |cid| {
        status
            .clients
            .get(&cid)
            .map(|row| row.common_name.as_slice())
    };
    ensure!(
        name(0) == Some(b"early") && name(1) == Some(b"late"),
        "{status:?}"
    );
    Ok(())
}
