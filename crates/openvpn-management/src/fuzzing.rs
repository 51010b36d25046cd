//! The bodies of the fuzz targets. The crate's own tests run the same on the committed corpus and on random input, so
//! that what the fuzzer found stays found.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::command::{
    BLOCK_LINE_BYTES_MAX, BLOCK_LINES_MAX, LINE_BYTES_SENT_MAX, PARAMETER_BYTES_MAX,
};
use crate::daemon::{InputLines, lex};
use crate::{
    Cid, Command, CommandId, Connection, HistoryDepth, HistoryRequest, Kid, KillMessage, Limits,
    NeedOkAnswer, Output, PendingAuthForm, ProxyAnswer, RemoteAnswer, Secret, StatusFormat,
    StatusSnapshot, Text,
};

/// Marks an action in the input of [`parser`]; the byte behind it says which. It never occurs in UTF-8.
pub const ACTION: u8 = 0xff;
/// The action that lets the deadline pass.
pub const ACTION_TIMEOUT: u8 = 0xfe;
/// The action that sends the management password.
pub const ACTION_PASSWORD: u8 = 0xfd;

const DEADLINE: Duration = Duration::from_secs(5);

/// The commands that actions send: one of each form of reply.
#[must_use]
pub fn action_commands() -> Vec<Command> {
    let last = HistoryDepth::Last(NonZeroU32::MIN);
    vec![
        Command::Status {
            format: StatusFormat::V3,
        },
        Command::State(HistoryRequest::OnWithHistory(HistoryDepth::All)),
        Command::LoadStats,
        Command::Pid,
        Command::Log(HistoryRequest::OnWithHistory(last)),
        Command::Echo(HistoryRequest::History(last)),
        Command::Version,
        Command::VersionSet(4),
        Command::Help,
        Command::Test(3),
        Command::Pkcs11IdCount,
        Command::Pkcs11IdGet(0),
        Command::PushUpdateBroad {
            options: "route 10.0.0.0".into(),
        },
        Command::NetworkChange {
            same_network: false,
        },
        Command::RemoteEntryGet(crate::RemoteEntryRange::All),
        Command::RemoteEntryCount,
        Command::ClientKill {
            cid: Cid(1),
            message: None,
        },
        Command::Status {
            format: StatusFormat::V1,
        },
        Command::AuthRetry(Some(crate::AuthRetry::None)),
        Command::Net,
        Command::Exit,
        Command::PkSig {
            lines: vec!["QUJD".into()],
        },
    ]
}

/// Small bounds, so that short inputs reach them.
fn limits() -> Limits {
    Limits {
        line_bytes_max: 300,
        env_bytes_max: 2_000,
        env_lines_max: 50,
        clients_max: 4,
        routes_max: 6,
        status_bytes_max: 600,
        history_lines_max: 8,
        history_bytes_max: 400,
    }
}

/// Server bytes, cut anywhere, and actions between them: no panic, the same outputs however they are cut, at most one
/// end for each command, and a status that parses alone.
///
/// # Panics
/// If one of these does not hold.
pub fn parser(input: &[u8], now: Instant) {
    for limits in [limits(), Limits::default()] {
        let whole = run_parser(input, now, limits, &mut |bytes| bytes.len());
        let mut random = input.iter().fold(1u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        let pieces = run_parser(input, now, limits, &mut |bytes| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as usize % 23 % bytes.len() + 1
        });
        assert_eq!(pieces, whole, "random pieces");
        let bytewise = run_parser(input, now, limits, &mut |_| 1);
        assert_eq!(bytewise, whole, "byte by byte");
        check_ends(&whole);

        let snapshot = StatusSnapshot::parse(input, &limits);
        assert!(
            snapshot.clients().len() <= limits.clients_max
                && snapshot.routes().len() <= limits.routes_max
        );
        let _ = format!("{snapshot:?}");
    }
    let _ = lex(input);
    InputLines::default().handle_input(input);
}

/// Runs the input with pieces of the given lengths.
fn run_parser(
    input: &[u8],
    mut now: Instant,
    limits: Limits,
    piece_length: &mut dyn FnMut(&[u8]) -> usize,
) -> Vec<Output> {
    let commands = action_commands();
    let mut connection = Connection::new(limits);
    let mut outputs = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let end = memchr::memchr(ACTION, rest).unwrap_or(rest.len());
        let mut heard = &rest[..end];
        while !heard.is_empty() {
            let (piece, more) = heard.split_at(piece_length(heard).min(heard.len()));
            connection.handle_input(piece, now);
            outputs.extend(std::iter::from_fn(|| connection.poll_output()));
            heard = more;
        }
        match rest.get(end + 1) {
            None => {}
            Some(&ACTION_TIMEOUT) => {
                now += DEADLINE;
                connection.handle_timeout(now);
            }
            Some(&ACTION_PASSWORD) => _ = connection.send_password(&Secret::new("secret")),
            Some(action) => {
                _ = connection.send(
                    &commands[usize::from(*action) % commands.len()],
                    DEADLINE,
                    now,
                );
            }
        }
        while connection.poll_transmit().is_some() {}
        outputs.extend(std::iter::from_fn(|| connection.poll_output()));
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    outputs
}

