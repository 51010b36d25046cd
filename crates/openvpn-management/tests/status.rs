//! Snapshots of `status` in every format and from every release.

use openvpn_management::daemon::write_status;
use openvpn_management::{Cid, ClientRow, Limits, RouteRow, StatusFormat, StatusSnapshot};
use proptest::prelude::*;

const HEADER: &str = "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\t\
                      Bytes Received\tBytes Sent\tConnected Since\tConnected Since (time_t)\tUsername\tClient ID\t\
                      Peer ID\tData Channel Cipher\n";

fn parse(text: &str) -> StatusSnapshot {
    StatusSnapshot::parse(text.as_bytes(), &Limits::default())
}

fn client<'a>() -> ClientRow<'a> {
    ClientRow {
        common_name: b"alice",
        real_address: b"1.2.3.4:5",
        virtual_address: b"10.8.0.2",
        virtual_ipv6_address: b"",
        bytes_received: 10,
        bytes_sent: 20,
        connected_since: Some(1_795_186_701),
        username: b"UNDEF",
        cid: Some(Cid(3)),
        peer_id: Some(1),
        cipher: Some(b"AES-256-GCM"),
    }
}

/// Each release added columns in the middle: a value taken by its place would be another value.
#[test]
fn columns_are_found_by_name() {
    let since = "2026-11-20 14:58:21\t1795186701";
    let releases = [
        (
            "Common Name\tReal Address\tVirtual Address\tBytes Received\tBytes Sent\tConnected Since\tConnected Since (time_t)\tUsername",
            format!("alice\t1.2.3.4:5\t10.8.0.2\t10\t20\t{since}\tUNDEF"),
            ClientRow {
                cid: None,
                peer_id: None,
                cipher: None,
                ..client()
            },
        ),
        (
            "Common Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\tBytes Received\tBytes Sent\tConnected Since\tConnected Since (time_t)\tUsername\tClient ID\tPeer ID",
            format!("alice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\t{since}\tUNDEF\t3\t1"),
            ClientRow {
                cipher: None,
                ..client()
            },
        ),
        (
            "Common Name\tReal Address\tVirtual Address\tVirtual IPv6 Address\tBytes Received\tBytes Sent\tConnected Since\tConnected Since (time_t)\tUsername\tClient ID\tPeer ID\tData Channel Cipher",
            format!("alice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\t{since}\tUNDEF\t3\t1\tAES-256-GCM"),
            client(),
        ),
        (
            // None that there is, but the next one may be.
            "New\tClient ID\tUsername\tReal Address\tCommon Name\tConnected Since (time_t)\tBytes Sent\tBytes Received\tVirtual Address",
            "x\t3\tUNDEF\t1.2.3.4:5\talice\t1795186701\t20\t10\t10.8.0.2".to_owned(),
            ClientRow {
                peer_id: None,
                cipher: None,
                ..client()
            },
        ),
    ];
    for (header, row, expected) in releases {
        for separator in ["\t", ","] {
            let text =
                format!("TITLE\tx\nHEADER\tCLIENT_LIST\t{header}\nCLIENT_LIST\t{row}\nEND\n");
            let snapshot = parse(&text.replace('\t', separator));
            assert_eq!(
                snapshot.clients().collect::<Vec<_>>(),
                [expected],
                "{header}"
            );
            assert_eq!(snapshot.quarantined().count, 0);
        }
    }
}

/// A row that is guessed at can be a kill of somebody else.
#[test]
fn rows_that_are_not_what_the_header_says_are_quarantined() {
    let good = "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3\t1\tAES-256-GCM";
    let bad = [
        "CLIENT_LIST",
        "CLIENT_LIST\talice",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3\t1",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3\t1\tAES-256-GCM\t",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t\t20\tx\t1795186701\tUNDEF\t3\t1\tAES-256-GCM",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t-20\tx\t1795186701\tUNDEF\t3\t1\tAES-256-GCM",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3x\t1\tAES-256-GCM",
        "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3\t4294967296\tAES-256-GCM",
        "ROUTING_TABLE\t10.8.0.2\talice\t1.2.3.4:5\tx\t1795186701",
        "SOMETHING\telse",
        "CLIENT_LISTS\tno",
    ];
    for line in bad {
        let snapshot = parse(&format!("TITLE\tx\n{HEADER}{good}\n{line}\n{good}\nEND\n"));
        assert_eq!(
            snapshot.clients().collect::<Vec<_>>(),
            [client(), client()],
            "{line}"
        );
        let quarantine = snapshot.quarantined();
        assert_eq!((quarantine.count, quarantine.first.len()), (1, 1), "{line}");
    }
    let many = format!("TITLE\tx\n{HEADER}{}", "CLIENT_LIST\tx\n".repeat(1_000));
    let snapshot = parse(&many);
    assert_eq!(
        (
            snapshot.quarantined().count,
            snapshot.quarantined().first.len()
        ),
        (1_000, 8)
    );
}

