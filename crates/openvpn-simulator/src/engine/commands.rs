//! The manager's commands: `man_dispatch_command` of OpenVPN, in words and order.

use crate::lexer::{atoi, lex, parse_unsigned};

use crate::Version;

use super::approval::{Block, BlockCommand, BlockPurpose};
use super::questions::Entry;
use super::{Ending, Engine, Phase, Signal, Thrown, text};

/// Lines `test` writes at most; OpenVPN has no limit and would block for as long as it takes.
const TEST_LINES_MAX: i32 = 1_000_000;

/// One of the three commands with a history and a real-time switch.
#[derive(Clone, Copy)]
enum Stream {
    State,
    Log,
    Echo,
}

impl Engine {
    pub(super) fn command(&mut self, line: &[u8]) {
        // OpenVPN reports what is wrong with a line before it logs the line.
        let (parameters, error) = match lex(line) {
            Ok(parameters) => (parameters, None),
            Err(error) => (error.parameters, Some(error.text)),
        };
        if let Some(text) = &error {
            self.say_bytes(&[b"ERROR: ", text]);
        }
        if parameters.first().is_some_and(|name| name == b"password") {
            self.log("D", "MANAGEMENT: CMD 'password [...]'");
        } else {
            self.log_command(line);
        }
        if error.is_some() {
            return;
        }
        let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
        if let [name, arguments @ ..] = parameters.as_slice() {
            self.dispatch(name, arguments);
        }
    }

