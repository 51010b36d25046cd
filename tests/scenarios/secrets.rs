//! Files that instances name which callers define: those of one directory, and no others.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ovfleet_proto::v1::{
    Condition, CreateInstanceRequest, InstanceDefinition, PauseInstanceRequest,
};
use ovfleet_tests::{Api, GatewayConfig, api::timed, poll_until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

/// A password is refused, or sent, within milliseconds.
const SOON: Duration = Duration::from_secs(20);

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// Somebody who asks for a password, and keeps what is sent.
async fn thief() -> Result<(String, watch::Receiver<Vec<u8>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("tcp:{}", listener.local_addr()?);
    let (got, seen) = watch::channel(Vec::new());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Who leaves in the middle is no news.
            let _ = stream.write_all(b"ENTER PASSWORD:").await;
            let mut buffer = [0; 256];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                got.send_modify(|all| all.extend_from_slice(&buffer[..length]));
            }
        }
    });
    Ok((address, seen))
}

/// Fails if whoever may define instances can have a file sent to an address of its choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_gets_no_file_but_those_that_are_there_for_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("secrets"))?;
    write(&path("secrets/good"), "good-word\n")?;
    write(&path("private"), "private-word\n")?;
    symlink(path("private"), path("secrets/link"))?;
    symlink("..", path("secrets/up"))?;
    let (address, mut seen) = thief().await?;
    let define = |name: &str, file: &Path| CreateInstanceRequest {
        instance: Some(InstanceDefinition {
            name: name.to_owned(),
            address: address.clone(),
            password_file: file.display().to_string(),
            ..InstanceDefinition::default()
        }),
        ..CreateInstanceRequest::default()
    };

    // Without a directory there are none.
    let gateway = GatewayConfig::new().start().await?;
    let mut api = Api::connect(&gateway).await?;
    let refused = api
        .inventory
        .create_instance(timed(define("a", &path("secrets/good"))))
        .await;
    let refused = refused.err().context("it was created")?;
    ensure!(refused.message().contains("secrets_dir"), "{refused:?}");
    drop(gateway);

    let mut inventory = toml::Table::new();
    inventory.insert(
        "secrets_dir".to_owned(),
        path("secrets").display().to_string().into(),
    );
    let gateway = GatewayConfig::new()
        .set("inventory", inventory)
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    for file in [
        "private",
        "secrets/../private",
        "secrets/link",
        "secrets/up/private",
    ] {
        let refused = api
            .inventory
            .create_instance(timed(define("a", &path(file))))
            .await;
        let refused = refused
            .err()
            .with_context(|| format!("{file}: it was created"))?;
        let words = refused.message();
        ensure!(
            words.contains("secrets_dir") || words.contains("links lead"),
            "{refused:?}"
        );
    }
    ensure!(api.instances().await?.is_empty());
    ensure!(seen.borrow().is_empty(), "{:?}", seen.borrow());

    api.inventory
        .create_instance(timed(define("a", &path("secrets/good"))))
        .await?;
    let sent = async |word: &[u8], seen: &mut watch::Receiver<Vec<u8>>| -> Result<()> {
        let has = |all: &Vec<u8>| all.windows(word.len()).any(|part| part == word);
        tokio::time::timeout(SOON, seen.wait_for(has))
            .await
            .context("nothing was sent")??;
        Ok(())
    };
    sent(b"good-word", &mut seen).await?;
    // What was right when it was defined counts when it is opened.
    let pause = PauseInstanceRequest {
        name: "a".to_owned(),
        ..Default::default()
    };
    api.inventory.pause_instance(timed(pause)).await?;
    api.wait_condition("a", Condition::Paused, SOON).await?;
    fs::remove_file(path("secrets/good"))?;
    symlink("link", path("secrets/good"))?;
    let resume = ovfleet_proto::v1::ResumeInstanceRequest {
        name: "a".to_owned(),
        ..Default::default()
    };
    api.inventory.resume_instance(timed(resume)).await?;
    let status = poll_until("the file to be refused", SOON, async || {
        let status = api.status("a").await?;
        Ok((status.condition() == Condition::AuthFailed).then_some(status))
    })
    .await?;
    ensure!(
        status.reason.contains("links lead it out of"),
        "{status:#?}"
    );
    let all = String::from_utf8_lossy(&seen.borrow()).into_owned();
    ensure!(!all.contains("private"), "{all}");
    Ok(())
}

/// Fails if what a caller says of an instance leads a file that `[defaults]` names out of its directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_leads_no_file_of_the_defaults_elsewhere() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("pw"))?;
    write(&path("pw/ams"), "good-word\n")?;
    write(&path("private"), "private-word\n")?;
    let (address, seen) = thief().await?;
    let mut defaults = toml::Table::new();
    let template = format!("{}/{{label.site}}", path("pw").display());
    defaults.insert("password_file".to_owned(), template.into());
    let gateway = GatewayConfig::new()
        .set("defaults", defaults)
        .start()
        .await?;
    let mut api = Api::connect(&gateway).await?;
    let define = |site: &str| CreateInstanceRequest {
        instance: Some(InstanceDefinition {
            name: "a".to_owned(),
            address: address.clone(),
            labels: [("site".to_owned(), site.to_owned())].into(),
            ..InstanceDefinition::default()
        }),
        ..CreateInstanceRequest::default()
    };
    for site in ["../private", "..", "/etc/shadow"] {
        let refused = api
            .inventory
            .create_instance(timed(define(site)))
            .await
            .err();
        let refused = refused.with_context(|| format!("{site}: it was created"))?;
        ensure!(refused.message().contains("[defaults]"), "{refused:?}");
    }
    ensure!(seen.borrow().is_empty());
    api.inventory.create_instance(timed(define("ams"))).await?;
    Ok(())
}
