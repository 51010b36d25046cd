//! Who an answer belongs to, what happens when it is late, and what a connection refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use openvpn_management::{
    AuthRetry, Cid, Command, CommandId, Connection, EncodeError, HistoryDepth, HistoryRequest, Kid,
    Limits, LinesTold, Notification, Output, RawCommand, Reply, Secret, SendError, StatusFormat,
    Violation,
};

const DEADLINE: Duration = Duration::from_secs(5);
const GREETING: &[u8] =
    b">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info\r\n";

/// A connection, and a clock that only moves when it is told to.
struct Lab {
    connection: Connection,
    now: Instant,
}

impl Lab {
    fn fresh(limits: Limits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any point in time will do")]
        let now = Instant::now();
        Self {
            connection: Connection::new(limits),
            now,
        }
    }

    fn greeted() -> Self {
        Self::greeted_with(Limits::default())
    }

    fn greeted_with(limits: Limits) -> Self {
        let mut lab = Self::fresh(limits);
        assert!(matches!(
            lab.hear(GREETING)[..],
            [Output::Greeted {
                management_version: Some(5),
                ..
            }]
        ));
        lab
    }

    fn hear(&mut self, bytes: &[u8]) -> Vec<Output> {
        self.connection.handle_input(bytes, self.now);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.connection.poll_output()).collect()
    }

    fn written(&mut self) -> String {
        let mut written = Vec::new();
        while let Some(bytes) = self.connection.poll_transmit() {
            written.extend_from_slice(&bytes);
        }
        String::from_utf8(written).unwrap()
    }

    /// Sends a command and checks what is written for it.
    fn send(&mut self, command: &Command, written: &str) -> CommandId {
        let id = self.connection.send(command, DEADLINE, self.now).unwrap();
        assert_eq!(self.written(), written);
        id
    }

    /// Lets the deadline pass.
    fn wait(&mut self) -> Vec<Output> {
        self.now = self.connection.poll_timeout().expect("a deadline is set");
        self.connection.handle_timeout(self.now);
        self.outputs()
    }

    /// Sends a command, lets its answer come, and gives it.
    fn ask(&mut self, command: &Command, answer: &[u8]) -> Output {
        self.connection.send(command, DEADLINE, self.now).unwrap();
        self.written();
        let mut outputs = self.hear(answer);
        assert_eq!(outputs.len(), 1, "{outputs:?}");
        assert!(self.connection.is_ready());
        outputs.remove(0)
    }
}

fn on_time(id: CommandId, reply: Reply) -> Output {
    Output::Reply {
        id,
        result: Ok(reply),
        late: false,
    }
}

/// The text of a refusal.
fn rejected(output: &Output) -> &str {
    match output {
        Output::Reply {
            result: Err(rejected),
            ..
        } => rejected.text.to_str().unwrap(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Without this a kill that was answered late would tell the next caller that his command succeeded.
#[test]
fn late_reply_does_not_answer_the_next_command() {
    let mut lab = Lab::greeted();
    let id = lab.send(
        &Command::ClientKill {
            cid: Cid(7),
            message: None,
        },
        "client-kill 7\n",
    );
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    assert_eq!(lab.written(), "load-stats\n");
    assert!(!lab.connection.is_responsive());
    assert_eq!(lab.connection.poll_timeout(), None);
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::Unresponsive)
    );

    let late = Output::Reply {
        id,
        result: Ok(Reply::Success("client-kill command succeeded".into())),
        late: true,
    };
    assert_eq!(
        lab.hear(b"SUCCESS: client-kill command succeeded\r\n"),
        [late]
    );
    // The fence is still owed: a command sent now could be answered by it.
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::Unresponsive)
    );
    assert_eq!(
        lab.hear(b"SUCCESS: nclients=1,bytesin=2,bytesout=3\r\n"),
        [Output::Responsive]
    );

    let id = lab.send(&Command::Pid, "pid\n");
    assert_eq!(
        lab.hear(b"SUCCESS: pid=9\r\n"),
        [on_time(id, Reply::Pid(9))]
    );
}

/// OpenVPN 2.7 with DCO can leave `status` without an answer: the session must not wait for it for ever.
#[test]
fn reply_that_never_comes_is_lost_at_the_fence() {
    let mut lab = Lab::greeted();
    let id = lab.send(
        &Command::Status {
            format: StatusFormat::V3,
        },
        "status 3\n",
    );
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    assert_eq!(
        lab.hear(b"SUCCESS: nclients=1,bytesin=2,bytesout=3\r\n"),
        [Output::Lost { id }, Output::Responsive]
    );
    assert!(lab.connection.is_ready());
}

