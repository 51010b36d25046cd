//! Commands that end connections and signal daemons.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::RequestArgs;
use crate::selection::{FilterArgs, InstanceArgs};
use crate::value::duration;

/// How an action is confirmed and remembered.
#[derive(Debug, Args)]
pub(crate) struct ActionArgs {
    /// Do not ask: resolve and act in one step
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// Show whom it would hit and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The most instances it may hit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_instances: Option<u32>,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without --yes the plan is shown first and, on a terminal, asked about; what is then done is exactly
that plan: a client that connects in between is not hit.")]
pub(crate) struct KillArgs {
    /// Needed when no client is named: end every client of the selected instances
    #[arg(long)]
    pub(crate) every_client: bool,
    /// restart: the client may connect again at once; halt: it stays out
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<Mode>,
    /// Tell the client this instead, a control message of OpenVPN
    #[arg(long, value_name = "TEXT", conflicts_with = "mode")]
    pub(crate) message: Option<String>,
    /// Wait until each client is seen to be gone
    #[arg(long)]
    pub(crate) wait: bool,
    /// The most clients it may hit (default: 100)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_clients: Option<u32>,
    #[command(flatten)]
    pub(crate) action: ActionArgs,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// What a killed client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Restart,
    Halt,
}

#[derive(Debug, Args)]
#[command(after_help = "\
SIGHUP and SIGUSR1 disconnect every client of the daemon; SIGTERM ends it and needs --force.
Without --yes the plan is shown first and, on a terminal, asked about.")]
pub(crate) struct SignalArgs {
    /// SIGHUP, SIGUSR1, SIGUSR2 or SIGTERM
    #[arg(value_name = "SIGNAL", value_parser = crate::value::signal)]
    pub(crate) signal: i32,
    /// How many instances may be under way at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) in_flight: u32,
    /// How long to wait between one instance and the next, such as 5s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) pause: Option<Duration>,
    /// When an instance counts as done
    #[arg(long, value_name = "WHEN", default_value = "accepted")]
    pub(crate) wait_for: WaitFor,
    /// Leave the rest alone after so many failures
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) stop_after_failures: Option<u32>,
    /// Allow what ends a daemon: SIGTERM, or any signal while it asks a question
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) action: ActionArgs,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

/// When a signalled instance counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    Accepted,
    Reattached,
    Connected,
}
