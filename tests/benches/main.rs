//! What the gateway costs, measured on the process that users run, each figure beside a
//! floor or a peer of the same run.
//!
//! `make bench` runs all of it; `cargo bench -p ovfleet-tests -- NAME` only `latency`,
//! `unary` or `memory`, with the `ovfleet` that was built last. Figures are printed,
//! never asserted.
#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod fleet;
mod hello;
mod latency;
mod measure;
mod memory;
mod relay;
mod unary;

use std::env;

use anyhow::{Result, bail};
use ovfleet_tests::Process;
use tokio::runtime::Builder;

/// Makes this program a peer, in a process of its own: what follows is which.
const PEER: &str = "--peer";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [PEER, peer @ ..] = arguments.as_slice() {
        return match peer {
            ["hello", socket, reply_bytes] => hello::serve(socket, reply_bytes.parse()?),
            ["relay", source, sink] => relay::relay(source, sink),
            _ => bail!("no such peer: {peer:?}"),
        };
    }
    // Cargo adds `--bench`.
    let names: Vec<&str> = arguments
        .into_iter()
        .filter(|it| !it.starts_with("--"))
        .collect();
    let wanted = |name| names.is_empty() || names.contains(&name);

    fleet::raise_open_files()?;
    // Simulated daemons and the script live in this thread, and callers in their own:
    // what a caller does must not delay a daemon's line.
    let daemons = Builder::new_current_thread().enable_all().build()?;
    let callers = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    if wanted("latency") {
        daemons.block_on(latency::run(callers.handle()))?;
    }
    if wanted("unary") {
        daemons.block_on(unary::run(callers.handle()))?;
    }
    if wanted("memory") {
        daemons.block_on(memory::run())?;
    }
    Ok(())
}

/// Starts this program again as a peer.
fn start_peer(arguments: &[&str]) -> Result<Process> {
    let program = env::current_exe()?;
    Process::spawn(&program.to_string_lossy(), &[&[PEER], arguments].concat())
}
