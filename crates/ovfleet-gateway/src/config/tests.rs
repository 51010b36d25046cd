//! Tables of configurations and what becomes of them.

mod mux;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use openvpn_session::{Address, DisconnectPolicy, HoldPolicy, TlsConfig};
use tempfile::TempDir;

use super::*;
use crate::unprivileged::{set_mode, unprivileged};
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);

struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(&self.path("main.toml"))
    }

    /// The errors with the directory left out, one per line.
    fn errors(&self, found: Result<Config, ConfigErrors>) -> String {
        let directory = format!("{}/", self.0.path().display());
        found
            .map(|config| format!("{config:?}"))
            .unwrap_err()
            .to_string()
            .replace(&directory, "")
    }
}

fn load(text: &str) -> Result<Config, ConfigErrors> {
    Files::new(&[("main.toml", text)]).load()
}

fn errors(text: &str) -> String {
    let files = Files::new(&[("main.toml", text)]);
    files.errors(files.load())
}

/// A server behind TLS is known by what is written of it, wherever that stands.
#[test]
fn reads_tls() {
    let files = Files::new(&[(
        "main.toml",
        r#"
[defaults]
tls = { ca = "ca.crt", cert = "/etc/gw.crt", key = "{name}.key", server_name = "{host}.vpn" }
[[instance]]
name = "a"
address = "tls:eu1:7505"
[[instance]]
name = "b"
address = "tls:eu2:7505"
tls = { pin = "sha256:00:11223344556677889900112233445566778899001122334455667788990011" }
[[instance]]
name = "c"
address = "tcp:eu3:7505"
"#,
    )]);
    let config = files.load().unwrap();
    let tls: Vec<_> = config
        .instances
        .iter()
        .map(|instance| &instance.spec.session.tls)
        .collect();
    let by_authority = TlsConfig {
        ca: Some(files.path("ca.crt")),
        pin: None,
        cert: Some("/etc/gw.crt".into()),
        key: Some(files.path("a.key")),
        server_name: Some("eu1.vpn".to_owned()),
    };
    assert_eq!(tls[0], &by_authority);
    assert_eq!(tls[1].ca, None);
    assert_eq!(
        tls[1].pin.map(|pin| (pin[0], pin[1], pin[31])),
        Some((0x00, 0x11, 0x11))
    );
    assert_eq!(tls[2], &TlsConfig::default());
    let problems = files.errors(Config::check(&files.path("main.toml")));
    assert!(
        problems.contains("instance a: cannot read ca.crt"),
        "{problems}"
    );
}

/// A daemon that dials in is let in by the socket and the user that are written, and its session is never dropped,
/// whatever is written.
#[test]
fn reads_where_daemons_dial_in() {
    let config = load(
        r#"
[defaults]
disconnect = "harmless"
dial_in = { mode = "0600", group = "7" }
[[instance]]
name = "{stem}"
address = "listen-unix:/run/ovfleet/eu1.sock"
dial_in = { owner = "root", peer_user = "{label.uid}" }
labels = { uid = "12" }
[[instance]]
name = "{host}-{port}"
address = "listen-tcp:[::1]:7505"
"#,
    )
    .unwrap();
    let [tcp, unix] = &config.instances[..] else {
        panic!("{:?}", config.instances)
    };
    let wanted = openvpn_session::DialInConfig {
        mode: 0o600,
        owner: Some(0),
        group: Some(7),
        peer_uid: Some(12),
    };
    assert_eq!(unix.spec.name.as_str(), "eu1");
    assert_eq!(unix.spec.session.dial_in, wanted);
    assert_eq!(tcp.spec.name.as_str(), "::1-7505");
    for instance in [unix, tcp] {
        let session = &instance.spec.session;
        assert_eq!(session.disconnect, DisconnectPolicy::Destructive);
    }
}

