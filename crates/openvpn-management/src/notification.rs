//! What a daemon says unasked: every line that starts with `>`.

use std::time::Duration;

use crate::env::Env;
use crate::record::{EchoRecord, LogRecord, Pkcs11Entry, StateRecord};
use crate::text::{Cid, Kid, Secret, Text, parse_u32, parse_u64};

/// A real-time message of a daemon, in the words of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notification {
    /// `>INFO:` other than the greeting.
    Info(Text),
    /// `>FATAL:`: the daemon closes the session next and ends.
    Fatal(Text),
    /// `>HOLD:`: the daemon waits for `hold release`.
    Hold {
        /// The words of the wire.
        message: Text,
        /// How long the daemon suggests to wait; OpenVPN 2.3 does not say.
        wait: Option<Duration>,
    },
    /// `>STATE:`.
    State(StateRecord),
    /// `>LOG:`.
    Log(LogRecord),
    /// `>ECHO:`.
    Echo(EchoRecord),
    /// `>BYTECOUNT:`: traffic of a client daemon.
    Bytecount {
        /// Bytes the daemon received.
        bytes_received: u64,
        /// Bytes the daemon sent.
        bytes_sent: u64,
    },
    /// `>BYTECOUNT_CLI:`: traffic of one established client of a server, since it connected.
    BytecountCli {
        /// Whose.
        cid: Cid,
        /// Bytes the daemon received from the client.
        bytes_received: u64,
        /// Bytes the daemon sent to the client.
        bytes_sent: u64,
    },
    /// `>CLIENT:CONNECT`: a client waits for `client-auth` or `client-deny`.
    ClientConnect {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
        /// Its environment; `password` is in clear text.
        env: Env,
    },
    /// `>CLIENT:REAUTH`: an established client authenticates again.
    ClientReauth {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
        /// Its environment; `password` is in clear text.
        env: Env,
    },
    /// `>CLIENT:ESTABLISHED`: sent by every server from 2.3 on, with or without client-auth.
    ClientEstablished {
        /// Who.
        cid: Cid,
        /// Its environment.
        env: Env,
    },
    /// `>CLIENT:DISCONNECT`: only for clients that had a CONNECT, up to 5 s late.
    ClientDisconnect {
        /// Who.
        cid: Cid,
        /// Its environment; empty for one that never established.
        env: Env,
    },
    /// `>CLIENT:CR_RESPONSE`: a client answers a challenge.
    ClientCrResponse {
        /// Who.
        cid: Cid,
        /// Which authentication.
        kid: Kid,
        /// The answer, base64.
        response: Secret,
        /// Its environment.
        env: Env,
    },
    /// `>CLIENT:ADDRESS`: an address or network now belongs to a client.
    ClientAddress {
        /// Whose.
        cid: Cid,
        /// `10.8.0.2`, `fd00::2`, or `10.77.0.0/255.255.255.0` behind it.
        address: Text,
        /// Whether it is the client's own address and not a network behind it.
        primary: bool,
    },
    /// `>PASSWORD:`.
    Password(PasswordNotification),
    /// `>NEED-OK:`: the daemon waits for `needok`.
    NeedOk {
        /// What the answer must name.
        kind: Text,
        /// The question.
        message: Text,
    },
    /// `>NEED-STR:`: the daemon waits for `needstr`.
    NeedStr {
        /// What the answer must name.
        kind: Text,
        /// The question.
        message: Text,
    },
    /// `>NEED-CERTIFICATE:`: the daemon waits for `certificate`.
    NeedCertificate {
        /// Which certificate is meant.
        hint: Text,
    },
    /// `>PK_SIGN:`: the daemon waits for `pk-sig`.
    PkSign {
        /// What to sign, base64.
        data: Text,
        /// How to sign it; only told to management clients of version 3 and later.
        algorithm: Option<Text>,
    },
    /// `>RSA_SIGN:`: the daemon waits for `rsa-sig`.
    RsaSign {
        /// What to sign, base64.
        data: Text,
    },
    /// `>REMOTE:`: a client daemon waits for `remote`.
    Remote {
        /// Host it would connect to.
        host: Text,
        /// Port it would connect to.
        port: Text,
        /// Protocol word, such as `udp4`.
        protocol: Text,
    },
    /// `>PROXY:`: a client daemon waits for `proxy`.
    Proxy {
        /// Number of the connection entry, from 1.
        index: u32,
        /// `UDP` or `TCP`.
        protocol: Text,
        /// Host it would connect to.
        host: Text,
    },
    /// `>INFOMSG:`: text from the server to a client's user, such as `WEB_AUTH::https://…`.
    Infomsg(Text),
    /// `>UPDOWN:`: the tunnel came up or went down.
    UpDown {
        /// Which.
        direction: UpDown,
        /// The environment an up script would see.
        env: Env,
    },
    /// `>NOTIFY:`: for instance `info,remote-exit,EXIT`, when a client leaves; it does not say which.
    Notify {
        /// `info`.
        severity: Text,
        /// `remote-exit`.
        kind: Text,
        /// The rest.
        text: Text,
    },
    /// `>PKCS11ID-COUNT:` that answers no command of ours.
    Pkcs11IdCount(u32),
    /// `>PKCS11ID-ENTRY:` that answers no command of ours.
    Pkcs11IdEntry(Pkcs11Entry),
    /// Any other line that starts with `>`, or one of the above that does not parse; without the `>`.
    Unrecognized(Text),
}

