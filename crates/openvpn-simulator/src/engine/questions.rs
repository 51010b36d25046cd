//! What the daemon asks its manager before it goes on: passwords, confirmations, remotes.

use crate::client_mode::Remote;
use crate::lexer::atoi;

use super::{Engine, Phase, Signal, Thrown};

/// A question, as far as it has been answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    NeedOk,
    NeedStr,
    PrivateKey,
    Credentials {
        username: Option<Vec<u8>>,
        password: Option<Vec<u8>>,
    },
    Proxy,
    Remote,
}

/// What the manager entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Username,
    Password,
    NeedOk,
    NeedStr,
}

impl Entry {
    fn name(self) -> &'static str {
        match self {
            Self::Username => "username",
            Self::Password => "password",
            Self::NeedOk => "needok-confirmation",
            Self::NeedStr => "needstr-string",
        }
    }
}

/// How far the login at the server has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// The server takes what was entered, if it is right.
    First,
    /// The server has set its dynamic challenge.
    Challenged,
}

impl Engine {
    /// Begins, or begins again, what leads to a working tunnel.
    pub(super) fn begin_run(&mut self) {
        let client = self.settings.client.as_ref();
        let credentials = client.is_some_and(|client| client.credentials.is_some());
        let blank = Question::Credentials {
            username: None,
            password: None,
        };
        let mut questions = Vec::new();
        if let Some(client) = client
            && !self.confirmed
        {
            questions.extend(client.need_ok.as_ref().map(|_| Question::NeedOk));
            questions.extend(client.need_str.as_ref().map(|_| Question::NeedStr));
        }
        if self.settings.private_key_password.is_some() && !self.key_cached {
            questions.push(Question::PrivateKey);
        }
        let ask = credentials && self.entered.is_none();
        // Credentials that failed are asked for again only when they are needed.
        if ask && !self.retrying {
            questions.push(blank.clone());
        }
        if let Some(client) = client {
            if client.query_remote {
                questions.push(Question::Remote);
            } else if client.query_proxy {
                questions.push(Question::Proxy);
            }
        }
        if ask && self.retrying {
            questions.push(blank);
        }
        // What the manager put in place of a remote holds for one attempt.
        self.modified = None;
        self.questions = questions.into();
        self.confirmed = true;
        self.ask_next();
    }

    /// Asks the next question, or goes on when there is none.
    fn ask_next(&mut self) {
        if !self.questions.is_empty() {
            self.phase = Phase::Asking;
            self.repeat_question();
        } else if self.settings.client.is_some() {
            self.log_in();
        } else {
            self.initialise();
        }
    }

    /// Says the open question, to a new manager too.
    pub(super) fn repeat_question(&mut self) {
        let Some(question) = self.questions.front() else {
            return;
        };
        let client = self.settings.client.as_ref();
        let line = match question {
            Question::NeedOk => client
                .and_then(|client| client.need_ok.as_ref())
                .map(|need| {
                    format!(
                        ">NEED-OK:Need '{}' confirmation MSG:{}",
                        need.kind, need.message
                    )
                }),
            Question::NeedStr => client
                .and_then(|client| client.need_str.as_ref())
                .map(|need| format!(">NEED-STR:Need '{}' string MSG:{}", need.kind, need.message)),
            Question::PrivateKey => Some(">PASSWORD:Need 'Private Key' password".to_owned()),
            Question::Credentials { .. } => {
                let challenge = client
                    .and_then(|client| client.credentials.as_ref())
                    .and_then(|credentials| credentials.static_challenge.as_ref())
                    .filter(|_| self.login == Login::First);
                let challenge = challenge.map_or(String::new(), |text| format!(" SC:{text}"));
                Some(format!(
                    ">PASSWORD:Need 'Auth' username/password{challenge}"
                ))
            }
            Question::Proxy => {
                let remote = self.remote();
                let protocol = if remote.protocol.starts_with("tcp") {
                    "TCP"
                } else {
                    "UDP"
                };
                let number = self.remote_number + 1;
                Some(format!(">PROXY:{number},{protocol},{}", remote.host))
            }
            Question::Remote => {
                let remote = self.remote();
                Some(format!(
                    ">REMOTE:{},{},{}",
                    remote.host, remote.port, remote.protocol
                ))
            }
        };
        if let Some(line) = line {
            self.say(line);
        }
    }

    fn answered(&mut self) {
        self.questions.pop_front();
        self.ask_next();
    }