/// Every key has the effect it promises; a default that moves is noticed here.
#[test]
fn reads_every_key() {
    let config = load(
        r#"
name = "vpn1"
state_dir = "/var/lib/ovfleet"
[listen]
grpc = ["unix:/run/ovfleet.sock",
        { address = "unix:/run/o2.sock", mode = "0600", owner = "vpn", group = "12" },
        { address = "127.0.0.1:7600", plaintext_control = true },
        { address = "0.0.0.0:7643", tls = { cert = "gw.crt", key = "/etc/gw.key", client_ca = "ca.crt" } }]
http = "127.0.0.1:7601"
[journal]
disk = "2GiB"
disk_age = "30d"
memory = "32MiB"
events = 1000
age = "1h"
[limits]
connections = 10
streams_per_connection = 11
streams = 12
calls = 13
handshakes = 14
handshake_timeout = "1s"
request_size = "1KiB"
response_size = "1MiB"
header_size = "4KiB"
[defaults]
status_interval = "5m"
bytecount = "off"
password_file = "/pw/{name}"
labels = { region = "eu", site = "{host}" }
[[instance]]
name = "eu1"
address = "tcp:vpn.example:7505"
labels = { region = "us", port = "{port}" }
hold = "keep"
disconnect = "destructive"
log = false
clients_max = 7
unresponsive_reconnect = "1m"
[[instance]]
name = "{stem}"
address = "unix:/run/openvpn/eu2.sock"
bytecount = "5s"
password_file = "pw/{label.region}"
[[discover]]
glob = "/run/openvpn-server/*.sock"
name = "{host}-{stem}"
refresh = "5s"
forget_after = "2h"
hold = "keep"
[[discover]]
file = "targets/*.json"
"#,
    )
    .unwrap();
    assert_eq!(config.name.as_str(), "vpn1");
    assert_eq!(
        config.state_dir.as_deref(),
        Some(Path::new("/var/lib/ovfleet"))
    );
    let [
        GrpcListener::Unix(plain),
        GrpcListener::Unix(owned),
        GrpcListener::Plaintext { control: true, .. },
        GrpcListener::Tls {
            files,
            control: false,
            ..
        },
    ] = &config.listen.grpc[..]
    else {
        panic!("{:?}", config.listen)
    };
    assert_eq!((plain.mode, &plain.owner), (0o660, &None));
    assert_eq!(
        (owned.mode, owned.owner.as_deref(), owned.group.as_deref()),
        (0o600, Some("vpn"), Some("12"))
    );
    assert!(
        files.cert.is_absolute() && files.cert.ends_with("gw.crt"),
        "{files:?}"
    );
    assert_eq!(files.key, Path::new("/etc/gw.key"));
    assert_eq!(
        config.listen.http,
        [HttpListener::Tcp("127.0.0.1:7601".parse().unwrap())]
    );
    assert_eq!(
        config.journal,
        JournalLimits {
            memory: 32 << 20,
            events: 1000,
            age: 60 * MINUTE,
            disk: 2 << 30,
            disk_age: 30 * 24 * 60 * MINUTE,
        }
    );
    let limits = Limits {
        connections: 10,
        streams_per_connection: 11,
        streams: 12,
        calls: 13,
        handshakes: 14,
        handshake_timeout: MINUTE / 60,
        request_size: 1 << 10,
        response_size: 1 << 20,
        header_size: 4 << 10,
    };
    assert_eq!(config.limits, limits);

    let [eu1, eu2] = &config.instances[..] else {
        panic!("{:?}", config.instances)
    };
    assert_eq!(eu1.spec.name.as_str(), "eu1");
    assert_eq!(
        eu1.spec.session.address,
        Address::Tcp {
            host: "vpn.example".to_owned(),
            port: 7505
        }
    );
    let labels: Vec<_> = eu1
        .spec
        .labels
        .iter()
        .map(|(label, text)| format!("{label}={text}"))
        .collect();
    assert_eq!(labels, ["port=7505", "region=us", "site=vpn.example"]);
    assert_eq!(
        eu1.spec.session.password_file.as_deref(),
        Some(Path::new("/pw/eu1"))
    );
    assert_eq!(
        (eu1.spec.session.hold, eu1.spec.session.disconnect),
        (HoldPolicy::Keep, DisconnectPolicy::Destructive)
    );
    assert_eq!(
        (eu1.spec.session.log, eu1.spec.session.clients_max),
        (false, 7)
    );
    assert_eq!(
        (eu1.spec.session.bytecount, eu1.spec.session.status_interval),
        (None, 5 * MINUTE)
    );
    assert_eq!(eu1.spec.session.timings.unresponsive_reconnect, MINUTE);
    assert_eq!((eu2.spec.name.as_str(), eu2.place.line), ("eu2", 40));
    assert_eq!(eu2.spec.session.bytecount, Some(MINUTE / 12));
    assert!(
        eu2.spec
            .session
            .password_file
            .as_ref()
            .unwrap()
            .ends_with("pw/eu")
    );

    let [sockets, targets] = &config.discover[..] else {
        panic!("{:?}", config.discover)
    };
    assert_eq!(
        sockets.source,
        DiscoverSource::Glob("/run/openvpn-server/*.sock".into())
    );
    assert_eq!(
        (sockets.refresh, sockets.forget_after),
        (MINUTE / 12, 120 * MINUTE)
    );
    assert_eq!(targets.forget_after, 24 * 60 * MINUTE);
    let found = sockets
        .instance(
            "unix:/run/openvpn-server/a.sock".parse().unwrap(),
            BTreeMap::new(),
            sockets.place.clone(),
        )
        .unwrap();
    assert_eq!(
        found.spec.name.as_str(),
        format!("{}-a", address::host_name())
    );
    assert_eq!(found.spec.session.hold, HoldPolicy::Keep);
    assert_eq!(
        found.spec.session.status_interval,
        5 * MINUTE,
        "defaults are for discovery too"
    );
    let labels = BTreeMap::from([
        ("__rack".to_owned(), "7".to_owned()),
        ("tier".to_owned(), "a".to_owned()),
    ]);
    let found = targets
        .instance(
            "tcp:10.0.0.1:7505".parse().unwrap(),
            labels,
            targets.place.clone(),
        )
        .unwrap();
    assert_eq!(found.spec.name.as_str(), "10.0.0.1-7505");
    assert!(
        found.spec.labels.get("tier").is_some() && found.spec.labels.get("__rack").is_none(),
        "{:?}",
        found.spec.labels
    );
}

