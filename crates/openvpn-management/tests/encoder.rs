//! Every command as it goes out, and OpenVPN's lexer as the judge of the rest.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::num::NonZeroU32;
use std::time::Instant;

use bytes::BytesMut;
use openvpn_management::{
    AuthRetry, Cid, Command, EncodeError, HistoryDepth, HistoryRequest, HoldRequest, Kid,
    KillMessage, NeedOkAnswer, PendingAuthForm, ProxyAnswer, RemoteAnswer, RemoteEntryRange,
    ReplyForm, Secret, Signal, StatusFormat, fuzzing,
};
use proptest::prelude::*;

fn encode(command: &Command) -> Result<String, EncodeError> {
    let mut out = BytesMut::new();
    command.encode(&mut out)?;
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

fn last(lines: u32) -> HistoryDepth {
    HistoryDepth::Last(NonZeroU32::new(lines).unwrap())
}

/// A wrong word or a wrong form of reply here is a daemon that is told something else, or a session out of step.
#[test]
fn commands_are_written_as_openvpn_reads_them() {
    let (cid, kid) = (Cid(3), Kid(1));
    let pending = |form| Command::ClientPendingAuth {
        cid,
        extra: "WEB_AUTH::https://x".into(),
        form,
    };
    let table = [
        (Command::AuthRetry(None), "auth-retry\n", ReplyForm::Line),
        (
            Command::AuthRetry(Some(AuthRetry::None)),
            "auth-retry none\n",
            ReplyForm::LinesThenLine,
        ),
        (
            Command::AuthRetry(Some(AuthRetry::Interact)),
            "auth-retry interact\n",
            ReplyForm::LinesThenLine,
        ),
        (
            Command::AuthRetry(Some(AuthRetry::Nointeract)),
            "auth-retry nointeract\n",
            ReplyForm::LinesThenLine,
        ),
        (Command::Bytecount(10), "bytecount 10\n", ReplyForm::Line),
        (
            Command::Certificate {
                lines: vec!["-----BEGIN CERTIFICATE-----".into(), "QUJD".into()],
            },
            "certificate\n-----BEGIN CERTIFICATE-----\nQUJD\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientAuth {
                cid,
                kid,
                config: vec!["push \"route 10.0.0.0 255.0.0.0\"".into()],
            },
            "client-auth 3 1\npush \"route 10.0.0.0 255.0.0.0\"\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientAuth {
                cid,
                kid,
                config: vec![],
            },
            "client-auth 3 1\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientAuthNt { cid, kid },
            "client-auth-nt 3 1\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientDeny {
                cid,
                kid,
                reason: "a \"b\" \\c".into(),
                client_reason: None,
            },
            "client-deny 3 1 \"a \\\"b\\\" \\\\c\"\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientDeny {
                cid,
                kid,
                reason: "#1".into(),
                client_reason: Some("go".into()),
            },
            "client-deny 3 1 \"#1\" \"go\"\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientKill { cid, message: None },
            "client-kill 3\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientKill {
                cid,
                message: Some(KillMessage::Halt),
            },
            "client-kill 3 HALT\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientKill {
                cid,
                message: Some(KillMessage::Restart),
            },
            "client-kill 3 RESTART\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientKill {
                cid,
                message: Some(KillMessage::Text("HALT,bye".into())),
            },
            "client-kill 3 \"HALT,bye\"\n",
            ReplyForm::Line,
        ),
        (
            pending(PendingAuthForm::Cid),
            "client-pending-auth 3 \"WEB_AUTH::https://x\"\n",
            ReplyForm::Line,
        ),
        (
            pending(PendingAuthForm::CidTimeout { timeout_secs: 30 }),
            "client-pending-auth 3 \"WEB_AUTH::https://x\" 30\n",
            ReplyForm::Line,
        ),
        (
            pending(PendingAuthForm::CidKidTimeout {
                kid,
                timeout_secs: 30,
            }),
            "client-pending-auth 3 1 \"WEB_AUTH::https://x\" 30\n",
            ReplyForm::Line,
        ),
        (
            Command::ClientPf {
                cid,
                lines: vec!["[CLIENTS DROP]".into()],
            },
            "client-pf 3\n[CLIENTS DROP]\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::CrResponse(Secret::new("MTIz")),
            "cr-response \"MTIz\"\n",
            ReplyForm::Line,
        ),
        (
            Command::Echo(HistoryRequest::On),
            "echo on\n",
            ReplyForm::Line,
        ),
        (Command::EnvFilter(None), "env-filter\n", ReplyForm::Line),
        (
            Command::EnvFilter(Some(0)),
            "env-filter 0\n",
            ReplyForm::Line,
        ),
        (Command::Exit, "exit\n", ReplyForm::None),
        (Command::Quit, "quit\n", ReplyForm::None),
        (
            Command::ForgetPasswords,
            "forget-passwords\n",
            ReplyForm::Line,
        ),
        (Command::Help, "help\n", ReplyForm::Block),
        (Command::Hold(HoldRequest::Query), "hold\n", ReplyForm::Line),
        (Command::Hold(HoldRequest::On), "hold on\n", ReplyForm::Line),
        (
            Command::Hold(HoldRequest::Off),
            "hold off\n",
            ReplyForm::Line,
        ),
        (
            Command::Hold(HoldRequest::Release),
            "hold release\n",
            ReplyForm::Line,
        ),
        (
            Command::Kill("1.2.3.4:5".into()),
            "kill \"1.2.3.4:5\"\n",
            ReplyForm::Line,
        ),
        (Command::LoadStats, "load-stats\n", ReplyForm::Line),
        (
            Command::Log(HistoryRequest::OnWithHistory(last(20))),
            "log on 20\n",
            ReplyForm::LineThenBlock,
        ),
        (Command::Mute(None), "mute\n", ReplyForm::Line),
        (Command::Mute(Some(5)), "mute 5\n", ReplyForm::Line),
        (Command::ClientCount, "nclients\n", ReplyForm::Line),
        (
            Command::NeedOk {
                kind: "token-insertion-request".into(),
                answer: NeedOkAnswer::Ok,
            },
            "needok \"token-insertion-request\" ok\n",
            ReplyForm::Line,
        ),
        (
            Command::NeedStr {
                kind: "name".into(),
                value: "John".into(),
            },
            "needstr \"name\" \"John\"\n",
            ReplyForm::Line,
        ),
        (Command::Net, "net\n", ReplyForm::UpToSentinel),
        (
            Command::NetworkChange {
                same_network: false,
            },
            "network-change\n",
            ReplyForm::Line,
        ),
        (
            Command::NetworkChange { same_network: true },
            "network-change samenetwork\n",
            ReplyForm::Line,
        ),
        (
            Command::Password {
                kind: "Private Key".into(),
                password: Secret::new("p\\w"),
            },
            "password \"Private Key\" \"p\\\\w\"\n",
            ReplyForm::Line,
        ),
        (
            Command::PasswordBlock {
                kind: "Auth".into(),
                password: Secret::new("foobar"),
            },
            "password \"Auth\"\nZm9vYmFy\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::Username {
                kind: "Auth".into(),
                username: "us er".into(),
            },
            "username \"Auth\" \"us er\"\n",
            ReplyForm::Line,
        ),
        (Command::Pid, "pid\n", ReplyForm::Line),
        (
            Command::Pkcs11IdCount,
            "pkcs11-id-count\n",
            ReplyForm::Notification,
        ),
        (
            Command::Pkcs11IdGet(0),
            "pkcs11-id-get 0\n",
            ReplyForm::Notification,
        ),
        (
            Command::PkSig {
                lines: vec!["QUJD".into()],
            },
            "pk-sig\nQUJD\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::RsaSig {
                lines: vec!["QUJD".into()],
            },
            "rsa-sig\nQUJD\nEND\n",
            ReplyForm::Line,
        ),
        (
            Command::Proxy(ProxyAnswer::None),
            "proxy NONE\n",
            ReplyForm::Line,
        ),
        (
            Command::Proxy(ProxyAnswer::Http {
                host: "proxy".into(),
                port: 8080,
                no_cleartext: true,
            }),
            "proxy HTTP \"proxy\" 8080 nct\n",
            ReplyForm::Line,
        ),
        (
            Command::Proxy(ProxyAnswer::Socks {
                host: "proxy".into(),
                port: 1080,
            }),
            "proxy SOCKS \"proxy\" 1080\n",
            ReplyForm::Line,
        ),
        (
            Command::PushUpdateBroad {
                options: "route 10.1.0.0, -dns".into(),
            },
            "push-update-broad \"route 10.1.0.0, -dns\"\n",
            ReplyForm::LinesThenLine,
        ),
        (
            Command::PushUpdateCid {
                cid,
                options: "-dns".into(),
            },
            "push-update-cid 3 \"-dns\"\n",
            ReplyForm::LinesThenLine,
        ),
        (
            Command::Remote(RemoteAnswer::Accept),
            "remote ACCEPT\n",
            ReplyForm::Line,
        ),
        (
            Command::Remote(RemoteAnswer::Skip(None)),
            "remote SKIP\n",
            ReplyForm::Line,
        ),
        (
            Command::Remote(RemoteAnswer::Skip(NonZeroU32::new(2))),
            "remote SKIP 2\n",
            ReplyForm::Line,
        ),
        (
            Command::Remote(RemoteAnswer::Modify {
                host: "vpn.example.org".into(),
                port: 1194,
            }),
            "remote MOD \"vpn.example.org\" 1194\n",
            ReplyForm::Line,
        ),
        (
            Command::RemoteEntryCount,
            "remote-entry-count\n",
            ReplyForm::Block,
        ),
        (
            Command::RemoteEntryGet(RemoteEntryRange::All),
            "remote-entry-get all\n",
            ReplyForm::Block,
        ),
        (
            Command::RemoteEntryGet(RemoteEntryRange::One(2)),
            "remote-entry-get 2\n",
            ReplyForm::Block,
        ),
        (
            Command::RemoteEntryGet(RemoteEntryRange::Range(0, 2)),
            "remote-entry-get 0 2\n",
            ReplyForm::Block,
        ),
        (
            Command::Signal(Signal::Sighup),
            "signal SIGHUP\n",
            ReplyForm::Line,
        ),
        (
            Command::Signal(Signal::Sigterm),
            "signal SIGTERM\n",
            ReplyForm::Line,
        ),
        (
            Command::Signal(Signal::Sigusr1),
            "signal SIGUSR1\n",
            ReplyForm::Line,
        ),
        (
            Command::Signal(Signal::Sigusr2),
            "signal SIGUSR2\n",
            ReplyForm::Line,
        ),
        (
            Command::State(HistoryRequest::Off),
            "state off\n",
            ReplyForm::Line,
        ),
        (
            Command::State(HistoryRequest::History(HistoryDepth::All)),
            "state all\n",
            ReplyForm::Block,
        ),
        (
            Command::State(HistoryRequest::OnWithHistory(HistoryDepth::All)),
            "state on all\n",
            ReplyForm::LineThenBlock,
        ),
        (
            Command::Status {
                format: StatusFormat::Configured,
            },
            "status\n",
            ReplyForm::Block,
        ),
        (
            Command::Status {
                format: StatusFormat::V1,
            },
            "status 1\n",
            ReplyForm::Block,
        ),
        (
            Command::Status {
                format: StatusFormat::V2,
            },
            "status 2\n",
            ReplyForm::Block,
        ),
        (
            Command::Status {
                format: StatusFormat::V3,
            },
            "status 3\n",
            ReplyForm::Block,
        ),
        (Command::Test(0), "test 0\n", ReplyForm::None),
        (Command::Test(2), "test 2\n", ReplyForm::Count(2)),
        (Command::Verb(None), "verb\n", ReplyForm::Line),
        (Command::Verb(Some(4)), "verb 4\n", ReplyForm::Line),
        (Command::Version, "version\n", ReplyForm::Block),
        (
            Command::VersionSet(4),
            "version 4\n",
            ReplyForm::UpToSentinel,
        ),
    ];
    for (command, written, form) in table {
        assert_eq!(encode(&command).as_deref(), Ok(written), "{command:?}");
        assert_eq!(command.reply_form(), form, "{command:?}");
        assert!(written.starts_with(command.name()), "{command:?}");
    }
}

