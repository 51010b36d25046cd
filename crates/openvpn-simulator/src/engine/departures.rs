//! Clients: how they go, by themselves or killed, and whether they come back.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::time::Duration;

use crate::client::{AfterLoss, ClientSpec, How};
use crate::lexer::atoi;
use crate::{ControlError, Version};

use super::clients::{Client, Stage};
use super::env::Occasion;
use super::{Engine, Phase, Timer};

impl Engine {
    pub(crate) fn leave(&mut self, cid: u64, how: How) -> Result<(), ControlError> {
        let unknown = self.unknown_client(cid);
        let client = self.clients.get_mut(&cid).ok_or(unknown)?;
        client.spec.after_loss = AfterLoss::StaysAway;
        let prefix = client.log_prefix();
        let name = client.common_name().to_vec();
        let line = |text: &str| [&prefix[..], b" ", text.as_bytes()].concat();
        match how {
            How::ExitNotify if self.settings.version >= Version::V2_6 => {
                self.log("N", line("CC-EEN exit message received by peer"));
                let prefix = [&prefix[..], b" "].concat();
                if self.schedule_exit(cid, &prefix) {
                    self.say(">NOTIFY:info,remote-exit,EXIT");
                }
                return Ok(());
            }
            // Daemons before 2.6 hear the goodbye in the data channel alone.
            How::ExitNotify | How::ExitNotifyData => {
                self.log("N", line("OCC exit message received by peer"));
                self.log(
                    "",
                    line("SIGUSR1[soft,remote-exit] received, client-instance restarting"),
                );
            }
            How::PingTimeout => {
                let tail = b"] Inactivity timeout (--ping-restart), restarting";
                let inactive = [&line("["), &name[..], tail].concat();
                self.log("I", inactive);
                self.log(
                    "",
                    line("SIGUSR1[soft,ping-restart] received, client-instance restarting"),
                );
            }
            How::TcpClose => {
                self.log("N", line("Connection reset, restarting [0]"));
                self.log(
                    "",
                    line("SIGUSR1[soft,connection-reset] received, client-instance restarting"),
                );
            }
        }
        self.remove(cid);
        Ok(())
    }

    /// Takes an instance out of the tables, with its `DISCONNECT` if it had a `CONNECT`.
    pub(super) fn remove(&mut self, cid: u64) {
        let announced = self
            .clients
            .get(&cid)
            .is_some_and(|client| client.announced.is_some());
        if announced {
            self.say_block(cid, Occasion::Disconnect);
        }
        if let Some(client) = self.clients.remove(&cid) {
            self.give_back(&client);
        }
    }

    pub(super) fn give_back(&mut self, client: &Client) {
        self.pool.give_back_peer_id(client.peer_id);
        if let Some(number) = client.pool_number {
            self.pool.give_back(number);
        }
    }

    pub(super) fn delayed_exit(&mut self, cid: u64) {
        let Some(client) = self.clients.get(&cid).filter(|client| client.leaving) else {
            return;
        };
        let text = b" SIGTERM[soft,delayed-exit] received, client-instance exiting";
        let line = [&client.log_prefix()[..], text].concat();
        self.log("", line);
        self.remove(cid);
    }

    /// Lets a client come back later, if it is one that does.
    pub(super) fn schedule_return(&mut self, cid: u64, after: Duration) {
        let Some(client) = self.clients.get(&cid) else {
            return;
        };
        if client.spec.after_loss == AfterLoss::StaysAway || client.stage != Stage::Established {
            return;
        }
        let mut spec = client.spec.clone();
        spec.real_address = Some(client.real_address);
        self.set_timer(after, Timer::Returns(spec));
    }

    pub(super) fn returns(&mut self, spec: Box<ClientSpec>) {
        if self.phase == Phase::Serving {
            if let Some(address) = spec.real_address {
                // Serving was just checked, so it gets in.
                let _ = self.connect_again(*spec, address.ip());
            }
        } else {
            self.set_timer(Duration::from_secs(1), Timer::Returns(spec));
        }
    }

