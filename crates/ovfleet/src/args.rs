//! The command line: every command, its options, and the rules between them.
//!
//! Names and formats here are an interface that scripts rely on: add, do not
//! rename.

mod control;
mod instance;
mod inventory;
mod read;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    Args, Command as ClapCommand, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    ValueEnum,
};
use clap_complete::Shell;

pub(crate) use self::{
    control::{KillArgs, Mode, SignalArgs, WaitFor},
    instance::{
        AnswerArgs, EchoArgs, ExecArgs, HistoryArgs, HoldArgs, HoldWord, InstancesOnlyArgs,
        MuteArgs, PushUpdateArgs, VerbArgs,
    },
    inventory::{
        InstanceAddArgs, InstanceCommand, InstancePauseArgs, InstanceRemoveArgs,
        InstanceResumeArgs, InstanceSetArgs, ReloadArgs,
    },
    read::{
        ActionsArgs, ClientsArgs, EventsArgs, InstancesArgs, RoutesArgs, Sort, SummaryArgs,
        WatchArgs,
    },
};

use crate::action::new_request_id;
use crate::failure::Failure;
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

/// Makes a change repeatable.
#[derive(Debug, Clone, Args)]
pub(crate) struct RequestArgs {
    /// An id of your own: the same command with the same id is carried out once
    #[arg(long, value_name = "ID", value_parser = crate::value::request_id)]
    request_id: Option<String>,
}

impl RequestArgs {
    /// Whether the user chose the id.
    pub(crate) fn is_given(&self) -> bool {
        self.request_id.is_some()
    }

    /// The given id, or a new one.
    pub(crate) fn id(&self) -> Result<String, Failure> {
        self.request_id.clone().map_or_else(new_request_id, Ok)
    }
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