/// What OpenVPN would cut, drop, misread or run as something else never leaves us.
#[test]
fn arguments_that_openvpn_would_misread_are_refused() {
    let kill = |target: &[u8]| encode(&Command::Kill(target.into()));
    for byte in (0..0x20).chain([0x7f]) {
        assert_eq!(
            kill(&[b'a', byte]),
            Err(EncodeError::ControlByte {
                parameter: "target",
                byte
            })
        );
    }
    assert!(kill("é, \"x\" \\ 'y' #;".as_bytes()).is_ok());
    assert!(kill(&[b'x'; 255]).is_ok());
    assert_eq!(
        kill(&[b'x'; 256]),
        Err(EncodeError::ParameterTooLong {
            parameter: "target",
            length: 256,
            max: 255
        })
    );

    let deny = |length: usize| {
        let quotes = "\"".repeat(length);
        encode(&Command::ClientDeny {
            cid: Cid(0),
            kid: Kid(0),
            reason: quotes.as_str().into(),
            client_reason: Some(quotes.as_str().into()),
        })
    };
    // `client-deny 0 0 "" ""` is 21 bytes, each quote takes two.
    assert_eq!(deny(244).unwrap().len(), 21 + 4 * 244 + 1);
    assert_eq!(
        deny(245),
        Err(EncodeError::LineTooLong {
            length: 21 + 4 * 245
        })
    );

    let block = |line: &str| {
        encode(&Command::ClientAuth {
            cid: Cid(0),
            kid: Kid(0),
            config: vec![line.into()],
        })
    };
    assert_eq!(
        block("END"),
        Err(EncodeError::EndInBlock {
            parameter: "config"
        })
    );
    assert!(block(" END").is_ok() && block("END ").is_ok() && block("end").is_ok());
    assert_eq!(
        block("a\nEND"),
        Err(EncodeError::ControlByte {
            parameter: "config",
            byte: b'\n'
        })
    );
    assert!(block(&"x".repeat(768)).is_ok());
    assert!(block(&"x".repeat(769)).is_err());
    let many = vec!["x".into(); 1_001];
    assert_eq!(
        encode(&Command::PkSig { lines: many }),
        Err(EncodeError::BlockTooLong {
            parameter: "signature",
            lines: 1_001
        })
    );

    for command in [
        Command::Verb(Some(16)),
        Command::EnvFilter(Some(4)),
        Command::Bytecount(1 << 31),
        Command::ClientAuthNt {
            cid: Cid(0),
            kid: Kid(1 << 32),
        },
        Command::Log(HistoryRequest::History(last(u32::MAX))),
    ] {
        assert!(
            matches!(encode(&command), Err(EncodeError::OutOfRange { .. })),
            "{command:?}"
        );
    }
}