/// Rows keep 16-bit offsets: a longer row must not be cut to other fields.
#[test]
fn row_of_more_than_64_kib_is_quarantined() {
    for length in [65_000, 66_000] {
        let name = "x".repeat(length);
        let row = format!(
            "CLIENT_LIST\t{name}\t1.2.3.4:5\t\t\t0\t0\tx\t1795186701\tUNDEF\t0\t0\tBF-CBC\n"
        );
        let snapshot = parse(&format!("TITLE\tx\n{HEADER}{row}"));
        let names: Vec<_> = snapshot
            .clients()
            .map(|client| client.common_name.len())
            .collect();
        let fits = length < 65_536;
        assert_eq!(names, if fits { vec![length] } else { vec![] });
        assert_eq!(snapshot.quarantined().count, u64::from(!fits));
    }
}

/// OpenVPN says 4294967295 for no peer ID: shown as a number it would look like one.
#[test]
fn undefined_peer_id_is_none() {
    let row =
        "CLIENT_LIST\tUNDEF\t1.2.3.4:5\t\t\t0\t0\tx\t1795186701\tUNDEF\t0\t4294967295\tBF-CBC\n";
    let snapshot = parse(&format!("TITLE\tx\n{HEADER}{row}"));
    let client = snapshot.clients().next().expect("there is a client");
    assert_eq!((client.peer_id, client.cid), (None, Some(Cid(0))));
    assert!(client.is_half_open());
}

/// A client waiting for approval has a name and no address, one that is called UNDEF may have one: neither is half open.
#[test]
fn half_open_is_no_name_and_no_address() {
    let none = ClientRow {
        common_name: b"UNDEF",
        virtual_address: b"",
        ..client()
    };
    assert!(none.is_half_open());
    assert!(
        !ClientRow {
            common_name: b"alice",
            ..none
        }
        .is_half_open()
    );
    assert!(
        !ClientRow {
            virtual_address: b"10.8.0.2",
            ..none
        }
        .is_half_open()
    );
    assert!(
        !ClientRow {
            virtual_ipv6_address: b"fd00::2",
            ..none
        }
        .is_half_open()
    );
}

/// A daemon with too many rows is cut short, visibly, and not at the cost of our memory.
#[test]
fn rows_beyond_the_limits_are_counted() {
    let limits = Limits {
        clients_max: 2,
        routes_max: 1,
        ..Limits::default()
    };
    let client = "CLIENT_LIST\talice\t1.2.3.4:5\t10.8.0.2\t\t10\t20\tx\t1795186701\tUNDEF\t3\t1\tAES-256-GCM\n";
    let route = "ROUTING_TABLE\t10.8.0.2\talice\t1.2.3.4:5\tx\t1795186701\n";
    let routes = "HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\n";
    let text = format!(
        "TITLE\tx\n{HEADER}{}{routes}{}END\n",
        client.repeat(5),
        route.repeat(3)
    );
    let snapshot = StatusSnapshot::parse(text.as_bytes(), &limits);
    assert_eq!((snapshot.clients().len(), snapshot.routes().len()), (2, 1));
    assert!(snapshot.is_truncated());
    assert_eq!(snapshot.rows_dropped(), 5);

    let limits = Limits {
        status_bytes_max: 200,
        ..Limits::default()
    };
    let snapshot = StatusSnapshot::parse(text.as_bytes(), &limits);
    assert!(snapshot.clients().len() >= 2 && snapshot.is_truncated());
    assert_eq!(
        snapshot.clients().len() as u64 + snapshot.routes().len() as u64 + snapshot.rows_dropped(),
        8
    );
    assert_eq!(snapshot.quarantined().count, 0);
}

/// A whole status file of a daemon without a session, too, in CRLF or LF.
#[test]
fn client_daemon_has_counters_only() {
    let text = "OpenVPN STATISTICS\r\nUpdated,2026-11-20 15:03:03\r\nTUN/TAP read bytes,1\r\nTUN/TAP write bytes,2\r\n\
                TCP/UDP read bytes,2713\r\nTCP/UDP write bytes,2389\r\nAuth read bytes,32\r\npre-compress bytes,5\r\nEND\r\n";
    let snapshot = parse(text);
    let statistics = snapshot
        .client_statistics()
        .expect("a client has statistics");
    assert_eq!(statistics.tun_write_bytes, Some(2));
    assert_eq!(statistics.link_read_bytes, Some(2713));
    assert_eq!(
        statistics.others,
        [("pre-compress bytes".into(), "5".into())]
    );
    assert_eq!(parse(&text.replace('\r', "")), snapshot);
    for format in [StatusFormat::Configured, StatusFormat::V3] {
        let mut written = Vec::new();
        write_status(&snapshot, format, &mut written);
        assert_eq!(String::from_utf8_lossy(&written), text);
    }
}

