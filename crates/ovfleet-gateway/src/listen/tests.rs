//! Who gets in, and as whom.

use std::{
    fs,
    io::ErrorKind,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use axum::{Extension, Router, body::Body, extract::Request, routing::get};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    caller::Caller,
    config::{Limits, SocketConfig, TlsFiles},
    idle::Activity,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A listener whose only service says who calls, until dropped.
struct Serving {
    address: String,
    activity: Activity,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    fn of(listener: Listener, limits: &Limits) -> Self {
        Self::admitted(listener, limits, Admission::new(limits))
    }

    fn admitted(listener: Listener, limits: &Limits, admission: Admission) -> Self {
        let who = |Extension(caller): Extension<Caller>| async move {
            let rights = if caller.require_control().is_ok() {
                "control"
            } else {
                "read-only"
            };
            format!("{} {rights}", caller.name())
        };
        let routes = Router::new().route("/who", get(who)).into();
        let activity = Activity::new();
        let service = Service::Grpc(GrpcService::new(routes, activity.clone(), limits));
        let (address, stop) = (listener.address(), CancellationToken::new());
        let task = tokio::spawn(listener.run(service, admission, stop.clone()));
        Self {
            address,
            activity,
            stop,
            task,
        }
    }

    fn tcp(&self) -> SocketAddr {
        self.address.split_once("//").unwrap().1.parse().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn listen(listener: Listener) -> Serving {
    Serving::of(listener, &Limits::default())
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Asks over HTTP/2 who we are.
async fn who<S>(stream: S) -> Result<String, Box<dyn std::error::Error>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await?;
    tokio::spawn(connection);
    ask(sender).await
}

/// Asks over a connection that stands.
async fn ask(mut sender: SendRequest<Body>) -> Result<String, Box<dyn std::error::Error>> {
    let request = Request::get("http://gateway/who").body(Body::empty())?;
    let response = timeout(PATIENCE, sender.send_request(request)).await??;
    let body = axum::body::to_bytes(Body::new(response.into_body()), 1_000).await?;
    Ok(String::from_utf8(body.to_vec())?)
}

/// An authority, and files of what it signed.
struct Authority {
    directory: TempDir,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.crt"), certificate.pem()).unwrap();
        Self {
            directory,
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate with its key, in memory and as `NAME.crt` and `NAME.key`.
    fn sign(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        (
            certificate.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }

    fn files(&self, client_ca: Option<&Path>) -> TlsFiles {
        self.sign("gateway");
        TlsFiles {
            cert: self.path("gateway.crt"),
            key: self.path("gateway.key"),
            client_ca: client_ca.map(Path::to_owned),
        }
    }

    /// Connects with TLS, trusting this authority, and asks who we are.
    async fn who(
        &self,
        address: SocketAddr,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<String, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key)?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(config));
        who(connector
            .connect(ServerName::try_from("localhost")?, stream)
            .await?)
        .await
    }
}

fn socket(directory: &TempDir) -> SocketConfig {
    SocketConfig {
        path: directory.path().join("sub/s.sock"),
        ..SocketConfig::default()
    }
}

/// The kernel says who is at the other end of a Unix socket; its mode says who may be.
#[tokio::test]
async fn a_unix_caller_is_its_user() {
    let directory = tempfile::tempdir().unwrap();
    let config = SocketConfig {
        mode: 0o620,
        ..socket(&directory)
    };
    let serving = listen(Listener::unix(&config).unwrap());
    let mode = fs::metadata(&config.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o620);
    let uid = rustix::process::getuid().as_raw();
    let found = who(UnixStream::connect(&config.path).await.unwrap())
        .await
        .unwrap();
    assert_eq!(found, format!("uid:{uid} control"));
    drop(serving);
}

/// Any user of the machine can connect to a port, so a port without TLS only reads.
#[tokio::test]
async fn plaintext_is_read_only_unless_control_is_allowed() {
    for (read_only, rights) in [(true, "read-only"), (false, "control")] {
        let serving = listen(Listener::tcp(loopback(), read_only).unwrap());
        let found = who(TcpStream::connect(serving.tcp()).await.unwrap())
            .await
            .unwrap();
        assert_eq!(found, format!("addr:127.0.0.1 {rights}"));
    }
}

/// With client_ca, only who shows a certificate of that authority gets in, and is known by it.
#[tokio::test]
async fn mutual_tls_lets_in_its_own_and_nobody_else() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let config = load_tls(&ours.files(Some(&ours.path("ca.crt"))), Some(b"h2")).unwrap();
    let serving = listen(Listener::tcp(loopback(), true).unwrap().with_tls(config));
    assert!(
        serving.address.starts_with("https://"),
        "{}",
        serving.address
    );

    let found = ours
        .who(serving.tcp(), Some(ours.sign("alice")))
        .await
        .unwrap();
    assert!(
        found.starts_with("cert:alice#") && found.ends_with(" control"),
        "{found}"
    );
    assert!(
        ours.who(serving.tcp(), Some(theirs.sign("mallory")))
            .await
            .is_err(),
        "wrong authority"
    );
    assert!(
        ours.who(serving.tcp(), None).await.is_err(),
        "no certificate"
    );
    // And none of them has harmed the listener.
    assert!(
        ours.who(serving.tcp(), Some(ours.sign("bob")))
            .await
            .is_ok()
    );
}

/// Without client_ca nobody is identified: such a caller only reads.
#[tokio::test]
async fn tls_without_client_certificates_is_read_only() {
    let ours = Authority::new();
    let config = load_tls(&ours.files(None), Some(b"h2")).unwrap();
    let serving = listen(Listener::tcp(loopback(), true).unwrap().with_tls(config));
    let found = ours.who(serving.tcp(), None).await.unwrap();
    assert_eq!(found, "addr:127.0.0.1 read-only");
}

/// Files that do not belong together are found at the start, not by the first caller.
#[test]
fn bad_tls_files_are_named() {
    let ours = Authority::new();
    let good = ours.files(Some(&ours.path("ca.crt")));
    ours.sign("other");
    let missing = TlsFiles {
        cert: ours.path("none.crt"),
        ..good.clone()
    };
    let swapped = TlsFiles {
        cert: ours.path("gateway.key"),
        ..good.clone()
    };
    let unpaired = TlsFiles {
        key: ours.path("other.key"),
        ..good.clone()
    };
    let no_authority = TlsFiles {
        client_ca: Some(ours.path("other.key")),
        ..good
    };
    for (files, words) in [
        (missing, "cannot read"),
        (swapped, "holds no certificate"),
        (unpaired, "cannot be used together"),
        (no_authority, "holds no certificate"),
    ] {
        let error = load_tls(&files, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A caller that begins a handshake and says nothing must not keep its place, nor stop others.
#[tokio::test]
async fn a_stalled_handshake_is_cut() {
    let ours = Authority::new();
    let config = load_tls(&ours.files(None), Some(b"h2")).unwrap();
    let limits = Limits {
        handshakes: 1,
        // Also the time that the next one has for its own.
        handshake_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let serving = Serving::of(
        Listener::tcp(loopback(), true).unwrap().with_tls(config),
        &limits,
    );
    let mut stalled = TcpStream::connect(serving.tcp()).await.unwrap();
    assert!(
        ours.who(serving.tcp(), None).await.is_ok(),
        "waits for the place and gets it"
    );
    let end = timeout(PATIENCE, stalled.read_u8()).await.expect("is cut");
    assert!(end.is_err(), "{end:?}");
}

/// A listener where nobody calls must not keep a place from those where somebody does.
#[tokio::test]
async fn an_idle_listener_takes_no_place() {
    let ours = Authority::new();
    let config = load_tls(&ours.files(None), Some(b"h2")).unwrap();
    let limits = Limits {
        handshakes: 1,
        ..Limits::default()
    };
    let admission = Admission::new(&limits);
    let serving = [(); 3].map(|()| {
        let listener = Listener::tcp(loopback(), true).unwrap();
        let listener = listener.with_tls(Arc::clone(&config));
        Serving::admitted(listener, &limits, admission.clone())
    });
    for one in &serving {
        let asked = timeout(PATIENCE, ours.who(one.tcp(), None)).await;
        assert!(asked.expect("is served").is_ok());
    }
}

/// One connection more than allowed is closed at once; the place is free again afterwards.
#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let serving = Serving::of(Listener::tcp(loopback(), true).unwrap(), &limits);
    let first = TcpStream::connect(serving.tcp()).await.unwrap();
    let mut second = TcpStream::connect(serving.tcp()).await.unwrap();
    let end = timeout(PATIENCE, second.read_u8())
        .await
        .expect("is closed");
    assert!(end.is_err(), "{end:?}");
    drop(first);
    let retry = async {
        loop {
            match who(TcpStream::connect(serving.tcp()).await.unwrap()).await {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(PATIENCE, retry)
        .await
        .expect("the place is free again");
}

/// The socket file of a crashed gateway is replaced, that of a living one never.
#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = socket(&directory);
    fs::create_dir(config.path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&config.path).unwrap());
    assert!(
        fs::metadata(&config.path).unwrap().file_type().is_socket(),
        "it stays behind"
    );

    let first = Listener::unix(&config).unwrap();
    let error = Listener::unix(&config).map(|_| ()).unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    drop(first);
    assert!(!config.path.exists(), "removed by the one that made it");

    fs::write(&config.path, "precious").unwrap();
    let error = Listener::unix(&config).map(|_| ()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&config.path).unwrap(), "precious");

    let config = SocketConfig {
        owner: Some("nobody-of-that-name".to_owned()),
        ..socket(&directory)
    };
    let error = Listener::unix(&config).map(|_| ()).unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no user nobody-of-that-name on this machine"
    );
}

/// What listens there may be a daemon: a connection that only looks would take its only slot.
#[tokio::test]
async fn a_live_socket_is_not_connected_to() {
    let directory = tempfile::tempdir().unwrap();
    let config = socket(&directory);
    fs::create_dir(config.path.parent().unwrap()).unwrap();
    let live = std::os::unix::net::UnixListener::bind(&config.path).unwrap();
    live.set_nonblocking(true).unwrap();
    let error = Listener::unix(&config).map(|_| ()).unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    assert_eq!(live.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// A program that is too busy to accept is there all the same, and must not hold up a start.
#[test]
fn a_live_socket_whose_queue_is_full_is_taken_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = socket(&directory);
    fs::create_dir(config.path.parent().unwrap()).unwrap();
    let address = SockAddr::unix(&config.path).unwrap();
    let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    busy.bind(&address).unwrap();
    busy.listen(0).unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        let caller = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        caller.set_nonblocking(true).unwrap();
        match caller.connect(&address) {
            Ok(()) => waiting.push(caller),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);

    let (opened, outcome) = mpsc::channel();
    std::thread::spawn(move || opened.send(Listener::unix(&config).map(|_| ())));
    let error = outcome
        .recv_timeout(PATIENCE)
        .expect("at once")
        .unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
}

/// A taken port is named, so that its holder can be found.
#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let holder = std::net::TcpListener::bind(loopback()).unwrap();
    let address = holder.local_addr().unwrap();
    let error = Listener::tcp(address, true)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("{address} is taken by another program: end that program, or listen elsewhere")
    );
}

/// Told to stop, a listener ends though callers stay connected.
#[tokio::test]
async fn a_stopped_listener_ends() {
    let directory = tempfile::tempdir().unwrap();
    let config = socket(&directory);
    let mut serving = listen(Listener::unix(&config).unwrap());
    let stream = UnixStream::connect(&config.path).await.unwrap();
    assert!(who(stream).await.is_ok());
    serving.stop.cancel();
    timeout(PATIENCE, &mut serving.task)
        .await
        .expect("ends")
        .unwrap();
    assert!(!config.path.exists());
}

/// A caller whose process stands still answers nothing: it must not hold up a drain.
#[tokio::test]
async fn a_caller_that_stands_still_does_not_hold_up_the_end() {
    let mut serving = listen(Listener::tcp(loopback(), true).unwrap());
    let mut still = TcpStream::connect(serving.tcp()).await.unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    still
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    still.write_all(&settings).await.unwrap();
    // Its settings are answered: the connection stands.
    still.read_exact(&mut [0; 9]).await.unwrap();
    serving.stop.cancel();
    timeout(PATIENCE / 2, &mut serving.task)
        .await
        .expect("ends")
        .unwrap();
}

/// A caller that comes as the listener stops must get its answer: where the socket outlives the process it could not
/// know better.
#[tokio::test]
async fn who_has_just_come_gets_an_answer() {
    let mut serving = listen(Listener::tcp(loopback(), true).unwrap());
    let stream = TcpStream::connect(serving.tcp()).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    let mut connection = tokio::spawn(connection);
    while serving.activity.connections() == 0 {
        tokio::task::yield_now().await;
    }
    serving.stop.cancel();
    let sent_away = timeout(PATIENCE / 100, &mut connection).await;
    assert!(sent_away.is_err(), "before its first call: {sent_away:?}");
    assert!(ask(sender).await.unwrap().starts_with("addr:"));
    timeout(PATIENCE, &mut serving.task)
        .await
        .expect("ends")
        .unwrap();
}
