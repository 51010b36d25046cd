//! Commands that change which instances there are.

use clap::{Args, Subcommand};

use super::RequestArgs;
use crate::definition::DefinitionArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Add an instance: the gateway begins a session to its daemon
    Add(Box<InstanceAddArgs>),
    /// Change an instance that was added; what is not said stays
    Set(Box<InstanceSetArgs>),
    /// End the sessions of instances that were added, and forget them
    Remove(InstanceRemoveArgs),
    /// End the sessions of instances and leave their daemons alone until they are resumed
    Pause(InstancePauseArgs),
    /// Take paused instances back into service
    Resume(InstanceResumeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InstanceAddArgs {
    /// Its name, unique on the gateway
    pub(crate) name: String,
    /// Its management socket: unix:/path, tcp:host:port, tls:host:port, listen-unix:/path, listen-tcp:ip:port
    pub(crate) address: String,
    /// Look what answers at the address first, and say it
    #[arg(long)]
    pub(crate) check: bool,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    #[command(flatten)]
    pub(crate) definition: DefinitionArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceSetArgs {
    /// Its name
    pub(crate) name: String,
    /// Its management socket
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// Say this no longer: a key such as hold, or labels.region (repeatable)
    #[arg(long, value_name = "KEY")]
    pub(crate) clear: Vec<String>,
    /// Only if it still has this etag
    #[arg(long, value_name = "ETAG")]
    pub(crate) etag: Option<String>,
    /// Look what answers at a new address first, and say it
    #[arg(long)]
    pub(crate) check: bool,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// End a session although that harms the daemon
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    #[command(flatten)]
    pub(crate) definition: DefinitionArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceRemoveArgs {
    /// INSTANCE or GATEWAY/INSTANCE
    #[arg(value_name = "INSTANCE", required = true)]
    pub(crate) names: Vec<String>,
    /// Do not ask
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// End a session although that harms the daemon
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstancePauseArgs {
    /// INSTANCE or GATEWAY/INSTANCE
    #[arg(value_name = "INSTANCE", required = true)]
    pub(crate) names: Vec<String>,
    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also where the end of the session harms the daemon
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceResumeArgs {
    /// INSTANCE or GATEWAY/INSTANCE
    #[arg(value_name = "INSTANCE", required = true)]
    pub(crate) names: Vec<String>,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With a mistake in the configuration nothing changes, and the old one stays in force. Sessions that the
change does not concern go on.")]
pub(crate) struct ReloadArgs {
    /// Also when more than 20 % of the instances go, or sessions end whose end harms the daemon
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what would change and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
}
