//! Questions of an OpenVPN client that no recording has; the words are those of the source.

use openvpn_simulator::{ClientMode, Daemon};

use crate::compare::Comparison;
use crate::script::play;

async fn check(name: &str, client: ClientMode, script: &str) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::builder(name)
        .unix(directory.path().join("daemon.sock"))
        .client(client)
        .start()
        .await
        .unwrap();
    let no_steps = async |_: &Daemon, step: &str| panic!("unknown step {step}");
    play(&daemon, name, script, Comparison::default(), no_steps).await;
}

/// Each is asked in its turn, again to a new manager, and takes only its own answer.
#[tokio::test]
async fn confirmations_words_and_proxies() {
    let client = ClientMode::new()
        .remote("vpn.example", 443, "tcp4")
        .need_ok("token-insertion-request", "Please insert TOKEN")
        .need_str("name", "Please specify your name")
        .query_proxy();
    check(
        "asks",
        client,
        "\
-- connected
S: >INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info
S: >NEED-OK:Need 'token-insertion-request' confirmation MSG:Please insert TOKEN
C: needstr name John
S: ERROR: no needstr-string is currently needed at this time
C: needok other ok
S: ERROR: needok-confirmation of type 'other' entered, but we need one of type 'token-insertion-request'
C: needok token-insertion-request ok
S: SUCCESS: 'token-insertion-request' needok-confirmation entered, but not yet verified
S: >NEED-STR:Need 'name' string MSG:Please specify your name
C: needstr name John
S: SUCCESS: 'name' needstr-string entered, but not yet verified
S: >PROXY:1,TCP,vpn.example
-- client closed
-- connected
S: >INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info
S: >PROXY:1,TCP,vpn.example
C: proxy HTTP
S: ERROR: proxy command failed
C: proxy HTTP proxy.example 3128
S: SUCCESS: proxy command succeeded
C: state
S: 1795186979,CONNECTED,SUCCESS,10.8.0.2,vpn.example,443,,
S: END
",
    )
    .await;
}

/// A remote can be passed over or replaced, and wrong credentials are asked for once more.
#[tokio::test]
async fn remotes_and_wrong_credentials() {
    let client = ClientMode::new()
        .remote("192.0.2.1", 1194, "udp4")
        .remote("192.0.2.2", 1195, "udp4")
        .query_remote()
        .credentials("user", "right");
    check(
        "retries",
        client,
        "\
-- connected
S: >INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info
S: >PASSWORD:Need 'Auth' username/password
C: password Auth wrong
S: SUCCESS: 'Auth' password entered, but not yet verified
C: username Auth user
S: SUCCESS: 'Auth' username entered, but not yet verified
S: >REMOTE:192.0.2.1,1194,udp4
C: remote SKIP
S: SUCCESS: remote command succeeded
S: >REMOTE:192.0.2.2,1195,udp4
C: remote MOD 192.0.2.9 1199
S: SUCCESS: remote command succeeded
S: >PASSWORD:Verification Failed: 'Auth'
S: >REMOTE:192.0.2.2,1195,udp4
C: remote MOD 192.0.2.9 1199
S: SUCCESS: remote command succeeded
S: >PASSWORD:Need 'Auth' username/password
C: username Auth user
S: SUCCESS: 'Auth' username entered, but not yet verified
C: password Auth right
S: SUCCESS: 'Auth' password entered, but not yet verified
C: state
S: 1795186979,CONNECTED,SUCCESS,10.8.0.2,192.0.2.9,1199,,
S: END
",
    )
    .await;
}
