//! Certificates on PKCS#11 tokens: which one, is it there, and what opens it.

use anyhow::{Result, ensure};
use ovfleet_proto::v1::{
    ListPkcs11IdsRequest, NeedOkAnswer, NeedStrAnswer, PasswordAnswer,
    answer_question_request::Answer, event::Detail, open_question::Question,
};
use ovfleet_tests::{Server, Token, api::timed};

use super::{Road, SOON, ensure_unseen};

/// A person with a smart card: chooses the certificate from those that are there, and types the PIN.
#[tokio::test]
async fn a_certificate_on_a_token_is_chosen_and_opened() -> Result<()> {
    const PIN: &str = "canary-4711";
    let server = Server::builder("gate").start().await?;
    let token = Token::with_client("lab", PIN, "alice")?;
    let mut road = Road::start().await?;
    let client = road.client(&server).token(&token);
    let _client = client.option("pkcs11-id-management").start()?;

    let asked = road.question(1).await?;
    ensure!(
        matches!(&asked.question, Some(Question::NeedStr(need)) if need.r#type == "pkcs11-id-request"),
        "{asked:?}"
    );
    let request = ListPkcs11IdsRequest {
        instance: "road".to_owned(),
    };
    let listed = road.api.instance.list_pkcs11_ids(timed(request)).await?;
    let ids = listed.into_inner().ids;
    ensure!(
        ids.len() == 1 && ids[0].id.contains("/lab/") && !ids[0].certificate_base64.is_empty(),
        "{ids:?}"
    );
    let value = ids[0].id.clone();
    road.answer(&asked, Answer::NeedStr(NeedStrAnswer { value }))
        .await?;

    let asked = road.question(2).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Password(key)) if key.r#type == "lab token"),
        "{asked:?}"
    );
    let password = PIN.to_owned();
    road.answer(&asked, Answer::Password(PasswordAnswer { password }))
        .await?;
    road.wait_connected().await?;
    ensure_unseen(&road.gateway, &mut road.api, &road.events, "road", PIN).await
}

/// A token that is not there is asked for until it is, or until somebody says that it will not come.
#[tokio::test]
async fn a_token_that_is_missing_is_asked_for() -> Result<()> {
    let server = Server::builder("gate").start().await?;
    let token = Token::none()?;
    let mut road = Road::start().await?;
    let mut client = road
        .client(&server)
        .token(&token)
        .option(r"pkcs11-id 'SoftHSM\x20project/SoftHSM\x20v2/0123456789abcdef/lab/01'")
        .start()?;
    for (id, ok) in [(1, true), (2, true), (3, false)] {
        let asked = road.question(id).await?;
        let Some(Question::NeedOk(need)) = &asked.question else {
            anyhow::bail!("{asked:?}");
        };
        ensure!(
            need.r#type == "token-insertion-request" && need.message == "Please insert lab token",
            "{asked:?}"
        );
        road.answer(&asked, Answer::NeedOk(NeedOkAnswer { ok }))
            .await?;
    }
    // A client without its certificate is none.
    client.wait_ended(SOON).await?;
    let (fatal, _) = road
        .events
        .wait_event("its last words", SOON, |event| {
            event.kind == "instance.fatal"
        })
        .await?;
    ensure!(
        matches!(&fatal.detail, Some(Detail::Text(last)) if last.text.contains("private key")),
        "{fatal:?}"
    );
    Ok(())
}