impl Notification {
    /// The environment that came with it, of those that have one.
    #[must_use]
    pub fn env(&self) -> Option<&Env> {
        match self {
            Self::ClientConnect { env, .. }
            | Self::ClientReauth { env, .. }
            | Self::ClientEstablished { env, .. }
            | Self::ClientDisconnect { env, .. }
            | Self::ClientCrResponse { env, .. }
            | Self::UpDown { env, .. } => Some(env),
            _ => None,
        }
    }
}

/// Which way the tunnel went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpDown {
    /// `UP`.
    Up,
    /// `DOWN`.
    Down,
}

/// A `>PASSWORD:` line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PasswordNotification {
    /// `Need 'X' password`.
    NeedPassword {
        /// `Private Key`, `HTTP Proxy`, …
        kind: Text,
    },
    /// `Need 'X' username/password`.
    NeedUsernamePassword {
        /// `Auth`, `HTTP Proxy`, …
        kind: Text,
        /// A further question the user answers together with the password.
        challenge: Option<StaticChallenge>,
    },
    /// `Need 'X' username`: only the name, from OpenVPN 2.7.1.
    NeedUsername {
        /// `Auth`, …
        kind: Text,
    },
    /// `Verification Failed: 'X'`.
    VerificationFailed {
        /// `Auth`, `Private Key`, …
        kind: Text,
        /// The server's words, if any; the whole challenge text if it was one.
        reason: Option<Text>,
        /// The challenge to answer with the next try.
        challenge: Option<DynamicChallenge>,
    },
    /// `Auth-Token:…`: stands in for the password from now on.
    AuthToken(Secret),
}

/// `SC:{flags},{text}`: configured on the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticChallenge {
    /// Whether the answer may be shown while it is typed.
    pub echo: bool,
    /// Whether password and answer are to be sent as one word, one after the other.
    pub concatenate: bool,
    /// The question.
    pub text: Text,
}

/// `CRV1:{flags}:{state}:{username}:{text}`: sent by the server instead of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicChallenge {
    /// `R` (an answer is wanted), `E` (it may be shown).
    pub flags: Text,
    /// To be given back with the answer.
    pub state_id: Text,
    /// The user's name, base64.
    pub username_base64: Text,
    /// The question.
    pub text: Text,
}

/// What one `>` line turned out to be.
pub(crate) enum Parsed {
    /// Complete in itself.
    Complete(Notification),
    /// The first line of an ENV block.
    EnvBlock(EnvHeader),
}

/// A notification that still waits for its ENV block.
#[derive(Debug, Clone)]
pub(crate) enum EnvHeader {
    Connect {
        cid: Cid,
        kid: Kid,
    },
    Reauth {
        cid: Cid,
        kid: Kid,
    },
    Established {
        cid: Cid,
    },
    Disconnect {
        cid: Cid,
    },
    CrResponse {
        cid: Cid,
        kid: Kid,
        response: Secret,
    },
    UpDown(UpDown),
}

impl EnvHeader {
    /// What each line of this header's ENV block starts with.
    pub(crate) fn env_prefix(&self) -> &'static [u8] {
        match self {
            Self::UpDown(_) => b"UPDOWN:ENV,",
            _ => b"CLIENT:ENV,",
        }
    }

    pub(crate) fn with_env(self, env: Env) -> Notification {
        match self {
            Self::Connect { cid, kid } => Notification::ClientConnect { cid, kid, env },
            Self::Reauth { cid, kid } => Notification::ClientReauth { cid, kid, env },
            Self::Established { cid } => Notification::ClientEstablished { cid, env },
            Self::Disconnect { cid } => Notification::ClientDisconnect { cid, env },
            Self::CrResponse { cid, kid, response } => Notification::ClientCrResponse {
                cid,
                kid,
                response,
                env,
            },
            Self::UpDown(direction) => Notification::UpDown { direction, env },
        }
    }
}

/// Parses one line without its leading `>`.
pub(crate) fn parse(line: &[u8]) -> Parsed {
    // The one notification that comes by the thousand is all numbers: no copy for it.
    if let Some(notification) = line
        .strip_prefix(b"BYTECOUNT_CLI:")
        .and_then(parse_bytecount_cli)
    {
        return Parsed::Complete(notification);
    }
    let line = Text::copy_from(line);
    parse_line(&line).unwrap_or(Parsed::Complete(Notification::Unrecognized(line)))
}

