//! What a unary call costs the server, beside a bare tonic server that greets.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ovfleet_proto::v1::{GetInstanceRequest, GetInstanceResponse};
use ovfleet_tests::{Process, poll_until};
use prost::Message;
use tokio::runtime::Handle;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    fleet,
    hello::{self, HelloReply, HelloRequest},
    measure::{Spread, cpu_time, micros},
    start_peer,
};

const CALLS: usize = 10_000;
const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 9;
/// A process that opens a socket: this is generous.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// One server, and what calling it costs.
struct Server {
    name: &'static str,
    pid: u32,
    channel: Channel,
    method: Method,
    answer_bytes: usize,
    /// CPU of the server per call in each round, in microseconds.
    cpu: Vec<f64>,
    calls_per_second: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Method {
    Hello,
    GetInstance,
}

pub(crate) async fn run(callers: &Handle) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let daemons = fleet::start_daemons(directory.path(), 1).await?;
    let gateway = fleet::config(&daemons).start().await?;
    fleet::wait_attached(&gateway, 1, 0).await?;
    let endpoint = Endpoint::try_from(format!("unix:{}", gateway.socket()))?;
    let ours = Server::new("GetInstance", gateway.pid(), endpoint, Method::GetInstance);
    let ours = callers.spawn(ours).await??;

    let (_small, small) = start_hello(directory.path(), "small", 0).await?;
    let small = callers.spawn(Server::new(
        "bare tonic hello",
        small.0,
        small.1,
        Method::Hello,
    ));
    let small = small.await??;
    let (_large, large) = start_hello(directory.path(), "large", ours.answer_bytes).await?;
    let name = "bare tonic hello, as long an answer";
    let large = callers
        .spawn(Server::new(name, large.0, large.1, Method::Hello))
        .await??;

    // In turn, so that a busy machine is busy for all of them.
    let servers = callers.spawn(async {
        let mut servers = [small, large, ours];
        for _ in 0..ROUNDS {
            for server in &mut servers {
                server.round().await?;
            }
        }
        anyhow::Ok(servers)
    });
    print(&servers.await??);
    Ok(())
}

fn print(servers: &[Server; 3]) {
    println!(
        "server CPU of a unary call: one connection, {IN_FLIGHT} in flight, {CALLS} calls, {ROUNDS} rounds in turn"
    );
    println!(
        "{:<38}{:>8}{:>10}{:>8}{:>8}{:>10}{:>17}",
        "", "answer B", "us/call", "min", "max", "calls/s", "ratio (min-max)"
    );
    for server in servers {
        let cpu = Spread::of(server.cpu.clone());
        let rate = Spread::of(server.calls_per_second.clone());
        // Of the same round, so that what disturbed both does not count.
        let ratios = server
            .cpu
            .iter()
            .zip(&servers[0].cpu)
            .map(|(ours, floor)| ours / floor);
        let ratio = Spread::of(ratios.collect());
        println!(
            "{:<38}{:>8}{:>10.1}{:>8.1}{:>8.1}{:>10.0}{:>17}",
            server.name,
            server.answer_bytes,
            cpu.median,
            cpu.min,
            cpu.max,
            rate.median,
            format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.min, ratio.max),
        );
    }
    println!();
}

/// Starts a greeter and waits for its socket.
async fn start_hello(
    directory: &Path,
    name: &str,
    message_bytes: usize,
) -> Result<(Process, (u32, Endpoint))> {
    let socket = directory.join(name);
    let process = start_peer(&[
        "hello",
        &socket.to_string_lossy(),
        &message_bytes.to_string(),
    ])?;
    let endpoint = Endpoint::try_from(format!("unix:{}", socket.display()))?;
    poll_until("the greeter", START_TIMEOUT, async || {
        Ok(endpoint.connect().await.ok())
    })
    .await?;
    let pid = process.pid();
    Ok((process, (pid, endpoint)))
}

impl Server {
    async fn new(name: &'static str, pid: u32, endpoint: Endpoint, method: Method) -> Result<Self> {
        let channel = endpoint.connect().await?;
        let answer_bytes = method.call(channel.clone()).await?;
        Ok(Self {
            name,
            pid,
            channel,
            method,
            answer_bytes,
            cpu: Vec::with_capacity(ROUNDS),
            calls_per_second: Vec::with_capacity(ROUNDS),
        })
    }

    async fn round(&mut self) -> Result<()> {
        let calls = || {
            stream::iter(0..CALLS)
                .map(|_| self.method.call(self.channel.clone()))
                .buffer_unordered(IN_FLIGHT)
                .try_fold(0, async |sum, bytes| Ok(sum + bytes))
        };
        let (cpu, started) = (cpu_time(self.pid)?, Instant::now());
        let bytes = calls().await?;
        let (cpu, elapsed) = (cpu_time(self.pid)?.saturating_sub(cpu), started.elapsed());
        ensure!(bytes >= CALLS, "some answers were empty");
        self.cpu.push(micros(cpu) / CALLS as f64);
        self.calls_per_second
            .push(CALLS as f64 / elapsed.as_secs_f64());
        Ok(())
    }
}

impl Method {
    /// Calls once; gives the bytes of the answer.
    async fn call(self, channel: Channel) -> Result<usize> {
        match self {
            Self::Hello => {
                let request = HelloRequest {
                    name: "node-0000".to_owned(),
                };
                unary::<_, HelloReply>(channel, hello::PATH, request).await
            }
            Self::GetInstance => {
                let request = GetInstanceRequest {
                    name: "node-0000".to_owned(),
                };
                let path = "/ovfleet.v1.FleetService/GetInstance";
                unary::<_, GetInstanceResponse>(channel, path, request).await
            }
        }
    }
}

async fn unary<Q, R>(channel: Channel, path: &'static str, request: Q) -> Result<usize>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<Q, R>::default();
    let path = PathAndQuery::from_static(path);
    let answer = grpc.unary(Request::new(request), path, codec).await?;
    Ok(answer.into_inner().encoded_len())
}