    fn log_command(&mut self, line: &[u8]) {
        if line != b"load-stats" {
            self.log("D", [b"MANAGEMENT: CMD '", line, b"'"].concat());
        }
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one arm per command; the arms are the table"
    )]
    fn dispatch(&mut self, name: &[u8], arguments: &[&[u8]]) {
        let version = self.settings.version;
        match name {
            b"exit" | b"quit" => self.exit(),
            b"help" => self.help(),
            b"version" => self.version(arguments),
            b"pid" => {
                let pid = self.pid;
                self.say(format_args!("SUCCESS: pid={pid}"));
            }
            b"nclients" => {
                if self.serves("nclients") {
                    let count = self.established();
                    self.say(format_args!("SUCCESS: nclients={count}"));
                }
            }
            b"env-filter" => {
                self.env_filter = arguments.first().map_or(0, |level| atoi(level));
                let level = self.env_filter;
                self.say(format_args!("SUCCESS: env_filter_level={level}"));
            }
            b"signal" => {
                if let Some([name]) = self.need(name, arguments) {
                    self.signal_command(name);
                }
            }
            b"load-stats" => {
                let count = self.established();
                let (received, sent) = (self.bytes_received, self.bytes_sent);
                self.say(format_args!(
                    "SUCCESS: nclients={count},bytesin={received},bytesout={sent}"
                ));
            }
            b"status" => self.status_command(arguments),
            b"kill" => {
                if let Some([victim]) = self.need(name, arguments) {
                    self.kill_command(victim);
                }
            }
            b"verb" => self.verb(arguments),
            b"mute" => self.mute(arguments),
            b"auth-retry" => self.auth_retry(arguments),
            b"state" => match arguments {
                [] => self.stream(Stream::State, &[b"1"]),
                words => self.stream(Stream::State, words),
            },
            b"log" | b"echo" => {
                let stream = match name {
                    b"log" => Stream::Log,
                    _ => Stream::Echo,
                };
                if self.need_at_least::<1>(name, arguments).is_some() {
                    self.stream(stream, arguments);
                }
            }
            b"username" | b"password" | b"needok" | b"needstr" => {
                let entry = match name {
                    b"username" => Entry::Username,
                    b"password" => Entry::Password,
                    b"needok" => Entry::NeedOk,
                    _ => Entry::NeedStr,
                };
                if let Some([kind, value]) = self.need(name, arguments) {
                    self.enter_answer(entry, kind, value);
                }
            }
            b"forget-passwords" => {
                self.forget_passwords();
                self.say("SUCCESS: Passwords were forgotten");
            }
            b"cr-response" if version >= Version::V2_5 => {
                if self.need::<1>(name, arguments).is_some() {
                    if self.settings.client.is_some() && self.phase == Phase::Serving {
                        self.say("SUCCESS: command succeeded");
                    } else {
                        // OpenVPN's own spelling.
                        self.unsupported("cr-repsonse");
                    }
                }
            }
            b"net" => {
                self.say("ERROR: Sorry, this command is currently only implemented on Windows");
            }
            b"rsa-sig" => self.say("ERROR: The rsa-sig command is not currently available"),
            b"pk-sig" if version >= Version::V2_5 => {
                self.say("ERROR: The pk-sig command is not currently available")
            }
            b"certificate" if version >= Version::V2_4 => {
                self.say("ERROR: The certificate command is not currently available");
            }
            // The other versions are played as built without it.
            b"pkcs11-id-count" if version == Version::V2_6 => self.say(">PKCS11ID-COUNT:0"),
            b"pkcs11-id-get" if version == Version::V2_6 => {
                if let Some([index]) = self.need(name, arguments) {
                    let index = atoi(index);
                    self.say(format_args!(">PKCS11ID-ENTRY:'{index}'"));
                }
            }
            b"hold" => self.hold_command(arguments),
            b"bytecount" => {
                if let Some([interval]) = self.need(name, arguments) {
                    self.bytecount(atoi(interval));
                }
            }
            b"client-kill" => {
                if let Some([cid]) = self.need_at_least(name, arguments) {
                    self.client_kill_command(cid, arguments.get(1).copied());
                }
            }
            b"client-deny" => {
                if let Some([cid, kid, reason]) = self.need_at_least(name, arguments) {
                    self.client_deny(cid, kid, reason, arguments.get(3).copied());
                }
            }
            b"client-auth-nt" => {
                if let Some([cid, kid]) = self.need(name, arguments) {
                    self.client_auth(cid, kid, BlockCommand::WithoutBlock);
                }
            }
            b"client-auth" => {
                if let Some([cid, kid]) = self.need(name, arguments) {
                    self.client_auth(cid, kid, BlockCommand::WithBlock);
                }
            }
            b"client-pending-auth" if version == Version::V2_5 => {
                if let Some([cid, extra]) = self.need(name, arguments) {
                    self.client_pending_auth_2_5(cid, extra);
                }
            }
            b"client-pending-auth" if version >= Version::V2_6 => {
                if let Some([cid, kid, extra, timeout]) = self.need(name, arguments) {
                    self.client_pending_auth(cid, kid, extra, timeout);
                }
            }
            b"client-pf" if version <= Version::V2_5 => {
                if let Some([cid]) = self.need(name, arguments)
                    && let Some(cid) = self.parse_cid(cid)
                {
                    self.begin_block(BlockPurpose::PacketFilter { cid });
                }
            }
            b"remote-entry-count" if version >= Version::V2_6 => {
                if self.settings.client.is_some() {
                    let count = self.remotes().len();
                    self.say(count);
                    self.say_end();
                } else {
                    self.unsupported("remote-entry-count");
                }
            }
            b"remote-entry-get" if version >= Version::V2_6 => {
                if let Some([first]) = self.need_at_least(name, arguments) {
                    if self.settings.client.is_some() {
                        self.remote_entries(first, arguments.get(1).copied());
                    } else {
                        self.unsupported("remote-entry-get");
                    }
                }
            }
            b"remote" | b"proxy" => {
                if self.need_at_least::<1>(name, arguments).is_some() {
                    match (name, self.settings.client.is_some()) {
                        (b"remote", true) => self.remote_command(arguments),
                        (_, true) => self.proxy_command(arguments),
                        (_, false) => self.unsupported(&String::from_utf8_lossy(name)),
                    }
                }
            }
            b"push-update-broad" if version >= Version::V2_7 => {
                if self.need::<1>(name, arguments).is_some() {
                    self.push_update(None);
                }
            }
            b"push-update-cid" if version >= Version::V2_7 => {
                if let Some([cid, _]) = self.need(name, arguments)
                    && let Some(cid) = self.parse_cid(cid)
                {
                    self.push_update(Some(cid));
                }
            }
            b"test" => {
                if let Some([count]) = self.need(name, arguments) {
                    for number in 0..atoi(count).min(TEST_LINES_MAX) {
                        self.say(format_args!(
                            "[{number}] The purpose of this command is to generate large amounts \
                             of output."
                        ));
                    }
                }
            }
            _ if version >= Version::V2_7 => self.say_bytes(&[
                b"ERROR: unknown command [",
                name,
                b"], enter 'help' for more options",
            ]),
            _ => self.say("ERROR: unknown command, enter 'help' for more options"),
        }
    }

    // ---- arguments

    /// The first `N` arguments, or OpenVPN's complaint that there are fewer.
    fn need<'a, const N: usize>(
        &mut self,
        name: &[u8],
        arguments: &[&'a [u8]],
    ) -> Option<[&'a [u8]; N]> {
        self.need_or_say(name, arguments, "")
    }

    fn need_at_least<'a, const N: usize>(
        &mut self,
        name: &[u8],
        arguments: &[&'a [u8]],
    ) -> Option<[&'a [u8]; N]> {
        self.need_or_say(name, arguments, "at least ")
    }

    fn need_or_say<'a, const N: usize>(
        &mut self,
        name: &[u8],
        arguments: &[&'a [u8]],
        at_least: &str,
    ) -> Option<[&'a [u8]; N]> {
        if let Some(needed) = arguments.first_chunk() {
            return Some(*needed);
        }
        let plural = if N == 1 { "" } else { "s" };
        let name = String::from_utf8_lossy(name);
        self.say(format_args!(
            "ERROR: the '{name}' command requires {at_least}{N} parameter{plural}"
        ));
        None
    }

    /// Says that a command is not for this kind of daemon, or not now.
    fn unsupported(&mut self, name: &str) {
        let subject = match name {
            "remote" | "proxy" if self.settings.version <= Version::V2_5 => {
                format!("The {name} command")
            }
            "cr-repsonse" if self.settings.version <= Version::V2_5 => "This command".to_owned(),
            _ => format!("The '{name}' command"),
        };
        self.say(format_args!(
            "ERROR: {subject} is not supported by the current daemon mode"
        ));
    }

    /// Whether there is a server to run `name`; says so if not.
    pub(super) fn serves(&mut self, name: &str) -> bool {
        if self.phase == Phase::Serving && self.settings.client.is_none() {
            return true;
        }
        self.unsupported(name);
        false
    }

    pub(super) fn parse_cid(&mut self, text: &[u8]) -> Option<u64> {
        let cid = parse_unsigned(text);
        if cid.is_none() {
            self.say("ERROR: cannot parse CID");
        }
        cid
    }

    pub(super) fn parse_kid(&mut self, text: &[u8], what: &str) -> Option<u64> {
        // OpenVPN reads these as 32 bits.
        let number = parse_unsigned(text).map(|number| number & u64::from(u32::MAX));
        if number.is_none() {
            self.say(format_args!("ERROR: cannot parse {what}"));
        }
        number
    }

    // ---- commands about the session and the process

    fn exit(&mut self) {
        self.ending = Some(match self.phase {
            // OpenVPN drops what the same read has produced …
            Phase::Serving => Ending::Session,
            // … but while it waits it writes every line at once, so it is already gone.
            Phase::Held { .. } | Phase::Asking | Phase::Pausing => Ending::SessionAfterOutput,
        });
    }

    fn help(&mut self) {
        let version = self.settings.version;
        self.say(format_args!(
            "Management Interface for {}",
            text::title(version)
        ));
        for line in text::help(version).lines() {
            self.say(line);
        }
        self.say_end();
    }

    fn version(&mut self, arguments: &[&[u8]]) {
        /// The lowest manager's version that 2.7 takes notice of.
        const NOTICED_MIN: i32 = 4;
        let version = self.settings.version;
        match arguments.first() {
            // With an argument it sets the manager's version.
            Some(number) if version >= Version::V2_7 => {
                let number = atoi(number);
                if number >= NOTICED_MIN {
                    self.say(format_args!(
                        "SUCCESS: Management client version set to {number}"
                    ));
                }
            }
            Some(_) if version >= Version::V2_5 => {}
            // Up to 2.4 the argument means nothing.
            Some(_) | None => {
                let number = version.management_version();
                self.say(format_args!("OpenVPN Version: {}", text::title(version)));
                self.say(format_args!("Management Version: {number}"));
                self.say_end();
            }
        }
    }

    fn verb(&mut self, arguments: &[&[u8]]) {
        match arguments.first().map(|level| atoi(level)) {
            None => {
                let verb = self.verb;
                self.say(format_args!("SUCCESS: verb={verb}"));
            }
            Some(level @ 0..=15) => {
                self.verb = level;
                self.say("SUCCESS: verb level changed");
            }
            Some(_) => self.say("ERROR: verb level is out of range"),
        }
    }

    fn mute(&mut self, arguments: &[&[u8]]) {
        match arguments.first().map(|level| atoi(level)) {
            None => {
                let mute = self.mute;
                self.say(format_args!("SUCCESS: mute={mute}"));
            }
            Some(level @ 0..) => {
                self.mute = level;
                self.say("SUCCESS: mute level changed");
            }
            Some(_) => self.say("ERROR: mute level is out of range"),
        }
    }

    fn auth_retry(&mut self, arguments: &[&[u8]]) {
        self.auth_retry = match arguments.first() {
            None => {
                let mode = self.auth_retry;
                self.say(format_args!("SUCCESS: auth-retry={mode}"));
                return;
            }
            Some(&b"none") => "none",
            Some(&b"nointeract") => "nointeract",
            Some(&b"interact") => "interact",
            Some(_) => {
                self.say("--auth-retry method must be 'interact', 'nointeract', or 'none'");
                self.say("ERROR: bad auth-retry parameter");
                return;
            }
        };
        self.say("SUCCESS: auth-retry parameter changed");
    }

    fn signal_command(&mut self, name: &[u8]) {
        let Some(signal) = Signal::parse(name) else {
            self.say_bytes(&[b"ERROR: signal '", name, b"' is not a known signal type"]);
            return;
        };
        if let (Phase::Held { seconds }, Signal::Hup | Signal::Usr1) = (self.phase, signal) {
            // Up to 2.4 it is ignored without a word, but for the question that follows.
            if self.settings.version >= Version::V2_5 {
                let name = signal.name();
                self.say(format_args!("ERROR: signal '{name}' is currently ignored"));
            }
            self.ask_release(seconds);
            return;
        }
        self.say(format_args!("SUCCESS: signal {} thrown", signal.name()));
        self.signal = Some(Thrown::hard(signal));
    }

    fn hold_command(&mut self, arguments: &[&[u8]]) {
        match arguments.first() {
            None => {
                let hold = i32::from(self.hold);
                self.say(format_args!("SUCCESS: hold={hold}"));
            }
            Some(&b"on") => {
                self.hold = true;
                self.say("SUCCESS: hold flag set to ON");
            }
            Some(&b"off") => {
                self.hold = false;
                self.say("SUCCESS: hold flag set to OFF");
            }
            Some(&b"release") => {
                self.say("SUCCESS: hold release succeeded");
                self.release_hold();
            }
            Some(_) => self.say("ERROR: bad hold command parameter"),
        }
    }

    fn bytecount(&mut self, interval: i32) {
        let interval = u64::try_from(interval).unwrap_or(0);
        if let Some(session) = &mut self.session {
            session.bytecount = interval;
        }
        self.say("SUCCESS: bytecount interval changed");
        self.begin_keepalives();
        self.begin_bytecounts();
    }

    // ---- histories

    fn stream(&mut self, stream: Stream, words: &[&[u8]]) {
        // OpenVPN takes two words and answers each by itself.
        for word in words.iter().take(2) {
            let name = match stream {
                Stream::State => "state",
                Stream::Log => "log",
                Stream::Echo => "echo",
            };
            match *word {
                b"on" => {
                    self.switch(stream, true);
                    self.say(format_args!(
                        "SUCCESS: real-time {name} notification set to ON"
                    ));
                }
                b"off" => {
                    self.switch(stream, false);
                    self.say(format_args!(
                        "SUCCESS: real-time {name} notification set to OFF"
                    ));
                }
                b"all" => self.history(stream, None),
                count => match usize::try_from(atoi(count)) {
                    Ok(count @ 1..) => self.history(stream, Some(count)),
                    _ => self.say(format_args!(
                        "ERROR: {name} parameter must be 'on' or 'off' or some number n or 'all'"
                    )),
                },
            }
        }
    }

    fn switch(&mut self, stream: Stream, on: bool) {
        if let Some(session) = &mut self.session {
            match stream {
                Stream::State => session.state = on,
                Stream::Log => session.log = on,
                Stream::Echo => session.echo = on,
            }
        }
    }

    fn history(&mut self, stream: Stream, count: Option<usize>) {
        let history = match stream {
            Stream::State => &self.states,
            Stream::Log => &self.logs,
            Stream::Echo => &self.echoes,
        };
        for line in history.last(count) {
            self.output.push(line);
            self.output.push(b"\r\n");
        }
        self.say_end();
    }

    // ---- multi-line commands

    pub(super) fn begin_block(&mut self, purpose: BlockPurpose) {
        if let Some(session) = &mut self.session {
            session.block = Some(Block {
                purpose,
                lines: Vec::new(),
            });
        }
    }

    pub(super) fn finish_block(&mut self) {
        let block = self.session.as_mut().and_then(|s| s.block.take());
        let Some(block) = block else {
            return;
        };
        match block.purpose {
            BlockPurpose::ClientAuth { cid, kid } => self.approve(cid, kid, &block.lines),
            // There is no packet filter to set, as without `--management-client-pf`.
            BlockPurpose::PacketFilter { cid: _ } => self.say("ERROR: client-pf command failed"),
        }
    }
}