    // ---- killing

    pub(super) fn kill_command(&mut self, victim: &[u8]) {
        if !self.serves("kill") {
            return;
        }
        let (first, rest) = cut_part(victim);
        let (second, rest) = cut_part(rest);
        if first.is_empty() {
            self.say("ERROR: kill parse");
            return;
        }
        if self.settings.version >= Version::V2_7 {
            match cut_part(rest) {
                (third, _) if !third.is_empty() && !second.is_empty() => {
                    self.kill_address(Some(first), second, third);
                }
                _ => self.kill_name(first),
            }
        } else if second.is_empty() {
            self.kill_name(first);
        } else {
            self.kill_address(None, first, second);
        }
    }

    fn kill_name(&mut self, name: &[u8]) {
        let killed = self.kill_where(|client| client.common_name() == name);
        if killed == 0 {
            self.say_bytes(&[b"ERROR: common name '", name, b"' not found"]);
        } else {
            let tail = format!("' found, {killed} client(s) killed");
            self.say_bytes(&[b"SUCCESS: common name '", name, tail.as_bytes()]);
        }
    }

    /// Kills by address; from 2.7 on it begins with the protocol.
    fn kill_address(&mut self, protocol: Option<&[u8]>, host: &[u8], port: &[u8]) {
        let Some(address) = parse_ipv4(host) else {
            let unparsable = [
                b"RESOLVE: Cannot parse IP address: ",
                host,
                b": (Name or service not known)",
            ];
            self.log("N", unparsable.concat());
            self.say_bytes(&[b"ERROR: error parsing IP address: ", host]);
            return;
        };
        let number = u16::try_from(atoi(port)).unwrap_or(0);
        match protocol {
            None if number == 0 => {
                self.say_bytes(&[b"ERROR: port number is out of range: ", port]);
                return;
            }
            Some(protocol) if number == 0 || !matches!(protocol, b"udp" | b"tcp") => {
                let error = b"ERROR: port number or protocol out of range: ";
                self.say_bytes(&[error, port, b" ", protocol]);
                return;
            }
            None | Some(_) => {}
        }
        let target = SocketAddr::from((address, number));
        // On a socket of both families every address is one of IPv6.
        let killed = if self.settings.dual_stack || protocol == Some(b"tcp") {
            0
        } else {
            self.kill_where(|client| client.real_address == target)
        };
        let target = match protocol {
            Some(protocol) => format!("{}:{target}", String::from_utf8_lossy(protocol)),
            None => target.to_string(),
        };
        if killed == 0 {
            self.say(format_args!("ERROR: client at address {target} not found"));
        } else {
            self.say(format_args!(
                "SUCCESS: {killed} client(s) at address {target} killed"
            ));
        }
    }

    /// Ends instances at once and without telling their peers.
    fn kill_where(&mut self, condition: impl Fn(&Client) -> bool) -> usize {
        let victims: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| condition(client))
            .map(|(cid, _)| *cid)
            .collect();
        for cid in &victims {
            if let Some(client) = self.clients.get(cid) {
                let text = b" SIGTERM[soft,] received, client-instance exiting";
                let line = [&client.log_prefix()[..], text].concat();
                self.log("", line);
            }
            // The peer notices only when nothing comes back for long enough.
            let after = self.settings.timing.ping_restart;
            self.schedule_return(*cid, after);
            self.remove(*cid);
        }
        victims.len()
    }

    pub(super) fn client_kill_command(&mut self, cid: &[u8], message: Option<&[u8]>) {
        let Some(cid) = self.parse_cid(cid) else {
            return;
        };
        if !self.serves("client-kill") {
            return;
        }
        let Some(client) = self.clients.get(&cid) else {
            self.say("ERROR: client-kill command failed");
            return;
        };
        let name = client.common_name().to_vec();
        let prefix = client.log_prefix();
        let first = !client.leaving;
        let message = message.unwrap_or(b"RESTART");
        self.schedule_exit(cid, b"");
        self.log(
            "",
            [
                b"SENT CONTROL [",
                &name[..],
                b"]: '",
                message,
                b"' (status=1)",
            ]
            .concat(),
        );
        self.say("SUCCESS: client-kill command succeeded");
        if !first {
            return;
        }
        let timing = self.settings.timing;
        if message.starts_with(b"HALT") {
            let says_goodbye = self
                .clients
                .get(&cid)
                .is_some_and(|client| client.spec.exit_notify);
            if says_goodbye {
                let text = b" CC-EEN exit message received by peer";
                self.log("N", [&prefix[..], text].concat());
            }
        } else if message.starts_with(b"RESTART") {
            self.schedule_return(cid, timing.return_after_kill);
        } else {
            // A stock client does not know the message; it only notices the silence later.
            self.schedule_return(cid, timing.delayed_exit + timing.ping_restart);
        }
    }
}