/// What the body reads before the arguments: the lines before, three numbers, a port, the choice of the command.
const ENCODER_HEADER_BYTES: usize = 1 + 3 * 9 + 2 + 1;

/// Bytes as a certificate's names have them, and as an attacker would like them to be.
fn argument() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => any::<u8>().prop_map(|byte| vec![byte]),
        4 => prop::sample::select(&b"\"\\' \t#;:,=END|\xc3\xa9\xff"[..]).prop_map(|byte| vec![byte]),
        2 => (1..300usize).prop_map(|length| vec![b'x'; length]),
        1 => (1..300usize).prop_map(|length| vec![b'"'; length]),
        1 => (700..1_100usize).prop_map(|length| vec![b'x'; length]),
        2 => Just(b"|END|".to_vec()),
    ];
    prop_oneof![
        3 => prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat()),
        // As long as a parameter may be, and twice that when it is escaped.
        1 => (236..260usize).prop_map(|length| vec![b'"'; length]),
        // Two long lines of a block.
        1 => (680..1_020usize).prop_map(|length| vec![b'x'; length]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// An argument must reach OpenVPN as it is or not at all: anything else kills the wrong client.
    #[test]
    fn openvpn_reads_exactly_the_arguments_meant(
        header in prop::collection::vec(any::<u8>(), ENCODER_HEADER_BYTES),
        arguments in [argument(), argument()],
    ) {
        let mut input = header;
        for argument in &arguments {
            // The body takes four times the length byte.
            let quarter = argument.len().min(1_020) / 4;
            input.push(u8::try_from(quarter).unwrap());
            input.extend(&argument[..4 * quarter]);
        }
        fuzzing::encoder(&input);
    }

    /// No bytes of a daemon may panic us or mean something else when they are cut elsewhere.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any point in time will do")]
    fn any_bytes_give_the_same_outputs_however_they_are_cut(
        pieces in prop::collection::vec(daemon_piece(), 0..40),
    ) {
        fuzzing::parser(&pieces.concat(), Instant::now());
    }
}

