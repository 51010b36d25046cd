//! What a daemon says unasked.

use std::time::Duration;

use openvpn_management::{Cid, Env, LogRecord, Notification, PasswordNotification, Text, UpDown};
use openvpn_session::{Hint, Mode};

use super::clients::{LastWord, connected};
use super::memory::Stage;
use super::{Fold, Told};
use crate::client::{Client, ClientTexts, PeerInfo};
use crate::event::{Detail, DisconnectCause, EventClass, GenerationCause};
use crate::question::{PendingChallenge, Question};
use crate::redact::redact_log;
use crate::table::RemovedReason;

/// How long after a signal of ours a client that goes is taken to go because of it.
const SIGNALLED_FOR: Duration = Duration::from_secs(5);

impl Fold<'_> {
    pub(super) fn handle_notification(&mut self, notification: Notification) {
        self.saw_daemon();
        if let Stage::Syncing {
            notifications,
            dropped,
        } = &mut self.table.memory.stage
        {
            if notifications.has_room_for(&notification) {
                notifications.push(notification, self.at);
            } else if matches!(notification, Notification::Log(_)) {
                let cap = &mut self.table.memory.log_cap;
                cap.drop_lines(EventClass::Log, 1, self.at.wall);
            } else {
                *dropped += 1;
            }
            return;
        }
        match notification {
            Notification::ClientEstablished { cid, env } => self.handle_established(cid, &env),
            Notification::ClientConnect { cid, kid: _, env } => self.handle_connect(cid, &env),
            Notification::ClientReauth { cid, kid: _, env } => self.handle_reauth(cid, &env),
            Notification::ClientDisconnect { cid, env } => {
                self.handle_client_disconnect(cid, &env);
            }
            Notification::ClientAddress {
                cid,
                address,
                primary,
            } => self.handle_address(cid, address, primary),
            // Only whoever answers challenges needs it, and it is a secret.
            Notification::ClientCrResponse { .. } => {}
            Notification::BytecountCli {
                cid,
                bytes_received,
                bytes_sent,
            } => self.handle_bytecount(cid, bytes_received, bytes_sent),
            Notification::Bytecount {
                bytes_received,
                bytes_sent,
            } => {
                // Only a client says so, also one whose `status` was refused while it held.
                if self.table.status.mode == Mode::Unknown {
                    self.table.status.mode = Mode::Client;
                }
                self.handle_carried(bytes_received, bytes_sent);
            }
            Notification::State(record) => self.handle_state(record),
            Notification::Log(record) => self.handle_log(record),
            Notification::Echo(record) => {
                self.emit_text_at(Detail::Echo(record.text), record.time);
            }
            Notification::Info(text) => self.emit_text(Detail::Info(text)),
            Notification::Fatal(text) => self.emit(Detail::Fatal(text)),
            Notification::Hold { message: _, wait } => self.set_holding(true, wait),
            Notification::Notify {
                severity,
                kind,
                text,
            } => {
                if kind == "remote-exit" {
                    self.hint(Hint::Leaving);
                }
                self.emit_text(Detail::Info(
                    format!("NOTIFY:{severity},{kind},{text}").into(),
                ));
            }
            Notification::Infomsg(_) => {
                // Unless it is a challenge, the text may be a link that logs in whoever opens it.
                self.emit_text(Detail::Info("INFOMSG".into()));
                self.handle_question(&notification);
            }
            Notification::UpDown { direction, env: _ } => {
                let text = match direction {
                    UpDown::Up => "UPDOWN:UP",
                    UpDown::Down => "UPDOWN:DOWN",
                };
                self.emit_text(Detail::Info(text.into()));
            }
            Notification::Unrecognized(text) => self.emit_text(Detail::Unrecognized(text)),
            Notification::Password(password) => self.handle_password(password),
            Notification::NeedOk { .. }
            | Notification::NeedStr { .. }
            | Notification::NeedCertificate { .. }
            | Notification::PkSign { .. }
            | Notification::RsaSign { .. }
            | Notification::Remote { .. }
            | Notification::Proxy { .. } => self.handle_question(&notification),
            Notification::Pkcs11IdCount(_) | Notification::Pkcs11IdEntry(_) => {}
            // The enum is open for what later versions say; the parser calls that unrecognized.
            _ => {}
        }
    }

    fn handle_question(&mut self, notification: &Notification) {
        let pending = self.table.memory.challenge.as_ref();
        if let Some(question) = Question::of(notification, pending) {
            self.open_question(question);
        }
    }

    fn handle_password(&mut self, password: PasswordNotification) {
        match password {
            PasswordNotification::VerificationFailed { ref kind, .. } => {
                self.close_questions();
                self.table.memory.challenge = PendingChallenge::of(&password);
                let text = format!("Verification Failed: '{kind}'");
                self.emit_text(Detail::Info(text.into()));
            }
            PasswordNotification::AuthToken(_) => {}
            asked => self.handle_question(&Notification::Password(asked)),
        }
    }

    fn handle_log(&mut self, record: LogRecord) {
        // The echo of a command, ours: there is only one session.
        if record.text.as_bytes().starts_with(b"MANAGEMENT: CMD ") {
            return;
        }
        // First the line, then what it tells; the line may be capped, the sign never is.
        let text = record.text.clone();
        self.emit_text_at(
            Detail::Log {
                flags: record.flags,
                text: redact_log(record.text),
            },
            record.time,
        );
        if self.handle_sign(text.as_bytes()) {
            self.hint(Hint::Leaving);
        }
    }

    fn handle_established(&mut self, cid: Cid, env: &Env) {
        let fresh = self.client_of_env(cid, env);
        if let Some(cause) =
            self.generation_on_appearance(cid, fresh.connected_since(), fresh.common_name())
        {
            self.begin_generation(cause);
        }
        // The status adds what the environment does not say: cipher, peer ID, the address in the daemon's own words.
        self.hint(Hint::Poll);
        if !self.has_room_for(cid) {
            return;
        }
        match self.table.clients.get_mut(cid) {
            Some(known) if !known.half_open => known.peer_info = fresh.peer_info,
            _ => self.establish(fresh, Told::ByDaemon),
        }
    }

    fn handle_connect(&mut self, cid: Cid, env: &Env) {
        let fresh = self.client_of_env(cid, env);
        let is_established = self
            .table
            .clients
            .get(cid)
            .is_some_and(|client| !client.half_open);
        let cause = if is_established {
            // An established client authenticates again with REAUTH: this is another one.
            Some(GenerationCause::CidReused)
        } else {
            self.generation_on_appearance(cid, fresh.connected_since(), fresh.common_name())
        };
        if let Some(cause) = cause {
            self.begin_generation(cause);
        }
        if self.has_room_for(cid) {
            self.attempt(fresh, Told::ByDaemon);
        }
    }

    fn handle_reauth(&mut self, cid: Cid, env: &Env) {
        let Some(client) = self.table.clients.get_mut(cid) else {
            self.hint(Hint::Poll);
            return;
        };
        let peer_info = PeerInfo::of_env(env, self.interner);
        if !peer_info.is_empty() {
            client.peer_info = peer_info;
        }
        let connected = connected(client, None);
        let event = client.to_event(self.table.generation.unwrap_or(crate::name::Generation(0)));
        let detail = Detail::ClientReauthenticated(Box::new(connected));
        self.emit_client(event, detail, None, Told::ByDaemon);
    }

    fn handle_client_disconnect(&mut self, cid: Cid, env: &Env) {
        let number = |name: &[u8]| parse_number(env.get(name)?);
        let last_word = LastWord {
            bytes_received: number(b"bytes_received"),
            bytes_sent: number(b"bytes_sent"),
            duration: number(b"time_duration").map(Duration::from_secs),
        };
        // A restart takes leave of each client before it says RECONNECTING.
        let signalled = self
            .table
            .memory
            .restart_signalled
            .is_some_and(|signalled| {
                self.at.monotonic.saturating_duration_since(signalled) < SIGNALLED_FOR
            });
        self.disconnect(
            cid,
            signalled.then_some(DisconnectCause::DaemonRestart),
            Some(last_word),
            Told::ByDaemon,
            RemovedReason::Gone,
        );
    }

    fn handle_address(&mut self, cid: Cid, address: Text, primary: bool) {
        let Some(client) = self.table.clients.get_mut(cid) else {
            self.hint(Hint::Poll);
            return;
        };
        if primary {
            let owned = client.clone();
            let mut texts = owned.texts();
            if address.as_bytes().contains(&b':') {
                texts.virtual_ipv6_address = address.as_bytes();
            } else {
                texts.virtual_address = address.as_bytes();
            }
            if client.set_texts(texts) {
                self.table.revision += 1;
                client.revision = self.table.revision;
            }
        }
        let event = client.to_event(self.table.generation.unwrap_or(crate::name::Generation(0)));
        let detail = Detail::ClientAddress { address, primary };
        self.emit_client(event, detail, None, Told::ByDaemon);
    }

    fn handle_bytecount(&mut self, cid: Cid, received: u64, sent: u64) {
        let Some(client) = self.table.clients.get_mut(cid) else {
            self.hint(Hint::Poll);
            return;
        };
        if client.half_open || received < client.bytes_received || sent < client.bytes_sent {
            // Only established clients are counted, and counts only rise: we missed something.
            self.hint(Hint::Poll);
            return;
        }
        if let Some(more) = client.raise_bytes(received, sent) {
            self.table.revision += 1;
            client.revision = self.table.revision;
            self.count_traffic(more);
        }
    }

    /// A client as an environment describes it.
    fn client_of_env(&self, cid: Cid, env: &Env) -> Client {
        let get = |name: &[u8]| env.get(name).unwrap_or_default();
        let real_address = self.real_address_of_env(env);
        let texts = ClientTexts {
            common_name: get(b"common_name"),
            username: get(b"username"),
            real_address: real_address.as_bytes(),
            virtual_address: get(b"ifconfig_pool_remote_ip"),
            virtual_ipv6_address: get(b"ifconfig_pool_remote_ip6"),
        };
        let mut client = Client::new(cid, texts, self.at);
        let since = parse_number(get(b"time_unix"));
        client.set_connected_since(since.and_then(|time| i64::try_from(time).ok()));
        client.peer_info = PeerInfo::of_env(env, self.interner);
        client
    }

    /// A client's address in the form in which this daemon's `status` will have it.
    fn real_address_of_env(&self, env: &Env) -> String {
        let get = |names: [&[u8]; 2]| {
            let value = names.into_iter().find_map(|name| env.get(name));
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        let (ip4, ip6) = (
            get([b"trusted_ip", b"untrusted_ip"]),
            get([b"trusted_ip6", b"untrusted_ip6"]),
        );
        let port = get([b"trusted_port", b"untrusted_port"]);
        let is_ip6 = ip4.is_empty();
        if is_ip6 && ip6.is_empty() {
            return String::new();
        }
        let version = self.table.status.daemon_version.as_bytes();
        let names_protocol =
            version.starts_with(b"OpenVPN 2.7") || version.starts_with(b"OpenVPN 3");
        if !names_protocol {
            return if is_ip6 { ip6 } else { format!("{ip4}:{port}") };
        }
        // The protocol of the socket, not of the peer: an IPv4 client on a dual-stack socket is `udp6:127.0.0.1:5`.
        let protocol = get([b"proto_1", b"proto"]);
        let word = if protocol.starts_with("tcp") {
            "tcp"
        } else {
            "udp"
        };
        let is_socket6 = is_ip6
            || protocol.starts_with("udp6")
            || protocol.starts_with("tcp6")
            || get([b"local_1", b"local"]).contains(':');
        let family = if is_socket6 { 6 } else { 4 };
        if is_ip6 {
            format!("{word}{family}:[{ip6}]:{port}")
        } else {
            format!("{word}{family}:{ip4}:{port}")
        }
    }
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}
