//! Definitions of instances, in: a message becomes an `[[instance]]` table, which the configuration's own reader reads.
//! There are no other rules for it.

use ovfleet_proto::v1::{
    DialIn, DisconnectPolicy, HoldPolicy, InstanceDefinition, ManagementTls, MuxCertificate,
    MuxSocket, MuxTls, mux_certificate,
};
use toml::{Table, Value};

use crate::{
    config::{ConfigError, Defaults, InstanceConfig, Place},
    inventory::{InventoryError, Violation},
};

/// The field of a request that holds the definition.
const FIELD: &str = "instance";

/// The instance that a definition amounts to, with these defaults.
///
/// # Errors
/// Every mistake in it.
pub(crate) fn build(
    definition: &InstanceDefinition,
    defaults: &Defaults,
) -> Result<InstanceConfig, Vec<Violation>> {
    let mut violations = Vec::new();
    let table = table(definition, &mut violations);
    let mut root = Table::new();
    root.insert(FIELD.to_owned(), Value::Array(vec![table.into()]));
    // Tables of texts and numbers always have a text.
    let text = toml::to_string(&root).unwrap_or_default();
    match defaults.instance(&text) {
        Ok(instance) if violations.is_empty() => Ok(instance),
        Ok(_) => Err(violations),
        Err(errors) => {
            violations.extend(errors.as_slice().iter().map(violation));
            violations.sort();
            Err(violations)
        }
    }
}

/// What will keep an instance from being attached: files that cannot be used. Reads files.
pub(crate) fn problems(instance: &InstanceConfig) -> Vec<Violation> {
    instance.problems().iter().map(violation).collect()
}

/// A mistake under its field. One in `[defaults]` is nobody's field: it says where it is written.
fn violation(error: &ConfigError) -> Violation {
    let ConfigError {
        place,
        key,
        message,
    } = error;
    let key = key.strip_prefix("instance.").unwrap_or(key);
    if place.file.as_os_str() == Place::API {
        Violation {
            field: match key {
                "" | FIELD => FIELD.to_owned(),
                key => format!("{FIELD}.{key}"),
            },
            description: message.clone(),
        }
    } else {
        Violation {
            field: FIELD.to_owned(),
            description: error.to_string(),
        }
    }
}

fn table(definition: &InstanceDefinition, violations: &mut Vec<Violation>) -> Table {
    let InstanceDefinition {
        name,
        address,
        labels,
        password_file,
        hold,
        disconnect,
        log,
        bytecount,
        status_interval,
        clients_max,
        unresponsive_reconnect,
        dial_in,
        tls,
        mux,
    } = definition;
    let mut out = Out {
        table: Table::new(),
        prefix: format!("{FIELD}."),
        violations,
    };
    out.text("name", name);
    out.text("address", address);
    out.text("password_file", password_file);
    if !labels.is_empty() {
        let labels = labels.iter();
        let labels = labels.map(|(label, value)| (label.clone(), value.clone().into()));
        out.set("labels", labels.collect::<Table>());
    }
    out.word("hold", HoldPolicy::try_from(*hold), |hold| match hold {
        HoldPolicy::Unspecified => None,
        HoldPolicy::Release => Some("release"),
        HoldPolicy::Keep => Some("keep"),
    });
    out.word(
        "disconnect",
        DisconnectPolicy::try_from(*disconnect),
        |disconnect| match disconnect {
            DisconnectPolicy::Unspecified => None,
            DisconnectPolicy::Harmless => Some("harmless"),
            DisconnectPolicy::Destructive => Some("destructive"),
        },
    );
    if let Some(log) = log {
        out.set("log", *log);
    }
    let is_off = bytecount.is_some_and(|span| span == prost_types::Duration::default());
    if is_off {
        out.set("bytecount", "off");
    } else {
        out.span("bytecount", bytecount.as_ref());
    }
    out.span("status_interval", status_interval.as_ref());
    if *clients_max > 0 {
        out.set("clients_max", i64::from(*clients_max));
    }
    out.span("unresponsive_reconnect", unresponsive_reconnect.as_ref());
    if let Some(DialIn {
        mode,
        owner,
        group,
        peer_user,
    }) = dial_in
    {
        let mut inner = out.inner("dial_in");
        inner.text("mode", mode);
        inner.text("owner", owner);
        inner.text("group", group);
        inner.text("peer_user", peer_user);
        let table = inner.table;
        out.set("dial_in", table);
    }
    if let Some(ManagementTls {
        ca,
        pin,
        cert,
        key,
        server_name,
    }) = tls
    {
        let mut inner = out.inner("tls");
        inner.text("ca", ca);
        inner.text("pin", pin);
        inner.text("cert", cert);
        inner.text("key", key);
        inner.text("server_name", server_name);
        let table = inner.table;
        out.set("tls", table);
    }
    if !mux.is_empty() {
        let sockets = mux.iter().map(|socket| mux_table(&mut out, socket).into());
        let sockets: Vec<Value> = sockets.collect();
        out.set("mux", sockets);
    }
    out.table
}