/// What a daemon might say, in no order, and things done meanwhile.
fn daemon_piece() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        ">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info",
        "SUCCESS: password is correct",
        "SUCCESS: pid=77",
        "SUCCESS: nclients=1,bytesin=2,bytesout=3",
        "SUCCESS: x",
        "ERROR: y",
        "END",
        "",
        ">CLIENT:CONNECT,1,2",
        ">CLIENT:ESTABLISHED,1",
        ">CLIENT:ENV,a=b",
        ">CLIENT:ENV,END",
        ">UPDOWN:UP",
        ">UPDOWN:ENV,END",
        ">PKCS11ID-COUNT:3",
        ">STATE:1,CONNECTED,SUCCESS,10.8.0.1,,,,",
        "1,CONNECTED,SUCCESS,10.8.0.1,,,,",
        "1,D,text, text",
        "[2] The purpose",
        "TITLE\tOpenVPN",
        "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tBytes Received\tClient ID",
        "CLIENT_LIST\talice\t1.2.3.4:5\t18\t7",
        "CLIENT_LIST\talice\t1.2.3.4:5\tx\t7",
        "CLIENT_LIST\talice",
        "OpenVPN CLIENT LIST",
        "Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since",
        "alice,1.2.3.4:5,1,2,now",
        "ROUTING TABLE",
        "OpenVPN STATISTICS",
        "Auth read bytes,9",
    ]);
    prop_oneof![
        6 => (line, prop::sample::select(vec!["\r\n", "\n", "\r", ""])).prop_map(|(line, end)| format!("{line}{end}").into_bytes()),
        2 => any::<u8>().prop_map(|action| vec![fuzzing::ACTION, action]),
        1 => Just(vec![fuzzing::ACTION, fuzzing::ACTION_TIMEOUT]),
        1 => Just(vec![fuzzing::ACTION, fuzzing::ACTION_PASSWORD]),
        1 => Just(b"ENTER PASSWORD:".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (0..400usize).prop_map(|length| vec![b'z'; length]),
    ]
}
