//! What tools may ask, told from what they type.

use openvpn_management::daemon::InputLines;
use proptest::prelude::*;

use super::*;

fn of(line: &[u8], policy: &Policy) -> Request {
    Request::of(
        line,
        Circumstances {
            policy,
            daemon_version: b"OpenVPN 2.6.14 x86_64-pc-linux-gnu",
        },
    )
}

/// What a socket passes to the daemon that changes it, whatever bytes come in.
fn changes(input: &[u8], policy: &Policy) -> usize {
    let mut block: Option<Block> = None;
    let mut changes = 0;
    for line in InputLines::default().handle_input(input) {
        if block.is_some() {
            if line == b"END" && !matches!(block.take(), Some(Block::Refused(_))) {
                changes += 1;
            }
            continue;
        }
        match of(&line, policy) {
            Request::Change { .. } => changes += 1,
            Request::Block(begun) => block = Some(begun),
            _ => {}
        }
    }
    changes
}

/// Every way to hide a command that we know of: none may get through a read-only socket.
#[test]
fn read_only_refuses_hidden_commands() {
    let long = |tail: &str| [vec![b'x'; 1_024], format!("y{tail}").into_bytes()].concat();
    let inputs: Vec<Vec<u8>> = vec![
        b"kill alice\n".to_vec(),
        b"\"kill\" alice\n".to_vec(),
        b"'kill' alice\n".to_vec(),
        b"  kill   alice\n".to_vec(),
        b"ki\x00ll alice\n".to_vec(),
        b"kill\talice\n".to_vec(),
        b"k\til\rl alice\r\n".to_vec(),
        long("kill alice\n"),
        [b"#".to_vec(), long("kill alice\n")[1..].to_vec()].concat(),
        b"pid\nstatus\nkill alice\nexit\n".to_vec(),
        b"client-auth 1 1\npush \"x\"\nEND\n".to_vec(),
        b"client-auth x 1\nkill alice\nEND\n".to_vec(),
        b"client-auth 1 1\nEND\nsignal SIGTERM\n".to_vec(),
        b"'client-pf' 1\nkill alice\nEND\n".to_vec(),
        b"pk-sig\nkill alice\nEND\n".to_vec(),
        b"verb 5\nverb '5'\nmute 1\nhold release\nhold on\nauth-retry none\n".to_vec(),
        b"signal SIGTERM\nforget-passwords\npassword a b\nusername a b\nneedok a ok\n".to_vec(),
        b"client-kill 1\nclient-deny 1 1 x\nclient-auth-nt 1 1\nclient-pending-auth 1 1 x 1\n"
            .to_vec(),
        b"push-update-broad x\nnetwork-change\nremote ACCEPT\nproxy NONE\ncr-response x\n".to_vec(),
    ];
    for input in inputs {
        assert_eq!(
            changes(&input, &Policy::ReadOnly),
            0,
            "{}",
            input.escape_ascii()
        );
    }
    // The same bytes do get through where they may: the test can fail.
    assert_eq!(changes(&long("kill alice\n"), &Policy::Operator), 1);
    assert_eq!(changes(b"client-auth 1 1\nx\nEND\n", &Policy::Full), 1);
    assert_eq!(
        changes(b"client-auth 1 1\nkill alice\nEND\n", &Policy::Full),
        1
    );
}

/// OpenVPN's names are case-sensitive: `KILL` is no command, and must be told so, not refused.
#[test]
fn what_openvpn_does_not_know_stays_unknown() {
    for line in [
        &b"KILL alice"[..],
        b"Kill alice",
        b"nonsense",
        b"\xffkill x",
        b"END",
        b"> >CLIENT:",
    ] {
        let unknown =
            Request::Answer(b"ERROR: unknown command, enter 'help' for more options".to_vec());
        assert_eq!(of(line, &Policy::ReadOnly), unknown);
        assert_eq!(of(line, &Policy::Full), unknown);
    }
    let newer = Circumstances {
        policy: &Policy::ReadOnly,
        daemon_version: b"OpenVPN 2.7.6 x",
    };
    let unknown = b"ERROR: unknown command [nonsense], enter 'help' for more options".to_vec();
    assert_eq!(Request::of(b"nonsense", newer), Request::Answer(unknown));
}

/// What concerns the tool alone must not reach the daemon: it is everybody's.
#[test]
fn switches_and_exit_stay_here() {
    let policy = &Policy::Full;
    assert_eq!(of(b"exit", policy), Request::Exit);
    assert_eq!(of(b"'quit' now", policy), Request::Exit);
    assert_eq!(of(b"env-filter", policy), Request::EnvFilter(0));
    assert_eq!(of(b"env-filter 3x", policy), Request::EnvFilter(3));
    assert_eq!(of(b"bytecount abc", policy), Request::Bytecount(0));
    assert_eq!(of(b"test 3", policy), Request::Test(3));
    assert_eq!(of(b"version 4", policy), Request::Nothing);
    assert_eq!(
        of(b"state on", policy),
        Request::History(Topic::State, vec![Word::On])
    );
    let Request::History(Topic::Log, words) = of(b"log on all x", policy) else {
        panic!();
    };
    assert!(matches!(
        &words[..],
        [Word::On, Word::Rows(Command::Raw(_))]
    ));
    assert!(matches!(of(b"state", policy), Request::Read(_)));
}

/// At these levels the daemon, which we ask for its log, would never read a command again.
#[test]
fn deafening_levels_are_refused() {
    for (line, refused) in [
        ("verb 8", false),
        ("verb 9", true),
        ("verb 15", true),
        ("verb 16", false),
        ("verb '11x'", true),
    ] {
        let request = of(line.as_bytes(), &Policy::Full);
        assert_eq!(matches!(request, Request::Refuse(_)), refused, "{line}");
    }
}

/// Tools show these texts to people, and some match them.
#[test]
fn refusals_of_the_lexer_are_openvpns() {
    let long = [b"kill ".to_vec(), vec![b'x'; 300]].concat();
    let shown = [
        b"ERROR: Options error: Parameter at TCP:0 is too long (256 chars max): ".to_vec(),
        vec![b'x'; 255],
    ]
    .concat();
    assert_eq!(of(&long, &Policy::Full), Request::Answer(shown.clone()));
    let quoted = [b"kill \"".to_vec(), vec![b'x'; 300]].concat();
    assert_eq!(of(&quoted, &Policy::Full), Request::Answer(shown));
    let unclosed = b"ERROR: Options error: No closing quotation (\") in TCP:0".to_vec();
    assert_eq!(of(b"kill \"a", &Policy::Full), Request::Answer(unclosed));
}

proptest! {
    /// No bytes at all may change a daemon through a read-only socket, however they are cut into reads.
    #[test]
    fn nothing_changes_a_daemon_read_only(
        pieces in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "kill", "signal", "SIGTERM", "verb", "5", "hold", "release", "client-auth", "1", "0", "END", "\n",
                    "\n", "\n", "\r\n", " ", "\t", "\"", "'", "\\", "#", ";", "\0", "pk-sig", "password", "state", "on",
                ]).prop_map(|text| text.as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..8),
                (900_usize..1_200).prop_map(|length| vec![b'x'; length]),
            ],
            0..60,
        )
    ) {
        prop_assert_eq!(changes(&pieces.concat(), &Policy::ReadOnly), 0);
    }
}
