//! Commands to the daemons of some instances, one by one.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::selection::InstanceArgs;
use crate::value::duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Taken are: auth-retry, echo, forget-passwords, help, hold, log, mute, nclients, net, network-change,
pkcs11-id-count, pkcs11-id-get, remote-entry-count, remote-entry-get, state, status, and without an
argument verb and version; of state, log and echo the histories. Others have a command of their own.")]
pub(crate) struct ExecArgs {
    /// The command and its arguments, such as status 2
    #[arg(value_name = "COMMAND", required = true)]
    pub(crate) line: Vec<String>,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// on and off set what happens at the next restart, release ends a hold (default: show)
    pub(crate) action: Option<HoldWord>,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

/// What is done about holding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HoldWord {
    On,
    Off,
    Release,
}

#[derive(Debug, Args)]
pub(crate) struct VerbArgs {
    /// 0 to 15 (default: show); above 5 every packet is logged
    #[arg(value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(0..=15))]
    pub(crate) level: Option<u32>,
    /// Allow a level above 5
    #[arg(long, requires = "level")]
    pub(crate) force: bool,
    /// Set the level from before again after so long, such as 10m
    #[arg(long, requires = "level", value_name = "TIME", value_parser = duration)]
    pub(crate) reset_after: Option<Duration>,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MuteArgs {
    /// How many equal lines in a row are shown, 0 for all (default: show)
    #[arg(value_name = "N")]
    pub(crate) lines: Option<u32>,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// How many of the newest lines; 0 for all
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) last: u32,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// How many of the newest; 0 for all
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) last: u32,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstancesOnlyArgs {
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A password, a word or a response is read from standard input, and not shown while it is typed on a
terminal: the command line can be seen by every user of the machine.")]
pub(crate) struct AnswerArgs {
    /// INSTANCE or GATEWAY/INSTANCE
    #[arg(value_name = "INSTANCE")]
    pub(crate) instance: String,
    /// Which question, where there are several
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<u64>,
    /// The username, where one is asked for
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// The answer to a challenge, or a word
    #[arg(long, value_name = "TEXT")]
    pub(crate) response: Option<String>,
    /// Yes; of a server: connect there
    #[arg(long, conflicts_with = "cancel")]
    pub(crate) ok: bool,
    /// No; of a server: try the next one
    #[arg(long)]
    pub(crate) cancel: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PushUpdateArgs {
    /// Options, separated by commas; one that begins with - is taken back
    #[arg(value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: String,
    /// One client, as `clients --wide` shows it
    #[arg(long = "ref", value_name = "GATEWAY/INSTANCE/GENERATION/CID", value_parser = crate::selection::client_ref)]
    pub(crate) client: Option<ovfleet_proto::v1::ClientRef>,
    /// Every client of the selected instances
    #[arg(long, conflicts_with = "client")]
    pub(crate) every_client: bool,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}
