//! The command line: every command, its options, and the rules between them.
//!
//! Names and formats here are an interface that scripts rely on: add, do not
//! rename.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    Args, Command as ClapCommand, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueEnum,
};
use clap_complete::Shell;

use crate::definition::DefinitionArgs;
use crate::selection::{FilterArgs, InstanceArgs};
use crate::start::Start;
use crate::value::duration;

/// Watch and command many OpenVPN daemons as one fleet.
#[derive(Debug, Parser)]
#[command(name = "ovfleet", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) caller: CallerArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  all targets done
  1  some failed, none found, or some instance could not be asked
  2  usage
  3  gateway not reached";

/// How a command reaches the gateway and how it answers.
#[derive(Debug, Clone, Args)]
pub(crate) struct CallerArgs {
    /// The gateway: unix:/path, http://host:port or https://host:port
    ///
    /// Default: the Unix socket /run/ovfleet/ovfleet.sock, or ovfleet.sock in
    /// $XDG_RUNTIME_DIR, whichever is there; else http://127.0.0.1:7600.
    #[arg(long, global = true, env = "OVFLEET_GATEWAY", hide_env_values = true, value_name = "ADDR", help_heading = GATEWAY)]
    pub(crate) gateway: Option<String>,
    /// Certificates that may have signed the gateway's (default: the system's)
    #[arg(long, global = true, value_name = "FILE", help_heading = GATEWAY)]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key", help_heading = GATEWAY)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of our certificate
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert", help_heading = GATEWAY)]
    pub(crate) tls_key: Option<PathBuf>,
    /// The name in the gateway's certificate, where it is not the host's
    #[arg(long, global = true, value_name = "NAME", help_heading = GATEWAY)]
    pub(crate) tls_name: Option<String>,
    /// How long a call may take, such as 10s (default: 30s, or what a rolling signal needs); streams
    /// take as long as they like
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, help_heading = GATEWAY)]
    pub(crate) timeout: Option<Duration>,
    /// Output: json is the JSON mapping of the API, in one document; jsonl one row per line
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table", help_heading = OUTPUT)]
    pub(crate) output: Format,
    /// No colours (also: the variable NO_COLOR, or an output that is no terminal)
    #[arg(long, global = true, help_heading = OUTPUT)]
    pub(crate) no_color: bool,
}

const GATEWAY: &str = "Gateway";
const OUTPUT: &str = "Output";