/// Every command ends at most once, late exactly if it was said to be, and nothing follows a violation but that.
fn check_ends(outputs: &[Output]) {
    #[derive(PartialEq)]
    enum Fate {
        Unanswered,
        Ended,
    }
    let mut fates: BTreeMap<CommandId, Fate> = BTreeMap::new();
    for output in outputs {
        match output {
            Output::Unanswered { id } => assert!(fates.insert(*id, Fate::Unanswered).is_none()),
            Output::Reply { id, late, .. } => {
                let before = fates.insert(*id, Fate::Ended);
                assert!(before != Some(Fate::Ended) && *late == (before == Some(Fate::Unanswered)));
            }
            Output::Lost { id } => {
                assert!(fates.insert(*id, Fate::Ended) == Some(Fate::Unanswered))
            }
            _ => {}
        }
    }
    let violation = outputs
        .iter()
        .position(|output| matches!(output, Output::Violation(_)));
    assert!(
        violation.is_none_or(|at| at + 1 == outputs.len()),
        "outputs behind a violation"
    );
}

/// Any command: it is refused for a reason, or OpenVPN reads exactly what was meant, whatever stands around it.
///
/// # Panics
/// If neither holds.
pub fn encoder(input: &[u8]) {
    let mut source = Source(input);
    let lines_before = usize::from(source.byte());
    let Case {
        command,
        words,
        block,
    } = case(&mut source);

    let mut encoded = BytesMut::from(&b"before"[..]);
    let result = command.encode(&mut encoded);
    if let Err(error) = result {
        assert_eq!(
            encoded,
            b"before"[..],
            "a refused command left bytes behind"
        );
        assert!(
            may_be_refused(&words, block.as_deref()),
            "{command:?} is refused: {error}"
        );
        return;
    }

    let wire = [
        &b"pid\n".repeat(lines_before)[..],
        &encoded[b"before".len()..],
        b"load-stats\n",
    ]
    .concat();
    let mut lines = InputLines::default().handle_input(&wire).into_iter();
    for _ in 0..lines_before {
        assert_eq!(lines.next().as_deref(), Some(&b"pid"[..]));
    }
    let line = lines.next().unwrap_or_default();
    assert_eq!(
        lex(&line).as_ref(),
        Ok(&words),
        "{command:?} became {}",
        line.escape_ascii()
    );
    if let Some(block) = &block {
        // OpenVPN ends the block at the first `END`.
        let read: Vec<_> = lines.by_ref().take_while(|line| line != b"END").collect();
        assert_eq!(&read, block, "{command:?}");
    }
    assert_eq!(
        lines.next().as_deref(),
        Some(&b"load-stats"[..]),
        "{command:?}"
    );
    assert_eq!(lines.next(), None, "{command:?}");
}

/// Whether there is something in these words that OpenVPN could not take, or only close to its limits.
fn may_be_refused(words: &[Vec<u8>], block: Option<&[Vec<u8>]>) -> bool {
    let controls = |bytes: &Vec<u8>| bytes.iter().any(u8::is_ascii_control);
    let longest_line: usize = words.iter().map(|word| 2 * word.len() + 3).sum();
    words
        .iter()
        .any(|word| controls(word) || word.len() > PARAMETER_BYTES_MAX)
        || longest_line > LINE_BYTES_SENT_MAX
        || block.is_some_and(|block| {
            block.len() > BLOCK_LINES_MAX
                || block.iter().any(|line| {
                    controls(line) || line == b"END" || line.len() > BLOCK_LINE_BYTES_MAX
                })
        })
}

/// A command with free arguments.
struct Case {
    command: Command,
    /// The words OpenVPN is to see.
    words: Vec<Vec<u8>>,
    /// The lines of its block.
    block: Option<Vec<Vec<u8>>>,
}

