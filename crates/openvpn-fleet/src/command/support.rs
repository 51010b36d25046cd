//! What a command needs of a daemon, and of the queue before it.

use openvpn_management::{Command, HistoryRequest, HoldRequest};
use openvpn_session::{Lane, Mode};

use super::CommandError;
use crate::instance::Instance;
use crate::table::InstanceStatus;

/// Changes go before reads. A raw line counts as a change: it may be one.
pub(super) fn lane(command: &Command) -> Lane {
    match command {
        Command::AuthRetry(None)
        | Command::ClientCount
        | Command::Echo(HistoryRequest::History(_))
        | Command::Help
        | Command::Hold(HoldRequest::Query)
        | Command::LoadStats
        | Command::Log(HistoryRequest::History(_))
        | Command::Mute(None)
        | Command::Pid
        | Command::Pkcs11IdCount
        | Command::Pkcs11IdGet(_)
        | Command::RemoteEntryCount
        | Command::RemoteEntryGet(_)
        | Command::State(HistoryRequest::History(_))
        | Command::Status { .. }
        | Command::Verb(None)
        | Command::Version => Lane::Read,
        _ => Lane::Control,
    }
}

/// What a command needs of a daemon.
struct Needs {
    version: Option<((u32, u32), &'static str)>,
    mode: Option<Mode>,
}

fn needs(command: &Command) -> Needs {
    let (version, mode) = match command {
        Command::PushUpdateBroad { .. } | Command::PushUpdateCid { .. } => {
            (Some(((2, 7), "OpenVPN 2.7")), Some(Mode::Server))
        }
        Command::RemoteEntryCount | Command::RemoteEntryGet(_) => {
            (Some(((2, 6), "OpenVPN 2.6")), Some(Mode::Client))
        }
        Command::CrResponse(_) => (Some(((2, 5), "OpenVPN 2.5")), Some(Mode::Client)),
        Command::PkSig { .. } => (Some(((2, 5), "OpenVPN 2.5")), None),
        Command::Certificate { .. } => (Some(((2, 4), "OpenVPN 2.4")), None),
        Command::ClientCount => (None, Some(Mode::Server)),
        Command::Remote(_) | Command::Proxy(_) => (None, Some(Mode::Client)),
        _ => (None, None),
    };
    Needs { version, mode }
}

/// Refuses what the daemon is known not to have. What is not known is tried.
pub(super) fn check_support(
    instance: &Instance,
    status: &InstanceStatus,
    command: &Command,
) -> Result<(), CommandError> {
    let Needs { version, mode } = needs(command);
    if let (Some((needs, named)), Some(found)) = (version, status.version())
        && found < needs
    {
        return Err(CommandError::Version {
            instance: instance.name().to_string(),
            command: command.name(),
            needs: named,
            found: format!("OpenVPN {}.{}", found.0, found.1),
        });
    }
    if let Some(needs) = mode
        && status.mode != Mode::Unknown
        && status.mode != needs
    {
        let name = |mode| match mode {
            Mode::Server => "server",
            Mode::Client | Mode::Unknown => "client",
        };
        return Err(CommandError::Mode {
            instance: instance.name().to_string(),
            command: command.name(),
            needs: name(needs),
            found: name(status.mode),
        });
    }
    Ok(())
}
