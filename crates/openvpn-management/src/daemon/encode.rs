//! What a daemon writes.

mod status;

use std::fmt::Display;

use crate::command::StatusFormat;
use crate::env::Env;
use crate::notification::{Notification, PasswordNotification, UpDown};
use crate::record::{EchoRecord, LogRecord, Pkcs11Entry, RemoteEntry, StateRecord};
use crate::reply::{Rejected, Reply};

pub use status::write_status;

/// What a daemon with a management password says first: no line, and no line end.
pub const PROMPT: &[u8] = b"ENTER PASSWORD:";
/// The answer to the right password; the greeting follows.
pub const PASSWORD_CORRECT: &[u8] = b"SUCCESS: password is correct\r\n";

/// Appends the greeting.
pub fn write_greeting(management_version: u32, out: &mut Vec<u8>) {
    line(
        out,
        &[
            b">INFO:OpenVPN Management Interface Version ",
            &number(management_version),
            b" -- type 'help' for more info",
        ],
    );
}

/// Appends `SUCCESS: {text}`.
pub fn write_success(text: &[u8], out: &mut Vec<u8>) {
    line(out, &[b"SUCCESS: ", text]);
}

/// Appends `ERROR: {text}`.
pub fn write_error(text: &[u8], out: &mut Vec<u8>) {
    line(out, &[b"ERROR: ", text]);
}

/// Appends the lines and `END`.
pub fn write_block<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>, out: &mut Vec<u8>) {
    for row in lines {
        line(out, &[row.as_ref()]);
    }
    line(out, &[b"END"]);
}

/// Appends a notification, with its ENV block if it has one.
pub fn write_notification(notification: &Notification, out: &mut Vec<u8>) {
    match notification {
        Notification::Info(text) => line(out, &[b">INFO:", text.as_bytes()]),
        Notification::Fatal(text) => line(out, &[b">FATAL:", text.as_bytes()]),
        Notification::Hold {
            message,
            wait: None,
        } => line(out, &[b">HOLD:", message.as_bytes()]),
        Notification::Hold {
            message,
            wait: Some(wait),
        } => {
            line(
                out,
                &[b">HOLD:", message.as_bytes(), b":", &number(wait.as_secs())],
            );
        }
        Notification::State(record) => line(out, &[b">STATE:", &state_row(record)]),
        Notification::Log(record) => line(out, &[b">LOG:", &log_row(record)]),
        Notification::Echo(record) => line(out, &[b">ECHO:", &echo_row(record)]),
        Notification::Bytecount {
            bytes_received,
            bytes_sent,
        } => {
            line(
                out,
                &[
                    b">BYTECOUNT:",
                    &number(bytes_received),
                    b",",
                    &number(bytes_sent),
                ],
            );
        }
        Notification::BytecountCli {
            cid,
            bytes_received,
            bytes_sent,
        } => {
            line(
                out,
                &[
                    b">BYTECOUNT_CLI:",
                    &number(cid),
                    b",",
                    &number(bytes_received),
                    b",",
                    &number(bytes_sent),
                ],
            );
        }
        Notification::ClientConnect { cid, kid, env } => {
            line(
                out,
                &[b">CLIENT:CONNECT,", &number(cid), b",", &number(kid)],
            );
            env_block(b">CLIENT:ENV,", env, out);
        }
        Notification::ClientReauth { cid, kid, env } => {
            line(out, &[b">CLIENT:REAUTH,", &number(cid), b",", &number(kid)]);
            env_block(b">CLIENT:ENV,", env, out);
        }
        Notification::ClientEstablished { cid, env } => {
            line(out, &[b">CLIENT:ESTABLISHED,", &number(cid)]);
            env_block(b">CLIENT:ENV,", env, out);
        }
        Notification::ClientDisconnect { cid, env } => {
            line(out, &[b">CLIENT:DISCONNECT,", &number(cid)]);
            env_block(b">CLIENT:ENV,", env, out);
        }
        Notification::ClientCrResponse {
            cid,
            kid,
            response,
            env,
        } => {
            line(
                out,
                &[
                    b">CLIENT:CR_RESPONSE,",
                    &number(cid),
                    b",",
                    &number(kid),
                    b",",
                    response.expose(),
                ],
            );
            env_block(b">CLIENT:ENV,", env, out);
        }
        Notification::ClientAddress {
            cid,
            address,
            primary,
        } => {
            let primary: &[u8] = if *primary { b"1" } else { b"0" };
            line(
                out,
                &[
                    b">CLIENT:ADDRESS,",
                    &number(cid),
                    b",",
                    address.as_bytes(),
                    b",",
                    primary,
                ],
            );
        }
        Notification::Password(password) => write_password(password, out),
        Notification::NeedOk { kind, message } => {
            line(
                out,
                &[
                    b">NEED-OK:Need '",
                    kind.as_bytes(),
                    b"' confirmation MSG:",
                    message.as_bytes(),
                ],
            );
        }
        Notification::NeedStr { kind, message } => {
            line(
                out,
                &[
                    b">NEED-STR:Need '",
                    kind.as_bytes(),
                    b"' string MSG:",
                    message.as_bytes(),
                ],
            );
        }
        Notification::NeedCertificate { hint } => {
            line(out, &[b">NEED-CERTIFICATE:", hint.as_bytes()])
        }
        Notification::PkSign {
            data,
            algorithm: None,
        } => line(out, &[b">PK_SIGN:", data.as_bytes()]),
        Notification::PkSign {
            data,
            algorithm: Some(algorithm),
        } => {
            line(
                out,
                &[b">PK_SIGN:", data.as_bytes(), b",", algorithm.as_bytes()],
            );
        }
        Notification::RsaSign { data } => line(out, &[b">RSA_SIGN:", data.as_bytes()]),
        Notification::Remote {
            host,
            port,
            protocol,
        } => {
            line(
                out,
                &[
                    b">REMOTE:",
                    host.as_bytes(),
                    b",",
                    port.as_bytes(),
                    b",",
                    protocol.as_bytes(),
                ],
            );
        }
        Notification::Proxy {
            index,
            protocol,
            host,
        } => {
            line(
                out,
                &[
                    b">PROXY:",
                    &number(index),
                    b",",
                    protocol.as_bytes(),
                    b",",
                    host.as_bytes(),
                ],
            );
        }
        Notification::Infomsg(text) => line(out, &[b">INFOMSG:", text.as_bytes()]),
        Notification::UpDown { direction, env } => {
            let direction: &[u8] = match direction {
                UpDown::Up => b"UP",
                UpDown::Down => b"DOWN",
            };
            line(out, &[b">UPDOWN:", direction]);
            env_block(b">UPDOWN:ENV,", env, out);
        }
        Notification::Notify {
            severity,
            kind,
            text,
        } => {
            line(
                out,
                &[
                    b">NOTIFY:",
                    severity.as_bytes(),
                    b",",
                    kind.as_bytes(),
                    b",",
                    text.as_bytes(),
                ],
            );
        }
        Notification::Pkcs11IdCount(count) => line(out, &[b">PKCS11ID-COUNT:", &number(count)]),
        Notification::Pkcs11IdEntry(entry) => write_pkcs11_entry(entry, out),
        Notification::Unrecognized(text) => line(out, &[b">", text.as_bytes()]),
    }
}

