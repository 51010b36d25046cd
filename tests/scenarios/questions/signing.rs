//! A key that only the manager has: the daemon asks for each signature, and for the certificate if it lacks that too.

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    CertificateAnswer, OpenQuestion, SignatureAnswer, SignatureQuestion,
    answer_question_request::Answer, open_question::Question,
};
use ovfleet_tests::{Client, Server, poll_until};

use super::{Road, SOON, managed};

/// PKCS#1 padding is for TLS 1.2 only, and there only for a server that takes no other.
const PKCS1_ONLY: &str = "ClientSignatureAlgorithms = RSA+SHA256";

/// A key in a keychain or an HSM signs what the daemon cannot: EC keys know one form only.
#[tokio::test]
async fn an_ec_key_signs_for_its_daemon() -> Result<()> {
    let server = Server::builder("gate").start().await?;
    let mut road = Road::start().await?;
    let client = road.client(&server).external_key("").start()?;
    let asked = road.question(1).await?;
    ensure!(signature(&asked)?.algorithm == "ECDSA", "{asked:?}");
    sign(&mut road, &client, &asked).await
}

/// RSA keys pad in one of several ways. Whoever signs must be told which, or signs something that the server refuses.
///
/// The third, `RSA_NO_PADDING`, is not to be had: since OpenSSL 3 no TLS handshake asks its key for that.
#[tokio::test]
async fn an_rsa_key_signs_with_pss_padding() -> Result<()> {
    let server = Server::builder("gate").start().await?;
    let mut road = Road::start().await?;
    let client = road.client(&server).external_rsa_key("pss").start()?;
    let asked = road.question(1).await?;
    ensure!(
        signature(&asked)?.algorithm == "RSA_PKCS1_PSS_PADDING,hashalg=SHA256,saltlen=digest",
        "{asked:?}"
    );
    sign(&mut road, &client, &asked).await
}

/// The other padding, of the same daemon.
#[tokio::test]
async fn an_rsa_key_signs_with_pkcs1_padding() -> Result<()> {
    let server = Server::builder("gate").openssl(PKCS1_ONLY).start().await?;
    let mut road = Road::start().await?;
    let client = road
        .client(&server)
        .external_rsa_key("nopadding pkcs1")
        .option("tls-version-max 1.2")
        .start()?;
    let asked = road.question(1).await?;
    ensure!(
        signature(&asked)?.algorithm == "RSA_PKCS1_PADDING",
        "{asked:?}"
    );
    sign(&mut road, &client, &asked).await
}

/// A daemon that asked before anybody told it what managers understand by now says `>RSA_SIGN`, and repeats it so.
#[tokio::test]
async fn a_signature_asked_for_in_the_old_form_is_given() -> Result<()> {
    let server = Server::builder("gate").openssl(PKCS1_ONLY).start().await?;
    let directory = tempfile::tempdir()?;
    let client = managed(&server, &directory)
        .external_rsa_key("")
        .option("tls-version-max 1.2")
        .start()?;
    // It has seen the server's certificate, and needs to show its own next.
    client.wait_log("VERIFY OK: depth=0", SOON).await?;
    let mut road = Road::in_directory(directory).await?;
    let asked = poll_until("the question, repeated", SOON, async || {
        Ok(road.api.status("road").await?.questions.pop())
    })
    .await?;
    ensure!(signature(&asked)?.algorithm.is_empty(), "{asked:?}");
    sign(&mut road, &client, &asked).await
}

/// A daemon may hold neither: then it asks for the certificate in its user's words, before it connects at all.
#[tokio::test]
async fn a_certificate_is_presented() -> Result<()> {
    let server = Server::builder("gate").start().await?;
    let mut road = Road::start().await?;
    let hint = "macosx-keychain:subject:o=Lab, cn=alice";
    let client = road.client(&server).external_certificate(hint).start()?;
    let asked = road.question(1).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Certificate(wanted)) if wanted.hint == hint),
        "{asked:?}"
    );
    let pem = client.certificate().to_owned();
    let presented = Answer::Certificate(CertificateAnswer { pem });
    road.answer(&asked, presented).await?;
    let asked = road.question(2).await?;
    sign(&mut road, &client, &asked).await
}

fn signature(asked: &OpenQuestion) -> Result<&SignatureQuestion> {
    match &asked.question {
        Some(Question::Signature(wanted)) => Ok(wanted),
        _ => Err(anyhow::anyhow!("no signature: {asked:?}")),
    }
}

/// Signs what is asked for, which lets the client in.
async fn sign(road: &mut Road, client: &Client, asked: &OpenQuestion) -> Result<()> {
    let wanted = signature(asked)?;
    let signature = client
        .sign(&wanted.data, &wanted.algorithm)
        .with_context(|| format!("{wanted:?}"))?;
    let signature = signature.into();
    road.answer(asked, Answer::Signature(SignatureAnswer { signature }))
        .await?;
    road.wait_connected().await
}