/// `buf_parse`: text up to a colon, at most 127 bytes of it, and what is left.
fn cut_part(text: &[u8]) -> (&[u8], &[u8]) {
    const PART_BYTES_MAX: usize = 127;
    match text.iter().position(|&byte| byte == b':') {
        Some(end) if end <= PART_BYTES_MAX => (&text[..end], &text[end + 1..]),
        None if text.len() <= PART_BYTES_MAX => (text, &[]),
        // The byte that does not fit is lost between the two parts.
        _ => (
            &text[..PART_BYTES_MAX],
            text.get(PART_BYTES_MAX + 2..).unwrap_or(&[]),
        ),
    }
}

/// An IPv4 address as `inet_aton` reads it: `1.2.3.4`, but also `1.2`, `2001` or `0x7f.1`.
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(text).ok()?;
    let parts: Vec<u32> = text.split('.').map(parse_part).collect::<Option<_>>()?;
    let (last, firsts) = parts.split_last()?;
    if firsts.len() > 3 || firsts.iter().any(|part| *part > 255) {
        return None;
    }
    // The last number fills all bytes that are left.
    let bits_left = 32 - 8 * u32::try_from(firsts.len()).ok()?;
    if u64::from(*last) >= 1 << bits_left {
        return None;
    }
    let high = firsts
        .iter()
        .zip([24, 16, 8])
        .fold(0, |bits, (part, shift)| bits | part << shift);
    Some(Ipv4Addr::from_bits(high | last))
}

/// A number in C's notation: decimal, octal after `0`, hexadecimal after `0x`.
fn parse_part(part: &str) -> Option<u32> {
    let (digits, radix) = match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if part.len() > 1 && part.starts_with('0') => (part, 8),
        None => (part, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_are_split_at_colons_like_openvpn_does() {
        assert_eq!(cut_part(b"alice"), (&b"alice"[..], &b""[..]));
        assert_eq!(cut_part(b"alice:"), (&b"alice"[..], &b""[..]));
        assert_eq!(cut_part(b"1.2.3.4:5:6"), (&b"1.2.3.4"[..], &b"5:6"[..]));
        assert_eq!(cut_part(b":x"), (&b""[..], &b"x"[..]));
        let long = [b'a'; 200];
        assert_eq!(cut_part(&long).0.len(), 127);
    }

    #[test]
    fn addresses_parse_like_inet_aton() {
        let parsed = |text: &str| parse_ipv4(text.as_bytes());
        assert_eq!(parsed("1.2.3.4"), Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(parsed("2001"), Some(Ipv4Addr::new(0, 0, 7, 209)));
        assert_eq!(parsed("1.2"), Some(Ipv4Addr::new(1, 0, 0, 2)));
        assert_eq!(parsed("0x7f.1"), Some(Ipv4Addr::new(127, 0, 0, 1)));
        assert_eq!(parsed("010.1"), Some(Ipv4Addr::new(8, 0, 0, 1)));
        assert_eq!(parsed("foo"), None);
        assert_eq!(parsed("1.2.3.256"), None);
        assert_eq!(parsed("1.2.3.4.5"), None);
    }
}