/// Appends a reply in the form OpenVPN 2.6 gives it; a `status` in format 3.
pub fn write_reply(reply: &Result<Reply, Rejected>, out: &mut Vec<u8>) {
    let reply = match reply {
        Ok(reply) => reply,
        Err(rejected) => {
            for text in rejected.text.as_bytes().split(|byte| *byte == b'\n') {
                write_error(text, out);
            }
            return;
        }
    };
    match reply {
        Reply::None => {}
        Reply::Raw(reply) => out.extend_from_slice(reply.text.as_bytes()),
        Reply::Success(text) => {
            for text in text.as_bytes().split(|byte| *byte == b'\n') {
                write_success(text, out);
            }
        }
        Reply::Lines(rows) => write_block(&rows.records, out),
        Reply::Pid(pid) => line(out, &[b"SUCCESS: pid=", &number(pid)]),
        Reply::ClientCount(clients) => line(out, &[b"SUCCESS: nclients=", &number(clients)]),
        Reply::LoadStats(stats) => line(
            out,
            &[
                b"SUCCESS: nclients=",
                &number(stats.clients),
                b",bytesin=",
                &number(stats.bytes_received),
                b",bytesout=",
                &number(stats.bytes_sent),
            ],
        ),
        Reply::Version(version) => {
            line(out, &[b"OpenVPN Version: ", version.openvpn.as_bytes()]);
            if let Some(management) = version.management {
                line(out, &[b"Management Version: ", &number(management)]);
            }
            line(out, &[b"END"]);
        }
        Reply::Hold(hold) => line(out, &[b"SUCCESS: hold=", if *hold { b"1" } else { b"0" }]),
        Reply::Verb(level) => line(out, &[b"SUCCESS: verb=", &number(level)]),
        Reply::Mute(count) => line(out, &[b"SUCCESS: mute=", &number(count)]),
        Reply::AuthRetry(mode) => line(out, &[b"SUCCESS: auth-retry=", mode.as_bytes()]),
        Reply::EnvFilter(level) => line(out, &[b"SUCCESS: env_filter_level=", &number(level)]),
        Reply::States(rows) => write_block(rows.records.iter().map(state_row), out),
        Reply::Log(rows) => write_block(rows.records.iter().map(log_row), out),
        Reply::Echo(rows) => write_block(rows.records.iter().map(echo_row), out),
        Reply::Status(snapshot) => write_status(snapshot, StatusFormat::V3, out),
        Reply::RemoteEntryCount(count) => write_block([number(count)], out),
        Reply::RemoteEntries(rows) => write_block(rows.records.iter().map(remote_entry_row), out),
        Reply::Pkcs11IdCount(count) => line(out, &[b">PKCS11ID-COUNT:", &number(count)]),
        Reply::Pkcs11Id(entry) => write_pkcs11_entry(entry, out),
    }
}