/// Two `load-stats` in a row could not be told apart, so that one is fenced with `pid`.
#[test]
fn load_stats_is_fenced_with_pid() {
    let mut lab = Lab::greeted();
    let id = lab.send(&Command::LoadStats, "load-stats\n");
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    assert_eq!(lab.written(), "pid\n");
    let outputs = lab.hear(b"SUCCESS: nclients=1,bytesin=2,bytesout=3\r\nSUCCESS: pid=4\r\n");
    assert!(
        matches!(
            &outputs[..],
            [Output::Reply { late: true, .. }, Output::Responsive]
        ),
        "{outputs:?}"
    );
}

/// A block that is cut by its deadline goes on, and text in it cannot pass for the fence's answer.
#[test]
fn block_that_is_late_is_read_to_its_end() {
    let mut lab = Lab::greeted();
    let id = lab.send(
        &Command::Status {
            format: StatusFormat::V1,
        },
        "status 1\n",
    );
    assert_eq!(lab.hear(b"OpenVPN CLIENT LIST\r\nUpdated,now\r\n"), []);
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    let outputs = lab.hear(
        b"Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since\r\n\
          SUCCESS: nclients=1;bytesin=2,bytesout=3,1.2.3.4:5,1,2,now\r\n\
          END,1.2.3.4:6,1,2,now\r\n>LOG:1,,a line between\r\nGLOBAL STATS\r\nEND\r\n\
          SUCCESS: nclients=1,bytesin=2,bytesout=3\r\n",
    );
    let [
        Output::Notification(Notification::Log(_)),
        Output::Reply {
            result: Ok(Reply::Status(snapshot)),
            ..
        },
        Output::Responsive,
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(snapshot.clients().next().unwrap().common_name, b"END");
    assert_eq!(snapshot.quarantined().count, 1);
}

/// A reply that came in time must not count as late because we were slow to look.
#[test]
fn reply_read_after_its_deadline_is_in_time() {
    let mut lab = Lab::greeted();
    let id = lab.send(&Command::Pid, "pid\n");
    lab.now += 2 * DEADLINE;
    assert_eq!(
        lab.hear(b"SUCCESS: pid=9\r\n"),
        [on_time(id, Reply::Pid(9))]
    );
}

/// Two commands on the wire would make the second reader depend on the first's form.
#[test]
fn one_command_is_in_flight() {
    let mut lab = Lab::greeted();
    let id = lab.send(&Command::Pid, "pid\n");
    assert_eq!(lab.connection.in_flight(), Some(id));
    assert_eq!(
        lab.connection.send(&Command::Help, DEADLINE, lab.now),
        Err(SendError::Busy)
    );
    assert_eq!(lab.written(), "");
    lab.hear(b"SUCCESS: pid=9\r\n");
    assert_eq!(lab.connection.in_flight(), None);
}

/// A command behind a busy slot would be read as a password, or run for nobody.
#[test]
fn nothing_is_sent_before_the_greeting() {
    let mut lab = Lab::fresh(Limits::default());
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::NotGreeted)
    );
    assert_eq!(
        lab.connection.send_password(&Secret::new("x")),
        Err(EncodeError::PasswordNotAsked)
    );
    assert_eq!(lab.hear(b"ENTER PASSWORD:"), [Output::PasswordRequested]);
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::NotGreeted)
    );
    assert_eq!(lab.written(), "");
}

/// The password goes out raw and once: quotes would make it wrong, a second try costs one of three.
#[test]
fn password_is_sent_raw_and_once() {
    let mut lab = Lab::fresh(Limits::default());
    lab.hear(b"ENTER PASSWORD:");
    assert!(matches!(
        lab.connection.send_password(&Secret::new("a\nb")),
        Err(EncodeError::ControlByte { byte: b'\n', .. })
    ));
    lab.connection
        .send_password(&Secret::new("s3cret \"pass\" "))
        .unwrap();
    assert_eq!(lab.written(), "s3cret \"pass\" \n");
    assert_eq!(
        lab.connection.send_password(&Secret::new("again")),
        Err(EncodeError::PasswordNotAsked)
    );
    assert_eq!(lab.hear(b"ENTER PASS"), []);
    assert_eq!(lab.hear(b"WORD:"), [Output::PasswordRefused]);
    assert_eq!(
        lab.connection.send_password(&Secret::new("again")),
        Err(EncodeError::PasswordNotAsked)
    );
}