/// What a daemon writes again from a snapshot is what OpenVPN 2.6 wrote, down to the byte; here in UTC like there.
#[test]
fn snapshot_is_written_as_openvpn_writes_it() {
    let text = "TITLE\tOpenVPN 2.6.14\r\nTIME\t2026-11-20 14:58:26\t1795186706\r\n".to_owned()
        + &HEADER.replace('\n', "\r\n")
        + "CLIENT_LIST\tbob\t127.0.0.1:39931\t10.81.0.4\tfd00:81::1002\t2016\t2074\t2026-11-20 14:58:24\t1795186704\tUNDEF\t2\t2\tAES-256-GCM\r\n\
           HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\r\n\
           ROUTING_TABLE\t10.81.0.4\tbob\t127.0.0.1:39931\t2026-11-20 14:58:24\t1795186704\r\n\
           GLOBAL_STATS\tMax bcast/mcast queue length\t1\r\nGLOBAL_STATS\tdco_enabled\t0\r\nEND\r\n";
    let one = "OpenVPN CLIENT LIST\r\nUpdated,2026-11-20 14:58:26\r\n\
               Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since\r\n\
               bob,127.0.0.1:39931,2016,2074,2026-11-20 14:58:24\r\nROUTING TABLE\r\n\
               Virtual Address,Common Name,Real Address,Last Ref\r\n\
               10.81.0.4,bob,127.0.0.1:39931,2026-11-20 14:58:24\r\nGLOBAL STATS\r\n\
               Max bcast/mcast queue length,1\r\ndco_enabled,0\r\nEND\r\n";
    let snapshot = parse(&text);
    for (format, expected) in [
        (StatusFormat::V3, text.clone()),
        (StatusFormat::V2, text.replace('\t', ",")),
        (StatusFormat::V1, one.to_owned()),
    ] {
        let mut written = Vec::new();
        write_status(&snapshot, format, &mut written);
        assert_eq!(String::from_utf8_lossy(&written), expected);
    }
}

proptest! {
    /// Whatever names, numbers and lengths there are: what is written is read again as the same rows.
    #[test]
    fn written_snapshots_are_read_again(
        clients in prop::collection::vec(
            (field(), field(), field(), field(), any::<u64>(), any::<u64>(), field(), 0..u64::MAX, any::<u32>()),
            0..20,
        ),
        routes in prop::collection::vec((field(), field(), field(), 0..i64::MAX), 0..20),
        since in 0..1i64 << 40,
    ) {
        let mut text = format!("TITLE\tx\n{HEADER}").into_bytes();
        for (name, real, v4, v6, received, sent, user, cid, peer) in &clients {
            let numbers = [received, sent].map(u64::to_string);
            let row: [&[u8]; 13] = [
                b"CLIENT_LIST", name, real, v4, v6, numbers[0].as_bytes(), numbers[1].as_bytes(), b"whenever",
                &since.to_string().into_bytes(), user, &cid.to_string().into_bytes(), &peer.to_string().into_bytes(),
                name,
            ];
            text.extend(row.join(&b'\t'));
            text.push(b'\n');
        }
        text.extend(b"HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\tLast Ref\tLast Ref (time_t)\n");
        for (address, name, real, time) in &routes {
            let row: [&[u8]; 6] = [b"ROUTING_TABLE", address, name, real, b"whenever", &time.to_string().into_bytes()];
            text.extend(row.join(&b'\t'));
            text.push(b'\n');
        }

        let snapshot = StatusSnapshot::parse(&text, &Limits::default());
        let expected: Vec<_> = clients
            .iter()
            .map(|(name, real, v4, v6, received, sent, user, cid, peer)| ClientRow {
                common_name: name,
                real_address: real,
                virtual_address: v4,
                virtual_ipv6_address: v6,
                bytes_received: *received,
                bytes_sent: *sent,
                connected_since: Some(since),
                username: user,
                cid: Some(Cid(*cid)),
                peer_id: Some(*peer).filter(|peer| *peer != u32::MAX),
                cipher: Some(name),
            })
            .collect();
        prop_assert_eq!(snapshot.clients().collect::<Vec<_>>(), expected);
        let expected: Vec<_> = routes
            .iter()
            .map(|(address, name, real, time)| RouteRow {
                virtual_address: address,
                common_name: name,
                real_address: real,
                last_ref: Some(*time),
            })
            .collect();
        prop_assert_eq!(snapshot.routes().collect::<Vec<_>>(), expected);

        let mut written = Vec::new();
        write_status(&snapshot, StatusFormat::V3, &mut written);
        prop_assert_eq!(StatusSnapshot::parse(&written, &Limits::default()), snapshot);
    }
}

/// What a field of format 3 can be: any bytes but the control bytes that OpenVPN replaces.
fn field() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        any::<u8>().prop_filter("no control bytes", |byte| !byte.is_ascii_control()),
        0..40,
    )
}
