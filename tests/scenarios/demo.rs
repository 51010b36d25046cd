//! The first minute with the program: one command, a living fleet.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use ovfleet_tests::run_cli;

/// Whoever tries the demo and sees nothing move, or an error, does not come back.
#[tokio::test]
async fn the_demo_lives_and_ends() -> Result<()> {
    let demo = run_cli(&["demo", "--for", "5s", "--port", "0"], &[]).await?;
    ensure!(demo.code == Some(0), "{demo:?}");
    for word in ["ovfleet clients", "connected"] {
        ensure!(demo.stdout.contains(word), "nothing about {word}: {demo:?}");
    }
    Ok(())
}

/// The same with real daemons, which it has to find, set up and clean away.
#[tokio::test]
async fn the_demo_runs_real_daemons() -> Result<()> {
    let demo = run_cli(&["demo", "--openvpn", "--for", "10s", "--port", "0"], &[]).await?;
    ensure!(demo.code == Some(0), "{demo:?}");
    ensure!(demo.stdout.contains("connected"), "{demo:?}");
    Ok(())
}

/// A port that is taken is somebody else's: say which, and end.
#[tokio::test]
async fn a_taken_port_is_a_clear_error() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let demo = run_cli(&["demo", "--for", "5s", "--port", &port], &[]).await?;
    ensure!(demo.code.is_some_and(|code| code != 0), "{demo:?}");
    ensure!(demo.stderr.contains(&port), "{demo:?}");
    Ok(())
}