/// A file that is not a management socket must be named, not waited for.
#[test]
fn other_protocols_are_told_apart() {
    let mut lab = Lab::fresh(Limits::default());
    assert_eq!(
        lab.hear(b"SSH-2.0-OpenSSH_9.2\r\n>INFO:too late\r\n"),
        [Output::Violation(Violation::NotManagement {
            line: "SSH-2.0-OpenSSH_9.2".into()
        })]
    );
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::Closed)
    );
    // A word that begins like the prompt is read on until it is another.
    let mut lab = Lab::fresh(Limits::default());
    assert_eq!(lab.hear(b"ENTER P"), []);
    assert!(matches!(
        lab.hear(b"IN:\r\n")[..],
        [Output::Violation(Violation::NotManagement { .. })]
    ));
}

/// A daemon, or what we took for one, cannot make us hold more than the limits say.
#[test]
fn bounds_are_kept() {
    let limits = Limits {
        line_bytes_max: 100,
        env_lines_max: 2,
        history_lines_max: 2,
        ..Limits::default()
    };

    let too_long = Output::Violation(Violation::LineTooLong { limit: 100 });
    assert_eq!(
        Lab::greeted_with(limits).hear(&[b'x'; 101]),
        std::slice::from_ref(&too_long)
    );
    let mut lab = Lab::greeted_with(limits);
    assert_eq!(lab.hear(&[b'x'; 100]), []);
    assert_eq!(lab.hear(b"\r"), [too_long]);
    assert_eq!(lab.hear(b"\n>INFO:more\r\n"), []);

    let mut lab = Lab::greeted_with(limits);
    assert_eq!(
        lab.hear(
            b">CLIENT:ESTABLISHED,0\r\n>CLIENT:ENV,a=1\r\n>CLIENT:ENV,b=2\r\n>CLIENT:ENV,c=3\r\n"
        ),
        [Output::Violation(Violation::EnvTooLarge {
            lines_max: 2,
            bytes_max: limits.env_bytes_max
        })]
    );

    let mut lab = Lab::greeted_with(limits);
    let log = Command::Log(HistoryRequest::History(HistoryDepth::All));
    let Output::Reply {
        result: Ok(Reply::Log(log)),
        ..
    } = lab.ask(&log, b"1,,a\r\n2,,b\r\n3,,c\r\nEND\r\n")
    else {
        panic!("no log");
    };
    assert_eq!((log.records.len(), log.truncated), (2, true));
}

