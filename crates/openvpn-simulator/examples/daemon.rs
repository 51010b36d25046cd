//! Simulated daemons to talk to by hand: `daemon SOCKET [CLIENTS]`, then `socat - UNIX:SOCKET`.

#![allow(clippy::print_stdout, reason = "it says where to connect")]

use std::error::Error;

use openvpn_simulator::{ClientSpec, Daemon};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: daemon SOCKET [CLIENTS]")?;
    let clients: u32 = arguments.next().map_or(Ok(0), |count| count.parse())?;
    let daemon = Daemon::builder("example").unix(socket).start().await?;
    for number in 0..clients {
        daemon
            .connect(ClientSpec::new(format!("client-{number}")))
            .await?;
    }
    println!(
        "{} serves {clients} clients; Ctrl-C ends it",
        daemon.address()
    );
    tokio::select! {
        () = daemon.wait_stopped() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