fn mux_table(out: &mut Out<'_>, socket: &MuxSocket) -> Table {
    let MuxSocket {
        address,
        policy,
        commands,
        password_file,
        away,
        mode,
        owner,
        group,
        tls,
        certificates,
    } = socket;
    let mut inner = out.inner("mux");
    inner.text("address", address);
    inner.policy(policy, commands);
    if let Some(MuxTls {
        cert,
        key,
        client_ca,
    }) = tls
    {
        let mut files = inner.inner("tls");
        files.text("cert", cert);
        files.text("key", key);
        files.text("client_ca", client_ca);
        let files = files.table;
        inner.set("tls", files);
    }
    if !certificates.is_empty() {
        let certificates = certificates.iter().map(|certificate| {
            let MuxCertificate {
                name,
                policy,
                commands,
            } = certificate;
            let mut entry = inner.inner("certificates");
            match name {
                Some(mux_certificate::Name::CommonName(name)) => {
                    entry.set("common_name", name.as_str())
                }
                Some(mux_certificate::Name::DnsName(name)) => entry.set("dns_name", name.as_str()),
                Some(mux_certificate::Name::Uri(name)) => entry.set("uri", name.as_str()),
                None => {}
            }
            entry.policy(policy, commands);
            entry.table.into()
        });
        let certificates: Vec<Value> = certificates.collect();
        inner.set("certificates", certificates);
    }
    inner.text("password_file", password_file);
    inner.text("away", away);
    inner.text("mode", mode);
    inner.text("owner", owner);
    inner.text("group", group);
    inner.table
}

/// A table under construction. What no table can say is noted under its field.
struct Out<'a> {
    table: Table,
    prefix: String,
    violations: &'a mut Vec<Violation>,
}

impl Out<'_> {
    fn inner(&mut self, key: &str) -> Out<'_> {
        Out {
            table: Table::new(),
            prefix: format!("{}{key}.", self.prefix),
            violations: self.violations,
        }
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.table.insert(key.to_owned(), value.into());
    }

    /// An empty one is not said.
    fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.set(key, text);
        }
    }

    fn word<E, U>(
        &mut self,
        key: &str,
        value: Result<E, U>,
        word: impl FnOnce(E) -> Option<&'static str>,
    ) {
        match value {
            Ok(value) => {
                if let Some(word) = word(value) {
                    self.set(key, word);
                }
            }
            Err(_) => self.refuse(key, "is no value of this enumeration"),
        }
    }

    fn span(&mut self, key: &str, span: Option<&prost_types::Duration>) {
        let Some(span) = span else { return };
        let span = std::time::Duration::try_from(*span).ok();
        match span.filter(|span| span.subsec_nanos() % 1_000_000 == 0) {
            Some(span) => self.set(key, format!("{}ms", span.as_millis())),
            None => self.refuse(key, "must be whole milliseconds, and not negative"),
        }
    }

    /// A level, or a list of commands.
    fn policy(&mut self, policy: &str, commands: &[String]) {
        self.text("policy", policy);
        if commands.is_empty() {
            return;
        }
        if !policy.is_empty() {
            self.refuse("commands", "excludes policy: give one or the other");
        }
        let commands: Vec<Value> = commands.iter().map(|it| it.clone().into()).collect();
        self.set("policy", commands);
    }

    fn refuse(&mut self, key: &str, description: &str) {
        self.violations.push(Violation {
            field: format!("{}{key}", self.prefix),
            description: description.to_owned(),
        });
    }
}

/// `before`, with the fields that `mask` names as in `wanted`; without a mask those that are set there.
///
/// # Errors
/// The mask names what is no field, or the name.
pub(crate) fn merge(
    before: InstanceDefinition,
    wanted: InstanceDefinition,
    mask: &[String],
) -> Result<InstanceDefinition, InventoryError> {
    let mut merged = before;
    if mask.is_empty() {
        for field in FIELDS {
            if field.is_set(&wanted) {
                field.copy(&wanted, &mut merged);
            }
        }
        return Ok(merged);
    }
    let mut violations = Vec::new();
    for path in mask {
        let field = FIELDS.iter().find(|field| field.name == path);
        match (path.as_str(), path.strip_prefix("labels."), field) {
            ("*", ..) => FIELDS
                .iter()
                .for_each(|field| field.copy(&wanted, &mut merged)),
            // The one by which it was found.
            ("name", ..) => {}
            (_, Some(label), _) => match wanted.labels.get(label) {
                Some(value) => drop(merged.labels.insert(label.to_owned(), value.clone())),
                None => drop(merged.labels.remove(label)),
            },
            (.., Some(field)) => field.copy(&wanted, &mut merged),
            _ => violations.push(Violation {
                field: "update_mask".to_owned(),
                description: format!(
                    "{path:?} is no field of a definition: use those of InstanceDefinition, `labels.x`, or `*`"
                ),
            }),
        }
    }
    if violations.is_empty() {
        Ok(merged)
    } else {
        Err(InventoryError::Invalid(violations))
    }
}

