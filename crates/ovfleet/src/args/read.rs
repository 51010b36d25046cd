//! Commands that look: summary, lists, events, watch, actions.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::selection::{FilterArgs, InstanceArgs};
use crate::start::Start;
use crate::value::duration;

#[derive(Debug, Args)]
pub(crate) struct SummaryArgs {
    /// Roll up by these labels, at most four
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub(crate) by: Vec<String>,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InstancesArgs {
    /// Only instances in this condition, such as slot_busy (repeatable)
    #[arg(long, value_name = "CONDITION", value_parser = crate::value::condition)]
    pub(crate) condition: Vec<i32>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
}

/// How much of a list is shown.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Stop after so many rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Every column, however wide
    #[arg(long)]
    pub(crate) wide: bool,
}

/// How old an answer may be.
#[derive(Debug, Args)]
pub(crate) struct FreshnessArgs {
    /// Ask the daemons now
    #[arg(long, conflicts_with = "max_age")]
    pub(crate) fresh: bool,
    /// Ask the daemons where what the gateway knows is older than this, such as 5s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_age: Option<Duration>,
}

impl FreshnessArgs {
    /// The `max_age` of a request; `None` takes what the gateway knows.
    pub(crate) fn max_age(&self) -> Option<prost_types::Duration> {
        let age = if self.fresh {
            Some(Duration::ZERO)
        } else {
            self.max_age
        };
        age.map(crate::value::proto_duration)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ClientsArgs {
    /// Order of the rows; bytes is a top list, of --limit rows (default 100)
    #[arg(long, value_name = "KEY", default_value = "instance")]
    pub(crate) sort: Sort,
    /// Turn the order round: newest first, most bytes first
    #[arg(long)]
    pub(crate) desc: bool,
    #[command(flatten)]
    pub(crate) freshness: FreshnessArgs,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

/// Order of a list of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    Instance,
    Since,
    Name,
    Bytes,
}

#[derive(Debug, Args)]
pub(crate) struct RoutesArgs {
    #[command(flatten)]
    pub(crate) freshness: FreshnessArgs,
    #[command(flatten)]
    pub(crate) list: ListArgs,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With -o jsonl each event is a line, and each gap a line {\"gap\": …}. With -o json each line is a
frame of StreamEvents, with its cursor.

Ctrl-C ends the stream and says on standard error from where to resume it.")]
pub(crate) struct EventsArgs {
    /// now, oldest, a cursor, a time (2026-11-20 15:04, RFC 3339) or an age (15m)
    #[arg(long, value_name = "START", default_value = "now")]
    pub(crate) from: Start,
    /// End at the newest event
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Only these kinds, such as client.* (repeatable; default: all but instance.log)
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// Full names and references
    #[arg(long)]
    pub(crate) wide: bool,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The shortest time between two updates of one row
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,
    /// Leave out clients
    #[arg(long)]
    pub(crate) instances_only: bool,
    /// End when everything has been shown once
    #[arg(long)]
    pub(crate) once: bool,
    /// Write each change as a line, also on a terminal
    #[arg(long)]
    pub(crate) lines: bool,
    #[command(flatten)]
    pub(crate) instances: InstanceArgs,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ActionsArgs {
    /// Show the results of this one, and exit as it would have
    #[arg(value_name = "REQUEST_ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}
