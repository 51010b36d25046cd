//! Every notification of OpenVPN 2.3 to 2.7, as a daemon writes it and as we read it.

use std::time::{Duration, Instant};

use openvpn_management::daemon::write_notification;
use openvpn_management::{
    Cid, Connection, DaemonState, DynamicChallenge, EchoRecord, Env, Kid, Limits, LogFlags,
    LogRecord, Notification, Output, PasswordNotification, Pkcs11Entry, Secret, StateRecord,
    StaticChallenge, UpDown,
};

fn hear(bytes: &[u8]) -> Vec<Notification> {
    #[expect(clippy::disallowed_methods, reason = "any point in time will do")]
    let now = Instant::now();
    let mut connection = Connection::new(Limits::default());
    connection.handle_input(b">INFO:hello\r\n", now);
    connection.handle_input(bytes, now);
    std::iter::from_fn(|| connection.poll_output())
        .filter_map(|output| match output {
            Output::Greeted { .. } => None,
            Output::Notification(notification) => Some(notification),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn state(state: DaemonState) -> StateRecord {
    StateRecord {
        time: Some(1),
        state,
        detail: "".into(),
        tunnel_ipv4: "".into(),
        remote_address: "".into(),
        remote_port: None,
        local_address: "".into(),
        local_port: None,
        tunnel_ipv6: "".into(),
    }
}

/// Each form that a release writes, the notification it is, and what our own daemon side writes for it: the same.
#[test]
fn notifications_are_read_and_written() {
    let need = |kind: &str, challenge| PasswordNotification::NeedUsernamePassword {
        kind: kind.into(),
        challenge,
    };
    let env: Env = [
        ("username", "joe"),
        ("password", "a=b,\"c\""),
        ("empty", ""),
    ]
    .into_iter()
    .collect();
    let env_text = ">CLIENT:ENV,username=joe\r\n>CLIENT:ENV,password=a=b,\"c\"\r\n>CLIENT:ENV,empty=\r\n>CLIENT:ENV,END";
    let table = [
        (">INFO:more".to_owned(), Notification::Info("more".into())),
        (
            ">FATAL:cannot bind".into(),
            Notification::Fatal("cannot bind".into()),
        ),
        (
            // OpenVPN 2.3 does not say how long to wait.
            ">HOLD:Waiting for hold release".into(),
            Notification::Hold {
                message: "Waiting for hold release".into(),
                wait: None,
            },
        ),
        (
            ">HOLD:Waiting for hold release:10".into(),
            Notification::Hold {
                message: "Waiting for hold release".into(),
                wait: Some(Duration::from_secs(10)),
            },
        ),
        (
            ">STATE:1,CONNECTED,SUCCESS,10.8.0.2,1.2.3.4,1194,192.168.0.2,55000,fd00::2".into(),
            Notification::State(StateRecord {
                detail: "SUCCESS".into(),
                tunnel_ipv4: "10.8.0.2".into(),
                remote_address: "1.2.3.4".into(),
                remote_port: Some(1194),
                local_address: "192.168.0.2".into(),
                local_port: Some(55000),
                tunnel_ipv6: "fd00::2".into(),
                ..state(DaemonState::Connected)
            }),
        ),
        (
            ">STATE:1,RECONNECTING,SIGUSR1,,,,,".into(),
            Notification::State(StateRecord {
                detail: "SIGUSR1".into(),
                ..state(DaemonState::Reconnecting)
            }),
        ),
        (
            ">STATE:1,NEWSTATE,,,,,,".into(),
            Notification::State(state(DaemonState::Unknown("NEWSTATE".into()))),
        ),
        (
            ">LOG:1,WN,a, b, c".into(),
            // Written in the wire's order of letters.
            Notification::Log(LogRecord {
                time: Some(1),
                flags: LogFlags::WARNING.union(LogFlags::NON_FATAL),
                text: "a, b, c".into(),
            }),
        ),
        (
            ">LOG:1,,".into(),
            Notification::Log(LogRecord {
                time: Some(1),
                flags: LogFlags::default(),
                text: "".into(),
            }),
        ),
        (
            ">ECHO:1,a,b".into(),
            Notification::Echo(EchoRecord {
                time: Some(1),
                text: "a,b".into(),
            }),
        ),
        (
            ">BYTECOUNT:1,18446744073709551615".into(),
            Notification::Bytecount {
                bytes_received: 1,
                bytes_sent: u64::MAX,
            },
        ),
        (
            ">BYTECOUNT_CLI:7,1,2".into(),
            Notification::BytecountCli {
                cid: Cid(7),
                bytes_received: 1,
                bytes_sent: 2,
            },
        ),
        (
            format!(">CLIENT:CONNECT,7,1\r\n{env_text}"),
            Notification::ClientConnect {
                cid: Cid(7),
                kid: Kid(1),
                env: env.clone(),
            },
        ),
        (
            format!(">CLIENT:REAUTH,7,2\r\n{env_text}"),
            Notification::ClientReauth {
                cid: Cid(7),
                kid: Kid(2),
                env: env.clone(),
            },
        ),
        (
            format!(">CLIENT:ESTABLISHED,7\r\n{env_text}"),
            Notification::ClientEstablished {
                cid: Cid(7),
                env: env.clone(),
            },
        ),
        (
            ">CLIENT:DISCONNECT,7\r\n>CLIENT:ENV,END".into(),
            Notification::ClientDisconnect {
                cid: Cid(7),
                env: Env::default(),
            },
        ),
        (
            format!(">CLIENT:CR_RESPONSE,7,1,MTIz\r\n{env_text}"),
            Notification::ClientCrResponse {
                cid: Cid(7),
                kid: Kid(1),
                response: Secret::new("MTIz"),
                env: env.clone(),
            },
        ),
        (
            ">CLIENT:ADDRESS,7,10.77.0.0/255.255.255.0,0".into(),
            Notification::ClientAddress {
                cid: Cid(7),
                address: "10.77.0.0/255.255.255.0".into(),
                primary: false,
            },
        ),
        (
            ">PASSWORD:Need 'Private Key' password".into(),
            Notification::Password(PasswordNotification::NeedPassword {
                kind: "Private Key".into(),
            }),
        ),
        (
            ">PASSWORD:Need 'Auth' username/password".into(),
            Notification::Password(need("Auth", None)),
        ),
        (
            ">PASSWORD:Need 'Auth' username/password SC:3,PIN, please: 'x'".into(),
            Notification::Password(need(
                "Auth",
                Some(StaticChallenge {
                    echo: true,
                    concatenate: true,
                    text: "PIN, please: 'x'".into(),
                }),
            )),
        ),
        (
            ">PASSWORD:Need 'Auth' username".into(),
            Notification::Password(PasswordNotification::NeedUsername {
                kind: "Auth".into(),
            }),
        ),
        (
            ">PASSWORD:Verification Failed: 'Auth'".into(),
            Notification::Password(PasswordNotification::VerificationFailed {
                kind: "Auth".into(),
                reason: None,
                challenge: None,
            }),
        ),
        (
            ">PASSWORD:Verification Failed: 'Auth' ['it's expired']".into(),
            Notification::Password(PasswordNotification::VerificationFailed {
                kind: "Auth".into(),
                reason: Some("it's expired".into()),
                challenge: None,
            }),
        ),
        (
            ">PASSWORD:Verification Failed: 'Auth' ['CRV1:R,E:id:Y3I=:Enter: the code']".into(),
            Notification::Password(PasswordNotification::VerificationFailed {
                kind: "Auth".into(),
                reason: Some("CRV1:R,E:id:Y3I=:Enter: the code".into()),
                challenge: Some(DynamicChallenge {
                    flags: "R,E".into(),
                    state_id: "id".into(),
                    username_base64: "Y3I=".into(),
                    text: "Enter: the code".into(),
                }),
            }),
        ),
        (
            ">PASSWORD:Auth-Token:SESS_ID".into(),
            Notification::Password(PasswordNotification::AuthToken(Secret::new("SESS_ID"))),
        ),
        (
            ">NEED-OK:Need 'token-insertion-request' confirmation MSG:Please insert 'it'".into(),
            Notification::NeedOk {
                kind: "token-insertion-request".into(),
                message: "Please insert 'it'".into(),
            },
        ),
        (
            ">NEED-STR:Need 'name' string MSG:Your name".into(),
            Notification::NeedStr {
                kind: "name".into(),
                message: "Your name".into(),
            },
        ),
        (
            ">NEED-CERTIFICATE:macosx-keychain:subject:o=x".into(),
            Notification::NeedCertificate {
                hint: "macosx-keychain:subject:o=x".into(),
            },
        ),
        (
            ">PK_SIGN:QUJD".into(),
            Notification::PkSign {
                data: "QUJD".into(),
                algorithm: None,
            },
        ),
        (
            ">PK_SIGN:QUJD,RSA_PKCS1_PSS_PADDING,hashalg=SHA256".into(),
            Notification::PkSign {
                data: "QUJD".into(),
                algorithm: Some("RSA_PKCS1_PSS_PADDING,hashalg=SHA256".into()),
            },
        ),
        (
            ">RSA_SIGN:QUJD".into(),
            Notification::RsaSign {
                data: "QUJD".into(),
            },
        ),
        (
            ">REMOTE:vpn.example.org,1194,udp4".into(),
            Notification::Remote {
                host: "vpn.example.org".into(),
                port: "1194".into(),
                protocol: "udp4".into(),
            },
        ),
        (
            ">PROXY:1,UDP,vpn.example.org".into(),
            Notification::Proxy {
                index: 1,
                protocol: "UDP".into(),
                host: "vpn.example.org".into(),
            },
        ),
        (
            ">INFOMSG:WEB_AUTH::https://x".into(),
            Notification::Infomsg("WEB_AUTH::https://x".into()),
        ),
        (
            ">UPDOWN:DOWN\r\n>UPDOWN:ENV,dev=tun0\r\n>UPDOWN:ENV,END".into(),
            Notification::UpDown {
                direction: UpDown::Down,
                env: [("dev", "tun0")].into_iter().collect(),
            },
        ),
        (
            ">NOTIFY:info,remote-exit,EXIT".into(),
            Notification::Notify {
                severity: "info".into(),
                kind: "remote-exit".into(),
                text: "EXIT".into(),
            },
        ),
        (">PKCS11ID-COUNT:3".into(), Notification::Pkcs11IdCount(3)),
        (
            ">PKCS11ID-ENTRY:'1', ID:'it's', BLOB:'QUJD'".into(),
            Notification::Pkcs11IdEntry(Pkcs11Entry {
                index: 1,
                id: Some("it's".into()),
                blob: Some("QUJD".into()),
            }),
        ),
        (
            ">PKCS11ID-ENTRY:'9'".into(),
            Notification::Pkcs11IdEntry(Pkcs11Entry {
                index: 9,
                id: None,
                blob: None,
            }),
        ),
        (
            ">SOMETHING:new".into(),
            Notification::Unrecognized("SOMETHING:new".into()),
        ),
    ];
    for (text, notification) in table {
        let text = format!("{text}\r\n");
        assert_eq!(
            hear(text.as_bytes()),
            std::slice::from_ref(&notification),
            "{text}"
        );
        let mut written = Vec::new();
        write_notification(&notification, &mut written);
        let written = String::from_utf8(written).unwrap();
        // The one that is not written as it was read: letters come in the order I F N W D.
        assert_eq!(written, text.replace(",WN,", ",NW,"));
    }
}

/// OpenVPN 2.3 has five fields, and no ports.
#[test]
fn states_of_2_3_are_read() {
    assert_eq!(
        hear(b">STATE:1,CONNECTED,SUCCESS,10.8.0.2,1.2.3.4\r\n"),
        [Notification::State(StateRecord {
            detail: "SUCCESS".into(),
            tunnel_ipv4: "10.8.0.2".into(),
            remote_address: "1.2.3.4".into(),
            ..state(DaemonState::Connected)
        })]
    );
}

/// A line that is almost right is data, not a guess and not an error.
#[test]
fn malformed_notifications_are_unrecognized() {
    for line in [
        "",
        "x",
        "STATE:",
        "STATE:x,CONNECTED,,",
        "LOG:1,Z,text",
        "LOG:1,I",
        "BYTECOUNT_CLI:1,2",
        "BYTECOUNT_CLI:-1,2,3",
        "BYTECOUNT:1",
        "CLIENT:CONNECT,1",
        "CLIENT:CONNECT,1,x",
        "CLIENT:ESTABLISHED,18446744073709551616",
        "CLIENT:ADDRESS,1,10.0.0.1,2",
        "CLIENT:ENV,a=b",
        "CLIENT:ENV,END",
        "UPDOWN:SIDEWAYS",
        "UPDOWN:ENV,END",
        "PASSWORD:Need Auth password",
        "PASSWORD:Verification Failed: 'Auth' ['x",
        "PROXY:x,UDP,h",
        "NOTIFY:info",
        "PKCS11ID-ENTRY:1",
    ] {
        assert_eq!(
            hear(format!(">{line}\r\n").as_bytes()),
            [Notification::Unrecognized(line.into())]
        );
    }
}

/// Names and values come from certificates and peers: a terminal that shows them must stay as it is.
#[test]
fn text_from_outside_is_shown_without_control_bytes() {
    let [Notification::Info(text)] = &hear(b">INFO:a\x1b[31m\xff\"\r\n")[..] else {
        panic!("no info")
    };
    assert_eq!(text.to_string(), "a\\u{1b}[31m\u{fffd}\"");
    assert_eq!(format!("{text:?}"), "\"a\\u{1b}[31m\u{fffd}\\\"\"");
    assert_eq!(text.to_str(), None);
    assert_eq!(text.as_bytes(), b"a\x1b[31m\xff\"");
}

/// A block whose END got lost must not swallow the clients behind it.
#[test]
fn header_inside_a_block_ends_it() {
    let heard = hear(
        b">CLIENT:ESTABLISHED,1\r\n>CLIENT:ENV,a=b\r\n>CLIENT:ESTABLISHED,2\r\n>CLIENT:ENV,END\r\n",
    );
    assert_eq!(
        heard,
        [
            Notification::ClientEstablished {
                cid: Cid(1),
                env: [("a", "b")].into_iter().collect()
            },
            Notification::ClientEstablished {
                cid: Cid(2),
                env: Env::default()
            },
        ]
    );
}
