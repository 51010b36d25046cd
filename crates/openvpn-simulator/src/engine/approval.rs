//! Clients that wait for the manager's word (`--management-client-auth`).

use std::net::Ipv4Addr;

use tokio::time::Duration;

use crate::{ControlError, Version};

use super::clients::Stage;
use super::env::Occasion;
use super::{Engine, Timer};

/// A multi-line command whose lines are still coming.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) purpose: BlockPurpose,
    /// Its lines so far.
    pub(super) lines: Vec<Vec<u8>>,
}

/// What the lines of a block are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockPurpose {
    /// `client-auth`: configuration for the client.
    ClientAuth { cid: u64, kid: u64 },
    /// `client-pf`, up to 2.5.
    PacketFilter { cid: u64 },
}

/// The two forms of approval.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockCommand {
    /// `client-auth`: lines until `END` follow.
    WithBlock,
    /// `client-auth-nt`.
    WithoutBlock,
}

impl Engine {
    pub(super) fn client_auth(&mut self, cid: &[u8], kid: &[u8], form: BlockCommand) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        let Some(kid) = self.parse_kid(kid, "KID") else {
            return;
        };
        match form {
            BlockCommand::WithBlock => self.begin_block(BlockPurpose::ClientAuth { cid, kid }),
            BlockCommand::WithoutBlock => self.approve(cid, kid, &[]),
        }
    }

    pub(super) fn approve(&mut self, cid: u64, kid: u64, lines: &[Vec<u8>]) {
        if !self.serves("client-auth") {
            return;
        }
        let stage = self
            .clients
            .get(&cid)
            .filter(|client| client.has_key(kid))
            .map(|client| client.stage);
        let Some(stage) = stage else {
            self.say("ERROR: client-auth command failed");
            return;
        };
        self.say("SUCCESS: client-auth command succeeded");
        if stage == Stage::AwaitingApproval {
            for line in lines {
                self.configure(cid, line);
            }
            self.establish(cid);
        }
    }

    /// Applies one line of a client's configuration, for as long as it is there; lines that do not
    /// show are ignored.
    fn configure(&mut self, cid: u64, line: &[u8]) {
        let Some(client) = self.clients.get_mut(&cid) else {
            return;
        };
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["ifconfig-push", address, ..] => {
                if let Ok(address) = address.parse() {
                    client.virtual_address = Some(address);
                }
            }
            ["iroute", network, rest @ ..] => {
                let mask = rest.first().and_then(|mask| mask.parse::<Ipv4Addr>().ok());
                let length = mask.map_or(32, |mask| mask.to_bits().leading_ones());
                if let (Ok(network), Ok(length)) = (network.parse(), u8::try_from(length)) {
                    client.routes.push((network, length));
                }
            }
            ["push", ..] => {
                let option = line.trim_start_matches("push").trim();
                client.options.push(option.trim_matches('"').to_owned());
            }
            _ => {}
        }
    }

    pub(super) fn client_deny(
        &mut self,
        cid: &[u8],
        kid: &[u8],
        reason: &[u8],
        client_reason: Option<&[u8]>,
    ) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        let Some(kid) = self.parse_kid(kid, "KID") else {
            return;
        };
        if !self.serves("client-deny") {
            return;
        }
        let waiting = self.clients.get(&cid).filter(|client| client.has_key(kid));
        let Some(client) = waiting else {
            self.say("ERROR: client-deny command failed");
            return;
        };
        let address = client.log_address();
        let name = client.common_name().to_vec();
        let message = match client_reason {
            Some(text) => [b"AUTH_FAILED,", text].concat(),
            None => b"AUTH_FAILED".to_vec(),
        };
        let told = client_reason.map_or(Vec::new(), |text| [b", CLI:", text].concat());
        self.log(
            "",
            [b"MULTI: connection rejected: ", reason, &told].concat(),
        );
        self.say("SUCCESS: client-deny command succeeded");
        self.schedule_exit(cid, format!("{address} ").as_bytes());
        // From 2.6 on to the session that negotiates, which has no name, and to the one in force.
        let sessions: &[&[u8]] = match self.settings.version >= Version::V2_6 {
            true => &[b"UNDEF", &name],
            false => &[&name],
        };
        for session in sessions {
            let line: [&[u8]; 6] = [
                address.as_bytes(),
                b" SENT CONTROL [",
                session,
                b"]: '",
                &message,
                b"' (status=1)",
            ];
            self.log("", line.concat());
        }
    }

    pub(super) fn client_pending_auth(
        &mut self,
        cid: &[u8],
        kid: &[u8],
        extra: &[u8],
        timeout: &[u8],
    ) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        let Some(kid) = self.parse_kid(kid, "KID") else {
            return;
        };
        if self.parse_kid(timeout, "TIMEOUT").is_none() || !self.serves("client-pending-auth") {
            return;
        }
        self.defer(cid, Some(kid), extra);
    }

    /// The form that 2.5 has, without key and timeout.
    pub(super) fn client_pending_auth_2_5(&mut self, cid: &[u8], extra: &[u8]) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        if self.serves("client-pending-auth") {
            self.defer(cid, None, extra);
        }
    }

    /// Tells a client to wait for its approval; `kid` is the key meant, any if there is none.
    fn defer(&mut self, cid: u64, kid: Option<u64>, extra: &[u8]) {
        let waits = self.clients.get(&cid).is_some_and(|client| match kid {
            Some(kid) => client.has_key(kid),
            None => client.stage != Stage::HalfOpen,
        });
        if waits && extra.len() < 1000 {
            self.say("SUCCESS: client-pending-auth command succeeded");
        } else {
            self.say(
                "ERROR: client-pending-auth command failed. Extra parameter might be too long",
            );
        }
    }

    /// A client that waits answers a challenge.
    pub(crate) fn challenge_response(&mut self, cid: u64, text: &str) -> Result<(), ControlError> {
        let waits =
            (self.clients.get(&cid)).is_some_and(|client| client.stage == Stage::AwaitingApproval);
        if !waits {
            return Err(self.unknown_client(cid));
        }
        self.say_block(cid, Occasion::Response(text));
        Ok(())
    }

    /// Gives a client up that nobody approved.
    pub(super) fn hand_window_over(&mut self, cid: u64) {
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        if client.stage == Stage::Established {
            return;
        }
        let address = client.log_address();
        let seconds = self.settings.timing.hand_window.as_secs();
        self.log(
            "N",
            format!(
                "{address} TLS Error: TLS key negotiation failed to occur within {seconds} \
                 seconds (check your network connectivity)"
            ),
        );
        self.log("N", format!("{address} TLS Error: TLS handshake failed"));
        self.log(
            "",
            format!("{address} SIGUSR1[soft,tls-error] received, client-instance restarting"),
        );
        self.remove(cid);
    }

    /// Lists an instance for the delayed exit and says so, unless that is already under way.
    /// Returns whether it was not.
    pub(super) fn schedule_exit(&mut self, cid: u64, prefix: &[u8]) -> bool {
        let delay: Duration = self.settings.timing.delayed_exit;
        let Some(client) = self.clients.get_mut(&cid) else {
            return false;
        };
        if client.leaving {
            return false;
        }
        client.leaving = true;
        let text = format!("Delayed exit in {} seconds", delay.as_secs());
        self.log("", [prefix, text.as_bytes()].concat());
        self.set_timer(delay, Timer::DelayedExit(cid));
        true
    }
}
