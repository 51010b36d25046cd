//! The same by command line: secrets go in by standard input, and come out nowhere.

use anyhow::{Result, ensure};

use super::{Lab, ensure_unseen, wait_connected, wait_question};

/// Whoever has only a terminal logs a client in, with its password and then its second factor.
#[tokio::test]
async fn a_client_is_logged_in_from_the_command_line() -> Result<()> {
    let lab = Lab::start(&[]).await?;
    let (mut api, mut approver) = (lab.api, lab.approver);
    let first = wait_question(&lab.events, 1).await?;
    let without = lab
        .gateway
        .cli_told(&["answer", "road"], "canary-pw")
        .await?;
    ensure!(without.code == Some(2), "{without:?}");
    ensure!(without.stderr.contains("--username"), "{without:?}");
    let login = ["answer", "road", "--username", "us er"];
    let answered = lab.gateway.cli_told(&login, "canary-pw\n").await?;
    ensure!(answered.code == Some(0), "{answered:?}");
    let attempt = approver.attempt().await?;
    ensure!(attempt.password == "canary-pw", "{attempt:?}");
    approver
        .challenge(&attempt, "CRV1:R,E:canary-state:dXMgZXI=:Second factor")
        .await?;

    let second = wait_question(&lab.events, first.id + 1).await?;
    let asked = lab.gateway.cli(&["questions"]).await?;
    ensure!(asked.stdout.contains("road"), "{asked:?}");
    let number = second.id.to_string();
    let stale = ["answer", "road", "--id", "999"];
    let stale = lab.gateway.cli_told(&stale, "canary-8675309").await?;
    ensure!(stale.code == Some(1), "{stale:?}");
    let response = ["answer", "road", "--id", &number];
    let responded = lab.gateway.cli_told(&response, "canary-8675309\n").await?;
    ensure!(responded.code == Some(0), "{responded:?}");
    let attempt = approver.attempt().await?;
    ensure!(
        attempt.password == "CRV1::canary-state::canary-8675309",
        "{attempt:?}"
    );
    approver.approve(&attempt).await?;
    wait_connected(&mut api).await?;

    let nothing = lab
        .gateway
        .cli_told(&["answer", "road"], "canary-pw")
        .await?;
    ensure!(nothing.code == Some(1), "{nothing:?}");
    ensure!(nothing.stderr.contains("asks nothing"), "{nothing:?}");
    let said = format!("{without:?} {answered:?} {asked:?} {stale:?} {responded:?} {nothing:?}");
    for secret in ["canary-pw", "canary-state", "canary-8675309"] {
        ensure!(!said.contains(secret), "{secret} shows: {said}");
        ensure_unseen(&lab.gateway, &mut api, &lab.events, "road", secret).await?;
    }
    Ok(())
}