/// `None` for a line of another kind or form.
fn parse_line(line: &Text) -> Option<Parsed> {
    let colon = memchr::memchr(b':', line.as_bytes())?;
    let (word, rest) = (&line.as_bytes()[..colon], &line.as_bytes()[colon + 1..]);
    let body = line.slice_of(rest);
    let notification = match word {
        b"INFO" => Notification::Info(body),
        b"FATAL" => Notification::Fatal(body),
        b"HOLD" => parse_hold(body),
        b"STATE" => Notification::State(StateRecord::parse(&body)?),
        b"LOG" => Notification::Log(LogRecord::parse(&body)?),
        b"ECHO" => Notification::Echo(EchoRecord::parse(&body)?),
        b"BYTECOUNT" => {
            let (received, sent) = split_once(rest, b',')?;
            Notification::Bytecount {
                bytes_received: parse_u64(received)?,
                bytes_sent: parse_u64(sent)?,
            }
        }
        b"CLIENT" => return parse_client(&body),
        b"PASSWORD" => Notification::Password(parse_password(&body)?),
        b"NEED-OK" => {
            let (kind, message) = parse_need(&body, &[b"' confirmation MSG:"])?;
            Notification::NeedOk { kind, message }
        }
        b"NEED-STR" => {
            // OpenVPN's notes say `input`, its code prints `string`.
            let (kind, message) = parse_need(&body, &[b"' string MSG:", b"' input MSG:"])?;
            Notification::NeedStr { kind, message }
        }
        b"NEED-CERTIFICATE" => Notification::NeedCertificate { hint: body },
        b"PK_SIGN" => match split_once(rest, b',') {
            Some((data, algorithm)) => Notification::PkSign {
                data: body.slice_of(data),
                algorithm: Some(body.slice_of(algorithm)),
            },
            None => Notification::PkSign {
                data: body,
                algorithm: None,
            },
        },
        b"RSA_SIGN" => Notification::RsaSign { data: body },
        b"REMOTE" => {
            let (host, rest) = split_once(rest, b',')?;
            let (port, protocol) = split_once(rest, b',')?;
            Notification::Remote {
                host: body.slice_of(host),
                port: body.slice_of(port),
                protocol: body.slice_of(protocol),
            }
        }
        b"PROXY" => {
            let (index, rest) = split_once(rest, b',')?;
            let (protocol, host) = split_once(rest, b',')?;
            Notification::Proxy {
                index: parse_u32(index)?,
                protocol: body.slice_of(protocol),
                host: body.slice_of(host),
            }
        }
        b"INFOMSG" => Notification::Infomsg(body),
        b"UPDOWN" => {
            let direction = match rest {
                b"UP" => UpDown::Up,
                b"DOWN" => UpDown::Down,
                _ => return None,
            };
            return Some(Parsed::EnvBlock(EnvHeader::UpDown(direction)));
        }
        b"NOTIFY" => {
            let (severity, rest) = split_once(rest, b',')?;
            let (kind, text) = split_once(rest, b',')?;
            Notification::Notify {
                severity: body.slice_of(severity),
                kind: body.slice_of(kind),
                text: body.slice_of(text),
            }
        }
        b"PKCS11ID-COUNT" => Notification::Pkcs11IdCount(parse_u32(rest)?),
        b"PKCS11ID-ENTRY" => Notification::Pkcs11IdEntry(Pkcs11Entry::parse(&body)?),
        _ => return None,
    };
    Some(Parsed::Complete(notification))
}

/// `{text}:{seconds}`, from 2.3 without the seconds.
fn parse_hold(body: Text) -> Notification {
    let bytes = body.as_bytes();
    let wait = memchr::memrchr(b':', bytes)
        .and_then(|colon| parse_u32(&bytes[colon + 1..]).map(|secs| (colon, secs)));
    match wait {
        Some((colon, secs)) => Notification::Hold {
            message: body.slice_of(&bytes[..colon]),
            wait: Some(Duration::from_secs(u64::from(secs))),
        },
        None => Notification::Hold {
            message: body,
            wait: None,
        },
    }
}

/// `{cid},{in},{out}`.
fn parse_bytecount_cli(rest: &[u8]) -> Option<Notification> {
    let (cid, rest) = split_once(rest, b',')?;
    let (received, sent) = split_once(rest, b',')?;
    Some(Notification::BytecountCli {
        cid: Cid(parse_u64(cid)?),
        bytes_received: parse_u64(received)?,
        bytes_sent: parse_u64(sent)?,
    })
}

