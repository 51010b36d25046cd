//! Looks at an address that leave no trace.

use std::time::Duration;

use openvpn_session::{Address, DisconnectPolicy, Probe, probe};

use crate::support::{Daemon, PATIENCE, within};

/// A look that wrote anything would be a command to a daemon that may be somebody else's.
#[tokio::test]
async fn a_look_says_what_it_sees_and_writes_nothing() {
    let daemon = Daemon::listen();
    for (words, expected) in [
        (
            ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n",
            Probe::Greeted {
                management_version: Some(5),
            },
        ),
        ("ENTER PASSWORD:", Probe::PasswordAsked),
    ] {
        let config = daemon.config();
        let looking = tokio::spawn(async move { probe(&config, PATIENCE).await });
        let mut manager = daemon.accept().await;
        manager.write(words).await;
        assert_eq!(within(looking).await.unwrap(), expected);
        manager.expect_end().await;
    }
    let config = daemon.config();
    let looking = tokio::spawn(async move { probe(&config, PATIENCE).await });
    let mut manager = daemon.accept().await;
    manager.write("HTTP/1.1 400 Bad Request\r\n").await;
    let found = within(looking).await.unwrap();
    assert!(matches!(found, Probe::Unreachable { .. }), "{found:?}");
    manager.expect_end().await;

    // Somebody else holds the slot: our place in line is given up without a word.
    let found = probe(&daemon.config(), Duration::from_millis(50)).await;
    assert_eq!(found, Probe::Silent);
    daemon.accept().await.expect_end().await;
}

/// To such a daemon the end of a look is the end of a session.
#[tokio::test]
async fn a_daemon_that_a_look_could_harm_is_left_alone() {
    let daemon = Daemon::listen();
    let mut fragile = daemon.config();
    fragile.disconnect = DisconnectPolicy::Destructive;
    let mut dials_in = daemon.config();
    dials_in.address = Address::ListenUnix(daemon.path.clone());
    for config in [fragile, dials_in] {
        let found = probe(&config, PATIENCE).await;
        assert!(matches!(found, Probe::NotTried { .. }), "{found:?}");
    }
    // Whoever had come would be in line before this one.
    let config = daemon.config();
    let looking = tokio::spawn(async move { probe(&config, PATIENCE).await });
    let mut first = daemon.accept().await;
    first.greet().await;
    assert!(matches!(
        within(looking).await.unwrap(),
        Probe::Greeted { .. }
    ));
}