    /// What a question calls itself, for those that are answered by name.
    fn kind(&self) -> Option<String> {
        let client = self.settings.client.as_ref();
        match self.questions.front()? {
            Question::NeedOk => Some(client?.need_ok.as_ref()?.kind.clone()),
            Question::NeedStr => Some(client?.need_str.as_ref()?.kind.clone()),
            Question::PrivateKey => Some("Private Key".to_owned()),
            Question::Credentials { .. } => Some("Auth".to_owned()),
            Question::Proxy | Question::Remote => None,
        }
    }

    // ---- answers

    /// `username`, `password`, `needok` and `needstr`.
    pub(super) fn enter_answer(&mut self, entry: Entry, kind: &[u8], value: &[u8]) {
        let what = entry.name();
        let asked = matches!(
            (self.questions.front(), entry),
            (Some(Question::NeedOk), Entry::NeedOk)
                | (Some(Question::NeedStr), Entry::NeedStr)
                | (Some(Question::PrivateKey), Entry::Password)
                | (
                    Some(Question::Credentials { .. }),
                    Entry::Username | Entry::Password
                )
        );
        let Some(wanted) = self.kind().filter(|_| asked && self.phase == Phase::Asking) else {
            self.say(format_args!(
                "ERROR: no {what} is currently needed at this time"
            ));
            return;
        };
        if kind != wanted.as_bytes() {
            let begin = format!("ERROR: {what} of type '");
            let end = format!("' entered, but we need one of type '{wanted}'");
            self.say_bytes(&[begin.as_bytes(), kind, end.as_bytes()]);
            return;
        }
        self.say(format_args!(
            "SUCCESS: '{wanted}' {what} entered, but not yet verified"
        ));
        if let Some(Question::Credentials { username, password }) = self.questions.front_mut() {
            match entry {
                Entry::Username => *username = Some(value.to_vec()),
                _ => *password = Some(value.to_vec()),
            }
            let (Some(username), Some(password)) = (username, password) else {
                return;
            };
            self.entered = Some((std::mem::take(username), std::mem::take(password)));
        }
        if self.questions.front() == Some(&Question::PrivateKey) {
            let right = self.settings.private_key_password.as_deref() == Some(value);
            if !right {
                self.say(">PASSWORD:Verification Failed: 'Private Key'");
                self.repeat_question();
                return;
            }
            self.key_cached = true;
        }
        self.answered();
    }

    /// `remote ACCEPT`, `remote SKIP [n]`, `remote MOD host port`.
    pub(super) fn remote_command(&mut self, arguments: &[&[u8]]) {
        let asked = self.questions.front() == Some(&Question::Remote);
        match arguments {
            [b"ACCEPT", ..] if asked => {
                self.say("SUCCESS: remote command succeeded");
                self.answered();
            }
            [b"SKIP", rest @ ..] if asked => {
                self.say("SUCCESS: remote command succeeded");
                let count = rest.first().map_or(1, |count| atoi(count));
                self.remote_number += usize::try_from(count).unwrap_or(1).max(1);
                self.remote_number %= self.remotes().len();
                self.modified = None;
                self.repeat_question();
            }
            [b"MOD", host, port, ..] if asked => {
                self.say("SUCCESS: remote command succeeded");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.modified = Some(Remote {
                    host: text(host),
                    port: text(port),
                    protocol: self.remote().protocol,
                });
                self.answered();
            }
            _ => self.say("ERROR: remote command failed"),
        }
    }

    /// `proxy NONE`, `proxy HTTP host port [nct]`, `proxy SOCKS host port`.
    pub(super) fn proxy_command(&mut self, arguments: &[&[u8]]) {
        let asked = self.questions.front() == Some(&Question::Proxy);
        match arguments {
            [b"NONE", ..] | [b"HTTP" | b"SOCKS", _, _, ..] if asked => {
                self.say("SUCCESS: proxy command succeeded");
                self.answered();
            }
            _ => self.say("ERROR: proxy command failed"),
        }
    }

    /// A signal while a password is asked for is the end of the process.
    pub(super) fn interrupt_question(&mut self, thrown: Thrown) {
        let Some(kind) = self.kind() else {
            // Remotes and proxies can be asked for again.
            match thrown.signal {
                Signal::Hup | Signal::Usr1 => self.begin_restart(thrown.signal, thrown.reason()),
                Signal::Usr2 | Signal::Term | Signal::Int => self.exit_on(thrown),
            }
            return;
        };
        self.die_of(&format!(
            "ERROR: could not read {kind} username/password/ok/string from management interface"
        ));
    }
}
