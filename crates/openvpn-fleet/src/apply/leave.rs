//! Signs in a server's log that a client leaves, in the words of OpenVPN 2.3 to 2.7.
//!
//! A name is peer-controlled and may contain anything a log line may. So a line counts only if the whole of it, but for
//! the known words at its end, is `name/address` of a client that is there.

use super::Fold;
use crate::event::DisconnectCause;

/// A sign that somebody leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sign<'a> {
    /// The client that the log calls this.
    Client {
        /// `name/address`, or the address alone while there is no name.
        prefix: &'a [u8],
        cause: DisconnectCause,
    },
    /// Every client of that common name but the one that connects.
    Name { common_name: &'a [u8] },
}

/// The sign in a log line, if there is one.
pub(super) fn sign(line: &[u8]) -> Option<Sign<'_>> {
    if let Some(rest) = line.strip_prefix(b"MULTI: new connection by client '") {
        let end = find_last(
            rest,
            b"' will cause previous active sessions by this client to be dropped.",
        )?;
        return Some(Sign::Name {
            common_name: &rest[..end],
        });
    }
    let client = |prefix, cause| Some(Sign::Client { prefix, cause });
    let signalled = line
        .strip_suffix(b" received, client-instance exiting")
        .or_else(|| line.strip_suffix(b" received, client-instance restarting"));
    if let Some(rest) = signalled {
        let signal = find_last(rest, b" SIG")?;
        return client(&rest[..signal], cause_of_signal(&rest[signal + 1..]));
    }
    // OpenVPN 2.6 and later, over the control channel; before, over the data channel.
    for words in [
        b" CC-EEN exit message received by peer".as_slice(),
        b" OCC exit message received by peer",
    ] {
        if let Some(prefix) = line.strip_suffix(words) {
            return client(prefix, DisconnectCause::PeerExit);
        }
    }
    // These repeat the name: `bob/192.0.2.7:1194 [bob] Inactivity timeout …`.
    for words in [
        b" Inactivity timeout (--ping-restart), restarting".as_slice(),
        b" Inactivity timeout (--ping-exit), exiting",
    ] {
        if let Some(rest) = line.strip_suffix(words) {
            let name = find_last(rest, b" [")?;
            return client(&rest[..name], DisconnectCause::PingTimeout);
        }
    }
    let reset = find_last(line, b" Connection reset, restarting [")?;
    client(&line[..reset], DisconnectCause::PeerExit)
}

/// `SIGTERM[soft,remote-exit]`: what made a daemon drop one client.
fn cause_of_signal(signal: &[u8]) -> DisconnectCause {
    let source = signal
        .iter()
        .position(|byte| *byte == b',')
        .map_or(&b""[..], |comma| &signal[comma + 1..]);
    match source.strip_suffix(b"]").unwrap_or(source) {
        b"remote-exit" | b"connection-reset" => DisconnectCause::PeerExit,
        b"ping-restart" | b"ping-exit" => DisconnectCause::PingTimeout,
        // `kill` gives no reason; a delayed exit follows a `client-kill`, or a goodbye that was logged before.
        b"" | b"delayed-exit" => DisconnectCause::Killed,
        _ => DisconnectCause::Unknown,
    }
}

fn find_last(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .rposition(|window| window == needle)
}

impl Fold<'_> {
    /// Handles a log line as a sign; whether it was one.
    pub(super) fn handle_sign(&mut self, line: &[u8]) -> bool {
        match sign(line) {
            None => return false,
            Some(Sign::Client { prefix, cause }) => {
                if let Some(cid) = self.table.clients.called(prefix) {
                    self.leaving(cid, cause);
                }
            }
            Some(Sign::Name { common_name }) => {
                for cid in self.table.clients.named(common_name) {
                    self.leaving(cid, DisconnectCause::Superseded);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(prefix: &[u8], cause: DisconnectCause) -> Option<Sign<'_>> {
        Some(Sign::Client { prefix, cause })
    }

    /// A word that changes here between versions would cost a client its cause, and the stream a second.
    #[test]
    fn the_words_of_each_version_are_known() {
        use DisconnectCause::{Killed, PeerExit, PingTimeout, Unknown};
        for (line, expected) in [
            (
                "bob/127.0.0.1:1 SIGTERM[soft,remote-exit] received, client-instance exiting",
                client(b"bob/127.0.0.1:1", PeerExit),
            ),
            (
                "bob/127.0.0.1:1 SIGTERM[soft,delayed-exit] received, client-instance exiting",
                client(b"bob/127.0.0.1:1", Killed),
            ),
            (
                "bob/127.0.0.1:1 SIGTERM[soft,] received, client-instance exiting",
                client(b"bob/127.0.0.1:1", Killed),
            ),
            (
                "bob/127.0.0.1:1 SIGUSR1[soft,ping-restart] received, client-instance restarting",
                client(b"bob/127.0.0.1:1", PingTimeout),
            ),
            (
                "bob/127.0.0.1:1 SIGUSR1[soft,connection-reset] received, client-instance restarting",
                client(b"bob/127.0.0.1:1", PeerExit),
            ),
            (
                "127.0.0.1:1 SIGUSR1[soft,tls-error] received, client-instance restarting",
                client(b"127.0.0.1:1", Unknown),
            ),
            (
                "a/b c/127.0.0.1:1 CC-EEN exit message received by peer",
                client(b"a/b c/127.0.0.1:1", PeerExit),
            ),
            (
                "bob/127.0.0.1:1 [bob] Inactivity timeout (--ping-restart), restarting",
                client(b"bob/127.0.0.1:1", PingTimeout),
            ),
            (
                "bob/127.0.0.1:1 Connection reset, restarting [0]",
                client(b"bob/127.0.0.1:1", PeerExit),
            ),
            (
                "MULTI: new connection by client 'it's' will cause previous active sessions by this client to be dropped.  Remember",
                Some(Sign::Name {
                    common_name: b"it's",
                }),
            ),
            ("SIGTERM[hard,] received, process exiting", None),
            (
                "bob/127.0.0.1:1 Data Channel: cipher 'AES-256-GCM', peer-id: 0",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(sign(line.as_bytes()), expected, "{line}");
        }
    }
}
