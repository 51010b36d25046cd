//! Virtual management sockets, as they are written.

use openvpn_mux::{Away, Policy};

use super::super::{CertificateName, MuxAddress, Rights, SocketConfig, TlsFiles};
use super::*;

/// Every key has the effect it promises, with placeholders in every string.
#[test]
fn reads_virtual_sockets() {
    let files = Files::new(&[(
        "main.toml",
        r#"
[defaults]
mux = [
    "unix:/run/{name}.sock",
    { address = "unix:{name}-op.sock", policy = "operator", mode = "0600", owner = "o-{label.team}", group = "{name}", away = "close" },
    { address = "tcp:localhost:{label.port}", policy = ["kill", "verb"], password_file = "{name}.pw" },
    { address = "tls:0.0.0.0:7508", tls = { cert = "{name}.crt", key = "/k/{name}.key", client_ca = "ca.crt" }, policy = "read-only", password_file = "pw", certificates = [
        { common_name = "{label.team}", policy = "operator" },
        { dns_name = "{name}.tools", policy = ["kill"] },
        { uri = "spiffe://vpn/{label.team}", policy = "full" },
    ] },
    { address = "tls:[::]:7509", tls = { cert = "c", key = "k", client_ca = "ca" }, certificates = { common_name = "ops", policy = "full" } },
    { address = "tls:localhost:7510", tls = { cert = "c", key = "k", client_ca = "ca" } },
]
[[instance]]
name = "eu1"
address = "unix:/run/openvpn/eu1.sock"
labels = { team = "noc", port = "7506" }
"#,
    )]);
    let config = files.load().unwrap();
    let [plain, operator, tcp, tls, listed, open] = &config.instances[0].mux[..] else {
        panic!("{:?}", config.instances)
    };
    let everybody = |policy| Rights {
        certificates: Vec::new(),
        others: Some(policy),
    };
    assert_eq!(plain.address.shown(), "unix:/run/eu1.sock");
    assert_eq!(plain.rights, everybody(Policy::ReadOnly));
    assert_eq!((&plain.password_file, plain.away), (&None, Away::Wait));
    let socket = SocketConfig {
        path: files.path("eu1-op.sock"),
        mode: 0o600,
        owner: Some("o-noc".to_owned()),
        group: Some("eu1".to_owned()),
    };
    assert_eq!(operator.address, MuxAddress::Unix(socket));
    assert_eq!(operator.rights, everybody(Policy::Operator));
    assert_eq!(operator.away, Away::Close);
    assert_eq!(tcp.address.shown(), "tcp:127.0.0.1:7506");
    let verbs = |names: &[&'static str]| Policy::of_verbs(names.iter().copied()).unwrap();
    assert_eq!(tcp.rights, everybody(verbs(&["kill", "verb"])));
    assert_eq!(tcp.password_file, Some(files.path("eu1.pw")));
    let pem = TlsFiles {
        cert: files.path("eu1.crt"),
        key: "/k/eu1.key".into(),
        client_ca: Some(files.path("ca.crt")),
    };
    let address = "0.0.0.0:7508".parse().unwrap();
    assert_eq!(tls.address, MuxAddress::Tls(address, pem));
    assert_eq!(tls.password_file, Some(files.path("pw")));
    let rights = Rights {
        certificates: vec![
            (CertificateName::CommonName("noc".into()), Policy::Operator),
            (CertificateName::Dns("eu1.tools".into()), verbs(&["kill"])),
            (
                CertificateName::Uri("spiffe://vpn/noc".into()),
                Policy::Full,
            ),
        ],
        others: Some(Policy::ReadOnly),
    };
    assert_eq!(tls.rights, rights);
    // Who lists certificates and says nothing of others lets in no others.
    assert_eq!(listed.address.shown(), "tls:[::]:7509");
    assert_eq!(listed.rights.certificates.len(), 1);
    assert_eq!(listed.rights.others, None);
    assert_eq!(open.rights, everybody(Policy::ReadOnly));
    // Nothing of it is there: each is told.
    let problems = files.errors(Config::check(&files.path("main.toml")));
    for words in [
        "mux.tls: instance eu1: cannot read eu1.crt: No such file",
        "mux.password_file",
    ] {
        assert!(problems.contains(words), "{problems}");
    }
}

/// A socket that is not as it was meant may hand a stranger the daemon: each mistake is told with the words that help.
#[test]
fn mistakes_in_virtual_sockets_are_explained() {
    const TLS: &str = "tls = { cert = \"c\", key = \"k\", client_ca = \"a\" }";
    let tls = |rest: &str| format!("{{ address = \"tls:0.0.0.0:1\", {TLS}{rest} }}");
    let ops = "{ common_name = \"ops\", policy = \"full\" }";
    let table = [
        (
            "\"tcp:0.0.0.0:1\"".to_owned(),
            "instance.mux: 0.0.0.0:1 would be plaintext beyond loopback: use a loopback address, a Unix socket, or tls:",
        ),
        (
            "\"tls:0.0.0.0:1\"".to_owned(),
            "instance.mux: needs tls = { cert, key, client_ca }",
        ),
        (
            format!("{{ address = \"tls:tcp:0.0.0.0:1\", {TLS} }}"),
            "instance.mux.address: `tls:tcp:0.0.0.0:1` is no address to listen on: write an IP address with port, such as \"tls:0.0.0.0:7508\"",
        ),
        (
            "{ address = \"tls:0.0.0.0:1\", tls = { cert = \"c\", key = \"k\" } }".to_owned(),
            "instance.mux.tls.client_ca: this key is required",
        ),
        (
            "{ address = \"tls:0.0.0.0:1\", tls = { cert = \"\", key = \"k\", client_ca = \"a\" } }".to_owned(),
            "instance.mux.tls.cert: must not be empty",
        ),
        (
            "{ address = \"tls:0.0.0.0:1\", tls = { cert = \"c\", key = \"k\", client_ca = \"{port}\" } }".to_owned(),
            "instance.mux.tls.client_ca: `{port}` has no value here",
        ),
        (
            "{ address = \"tls:0.0.0.0:1\", tls = { cert = \"c\", key = \"k\", client_ca = \"a\", pin = \"x\" } }".to_owned(),
            "instance.mux.tls.pin: unknown key; known here: cert, client_ca, key",
        ),
        (
            format!("{{ address = \"tcp:127.0.0.1:1\", {TLS} }}"),
            "instance.mux.tls: has no meaning for tcp:127.0.0.1:1: TLS is for tls:IP:PORT",
        ),
        (
            format!("{{ address = \"unix:/x\", certificates = [{ops}] }}"),
            "instance.mux.certificates: has no meaning for unix:/x: TLS is for tls:IP:PORT",
        ),
        (
            tls(", mode = \"0600\""),
            "instance.mux.address: mode, owner and group are for Unix sockets",
        ),
        (
            tls(", certificates = []"),
            "instance.mux.certificates: lists 0 certificates: give 1 to 1000, or leave the key out",
        ),
        (
            tls(&format!(", certificates = [{ops}, {ops}]")),
            "instance.mux.certificates.common_name: is listed twice: the first entry would count",
        ),
        (
            tls(", certificates = [{ common_name = \"ops\" }]"),
            "instance.mux.certificates.policy: this key is required",
        ),
        (
            tls(", certificates = [{ policy = \"full\" }]"),
            "instance.mux.certificates: needs one of common_name, dns_name and uri",
        ),
        (
            tls(", certificates = [{ common_name = \"a\", uri = \"b\", policy = \"full\" }]"),
            "instance.mux.certificates: needs one of common_name, dns_name and uri",
        ),
        (
            tls(", certificates = [{ common_name = \"\", policy = \"full\" }]"),
            "instance.mux.certificates.common_name: must not be empty",
        ),
        (
            tls(", certificates = [{ cn = \"a\", uri = \"b\", policy = \"full\" }]"),
            "instance.mux.certificates.cn: unknown key; known here: common_name, dns_name, policy, uri",
        ),
        (
            tls(", certificates = [{ common_name = \"a\", policy = \"root\" }]"),
            "instance.mux.certificates.policy: `root` is none of \"read-only\", \"operator\", \"full\", or a list of commands",
        ),
        (
            "{ address = \"unix:/x\", policy = [\"kil\"] }".to_owned(),
            "instance.mux.policy: `kil` is no command of OpenVPN",
        ),
    ];
    for (socket, expected) in table {
        let text =
            format!("[[instance]]\nname = \"a\"\naddress = \"unix:/a\"\nmux = [\n{socket}]\n");
        assert_eq!(
            errors(&text),
            format!("main.toml:5: {expected}"),
            "{socket}"
        );
    }
}

/// A port is taken, whether with TLS or without.
#[test]
fn a_port_is_taken_once() {
    let found = errors(
        r#"
[[instance]]
name = "a"
address = "unix:/a"
mux = ["tcp:127.0.0.1:1", { address = "tls:127.0.0.1:1", tls = { cert = "c", key = "k", client_ca = "a" } }]
"#,
    );
    assert_eq!(
        found,
        "main.toml:2: instance.mux: tls:127.0.0.1:1 is an address of instance a too, at main.toml:2"
    );
}
