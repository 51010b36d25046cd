//! Where to connect, and through what.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_proto::v1::{
    CredentialsAnswer, HostPort, OpenQuestion, ProxyAnswer, RemoteAnswer,
    answer_question_request::Answer, open_question::Question, proxy_answer, remote_answer,
};
use ovfleet_tests::{Proto, Server};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional,
    },
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Road, SOON, ensure_unseen};

/// `user:canary-proxy`, as a proxy wants it.
const AUTHORIZATION: &str = "Proxy-Authorization: Basic dXNlcjpjYW5hcnktcHJveHk=";

/// Whoever steers a client, such as one that measures which server is near, answers for each of its servers.
#[tokio::test]
async fn servers_are_skipped_accepted_and_replaced() -> Result<()> {
    let mut near = Server::builder("near").start().await?;
    let mut far = Server::builder("far").start().await?;
    let mut road = Road::start().await?;
    // Nobody is at the first ones: only skipping them leads on.
    let _client = road
        .client(&near)
        .port(7)
        .option("remote 127.0.0.1 9")
        .option("remote 127.0.0.1 11")
        .option(&format!("remote 127.0.0.1 {}", near.vpn_port()))
        .option("management-query-remote")
        .start()?;
    for (id, port, skip) in [(1, "7", 1), (2, "9", 2)] {
        let asked = road.question(id).await?;
        ensure_remote(&asked, port)?;
        answer(&mut road, &asked, remote_answer::Action::Skip(skip)).await?;
    }
    let asked = road.question(3).await?;
    ensure_remote(&asked, &near.vpn_port().to_string())?;
    answer(&mut road, &asked, remote_answer::Action::Accept(true)).await?;
    near.wait_log("Peer Connection Initiated", 1, SOON).await?;
    road.wait_connected().await?;

    road.reconnect().await?;
    let asked = road.question(4).await?;
    let elsewhere = HostPort {
        host: "127.0.0.1".to_owned(),
        port: far.vpn_port().into(),
    };
    answer(&mut road, &asked, remote_answer::Action::Modify(elsewhere)).await?;
    far.wait_log("Peer Connection Initiated", 1, SOON).await?;
    road.wait_connected().await
}

/// A laptop in a foreign network is told of its proxy, which may want to know who is there.
#[tokio::test]
async fn a_proxy_is_named() -> Result<()> {
    let server = Server::builder("gate").proto(Proto::Tcp).start().await?;
    let proxy = Proxy::start().await?;
    let mut road = Road::start().await?;
    let client = road.client(&server).option("management-query-proxy");
    let mut client = client.start()?;
    let there = || HostPort {
        host: "127.0.0.1".to_owned(),
        port: proxy.port.into(),
    };

    let asked = road.question(1).await?;
    through(&mut road, &asked, proxy_answer::Proxy::None(true)).await?;
    client.wait_connected(1).await?;
    ensure!(proxy.requests().is_empty(), "{:?}", proxy.requests());

    road.reconnect().await?;
    let asked = road.question(2).await?;
    through(&mut road, &asked, proxy_answer::Proxy::Http(there())).await?;
    let asked = road.question(3).await?;
    ensure!(
        matches!(&asked.question, Some(Question::Credentials(who)) if who.r#type == "HTTP Proxy"),
        "{asked:?}"
    );
    let login = CredentialsAnswer {
        username: "user".to_owned(),
        password: "canary-proxy".to_owned(),
        response: String::new(),
    };
    road.answer(&asked, Answer::Credentials(login)).await?;
    client.wait_connected(2).await?;
    let tunnel = format!("CONNECT 127.0.0.1:{} HTTP/1.0", server.vpn_port());
    ensure!(
        proxy.requests().last() == Some(&tunnel),
        "{:?}",
        proxy.requests()
    );

    road.reconnect().await?;
    let asked = road.question(4).await?;
    through(&mut road, &asked, proxy_answer::Proxy::Socks(there())).await?;
    client.wait_connected(3).await?;
    ensure!(
        proxy.requests().last().is_some_and(|last| last == "SOCKS"),
        "{:?}",
        proxy.requests()
    );
    let Road {
        api,
        gateway,
        events,
        ..
    } = &mut road;
    ensure_unseen(gateway, api, events, "road", "canary-proxy").await
}

fn ensure_remote(asked: &OpenQuestion, port: &str) -> Result<()> {
    ensure!(
        matches!(&asked.question, Some(Question::Remote(remote))
            if remote.host == "127.0.0.1" && remote.port == port && remote.protocol == "udp4"),
        "{asked:?}"
    );
    Ok(())
}

async fn answer(
    road: &mut Road,
    asked: &OpenQuestion,
    action: remote_answer::Action,
) -> Result<()> {
    let action = Some(action);
    road.answer(asked, Answer::Remote(RemoteAnswer { action }))
        .await
}

async fn through(road: &mut Road, asked: &OpenQuestion, proxy: proxy_answer::Proxy) -> Result<()> {
    ensure!(
        matches!(&asked.question, Some(Question::Proxy(wanted))
            if wanted.host == "127.0.0.1" && wanted.protocol == "TCP"),
        "{asked:?}"
    );
    let answer = ProxyAnswer {
        proxy: Some(proxy),
        no_cleartext_auth: false,
    };
    road.answer(asked, Answer::Proxy(answer)).await
}

/// An HTTP proxy that knows one user, and a SOCKS proxy that knows everybody, on one port.
struct Proxy {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Proxy {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut task = JoinSet::new();
        task.spawn({
            let requests = Arc::clone(&requests);
            async move {
                let mut tunnels = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    tunnels.spawn(tunnel(stream, Arc::clone(&requests)));
                }
            }
        });
        Ok(Self {
            port,
            requests,
            _task: task,
        })
    }

    /// What it was asked for and gave.
    fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn tunnel(stream: TcpStream, requests: Arc<Mutex<Vec<String>>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let (request, address) = match stream.fill_buf().await?.first() {
        Some(5) => ("SOCKS".to_owned(), take_socks(&mut stream).await?),
        _ => take_connect(&mut stream).await?,
    };
    let mut server = TcpStream::connect(&address).await?;
    let requests = requests.lock();
    requests
        .unwrap_or_else(PoisonError::into_inner)
        .push(request);
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}

/// The request line, and where to; anybody else than the one user is turned away.
async fn take_connect(stream: &mut BufReader<TcpStream>) -> Result<(String, String)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    if !head.iter().any(|line| line == AUTHORIZATION) {
        let refusal =
            "HTTP/1.0 407 Who is there?\r\nProxy-Authenticate: Basic realm=\"lab\"\r\n\r\n";
        stream.write_all(refusal.as_bytes()).await?;
        bail!("nobody we know");
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await?;
    let request = head.swap_remove(0);
    let address = request.split(' ').nth(1).context("no address")?.to_owned();
    Ok((request, address))
}

/// Takes greeting and request of SOCKS 5, for a host by name as OpenVPN puts it, and gives that.
async fn take_socks(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await?;
    let mut methods = vec![0; greeting[1].into()];
    stream.read_exact(&mut methods).await?;
    stream.write_all(&[5, 0]).await?;
    let mut request = [0; 5];
    stream.read_exact(&mut request).await?;
    let [5, 1, 0, 3, length] = request else {
        bail!("what is {request:?}?");
    };
    let mut host = vec![0; length.into()];
    stream.read_exact(&mut host).await?;
    let port = stream.read_u16().await?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(format!("{}:{port}", String::from_utf8(host)?))
}