/// An empty file is a gateway with its default socket, which root has in /run.
#[test]
fn an_empty_file_gives_the_defaults() {
    let config = load("[listen]\nhttp = \"127.0.0.1:0\"").unwrap();
    assert_eq!(config.name.as_str(), address::host_name());
    assert_eq!(config.limits, Limits::default());
    let [GrpcListener::Unix(socket)] = &config.listen.grpc[..] else {
        panic!("{:?}", config.listen)
    };
    assert_eq!(socket.mode, 0o660);
}

/// A socket that was handed down takes the keys of a TCP one; whether they fit is seen when it is there.
#[test]
fn sockets_may_be_handed_down() {
    let text = "[listen]\nhttp = \"fd:web\"\ngrpc = [\"fd:near\", \
                { address = \"fd:far\", tls = { cert = \"a\", key = \"b\" }, plaintext_control = true }]";
    let config = load(text).unwrap();
    assert_eq!(
        config.listen.http,
        [HttpListener::Inherited("web".to_owned())]
    );
    let [
        GrpcListener::Inherited {
            name,
            tls: None,
            control: false,
        },
        GrpcListener::Inherited {
            tls: Some(_),
            control: true,
            ..
        },
    ] = &config.listen.grpc[..]
    else {
        panic!("{:?}", config.listen)
    };
    assert_eq!(name, "near");
    for (listener, message) in [
        ("\"fd:\"", "needs a name"),
        ("\"fd:a:b\"", "needs a name"),
        ("{ address = \"fd:a\", mode = \"0600\" }", "mode"),
        (
            "{ address = \"fd:a\", plaintext_control = true, tls = { cert = \"a\", key = \"b\", client_ca = \"c\" } }",
            "no meaning here",
        ),
    ] {
        let errors = load(&format!("[listen]\ngrpc = {listener}"))
            .unwrap_err()
            .to_string();
        assert!(errors.contains(message), "{listener}: {errors}");
    }
}

