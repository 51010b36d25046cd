//! What answers at an address, found out without a session.

use std::time::Duration;

use openvpn_management::{Limits, Output};
use tokio::time::timeout;

use crate::config::{DisconnectPolicy, SessionConfig};
use crate::dial;
use crate::link::{Link, Received};
use crate::observation::Moment;

/// What answered at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A daemon whose slot was free greeted us.
    Greeted {
        /// Version of its management interface, where it tells.
        management_version: Option<u32>,
    },
    /// A daemon whose slot was free asked for the password.
    PasswordAsked,
    /// Something took the connection and said nothing: another manager holds the slot, or the daemon hangs.
    Silent,
    /// Nothing that speaks the management protocol.
    Unreachable {
        /// Why, for a person.
        reason: String,
    },
    /// Nothing was tried: it could harm the daemon, or cannot be done.
    NotTried {
        /// Why, for a person.
        reason: String,
    },
}

/// Connects, waits at most `patience` for the daemon's first words, and leaves without having written anything.
///
/// Where the slot is taken the connection waits in the daemon's queue meanwhile, which its holder does not notice. A
/// daemon that the end of a session harms is left alone.
pub async fn probe(config: &SessionConfig, patience: Duration) -> Probe {
    let not_tried = |reason: &str| Probe::NotTried {
        reason: reason.to_owned(),
    };
    if config.address.is_dial_in() {
        return not_tried("the daemon dials in: there is nothing to connect to");
    }
    if config.disconnect == DisconnectPolicy::Destructive {
        return not_tried("the end of a session harms this daemon (disconnect = \"destructive\")");
    }
    let mut is_open = false;
    match timeout(patience, ask(config, &mut is_open)).await {
        Ok(probe) => probe,
        Err(_) if is_open => Probe::Silent,
        Err(_) => Probe::Unreachable {
            reason: format!("no answer from {} within {patience:?}", config.address),
        },
    }
}

async fn ask(config: &SessionConfig, is_open: &mut bool) -> Probe {
    let unreachable = |reason: String| Probe::Unreachable { reason };
    let stream = match dial::open(config).await {
        Ok(stream) => stream,
        Err(dial::DialError::QueueFull) => return Probe::Silent,
        Err(error) => return unreachable(error.to_string()),
    };
    *is_open = true;
    let mut link = Link::new(stream, Limits::default());
    loop {
        match link.receive(Moment::now().monotonic) {
            Ok(Received::Bytes(_)) => {}
            Ok(Received::Nothing) => {
                if let Err(error) = link.ready().await {
                    return unreachable(format!("the connection broke: {error}"));
                }
                continue;
            }
            Ok(Received::End) => {
                let reason = "the connection was closed without a greeting";
                return unreachable(reason.to_owned());
            }
            Err(error) => return unreachable(format!("the connection broke: {error}")),
        }
        while let Some(output) = link.poll_output() {
            match output {
                Output::PasswordRequested => return Probe::PasswordAsked,
                Output::Greeted {
                    management_version,
                    banner: _,
                } => return Probe::Greeted { management_version },
                Output::Violation(violation) => return unreachable(violation.to_string()),
                // None of these comes before the greeting.
                Output::PasswordRefused
                | Output::PasswordAccepted
                | Output::Notification(_)
                | Output::Line(_)
                | Output::Reply { .. }
                | Output::Unanswered { .. }
                | Output::Lost { .. }
                | Output::Responsive
                | Output::Unsolicited(_) => {}
            }
        }
        if link.foreign_first_bytes().is_some() {
            let address = &config.address;
            let reason = format!("what listens at {address} is no OpenVPN management interface");
            return unreachable(reason);
        }
    }
}
