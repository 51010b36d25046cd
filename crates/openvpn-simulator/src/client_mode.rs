//! A daemon that is itself an OpenVPN client: where it connects, and what it asks its manager.

/// One `--remote` of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) host: String,
    pub(crate) port: String,
    pub(crate) protocol: String,
}

/// What credentials a client needs.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) username: Vec<u8>,
    pub(crate) password: Vec<u8>,
    /// Flags and text behind `SC:` of the question.
    pub(crate) static_challenge: Option<String>,
    /// What follows `CRV1:`, and the password that then is right.
    pub(crate) dynamic_challenge: Option<(String, Vec<u8>)>,
}

/// A question with a type and a text, `NEED-OK` or `NEED-STR`.
#[derive(Clone, Debug)]
pub(crate) struct Need {
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// Makes a [`Daemon`](crate::Daemon) an OpenVPN client, run with `--auth-retry interact`.
///
/// What it asks, it asks in OpenVPN's order: need-ok, need-str, private key, credentials, proxy or
/// remote. With nothing to ask it connects at once to a server that takes everybody.
#[derive(Clone, Debug, Default)]
pub struct ClientMode {
    pub(crate) remotes: Vec<Remote>,
    pub(crate) query_remote: bool,
    pub(crate) query_proxy: bool,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) need_ok: Option<Need>,
    pub(crate) need_str: Option<Need>,
    pub(crate) awaits_server: bool,
    pub(crate) exit_notify: bool,
}

impl ClientMode {
    /// A client of the server at `127.0.0.1`, UDP port 1194, until another remote is given.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a `--remote`.
    #[must_use]
    pub fn remote(mut self, host: &str, port: u16, protocol: &str) -> Self {
        self.remotes.push(Remote {
            host: host.to_owned(),
            port: port.to_string(),
            protocol: protocol.to_owned(),
        });
        self
    }

    /// Asks for each remote (`--management-query-remote`).
    #[must_use]
    pub fn query_remote(mut self) -> Self {
        self.query_remote = true;
        self
    }

    /// Asks for a proxy (`--management-query-proxy`); not if it asks for remotes.
    #[must_use]
    pub fn query_proxy(mut self) -> Self {
        self.query_proxy = true;
        self
    }

    /// Needs this username and password (`--auth-user-pass`, `--management-query-passwords`);
    /// others fail.
    #[must_use]
    pub fn credentials(
        mut self,
        username: impl Into<Vec<u8>>,
        password: impl Into<Vec<u8>>,
    ) -> Self {
        self.credentials = Some(Credentials {
            username: username.into(),
            password: password.into(),
            static_challenge: None,
            dynamic_challenge: None,
        });
        self
    }

    /// Asks a static challenge with the credentials, such as `1,Enter PIN`: flags, then text. The
    /// right password is then `SCRV1:` and so on, as it is to be entered.
    #[must_use]
    pub fn static_challenge(mut self, flags_and_text: &str) -> Self {
        if let Some(credentials) = &mut self.credentials {
            credentials.static_challenge = Some(flags_and_text.to_owned());
        }
        self
    }

    /// Once the credentials are right, fails with this dynamic challenge, such as
    /// `R,E:state42:dXMgZXI=:Second factor`; then `password` is right.
    #[must_use]
    pub fn dynamic_challenge(mut self, challenge: &str, password: impl Into<Vec<u8>>) -> Self {
        if let Some(credentials) = &mut self.credentials {
            credentials.dynamic_challenge = Some((challenge.to_owned(), password.into()));
        }
        self
    }

    /// Asks for a confirmation first.
    #[must_use]
    pub fn need_ok(mut self, kind: &str, message: &str) -> Self {
        self.need_ok = Some(Need {
            kind: kind.to_owned(),
            message: message.to_owned(),
        });
        self
    }

    /// Once it has asked what it asks, waits until a script says what its server does:
    /// [`Daemon::server_defers`](crate::Daemon::server_defers) and
    /// [`Daemon::server_accepts`](crate::Daemon::server_accepts).
    #[must_use]
    pub fn awaits_server(mut self) -> Self {
        self.awaits_server = true;
        self
    }

    /// Tells its server when it ends (`--explicit-exit-notify`).
    #[must_use]
    pub fn exit_notify(mut self) -> Self {
        self.exit_notify = true;
        self
    }

    /// Asks for a word first.
    #[must_use]
    pub fn need_str(mut self, kind: &str, message: &str) -> Self {
        self.need_str = Some(Need {
            kind: kind.to_owned(),
            message: message.to_owned(),
        });
        self
    }
}