/// What follows `>CLIENT:`.
fn parse_client(body: &Text) -> Option<Parsed> {
    let (word, rest) = split_once(body.as_bytes(), b',')?;
    let header = match word {
        b"CONNECT" | b"REAUTH" => {
            let (cid, kid) = split_once(rest, b',')?;
            let (cid, kid) = (Cid(parse_u64(cid)?), Kid(parse_u64(kid)?));
            if word == b"CONNECT" {
                EnvHeader::Connect { cid, kid }
            } else {
                EnvHeader::Reauth { cid, kid }
            }
        }
        b"ESTABLISHED" => EnvHeader::Established {
            cid: Cid(parse_u64(rest)?),
        },
        b"DISCONNECT" => EnvHeader::Disconnect {
            cid: Cid(parse_u64(rest)?),
        },
        b"CR_RESPONSE" => {
            let (cid, rest) = split_once(rest, b',')?;
            let (kid, response) = split_once(rest, b',')?;
            EnvHeader::CrResponse {
                cid: Cid(parse_u64(cid)?),
                kid: Kid(parse_u64(kid)?),
                response: Secret::new(body.slice_of(response).into_bytes()),
            }
        }
        b"ADDRESS" => {
            let (cid, rest) = split_once(rest, b',')?;
            let (address, primary) = split_once(rest, b',')?;
            return Some(Parsed::Complete(Notification::ClientAddress {
                cid: Cid(parse_u64(cid)?),
                address: body.slice_of(address),
                primary: match primary {
                    b"0" => false,
                    b"1" => true,
                    _ => return None,
                },
            }));
        }
        _ => return None,
    };
    Some(Parsed::EnvBlock(header))
}

/// What follows `>PASSWORD:`.
fn parse_password(body: &Text) -> Option<PasswordNotification> {
    let bytes = body.as_bytes();
    if let Some(token) = bytes.strip_prefix(b"Auth-Token:") {
        return Some(PasswordNotification::AuthToken(Secret::new(
            body.slice_of(token).into_bytes(),
        )));
    }
    if let Some(rest) = bytes.strip_prefix(b"Verification Failed: '") {
        return parse_verification_failed(body, rest);
    }
    let rest = bytes.strip_prefix(b"Need '")?;
    if let Some(kind) = rest.strip_suffix(b"' password") {
        return Some(PasswordNotification::NeedPassword {
            kind: body.slice_of(kind),
        });
    }
    if let Some(kind) = rest.strip_suffix(b"' username") {
        return Some(PasswordNotification::NeedUsername {
            kind: body.slice_of(kind),
        });
    }
    let (kind, rest) = split_once_at(rest, b"' username/password")?;
    let challenge = match rest {
        b"" => None,
        _ => Some(parse_static_challenge(body, rest.strip_prefix(b" SC:")?)?),
    };
    Some(PasswordNotification::NeedUsernamePassword {
        kind: body.slice_of(kind),
        challenge,
    })
}

/// `{0-3},{text}`: bit 0 allows echo, bit 1 asks for concatenation.
fn parse_static_challenge(body: &Text, rest: &[u8]) -> Option<StaticChallenge> {
    let (flags, text) = split_once(rest, b',')?;
    let flags = parse_u32(flags)?;
    Some(StaticChallenge {
        echo: flags & 1 != 0,
        concatenate: flags & 2 != 0,
        text: body.slice_of(text),
    })
}

/// `{kind}'` or `{kind}' ['{reason}']`.
fn parse_verification_failed(body: &Text, rest: &[u8]) -> Option<PasswordNotification> {
    let (kind, reason) = match split_once_at(rest, b"' ['") {
        Some((kind, reason)) => (kind, Some(reason.strip_suffix(b"']")?)),
        None => (rest.strip_suffix(b"'")?, None),
    };
    let challenge = reason.and_then(|reason| {
        let mut parts = reason
            .strip_prefix(b"CRV1:")?
            .splitn(4, |byte| *byte == b':');
        Some(DynamicChallenge {
            flags: body.slice_of(parts.next()?),
            state_id: body.slice_of(parts.next()?),
            username_base64: body.slice_of(parts.next()?),
            text: body.slice_of(parts.next()?),
        })
    });
    Some(PasswordNotification::VerificationFailed {
        kind: body.slice_of(kind),
        reason: reason.map(|reason| body.slice_of(reason)),
        challenge,
    })
}

/// `Need '{kind}{separator}{message}` for the first separator that occurs.
fn parse_need(body: &Text, separators: &[&[u8]]) -> Option<(Text, Text)> {
    let rest = body.as_bytes().strip_prefix(b"Need '")?;
    let (kind, message) = separators
        .iter()
        .find_map(|separator| split_once_at(rest, separator))?;
    Some((body.slice_of(kind), body.slice_of(message)))
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(separator, bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn split_once_at<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(bytes, separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}