/// One field of a definition that can be changed.
struct Field {
    name: &'static str,
    is_set: fn(&InstanceDefinition) -> bool,
    copy: fn(&InstanceDefinition, &mut InstanceDefinition),
}

impl Field {
    fn is_set(&self, definition: &InstanceDefinition) -> bool {
        (self.is_set)(definition)
    }

    fn copy(&self, from: &InstanceDefinition, to: &mut InstanceDefinition) {
        (self.copy)(from, to);
    }
}

macro_rules! fields {
    ($($field:ident)*) => {
        [$(Field {
            name: stringify!($field),
            is_set: |definition| definition.$field != InstanceDefinition::default().$field,
            copy: |from, to| to.$field = from.$field.clone(),
        }),*]
    };
}

const FIELDS: [Field; 13] = fields! {
    address labels password_file hold disconnect log bytecount status_interval clients_max unresponsive_reconnect
    dial_in tls mux
};

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> InstanceDefinition {
        InstanceDefinition {
            name: "eu1".to_owned(),
            address: "unix:/run/eu1.sock".to_owned(),
            labels: [("region".to_owned(), "eu".to_owned())].into(),
            ..InstanceDefinition::default()
        }
    }

    /// Every mistake at once, each under the field of the request that has it, in the words of the configuration.
    #[test]
    fn mistakes_are_told_under_their_fields() {
        let second = prost_types::Duration {
            seconds: 1,
            nanos: 1,
        };
        let wrong = InstanceDefinition {
            name: "eu/1".to_owned(),
            address: "ftp:host".to_owned(),
            labels: [("a b".to_owned(), String::new())].into(),
            password_file: "relative".to_owned(),
            hold: 99,
            status_interval: Some(prost_types::Duration::default()),
            unresponsive_reconnect: Some(second),
            clients_max: u32::MAX,
            mux: vec![MuxSocket {
                address: "tcp:0.0.0.0:7505".to_owned(),
                policy: "everything".to_owned(),
                commands: vec!["status".to_owned()],
                ..MuxSocket::default()
            }],
            ..InstanceDefinition::default()
        };
        let violations = build(&wrong, &Defaults::default()).unwrap_err();
        let mut fields: Vec<_> = violations.iter().map(|it| it.field.as_str()).collect();
        fields.dedup();
        assert_eq!(
            fields,
            [
                "instance.address",
                "instance.clients_max",
                "instance.hold",
                "instance.labels",
                "instance.mux.address",
                "instance.mux.commands",
                "instance.name",
                "instance.password_file",
                "instance.status_interval",
                "instance.unresponsive_reconnect",
            ],
            "{violations:#?}"
        );
        let nothing = build(&InstanceDefinition::default(), &Defaults::default()).unwrap_err();
        let fields: Vec<_> = nothing.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["instance.address", "instance.name"]);
    }

    /// A field that the mask does not name must not be lost, and one that it names must not stay.
    #[test]
    fn a_mask_says_which_fields_count() {
        let wanted = InstanceDefinition {
            name: "eu1".to_owned(),
            clients_max: 5,
            ..InstanceDefinition::default()
        };
        let merge = |mask: &[&str]| {
            let mask: Vec<_> = mask.iter().map(|&path| path.to_owned()).collect();
            merge(definition(), wanted.clone(), &mask)
        };
        let set = merge(&[]).unwrap();
        assert_eq!((set.clients_max, set.labels.len()), (5, 1));
        assert_eq!(merge(&["labels.region"]).unwrap().labels.len(), 0);
        assert_eq!(merge(&["labels.other"]).unwrap(), definition());
        let cleared = merge(&["labels", "name"]).unwrap();
        assert_eq!((cleared.clients_max, cleared.labels.len()), (0, 0));
        assert_eq!(merge(&["*"]).unwrap(), wanted);
        assert!(merge(&["colour"]).is_err());
    }

    /// Whoever may define instances must not name any file of the host: what is in it is sent where the instance is.
    #[test]
    fn files_are_named_under_one_directory() {
        let named = |path: &str| InstanceDefinition {
            password_file: path.to_owned(),
            ..definition()
        };
        let told = |definition: &InstanceDefinition, secrets_dir: Option<&str>| {
            let defaults = Defaults::with_secrets_dir(secrets_dir);
            let violations = build(definition, &defaults).err().unwrap_or_default();
            let told = violations.into_iter();
            told.map(|it| (it.field, it.description)).next()
        };
        let dir = Some("/etc/ovfleet/secrets");
        for path in [
            "/etc/ovfleet/secrets/eu1",
            "/etc/ovfleet/secrets/{label.region}/{name}.pw",
        ] {
            assert_eq!(told(&named(path), dir), None, "{path}");
        }
        for path in [
            "/etc/shadow",
            "/etc/ovfleet/secrets/../ovfleet.key",
            "/etc/ovfleet/secrets-of-others/x",
            "/etc/ovfleet/{label.region}",
        ] {
            let (field, words) = told(&named(path), dir).unwrap();
            assert_eq!(field, "instance.password_file", "{path}");
            assert!(words.contains("secrets_dir"), "{words}");
        }
        let (_, words) = told(&named("/etc/ovfleet/secrets/eu1"), None).unwrap();
        assert!(words.contains("secrets_dir under [inventory]"), "{words}");
        let tls = InstanceDefinition {
            address: "tls:host:7505".to_owned(),
            tls: Some(ManagementTls {
                ca: "/etc/ovfleet/secrets/ca.crt".to_owned(),
                cert: "/etc/ovfleet/secrets/own.crt".to_owned(),
                key: "/etc/ssl/private/host.key".to_owned(),
                ..ManagementTls::default()
            }),
            ..definition()
        };
        assert_eq!(told(&tls, dir).unwrap().0, "instance.tls.key");
        let mux = |password_file: &str, tls: Option<MuxTls>| InstanceDefinition {
            mux: vec![MuxSocket {
                address: match tls {
                    None => "tcp:127.0.0.1:7505".to_owned(),
                    Some(_) => "tls:0.0.0.0:7505".to_owned(),
                },
                password_file: password_file.to_owned(),
                tls,
                ..MuxSocket::default()
            }],
            ..definition()
        };
        let (field, _) = told(&mux("/etc/shadow", None), dir).unwrap();
        assert_eq!(field, "instance.mux.password_file");
        let tls = MuxTls {
            cert: "/etc/ovfleet/secrets/own.crt".to_owned(),
            key: "/etc/ssl/private/host.key".to_owned(),
            client_ca: "/etc/ovfleet/secrets/ca.crt".to_owned(),
        };
        let (field, _) = told(&mux("", Some(tls)), dir).unwrap();
        assert_eq!(field, "instance.mux.tls.key");
    }

    /// A key of the configuration that the API does not have would be lost on whoever moves an instance there.
    #[test]
    fn every_field_reaches_its_key() {
        let everything = InstanceDefinition {
            address: "listen-unix:/run/{name}.sock".to_owned(),
            password_file: "/pw/{name}".to_owned(),
            hold: HoldPolicy::Keep.into(),
            disconnect: DisconnectPolicy::Destructive.into(),
            log: Some(false),
            bytecount: Some(prost_types::Duration::default()),
            status_interval: Some(prost_types::Duration {
                seconds: 5,
                nanos: 0,
            }),
            clients_max: 7,
            unresponsive_reconnect: Some(prost_types::Duration {
                seconds: 31,
                nanos: 0,
            }),
            dial_in: Some(DialIn {
                mode: "0600".to_owned(),
                owner: "0".to_owned(),
                group: "0".to_owned(),
                peer_user: "0".to_owned(),
            }),
            mux: vec![MuxSocket {
                address: "unix:/run/mux/{name}.sock".to_owned(),
                policy: "operator".to_owned(),
                password_file: "/pw/mux".to_owned(),
                away: "close".to_owned(),
                mode: "0600".to_owned(),
                ..MuxSocket::default()
            }],
            ..definition()
        };
        let mut violations = Vec::new();
        let written = toml::to_string(&table(&everything, &mut violations)).unwrap();
        assert!(violations.is_empty());
        let wanted = r#"address = "listen-unix:/run/{name}.sock"
bytecount = "off"
clients_max = 7
disconnect = "destructive"
hold = "keep"
log = false
name = "eu1"
password_file = "/pw/{name}"
status_interval = "5000ms"
unresponsive_reconnect = "31000ms"

[dial_in]
group = "0"
mode = "0600"
owner = "0"
peer_user = "0"

[labels]
region = "eu"

[[mux]]
address = "unix:/run/mux/{name}.sock"
away = "close"
mode = "0600"
password_file = "/pw/mux"
policy = "operator"
"#;
        assert_eq!(written, wanted);
        let defaults = Defaults::with_secrets_dir(Some("/pw"));
        let instance = build(&everything, &defaults).unwrap();
        assert_eq!(instance.spec.session.dial_in.mode, 0o600);
        assert_eq!(instance.spec.session.clients_max, 7);
        let socket = "unix:/run/mux/eu1.sock";
        assert_eq!(instance.mux[0].address.shown(), socket);
    }
}