fn write_password(password: &PasswordNotification, out: &mut Vec<u8>) {
    match password {
        PasswordNotification::NeedPassword { kind } => {
            line(out, &[b">PASSWORD:Need '", kind.as_bytes(), b"' password"]);
        }
        PasswordNotification::NeedUsernamePassword {
            kind,
            challenge: None,
        } => {
            line(
                out,
                &[b">PASSWORD:Need '", kind.as_bytes(), b"' username/password"],
            );
        }
        PasswordNotification::NeedUsernamePassword {
            kind,
            challenge: Some(challenge),
        } => {
            let flags = u8::from(challenge.echo) | u8::from(challenge.concatenate) << 1;
            line(
                out,
                &[
                    b">PASSWORD:Need '",
                    kind.as_bytes(),
                    b"' username/password SC:",
                    &number(flags),
                    b",",
                    challenge.text.as_bytes(),
                ],
            );
        }
        PasswordNotification::NeedUsername { kind } => {
            line(out, &[b">PASSWORD:Need '", kind.as_bytes(), b"' username"]);
        }
        // The challenge is read out of the reason, and is nothing beside it.
        PasswordNotification::VerificationFailed {
            kind,
            reason: None,
            challenge: _,
        } => {
            line(
                out,
                &[b">PASSWORD:Verification Failed: '", kind.as_bytes(), b"'"],
            );
        }
        PasswordNotification::VerificationFailed {
            kind,
            reason: Some(reason),
            challenge: _,
        } => {
            line(
                out,
                &[
                    b">PASSWORD:Verification Failed: '",
                    kind.as_bytes(),
                    b"' ['",
                    reason.as_bytes(),
                    b"']",
                ],
            );
        }
        PasswordNotification::AuthToken(token) => {
            line(out, &[b">PASSWORD:Auth-Token:", token.expose()])
        }
    }
}

fn write_pkcs11_entry(entry: &Pkcs11Entry, out: &mut Vec<u8>) {
    match (&entry.id, &entry.blob) {
        (Some(id), Some(blob)) => line(
            out,
            &[
                b">PKCS11ID-ENTRY:'",
                &number(entry.index),
                b"', ID:'",
                id.as_bytes(),
                b"', BLOB:'",
                blob.as_bytes(),
                b"'",
            ],
        ),
        _ => line(out, &[b">PKCS11ID-ENTRY:'", &number(entry.index), b"'"]),
    }
}

fn env_block(prefix: &[u8], env: &Env, out: &mut Vec<u8>) {
    for (name, value) in env.iter() {
        line(out, &[prefix, name, b"=", value]);
    }
    line(out, &[prefix, b"END"]);
}

fn state_row(record: &StateRecord) -> Vec<u8> {
    let port = |port: Option<u16>| port.map(number).unwrap_or_default();
    let mut fields = vec![
        number(record.time.unwrap_or_default()),
        record.state.as_bytes().to_vec(),
        record.detail.as_bytes().to_vec(),
        record.tunnel_ipv4.as_bytes().to_vec(),
        record.remote_address.as_bytes().to_vec(),
        port(record.remote_port),
        record.local_address.as_bytes().to_vec(),
        port(record.local_port),
    ];
    if !record.tunnel_ipv6.is_empty() {
        fields.push(record.tunnel_ipv6.as_bytes().to_vec());
    }
    fields.join(&b',')
}

fn log_row(record: &LogRecord) -> Vec<u8> {
    [
        &number(record.time.unwrap_or_default())[..],
        &number(record.flags),
        record.text.as_bytes(),
    ]
    .join(&b',')
}

fn echo_row(record: &EchoRecord) -> Vec<u8> {
    [
        &number(record.time.unwrap_or_default())[..],
        record.text.as_bytes(),
    ]
    .join(&b',')
}

fn remote_entry_row(entry: &RemoteEntry) -> Vec<u8> {
    let enabled: &[u8] = if entry.enabled {
        b"enabled"
    } else {
        b"disabled"
    };
    [
        &number(entry.index)[..],
        entry.host.as_bytes(),
        entry.port.as_bytes(),
        entry.protocol.as_bytes(),
        enabled,
    ]
    .join(&b',')
}

fn number(number: impl Display) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}