/// With env-filter and log on, OpenVPN can log in the middle of an ENV block.
#[test]
fn log_line_inside_an_env_block_does_not_break_it() {
    let mut lab = Lab::greeted();
    let outputs = lab.hear(
        b">CLIENT:CONNECT,3,1\r\n>CLIENT:ENV,password=hunter2\r\n>LOG:1,N,bad peer info\r\n\
          >CLIENT:ENV,END=1\r\n>CLIENT:ENV,username=END\r\n>CLIENT:ENV,END\r\n",
    );
    let [
        Output::Notification(Notification::Log(_)),
        Output::Notification(Notification::ClientConnect { env, .. }),
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(env.get(b"password"), Some(&b"hunter2"[..]));
    assert_eq!(env.get(b"END"), Some(&b"1"[..]));
    assert_eq!(env.len(), 3);
    assert!(
        !format!("{outputs:?}").contains("hunter2"),
        "a password is shown: {outputs:?}"
    );
}

/// The two answers that look like notifications must reach who asked, and nobody else.
#[test]
fn pkcs11_answers_start_with_a_greater_sign() {
    let mut lab = Lab::greeted();
    let count = lab.ask(&Command::Pkcs11IdCount, b">PKCS11ID-COUNT:2\r\n");
    assert!(matches!(
        count,
        Output::Reply {
            result: Ok(Reply::Pkcs11IdCount(2)),
            ..
        }
    ));
    let entry = lab.ask(
        &Command::Pkcs11IdGet(1),
        b">PKCS11ID-ENTRY:'1', ID:'pkcs11:token=a', BLOB:'QUJD'\r\n",
    );
    let Output::Reply {
        result: Ok(Reply::Pkcs11Id(entry)),
        ..
    } = entry
    else {
        panic!("{entry:?}")
    };
    assert_eq!(
        (entry.index, entry.id.unwrap(), entry.blob.unwrap()),
        (1, "pkcs11:token=a".into(), "QUJD".into())
    );
    assert_eq!(
        lab.hear(b">PKCS11ID-COUNT:2\r\n"),
        [Output::Notification(Notification::Pkcs11IdCount(2))]
    );
}

/// A second line that is left over would answer the next command.
#[test]
fn answers_of_several_lines_are_read_to_their_last() {
    let mut lab = Lab::greeted();
    let explained = lab.ask(
        &Command::AuthRetry(Some(AuthRetry::Interact)),
        b"--auth-retry method must be 'interact', 'nointeract', or 'none'\r\nERROR: bad auth-retry parameter\r\n",
    );
    assert_eq!(
        rejected(&explained),
        "--auth-retry method must be 'interact', 'nointeract', or 'none'\nbad auth-retry parameter"
    );

    let push = Command::PushUpdateCid {
        cid: Cid(99),
        options: "route 10.0.0.0".into(),
    };
    let failed = lab.ask(
        &push,
        b"ERROR: no client updated\r\nERROR: push-update command failed\r\n",
    );
    assert_eq!(
        rejected(&failed),
        "no client updated\npush-update command failed"
    );
    let unknown = lab.ask(
        &push,
        b"ERROR: unknown command, enter 'help' for more options\r\n",
    );
    assert_eq!(
        rejected(&unknown),
        "unknown command, enter 'help' for more options"
    );
    let id = lab.send(&push, "push-update-cid 99 \"route 10.0.0.0\"\n");
    assert_eq!(
        lab.hear(b"SUCCESS: 1 client(s) updated\r\nSUCCESS: push-update command succeeded\r\n"),
        [on_time(
            id,
            Reply::Success("1 client(s) updated\npush-update command succeeded".into())
        )]
    );

    let state = Command::State(HistoryRequest::OnWithHistory(HistoryDepth::Last(
        NonZeroU32::MIN,
    )));
    let id = lab.send(&state, "state on 1\n");
    assert_eq!(
        lab.hear(b"SUCCESS: real-time state notification set to ON\r\n"),
        []
    );
    assert_eq!(lab.hear(b">STATE:2,CONNECTED,SUCCESS,,,,,\r\n").len(), 1);
    let outputs = lab.hear(b"1,CONNECTING,,,,,,\r\nEND\r\n");
    assert!(
        matches!(&outputs[..], [Output::Reply { id: of, result: Ok(Reply::States(rows)), .. }] if *of == id && rows.records.len() == 1),
        "{outputs:?}"
    );
}

/// A block that nobody asked for is refused at its first line, and OpenVPN runs the others as commands: their answers
/// must not be taken for those of the next commands.
#[test]
fn answers_to_the_lines_of_a_refused_block_are_skipped() {
    let mut lab = Lab::greeted();
    let certificate = Command::Certificate {
        lines: vec!["-----BEGIN CERTIFICATE-----".into()],
    };
    let id = lab.send(
        &certificate,
        "certificate\n-----BEGIN CERTIFICATE-----\nEND\n",
    );
    assert_eq!(
        lab.hear(b"ERROR: The certificate command is not currently available\r\n"),
        []
    );
    assert_eq!(lab.written(), "load-stats\n");
    assert_eq!(
        lab.hear(b"ERROR: unknown command\r\nERROR: unknown command\r\n"),
        []
    );
    let outputs = lab.hear(b"SUCCESS: nclients=1,bytesin=2,bytesout=3\r\n");
    assert!(
        matches!(&outputs[..], [Output::Reply { id: of, .. }] if *of == id),
        "{outputs:?}"
    );
    assert_eq!(
        rejected(&outputs[0]),
        "The certificate command is not currently available"
    );
    assert!(lab.connection.is_ready());

    // The deadline holds meanwhile, and `load-stats` is what is owed.
    let id = lab.send(
        &certificate,
        "certificate\n-----BEGIN CERTIFICATE-----\nEND\n",
    );
    lab.hear(b"ERROR: The certificate command is not currently available\r\n");
    assert_eq!(lab.written(), "load-stats\n");
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    assert_eq!(lab.written(), "pid\n");
    let outputs = lab.hear(
        b"ERROR: x\r\nERROR: x\r\nSUCCESS: nclients=1,bytesin=2,bytesout=3\r\nSUCCESS: pid=1\r\n",
    );
    assert!(
        matches!(
            &outputs[..],
            [Output::Reply { late: true, .. }, Output::Responsive]
        ),
        "{outputs:?}"
    );

    // Refused when it is late: the fence is behind the block already.
    lab.send(
        &certificate,
        "certificate\n-----BEGIN CERTIFICATE-----\nEND\n",
    );
    lab.wait();
    assert_eq!(lab.written(), "load-stats\n");
    let outputs = lab.hear(b"ERROR: x\r\nERROR: y\r\nSUCCESS: nclients=1,bytesin=2,bytesout=3\r\n");
    assert!(
        matches!(
            &outputs[..],
            [
                Output::Reply { late: true, .. },
                Output::Unsolicited(_),
                Output::Responsive
            ]
        ),
        "{outputs:?}"
    );

    // `client-auth` reads its block in any case.
    let id = lab.send(
        &Command::ClientAuth {
            cid: Cid(1),
            kid: Kid(1),
            config: vec![],
        },
        "client-auth 1 1\nEND\n",
    );
    let outputs = lab.hear(b"ERROR: client-auth command failed\r\n");
    assert!(
        matches!(&outputs[..], [Output::Reply { id: of, .. }] if *of == id),
        "{outputs:?}"
    );
}

/// What `version N` answers depends on the release: nothing, a line, or a block. The sentinel ends them all.
#[test]
fn version_set_ends_at_its_sentinel() {
    let mut lab = Lab::greeted();
    for (answer, reply) in [
        (&b""[..], Reply::None),
        (
            b"SUCCESS: Management client version set to 4\r\n",
            Reply::Success("Management client version set to 4".into()),
        ),
    ] {
        let id = lab.send(&Command::VersionSet(4), "version 4\npid\n");
        assert_eq!(
            lab.hear(&[answer, b"SUCCESS: pid=1\r\n"].concat()),
            [on_time(id, reply)]
        );
    }
    let output = lab.ask(
        &Command::VersionSet(4),
        b"OpenVPN Version: OpenVPN 2.4.12\r\nManagement Version: 1\r\nEND\r\nSUCCESS: pid=1\r\n",
    );
    assert!(
        matches!(
            output,
            Output::Reply {
                result: Ok(Reply::Version(_)),
                ..
            }
        ),
        "{output:?}"
    );
}

/// `exit` has no answer, and what is sent behind it is lost.
#[test]
fn nothing_is_sent_after_exit() {
    let mut lab = Lab::greeted();
    let id = lab.send(&Command::Exit, "exit\n");
    assert_eq!(lab.outputs(), [on_time(id, Reply::None)]);
    assert_eq!(
        lab.connection.send(&Command::Pid, DEADLINE, lab.now),
        Err(SendError::Closed)
    );
    assert_eq!(lab.hear(b">LOG:1,D,MANAGEMENT: CMD 'exit'\r\n").len(), 1);
}

/// A refused command leaves no trace, so that the caller may send another.
#[test]
fn command_that_cannot_be_encoded_is_not_in_flight() {
    let mut lab = Lab::greeted();
    let kill = Command::Kill("a\nsignal SIGTERM".into());
    assert!(matches!(
        lab.connection.send(&kill, DEADLINE, lab.now),
        Err(SendError::Encode(EncodeError::ControlByte {
            byte: b'\n',
            ..
        }))
    ));
    assert_eq!(lab.written(), "");
    assert!(lab.connection.is_ready());
}

/// Thousands of idle sessions must cost next to nothing.
#[test]
fn idle_connection_is_small() {
    assert!(size_of::<Connection>() < 512, "{}", size_of::<Connection>());
    assert!(size_of::<Output>() <= 320, "{}", size_of::<Output>());
}

fn raw(line: &str) -> Command {
    Command::Raw(RawCommand::parse(line.as_bytes()).unwrap())
}

const SENTINEL: &str = "SUCCESS: nclients=0,bytesin=0,bytesout=0\r\n";

/// A tool that asked through us must read what the daemon wrote, byte for byte, and where its answer ends.
#[test]
fn a_raw_reply_is_what_the_daemon_wrote() {
    let cases = [
        (
            "version",
            "OpenVPN Version: x\r\nManagement Version: 5\r\nEND\r\n",
        ),
        (
            "status 2",
            "TITLE,x\r\nCLIENT_LIST,END,1\r\nSUCCESS: pid=1\r\nEND\r\n",
        ),
        (
            "auth-retry bogus",
            "--auth-retry method must be\r\nERROR: bad auth-retry parameter\r\n",
        ),
        ("pkcs11-id-count", ">PKCS11ID-COUNT:0\r\n"),
        ("kill x", "ERROR: common name 'x' not found\r\n"),
        ("version 4", ""),
    ];
    for (line, reply) in cases {
        let mut lab = Lab::greeted();
        let answer = lab.ask(&raw(line), format!("{reply}{SENTINEL}").as_bytes());
        let Output::Reply {
            result: Ok(Reply::Raw(found)),
            late: false,
            ..
        } = answer
        else {
            panic!("{answer:?}");
        };
        assert_eq!(found.text.to_str(), Some(reply));
        assert_eq!(found.lines().count(), reply.lines().count());
    }
}

/// The answer that comes late is still the raw command's own, and the next command gets its own.
#[test]
fn a_late_raw_reply_is_its_own() {
    let mut lab = Lab::greeted();
    let id = lab.send(&raw("kill x"), "kill x\nload-stats\n");
    assert_eq!(lab.wait(), [Output::Unanswered { id }]);
    assert_eq!(lab.written(), "pid\n");
    let outputs = lab.hear(format!("ERROR: no\r\n{SENTINEL}SUCCESS: pid=7\r\n").as_bytes());
    assert!(
        matches!(
            &outputs[..],
            [
                Output::Reply {
                    result: Ok(Reply::Raw(_)),
                    late: true,
                    ..
                },
                Output::Responsive
            ]
        ),
        "{outputs:?}"
    );
}

/// Tools must see a daemon's lines in the order and spelling of the wire, around the answers of others.
#[test]
fn lines_are_told_as_they_come() {
    let lines = |outputs: Vec<Output>| -> Vec<String> {
        let told = |output| match output {
            Output::Line(line) => Some(line.to_string_lossy().into_owned()),
            Output::Reply { .. } => Some("reply".to_owned()),
            _ => None,
        };
        outputs.into_iter().filter_map(told).collect()
    };
    let wire = ">STATE:1,CONNECTED,,,,\r\n>HOLD:Waiting for hold release:0\r\nSUCCESS: pid=1\r\n>CLIENT:ESTABLISHED,0\r\n\
                >CLIENT:ENV,a=b\r\n>CLIENT:ENV,END\r\n>WHAT:ever\r\n";
    let told = |which| {
        let mut lab = Lab::greeted();
        lab.connection.tell_lines(which);
        lab.send(&Command::Pid, "pid\n");
        lines(lab.hear(wire.as_bytes()))
    };
    assert_eq!(told(LinesTold::None), ["reply"]);
    assert_eq!(
        told(LinesTold::Questions),
        [">HOLD:Waiting for hold release:0", "reply"]
    );
    assert_eq!(
        told(LinesTold::All),
        [
            ">STATE:1,CONNECTED,,,,",
            ">HOLD:Waiting for hold release:0",
            "reply",
            ">CLIENT:ESTABLISHED,0",
            ">CLIENT:ENV,a=b",
            ">CLIENT:ENV,END",
            ">WHAT:ever"
        ]
    );
}

/// A read of nothing but line ends must not become tens of thousands of outputs at once, and none may be lost.
#[test]
fn much_to_say_is_said_in_parts() {
    let mut lab = Lab::greeted();
    let input = b"x\n".repeat(10_000);
    let (mut rest, mut said) = (&input[..], 0);
    while !rest.is_empty() {
        let taken = lab.connection.handle_some_input(rest, lab.now);
        rest = &rest[taken..];
        let outputs = lab.outputs();
        assert!((1..=512).contains(&outputs.len()), "{}", outputs.len());
        said += outputs.len();
    }
    assert_eq!(said, 10_000);
}

/// A reply that never ends would be read for ever: it ends the session, and says why.
#[test]
fn a_reply_that_never_ends_is_a_violation() {
    let mut lab = Lab::greeted();
    lab.connection
        .send(&Command::Version, DEADLINE, lab.now)
        .unwrap();
    let rows = b"OpenVPN Version: OpenVPN 2.6.14\r\n".repeat(10_000);
    let mut outputs = Vec::new();
    for _ in 0..100 {
        outputs.extend(lab.hear(&rows));
    }
    assert_eq!(outputs, [Output::Violation(Violation::ReplyTooLong)]);
}