/// Whoever edits the file gets every mistake at once, with file, line and key.
#[test]
fn all_mistakes_are_reported_at_once_in_order() {
    let text = r#"nmae = "a"
state_dir = 5
[listen]
grpc = ["0.0.0.0:7600", { address = "127.0.0.1:1", tls = { cert = "x" } }]
[limits]
calls = 0
[[instance]]
name = "a/b"
address = "unix:/a"
[[instance]]
name = "b"
address = "/run/b"
hold = "maybe"
password_file = "{nmae}"
[[instance]]
name = "c"
mxu = []
"#;
    assert_eq!(
        errors(text),
        r#"main.toml:1: nmae: unknown key; known here: defaults, discover, include, instance, inventory, journal, limits, listen, name, state_dir, watch_config
main.toml:2: state_dir: must be a string, not a whole number
main.toml:4: listen.grpc: 0.0.0.0:7600 would be plaintext beyond loopback: add tls = { cert, key, client_ca }
main.toml:4: listen.grpc.tls.key: this key is required
main.toml:6: limits.calls: must be between 1 and 1000000
main.toml:8: instance.name: "a/b" is no name: '/' cannot be part of a name
main.toml:12: instance.address: "/run/b" does not begin with unix:, tcp:, tls:, listen-unix: or listen-tcp:
main.toml:13: instance.hold: `maybe` is neither "release" nor "keep"
main.toml:14: instance.password_file: unknown placeholder `{nmae}`: known are {name}, {host}, {stem}, {port} and {label.x}
main.toml:15: instance.address: this key is required
main.toml:17: instance.mxu: unknown key; known here: address, bytecount, clients_max, dial_in, disconnect, hold, labels, log, mux, name, password_file, status_interval, tls, unresponsive_reconnect"#
    );
}

