//! Virtual management sockets, from the configuration to a tool.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use openvpn_simulator::Daemon;
use ovfleet_gateway::{Config, ConfigErrors, Gateway};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(10);
const GREETING: &str =
    ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n";

/// What `text` means, where `@` is the directory.
fn load(directory: &TempDir, text: &str) -> Result<Config, ConfigErrors> {
    let listen = "[listen]\ngrpc = \"unix:@/ovfleet.sock\"\n";
    let text = format!("{text}\n{listen}").replace('@', &directory.path().display().to_string());
    let path = directory.path().join("ovfleet.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path)
}

async fn daemon(path: PathBuf) -> Daemon {
    Daemon::builder("simulated")
        .unix(path)
        .start()
        .await
        .unwrap()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waiting for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn connect(path: &Path) -> BufReader<UnixStream> {
    let start = Instant::now();
    // Its file is there a moment before it can be connected to.
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return BufReader::new(stream),
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn line(tool: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    timeout(PATIENCE, tool.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    line
}

async fn ask(tool: &mut BufReader<UnixStream>, command: &str) -> String {
    tool.get_mut().write_all(command.as_bytes()).await.unwrap();
    line(tool).await
}

/// Each socket must have its own policy, mode and password, whichever layer of the configuration says so.
#[tokio::test]
async fn tools_reach_the_daemon_as_configured() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let _daemon = daemon(path("eu1.mgmt")).await;
    fs::write(path("mux.pw"), "s3cret\n").unwrap();
    fs::set_permissions(path("mux.pw"), Permissions::from_mode(0o600)).unwrap();
    let text = "[[instance]]\nname = \"eu1\"\naddress = \"unix:@/eu1.mgmt\"\n\
        [defaults]\nmux = [\n\
        \"unix:@/{name}.sock\",\n\
        { address = \"unix:@/{name}-op.sock\", policy = \"operator\", mode = \"0600\", password_file = \"mux.pw\" },\n\
        { address = \"unix:@/{name}-list.sock\", policy = [\"kill\"] },\n]";
    let gateway = Gateway::start(load(&directory, text).unwrap())
        .await
        .unwrap();

    let mut reader = connect(&path("eu1.sock")).await;
    assert_eq!(line(&mut reader).await, GREETING);
    assert_eq!(ask(&mut reader, "verb\n").await, "SUCCESS: verb=3\r\n");
    let refused = "ERROR: the 'verb' command is not allowed on this socket (read-only)\r\n";
    assert_eq!(ask(&mut reader, "verb 4\n").await, refused);

    let mut operator = connect(&path("eu1-op.sock")).await;
    let mode = fs::metadata(path("eu1-op.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        ask(&mut operator, "s3cret\n").await,
        "ENTER PASSWORD:SUCCESS: password is correct\r\n"
    );
    assert_eq!(line(&mut operator).await, GREETING);
    assert_eq!(
        ask(&mut operator, "verb 4\n").await,
        "SUCCESS: verb level changed\r\n"
    );
    assert_eq!(ask(&mut reader, "verb\n").await, "SUCCESS: verb=4\r\n");

    let mut listed = connect(&path("eu1-list.sock")).await;
    assert_eq!(line(&mut listed).await, GREETING);
    assert_eq!(
        ask(&mut listed, "kill x\n").await,
        "ERROR: common name 'x' not found\r\n"
    );
    let refused = "ERROR: the 'verb' command is not allowed on this socket ([kill])\r\n";
    assert_eq!(ask(&mut listed, "verb 3\n").await, refused);

    gateway.shutdown(PATIENCE).await;
    assert_eq!(line(&mut reader).await, "");
    assert!(!path("eu1.sock").exists());
}

/// A socket without its instance would let tools wait for a daemon that nobody watches.
#[tokio::test]
async fn sockets_come_and_go_with_the_instances() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text =
        "[[discover]]\nglob = \"@/*.mgmt\"\nforget_after = \"0s\"\nmux = \"unix:@/{stem}.sock\"";
    let gateway = Gateway::start(load(&directory, text).unwrap())
        .await
        .unwrap();
    let first = daemon(path("a.mgmt")).await;
    let mut stays = connect(&path("a.sock")).await;
    assert_eq!(line(&mut stays).await, GREETING);
    let second = daemon(path("b.mgmt")).await;
    let mut goes = connect(&path("b.sock")).await;
    assert_eq!(line(&mut goes).await, GREETING);

    second.stop().await;
    assert_eq!(line(&mut goes).await, "");
    let _ = fs::remove_file(path("b.mgmt"));
    until("the socket to go", || !path("b.sock").exists()).await;
    assert!(ask(&mut stays, "pid\n").await.starts_with("SUCCESS: pid="));
    assert_eq!(first.sessions(), 1);
    gateway.shutdown(PATIENCE).await;
}

/// A mistake here opens a daemon to people it was not meant for: each is told by its key.
#[test]
fn mistakes_are_told() {
    let cases = [
        ("\"tcp:0.0.0.0:7506\"", "plaintext beyond loopback"),
        (
            "{ address = \"unix:/x\", policy = \"admin\" }",
            "none of \"read-only\"",
        ),
        (
            "{ address = \"unix:/x\", policy = [\"Kill\"] }",
            "`Kill` is no command",
        ),
        (
            "{ address = \"tcp:127.0.0.1:1\", mode = \"0600\" }",
            "for Unix sockets",
        ),
        (
            "{ address = \"unix:/x\", away = \"no\" }",
            "neither \"wait\" nor \"close\"",
        ),
        ("{ address = \"unix:/x\", polcy = \"full\" }", "unknown key"),
        ("{ policy = \"full\" }", "this key is required"),
        ("\"unix:/{port}\"", "`{port}` has no value"),
        (
            "[\"unix:/x\", \"unix:/x\"]",
            "is an address of instance eu1 too",
        ),
        ("\"unix:/eu1.mgmt\"", "is an address of instance eu1 too"),
    ];
    for (mux, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let text =
            format!("[[instance]]\nname = \"eu1\"\naddress = \"unix:/eu1.mgmt\"\nmux = {mux}");
        let errors = load(&directory, &text).unwrap_err().to_string();
        assert!(errors.contains(expected), "{mux}: {errors}");
    }
}