fn case(source: &mut Source<'_>) -> Case {
    let (cid, kid) = (Cid(source.number()), Kid(source.number() & 0xffff_ffff));
    let (cid_word, kid_word) = (cid.to_string().into_bytes(), kid.to_string().into_bytes());
    let number = source.number() & 0x7fff_ffff;
    let number_word = number.to_string().into_bytes();
    let number = u32::try_from(number).unwrap_or_default();
    let port = u16::from_be_bytes([source.byte(), source.byte()]);
    let port_word = port.to_string().into_bytes();
    let choice = source.byte();
    let a = source.bytes();
    let b = source.bytes();
    let text = |bytes: &[u8]| Text::from(bytes);
    let secret = |bytes: &[u8]| Secret::new(bytes.to_vec());
    let word = |word: &str| word.as_bytes().to_vec();

    let mut block = None;
    let mut lines = || {
        let both = [&a[..], b"|", &b].concat();
        let lines: Vec<Vec<u8>> = both
            .split(|byte| *byte == b'|')
            .map(<[u8]>::to_vec)
            .collect();
        block = Some(lines.clone());
        lines.iter().map(|line| text(line)).collect::<Vec<_>>()
    };
    let (command, words) = match choice % 24 {
        0 => (Command::Kill(text(&a)), vec![word("kill"), a]),
        1 => (
            Command::ClientKill {
                cid,
                message: Some(KillMessage::Text(text(&a))),
            },
            vec![word("client-kill"), cid_word, a],
        ),
        2 => (
            Command::ClientDeny {
                cid,
                kid,
                reason: text(&a),
                client_reason: Some(text(&b)),
            },
            vec![word("client-deny"), cid_word, kid_word, a, b],
        ),
        3 => (
            Command::ClientDeny {
                cid,
                kid,
                reason: text(&a),
                client_reason: None,
            },
            vec![word("client-deny"), cid_word, kid_word, a],
        ),
        4 => (
            Command::ClientPendingAuth {
                cid,
                extra: text(&a),
                form: PendingAuthForm::Cid,
            },
            vec![word("client-pending-auth"), cid_word, a],
        ),
        5 => (
            Command::ClientPendingAuth {
                cid,
                extra: text(&a),
                form: PendingAuthForm::CidTimeout {
                    timeout_secs: number,
                },
            },
            vec![word("client-pending-auth"), cid_word, a, number_word],
        ),
        6 => (
            Command::ClientPendingAuth {
                cid,
                extra: text(&a),
                form: PendingAuthForm::CidKidTimeout {
                    kid,
                    timeout_secs: number,
                },
            },
            vec![
                word("client-pending-auth"),
                cid_word,
                kid_word,
                a,
                number_word,
            ],
        ),
        7 => (
            Command::CrResponse(secret(&a)),
            vec![word("cr-response"), a],
        ),
        8 => (
            Command::NeedStr {
                kind: text(&a),
                value: text(&b),
            },
            vec![word("needstr"), a, b],
        ),
        9 => (
            Command::NeedOk {
                kind: text(&a),
                answer: NeedOkAnswer::Cancel,
            },
            vec![word("needok"), a, word("cancel")],
        ),
        10 => (
            Command::Password {
                kind: text(&a),
                password: secret(&b),
            },
            vec![word("password"), a, b],
        ),
        11 => (
            Command::Username {
                kind: text(&a),
                username: text(&b),
            },
            vec![word("username"), a, b],
        ),
        12 => (
            Command::Proxy(ProxyAnswer::Http {
                host: text(&a),
                port,
                no_cleartext: true,
            }),
            vec![word("proxy"), word("HTTP"), a, port_word, word("nct")],
        ),
        13 => (
            Command::Proxy(ProxyAnswer::Socks {
                host: text(&a),
                port,
            }),
            vec![word("proxy"), word("SOCKS"), a, port_word],
        ),
        14 => (
            Command::Remote(RemoteAnswer::Modify {
                host: text(&a),
                port,
            }),
            vec![word("remote"), word("MOD"), a, port_word],
        ),
        15 => (
            Command::PushUpdateBroad { options: text(&a) },
            vec![word("push-update-broad"), a],
        ),
        16 => (
            Command::PushUpdateCid {
                cid,
                options: text(&a),
            },
            vec![word("push-update-cid"), cid_word, a],
        ),
        17 => (
            Command::ClientAuth {
                cid,
                kid,
                config: lines(),
            },
            vec![word("client-auth"), cid_word, kid_word],
        ),
        18 => (
            Command::ClientPf {
                cid,
                lines: lines(),
            },
            vec![word("client-pf"), cid_word],
        ),
        19 => (
            Command::Certificate { lines: lines() },
            vec![word("certificate")],
        ),
        20 => (Command::PkSig { lines: lines() }, vec![word("pk-sig")]),
        21 => (Command::RsaSig { lines: lines() }, vec![word("rsa-sig")]),
        22 => (
            Command::Bytecount(number),
            vec![word("bytecount"), number_word],
        ),
        _ => (
            Command::ClientAuthNt { cid, kid },
            vec![word("client-auth-nt"), cid_word, kid_word],
        ),
    };
    Case {
        command,
        words,
        block,
    }
}

/// Values taken from the front of the input; zero and empty when it is used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self
            .0
            .split_first()
            .map_or((0, self.0), |(byte, rest)| (*byte, rest));
        self.0 = rest;
        byte
    }

    /// A number of any size.
    fn number(&mut self) -> u64 {
        let shift = self.byte() % 64;
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())) >> shift
    }

    /// Up to a length byte, times four: long enough for every limit.
    fn bytes(&mut self) -> Vec<u8> {
        let length = (usize::from(self.byte()) * 4).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}