/// Single mistakes, each with the words that help.
#[test]
fn mistakes_are_explained() {
    let table = [
        (
            "name = \"a b\"",
            "main.toml:1: name: \"a b\" is no name: ' ' cannot be part of a name",
        ),
        (
            "[instance]\nname = \"a\"",
            "main.toml:1: instance: must be an array of tables: write [[instance]]",
        ),
        (
            "[journal]\nmemory = \"64MB\"",
            "main.toml:2: journal.memory: `64MB` is not a size: write a whole number and B, KiB, MiB or GiB, such as \"64MiB\"",
        ),
        (
            "[defaults]\nstatus_interval = \"60\"",
            "main.toml:2: defaults.status_interval: `60` is not a duration: write a whole number and ms, s, m, h or d, such as \"5s\"",
        ),
        (
            "[defaults]\nstatus_interval = \"10ms\"",
            "main.toml:2: defaults.status_interval: must be between 1s and 1d",
        ),
        (
            "[defaults]\nbytecount = \"off \"",
            "main.toml:2: defaults.bytecount: `off ` is not a duration: write a whole number and ms, s, m, h or d, such as \"5s\"",
        ),
        (
            "[defaults]\nname = \"x\"",
            "main.toml:2: defaults.name: unknown key; known here: bytecount, clients_max, dial_in, disconnect, hold, labels, log, mux, password_file, status_interval, tls, unresponsive_reconnect",
        ),
        (
            "[listen]\ngrpc = []",
            "main.toml:2: listen.grpc: needs at least one address",
        ),
        (
            "[listen]\ngrpc = \"unix:\"",
            "main.toml:2: listen.grpc: `unix:` needs a path",
        ),
        (
            "[listen]\ngrpc = \"vpn.example:1\"",
            "main.toml:2: listen.grpc: `vpn.example:1` is no address to listen on: write \"unix:/path\" or an IP address with port, such as \"127.0.0.1:7600\"",
        ),
        (
            "[listen]\ngrpc = { address = \"unix:/x\", mode = \"rw\" }",
            "main.toml:2: listen.grpc.mode: `rw` is not a mode: write it in octal, such as \"0660\"",
        ),
        (
            "[listen]\ngrpc = { address = \"unix:/x\", tls = { cert = \"c\", key = \"k\" } }",
            "main.toml:2: listen.grpc.tls: unknown key; known here: address, group, mode, owner",
        ),
        (
            "[listen]\ngrpc = { address = \"0.0.0.0:1\", tls = { cert = \"c\", key = \"k\" } }",
            "main.toml:2: listen.grpc.tls: anybody who reaches 0.0.0.0:1 could read the whole fleet: set client_ca, or listen on a loopback address",
        ),
        (
            "[listen]\ngrpc = { address = \"[::1]:1\", plaintext_control = true, tls = { cert = \"c\", key = \"k\", client_ca = \"a\" } }",
            "main.toml:2: listen.grpc.plaintext_control: has no meaning here: callers of this listener show a certificate",
        ),
        (
            "[listen]\nhttp = \"unix:/x\"",
            "main.toml:2: listen.http: must be an IP address with port, such as \"127.0.0.1:7601\"",
        ),
        (
            "[[discover]]\nglob = \"/a\"\nfile = \"/b\"",
            "main.toml:1: discover: needs one of glob and file",
        ),
        (
            "[[discover]]\nglob = \"/run/[.sock\"",
            "main.toml:2: discover.glob: is no pattern: invalid range pattern at character 6",
        ),
        (
            "[[discover]]\nglob = \"/*\"\nname = \"{port}\"",
            "main.toml:3: discover.name: `{port}` has no value here",
        ),
        (
            "[[discover]]\nglob = \"/*\"\nlabels = { a = \"{label.b}\", b = \"{label.a}\" }",
            "main.toml:3: discover.labels.a: `{label.b}` has no value here\n\
             main.toml:3: discover.labels.b: `{label.a}` has no value here",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"tls:h:1\"",
            "main.toml:1: instance.tls: nothing tells which server is the right one: add tls = { ca = \"...\" }, or a pin",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"tls:h:1\"\ntls = { server_name = \"x\" }",
            "main.toml:4: instance.tls: nothing tells which server is the right one: set ca or pin",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"tls:h:1\"\ntls = { ca = \"ca\", key = \"k\" }",
            "main.toml:4: instance.tls: set both cert and key, or neither",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"tls:h:1\"\ntls = { pin = \"sha256:0\" }",
            "main.toml:4: instance.tls.pin: \"sha256:0\" is no fingerprint: write sha256: and 64 hexadecimal digits, which may have colons between them",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"tcp:h:1\"\ntls = { ca = \"ca\" }",
            "main.toml:4: instance.tls: has no meaning for tcp:h:1: TLS is for tls:host:port",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"listen-unix:/a\"\ndial_in = { peer_user = \"no such\" }",
            "main.toml:4: instance.dial_in.peer_user: there is no account \"no such\" on this machine",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"listen-tcp:127.0.0.1:1\"\ndial_in = { peer_user = \"0\" }",
            "main.toml:4: instance.dial_in.peer_user: TCP does not tell who dials in: use listen-unix:",
        ),
        (
            "[[instance]]\nname = \"{host}\"\naddress = \"unix:/{name}\"",
            "main.toml:2: instance.name: `{host}` has no value here\n\
             main.toml:3: instance.address: `{name}` has no value here",
        ),
        (
            "[[instance]]\nname = \"a\"\naddress = \"unix:/a\"\nlabels = { \"a b\" = \"c\" }",
            "main.toml:1: labels: \"a b\" is no label: use letters, digits, `-`, `_`, `.` and `/`",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(errors(text), expected, "{text}");
    }
}

/// What TOML itself refuses has a line too, and does not hide the other mistakes.
#[test]
fn a_syntax_error_has_its_line() {
    let found = errors("name = \"a\"\n[listen\n");
    assert!(found.starts_with("main.toml:2: "), "{found}");
}

/// Two sessions to one daemon would fight for its slot; the message must lead to both.
#[test]
fn a_clash_names_both_places() {
    let files = Files::new(&[
        (
            "main.toml",
            "include = [\"conf.d/*.toml\"]\nname = \"g\"\n[[instance]]\nname = \"a\"\naddress = \"unix:/a\"\n",
        ),
        (
            "conf.d/1.toml",
            "[[instance]]\nname = \"a\"\naddress = \"unix:/b\"\n",
        ),
        (
            "conf.d/2.toml",
            "name = \"h\"\n[[instance]]\nname = \"z\"\naddress = \"unix:/a\"\n",
        ),
        ("conf.d/3.txt", "not read"),
    ]);
    assert_eq!(
        files.errors(files.load()),
        "conf.d/2.toml:1: name: is set already, at main.toml:2\n\
         conf.d/2.toml:2: instance.address: unix:/a is the address of instance a too, at main.toml:3\n\
         main.toml:3: instance.name: two instances are called a: the other is at conf.d/1.toml:1"
    );
}

/// `include` brings in instances, and says where it cannot.
#[test]
fn included_files_add_instances() {
    let files = Files::new(&[
        (
            "main.toml",
            "include = [\"conf.d/*.toml\"]\n[defaults]\nlog = false\n",
        ),
        (
            "conf.d/b.toml",
            "[[instance]]\nname = \"b\"\naddress = \"unix:/b\"\npassword_file = \"pw\"",
        ),
        (
            "conf.d/a.toml",
            "[[instance]]\nname = \"a\"\naddress = \"unix:/a\"",
        ),
    ]);
    let config = files.load().unwrap();
    let names: Vec<_> = config
        .instances
        .iter()
        .map(|instance| instance.spec.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert!(
        config
            .instances
            .iter()
            .all(|instance| !instance.spec.session.log)
    );
    let password_file = config.instances[1].spec.session.password_file.as_deref();
    assert_eq!(
        password_file,
        Some(files.path("conf.d/pw").as_path()),
        "relative to its own file"
    );

    let files = Files::new(&[
        ("main.toml", "include = [\"more.toml\", \"none.toml\"]"),
        ("more.toml", "include = [\"x\"]"),
    ]);
    assert_eq!(
        files.errors(files.load()),
        "more.toml:1: include: an included file cannot include others\n\
         none.toml: cannot read the file: No such file or directory (os error 2)"
    );
}

/// What is wrong may be mended in a file that only what was refused includes: that has to be noticed.
#[test]
fn mistakes_come_with_what_was_read() {
    let files = Files::new(&[("main.toml", "include = \"new.toml\"\nnmae = \"g\"\n")]);
    let (errors, read) = Config::load_files(&files.path("main.toml")).unwrap_err();
    assert_eq!(errors.as_slice().len(), 2, "{errors}");
    assert_eq!(read.include, [files.path("new.toml")]);
    assert_eq!(read.digest, read.digest_now());
    fs::write(files.path("new.toml"), "").unwrap();
    assert_ne!(read.digest, read.digest_now());
}

/// Instances of a directory that cannot be read must not be missing without a word; one that is not there has none.
#[test]
fn a_directory_of_include_that_cannot_be_read_is_a_mistake() {
    let files = Files::new(&[(
        "main.toml",
        "include = [\"conf.d/*.toml\", \"none.d/*.toml\"]\nlisten.grpc = \"unix:/s\"\n",
    )]);
    let directory = files.path("conf.d");
    fs::create_dir(&directory).unwrap();
    set_mode(files.0.path(), 0o755);
    set_mode(&files.path("main.toml"), 0o644);
    let origin = unprivileged(|| files.load()).unwrap().files.unwrap();
    assert_eq!(origin.digest, origin.digest_now());
    set_mode(&directory, 0o000);
    let (found, digest) = unprivileged(|| (files.load(), origin.digest_now()));
    set_mode(&directory, 0o755);
    assert_eq!(
        files.errors(found),
        "conf.d/*.toml: cannot read conf.d: Permission denied (os error 13): make it readable for the user that the \
         gateway runs as"
    );
    assert_ne!(origin.digest, digest, "it is something new");
}

/// A password file that others can read stops its instance, not the gateway;
/// `check-config` calls it a mistake.
#[test]
fn a_bad_password_file_is_a_problem_of_its_instance() {
    let files = Files::new(&[
        (
            "main.toml",
            "[defaults]\npassword_file = \"{name}.pw\"\n\
             [[instance]]\nname = \"good\"\naddress = \"unix:/a\"\n\
             [[instance]]\nname = \"open\"\naddress = \"unix:/b\"\n\
             [[instance]]\nname = \"none\"\naddress = \"unix:/c\"\npassword_file = \"none.pw\"",
        ),
        ("good.pw", "secret"),
        ("open.pw", "secret"),
    ]);
    fs::set_permissions(files.path("open.pw"), fs::Permissions::from_mode(0o644)).unwrap();
    let config = files.load().unwrap();
    assert_eq!(config.instances.len(), 3);
    assert_eq!(config.problems().len(), 2);
    assert_eq!(
        files.errors(Config::check(&files.path("main.toml"))),
        "main.toml:2: password_file: instance open: others may access open.pw (mode 0644): run `chmod 600 open.pw`\n\
         main.toml:12: password_file: instance none: cannot read none.pw: No such file or directory (os error 2)"
    );
}
