//! Daemons that are clients: they ask, connect and count, and have no clients of their own.

use std::sync::Arc;
use std::time::Duration;

use openvpn_fleet::{Answer, Instance, Question, remote_skip};
use openvpn_management::{DaemonState, NeedOkAnswer, RemoteAnswer, Secret};
use openvpn_session::Mode;
use openvpn_simulator::{ClientMode, Daemon};

use crate::lab::{Lab, context, quick, until};

async fn start(lab: &Lab, client: ClientMode) -> (Daemon, Arc<Instance>) {
    let daemon = Daemon::builder("road")
        .unix(lab.directory.path().join("road"))
        .client(client)
        .private_key_password("canary-key")
        .hold()
        .timing(quick())
        .start()
        .await
        .expect("the daemon starts");
    let mut spec = lab.spec("road");
    Arc::make_mut(&mut spec.session).bytecount = Some(Duration::from_secs(1));
    lab.fleet.set_instances(vec![spec]).await.expect("no clash");
    (daemon, lab.fleet.instance("road").expect("it was added"))
}

/// Answers the question that is open, once one is, and gives it.
async fn answer(lab: &Lab, instance: &Arc<Instance>, answer: Answer) -> Question {
    until(instance, |table| {
        table
            .status()
            .open_questions
            .iter()
            .any(|asked| asked.question.takes(&answer))
    })
    .await;
    let asked = instance.with_table(|table| table.status().open_questions.clone());
    assert_eq!(asked.len(), 1, "{asked:?}");
    let context = context();
    let answered = lab.fleet.answer(instance, asked[0].id, answer, &context);
    answered.await.expect("it is taken");
    asked[0].question.clone()
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// A held client is brought up by its answers alone, each to the question it is for, and those in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_brought_up_by_its_answers() {
    let lab = Lab::new();
    let client = ClientMode::new()
        .need_ok("token-insertion-request", "Please insert lab token")
        .need_str("pkcs11-id-request", "Please specify PKCS#11 id to use")
        .credentials("alice", "SCRV1:Y2FuYXJ5:MTIzNA==")
        .static_challenge("1,Enter PIN")
        .remote("192.0.2.1", 1194, "udp4")
        .remote("192.0.2.2", 1194, "udp4")
        .query_remote();
    let (_daemon, instance) = start(&lab, client).await;
    let asked = answer(&lab, &instance, Answer::NeedOk(NeedOkAnswer::Ok)).await;
    assert!(matches!(asked, Question::NeedOk { .. }), "{asked:?}");
    let asked = answer(&lab, &instance, Answer::NeedStr("SoftHSM/lab/01".into())).await;
    assert!(
        matches!(&asked, Question::NeedStr { kind, .. } if *kind == "pkcs11-id-request"),
        "{asked:?}"
    );
    answer(&lab, &instance, Answer::Password(secret("canary-key"))).await;
    let login = Answer::Credentials {
        username: "alice".into(),
        password: secret("canary"),
        response: secret("1234"),
    };
    let asked = answer(&lab, &instance, login).await;
    assert!(
        matches!(
            &asked,
            Question::Credentials {
                challenge: Some(_),
                ..
            }
        ),
        "{asked:?}"
    );
    for (host, reply) in [
        ("192.0.2.1", remote_skip(1)),
        ("192.0.2.2", RemoteAnswer::Accept),
    ] {
        let asked = answer(&lab, &instance, Answer::Remote(reply)).await;
        assert!(
            matches!(&asked, Question::Remote { host: named, .. } if *named == *host),
            "{asked:?}"
        );
    }
    until(&instance, |table| {
        let status = table.status();
        status.state == Some(DaemonState::Connected)
            && status.mode == Mode::Client
            && status.open_questions.is_empty()
            && !status.holding
    })
    .await;
}

/// What a client carries is counted from when we came: over lost sessions, restarts and another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_carries_is_counted() {
    let lab = Lab::new();
    let (daemon, instance) = start(&lab, ClientMode::new()).await;
    answer(&lab, &instance, Answer::Password(secret("canary-key"))).await;
    until(&instance, |table| {
        table.status().state == Some(DaemonState::Connected)
    })
    .await;
    // The handshake is the first that it carried.
    until(&instance, |table| table.status().bytes_received > 0).await;
    let (received, sent) = counted(&instance);
    daemon.add_link_traffic(1_000, 200).await.expect("runs");
    until_counted(&instance, received + 1_000, sent + 200).await;
    daemon.drop_session().await.expect("runs");
    daemon.add_link_traffic(30, 4).await.expect("runs");
    until_counted(&instance, received + 1_030, sent + 204).await;
    daemon.kill().await;
    daemon.start_again().await.expect("starts");
    answer(&lab, &instance, Answer::Password(secret("canary-key"))).await;
    // Another handshake of the same size.
    until_counted(&instance, 2 * received + 1_030, 2 * sent + 204).await;
    let statistics = instance.with_table(|table| table.status().statistics.clone());
    assert!(statistics.is_some());
}

fn counted(instance: &Instance) -> (u64, u64) {
    instance.with_table(|table| (table.status().bytes_received, table.status().bytes_sent))
}

async fn until_counted(instance: &Instance, received: u64, sent: u64) {
    until(instance, |table| {
        let status = table.status();
        (status.bytes_received, status.bytes_sent) == (received, sent)
    })
    .await;
}