/// What goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the gateway
    Serve(ServeArgs),
    /// Run a gateway and a living fleet of toys, to try everything else on
    Demo(DemoArgs),
    /// Check a configuration file and say everything that is wrong with it
    CheckConfig(CheckConfigArgs),
    /// The fleet in numbers
    Summary(SummaryArgs),
    /// List instances and the condition of their sessions
    Instances(InstancesArgs),
    /// Add, change, remove, pause or resume an instance while the gateway runs
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// Let the gateway read its configuration again, and show what that changes
    Reload(ReloadArgs),
    /// List the clients of all instances
    Clients(ClientsArgs),
    /// List the routing tables of all instances
    Routes(RoutesArgs),
    /// Stream events: everything that happens, in order
    Events(EventsArgs),
    /// Watch the fleet as it is now: on a terminal a table that stays current
    Watch(WatchArgs),
    /// End clients, on every selected instance
    Kill(KillArgs),
    /// Send a signal to daemons, a few at a time
    Signal(SignalArgs),
    /// List actions, or show the results of one
    Actions(ActionsArgs),
    /// Send a management command as it is typed, and show the whole reply
    Exec(ExecArgs),
    /// Show, set or release the hold of daemons
    Hold(HoldArgs),
    /// Show or set how much daemons log
    Verb(VerbArgs),
    /// Show or set how many equal log lines daemons show
    Mute(MuteArgs),
    /// Show the logs that daemons keep
    Log(HistoryArgs),
    /// Show the states that daemons keep
    State(EchoArgs),
    /// Show the echoes that daemons keep
    Echo(EchoArgs),
    /// Show the daemons' clients and bytes in numbers
    LoadStats(InstancesOnlyArgs),
    /// Show the daemons' versions
    Version(InstancesOnlyArgs),
    /// Show the daemons' process ids
    Pid(InstancesOnlyArgs),
    /// Let daemons forget the passwords that they were given
    ForgetPasswords(InstancesOnlyArgs),
    /// List what daemons ask
    Questions(InstancesOnlyArgs),
    /// Answer what a daemon asks
    Answer(AnswerArgs),
    /// Change options of clients that are connected (OpenVPN 2.7)
    PushUpdate(PushUpdateArgs),
    /// Write a completion script to standard output
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// Write a page for every command into this directory, not one to standard output
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// 0 (fatal) to 6 (all), or error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = crate::logging::level)]
    pub(crate) log_level: tracing::Level,
    /// Log to this file, or to stdout: (default: standard error)
    #[arg(long, value_name = "PATH|stdout:")]
    pub(crate) log_file: Option<PathBuf>,
    /// Colour the log
    #[arg(long)]
    pub(crate) colour: bool,
    /// End when no instance is configured or attached and no caller came for so many minutes
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) idle_exit: Option<u64>,
    /// Add our own log to the events, as gateway.log
    #[arg(long)]
    pub(crate) signal_broadcast: bool,
    /// Check the configuration, wait until no other gateway uses its state_dir, then serve in its place
    #[arg(long)]
    pub(crate) standby: bool,
    /// When told to end, do not wait for daemons that dialled in (listen-unix:, listen-tcp:) and end with us
    #[arg(long)]
    pub(crate) force: bool,
    /// Run as this user (name or number)
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Run as this group (name or number)
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after so long, such as 60s (default: with Ctrl-C)
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// The gateway's port on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value = "7600")]
    pub(crate) port: u16,
    /// Real OpenVPN servers and clients instead of simulated ones (needs root)
    #[arg(long)]
    pub(crate) openvpn: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// The configuration
    pub(crate) file: PathBuf,
}

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
    /// An id of your own: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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
    /// An id of your own: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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
    /// An id of your own, of a change of one instance: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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
    /// An id of your own, of a change of one instance: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InstanceResumeArgs {
    /// INSTANCE or GATEWAY/INSTANCE
    #[arg(value_name = "INSTANCE", required = true)]
    pub(crate) names: Vec<String>,
    /// Check all and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// An id of your own, of a change of one instance: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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
    /// An id of your own: the same change with the same id is made once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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
    /// An id of your own: the same action with the same id is carried out once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
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

#[derive(Debug, Args)]
pub(crate) struct ActionsArgs {
    /// Show the results of this one, and exit as it would have
    #[arg(value_name = "REQUEST_ID", value_parser = crate::value::request_id)]
    pub(crate) request_id: Option<String>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

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

/// The commands that call no gateway: they take the options of those that do,
/// wherever these come from, but do not show them.
const NOT_CALLING: &[&str] = &["serve", "demo", "check-config", "completions", "man"];

/// The definition behind parser, help, completions and manual.
pub(crate) fn definition() -> ClapCommand {
    let mut definition = Cli::command();
    let globals: Vec<_> = definition
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .map(|argument| argument.clone().hide(true))
        .collect();
    for name in NOT_CALLING {
        let globals = globals.clone();
        // A command that has an argument of that id does not inherit it.
        definition = definition.mut_subcommand(*name, |command| command.args(globals));
    }
    definition
}

/// A command line as given.
pub(crate) fn parse_from<T: Into<OsString> + Clone>(
    line: impl IntoIterator<Item = T>,
) -> Result<Cli, clap::Error> {
    let matches = definition().try_get_matches_from(line)?;
    Cli::from_arg_matches(&matches)
}

/// The command line of this process; does not return when it is help, a
/// version or a mistake (exit code 2).
pub(crate) fn parse() -> Cli {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}
