//! The connection of a daemon that is an OpenVPN client: remotes, login, and what its server says.

use crate::ControlError;
use crate::client_mode::{ClientMode, Remote};
use crate::lexer::atoi;

use super::questions::Login;
use super::{Engine, Phase, Signal};

impl Engine {
    pub(super) fn remotes(&self) -> Vec<Remote> {
        match &self.settings.client {
            Some(client) if !client.remotes.is_empty() => client.remotes.clone(),
            _ => vec![Remote {
                host: "127.0.0.1".to_owned(),
                port: "1194".to_owned(),
                protocol: "udp4".to_owned(),
            }],
        }
    }

    pub(super) fn remote(&self) -> Remote {
        let mut remotes = self.remotes();
        let number = self.remote_number % remotes.len();
        let listed = remotes.swap_remove(number);
        self.modified.clone().unwrap_or(listed)
    }

    /// The way to the server, and what it says to the credentials.
    pub(super) fn log_in(&mut self) {
        // What a handshake costs, more or less.
        self.bytes_received += 2713;
        self.bytes_sent += 2389;
        self.enter("WAIT,,,,,,");
        self.enter("AUTH,,,,,,");
        self.asked_for_config = false;
        if self.client_settings(|client| client.awaits_server) {
            // It has nothing to say, but hears its manager as if it were connected.
            self.phase = Phase::Serving;
            self.awaiting = true;
            return;
        }
        self.ask_for_config();
        let credentials = self
            .settings
            .client
            .as_ref()
            .and_then(|client| client.credentials.clone());
        if let Some(credentials) = credentials {
            let wanted = match (self.login, &credentials.dynamic_challenge) {
                (Login::Challenged, Some((_, password))) => password,
                _ => &credentials.password,
            };
            let right = self.entered.as_ref().is_some_and(|(username, password)| {
                *username == credentials.username && password == wanted
            });
            match (right, self.login, credentials.dynamic_challenge) {
                (true, Login::First, Some((challenge, _))) => {
                    self.login = Login::Challenged;
                    self.fail_login(&format!(" ['CRV1:{challenge}']"));
                    return;
                }
                (true, _, _) => self.retrying = false,
                (false, _, _) => {
                    self.login = Login::First;
                    self.fail_login("");
                    return;
                }
            }
        }
        self.open_tunnel();
    }

    fn client_settings(&self, question: impl Fn(&ClientMode) -> bool) -> bool {
        self.settings.client.as_ref().is_some_and(question)
    }

    fn ask_for_config(&mut self) {
        if !self.asked_for_config {
            self.asked_for_config = true;
            self.enter("GET_CONFIG,,,,,,");
        }
    }

    /// The server wants to think about it, and may have something to say to the user.
    pub(crate) fn server_defers(
        &mut self,
        seconds: u64,
        message: Option<&str>,
    ) -> Result<(), ControlError> {
        self.check_awaiting()?;
        self.enter(&format!("AUTH_PENDING,timeout {seconds},,,,,"));
        if let Some(message) = message {
            self.say(format_args!(">INFOMSG:{message}"));
        }
        self.ask_for_config();
        Ok(())
    }

    pub(crate) fn server_accepts(&mut self) -> Result<(), ControlError> {
        self.check_awaiting()?;
        self.ask_for_config();
        self.open_tunnel();
        Ok(())
    }

    fn check_awaiting(&self) -> Result<(), ControlError> {
        if self.phase == Phase::Serving && self.awaiting {
            return Ok(());
        }
        Err(ControlError::NotAwaiting {
            daemon: self.settings.name.clone(),
        })
    }

    /// Whether it tells its server that it leaves, and waits for that to arrive.
    pub(super) fn says_goodbye(&self) -> bool {
        self.phase == Phase::Serving && self.client_settings(|client| client.exit_notify)
    }

    fn open_tunnel(&mut self) {
        self.awaiting = false;
        let remote = self.remote();
        let address = self.pool.address(0);
        let ipv6 = self.pool.ipv6_address(0);
        let ipv6 = ipv6.map_or(String::new(), |ipv6| format!(",{ipv6}"));
        self.enter(&format!("ASSIGN_IP,,{address},,,,{ipv6}"));
        self.log("I", "Initialization Sequence Completed");
        let (host, port) = (remote.host, remote.port);
        self.enter(&format!(
            "CONNECTED,SUCCESS,{address},{host},{port},,{ipv6}"
        ));
        self.phase = Phase::Serving;
        self.begin_bytecounts();
    }

    fn fail_login(&mut self, reason: &str) {
        self.entered = None;
        self.retrying = true;
        self.say(format_args!(
            ">PASSWORD:Verification Failed: 'Auth'{reason}"
        ));
        self.begin_restart(Signal::Usr1, "auth-failure");
    }

    /// `remote-entry-get`: one entry, entries from one to before another, or all.
    pub(super) fn remote_entries(&mut self, first: &[u8], end: Option<&[u8]>) {
        let remotes = self.remotes();
        let number = |text: &[u8]| usize::try_from(atoi(text)).unwrap_or(0);
        let (from, to) = match (first, end) {
            (b"all", _) => (0, remotes.len()),
            (first, Some(end)) => (number(first), number(end)),
            (first, None) => (number(first), number(first) + 1),
        };
        let listed = remotes.iter().enumerate().take(to).skip(from);
        for (number, remote) in listed {
            let (host, port, protocol) = (&remote.host, &remote.port, &remote.protocol);
            self.say(format_args!("{number},{host},{port},{protocol},enabled"));
        }
        self.say_end();
    }
}
