//! What an instance is: options in, definition out.

use std::{collections::HashMap, time::Duration};

use clap::{Args, ValueEnum};
use ovfleet_proto::v1::{
    DialIn, DisconnectPolicy, HoldPolicy, InstanceDefinition, ManagementTls, MuxSocket,
};

use crate::value::{duration, proto_duration};

/// The keys of an `[[instance]]`, but for its name and its address. Files are files of the gateway's host.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Instance (as in the configuration, placeholders included)")]
pub(crate) struct DefinitionArgs {
    /// A label (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// The file whose first line is the management password, under secrets_dir of the gateway's configuration
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    /// What to do with a daemon that holds
    #[arg(long, value_name = "WHAT")]
    hold: Option<Hold>,
    /// What the end of the session does to the daemon
    #[arg(long, value_name = "WHAT")]
    disconnect: Option<Disconnect>,
    /// Whether to read the daemon's log
    #[arg(long, value_name = "BOOL")]
    log: Option<bool>,
    /// How often the daemon reports traffic, such as 10s; off: never
    #[arg(long, value_name = "TIME|off", value_parser = duration_or_off)]
    bytecount: Option<Duration>,
    /// How often the whole client table is asked for
    #[arg(long, value_name = "TIME", value_parser = duration)]
    status_interval: Option<Duration>,
    /// The most clients kept
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    clients_max: Option<u32>,
    /// How long a daemon may be unresponsive before the session is begun anew
    #[arg(long, value_name = "TIME", value_parser = duration)]
    unresponsive_reconnect: Option<Duration>,
    /// For listen-unix: mode, owner, group, peer_user (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    dial_in: Vec<(String, String)>,
    /// For tls: ca, pin, cert, key, server_name (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    tls: Vec<(String, String)>,
    /// A virtual socket: its address, and of policy, commands, password_file, away, mode, owner, group those that it
    /// needs (repeatable); one with TLS takes the configuration, or the API
    #[arg(long, value_name = "ADDRESS[,KEY=VALUE]…", value_parser = mux)]
    mux: Vec<MuxSocket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hold {
    Release,
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Disconnect {
    Harmless,
    Destructive,
}

impl DefinitionArgs {
    /// The definition of `name`, as far as it was said.
    ///
    /// # Errors
    /// A key that `--tls` or `--dial-in` does not have.
    pub(crate) fn definition(
        self,
        name: String,
        address: Option<String>,
    ) -> Result<InstanceDefinition, String> {
        let tls = match self.tls.as_slice() {
            [] => None,
            pairs => {
                let mut keys = Keys::of("--tls", pairs)?;
                let tls = ManagementTls {
                    ca: keys.take("ca"),
                    pin: keys.take("pin"),
                    cert: keys.take("cert"),
                    key: keys.take("key"),
                    server_name: keys.take("server_name"),
                };
                keys.finish()?;
                Some(tls)
            }
        };
        let dial_in = match self.dial_in.as_slice() {
            [] => None,
            pairs => {
                let mut keys = Keys::of("--dial-in", pairs)?;
                let dial_in = DialIn {
                    mode: keys.take("mode"),
                    owner: keys.take("owner"),
                    group: keys.take("group"),
                    peer_user: keys.take("peer_user"),
                };
                keys.finish()?;
                Some(dial_in)
            }
        };
        let hold = match self.hold {
            None => HoldPolicy::Unspecified,
            Some(Hold::Release) => HoldPolicy::Release,
            Some(Hold::Keep) => HoldPolicy::Keep,
        };
        let disconnect = match self.disconnect {
            None => DisconnectPolicy::Unspecified,
            Some(Disconnect::Harmless) => DisconnectPolicy::Harmless,
            Some(Disconnect::Destructive) => DisconnectPolicy::Destructive,
        };
        Ok(InstanceDefinition {
            name,
            address: address.unwrap_or_default(),
            labels: self.labels.into_iter().collect(),
            password_file: self.password_file.unwrap_or_default(),
            hold: hold.into(),
            disconnect: disconnect.into(),
            log: self.log,
            bytecount: self.bytecount.map(proto_duration),
            status_interval: self.status_interval.map(proto_duration),
            clients_max: self.clients_max.unwrap_or_default(),
            unresponsive_reconnect: self.unresponsive_reconnect.map(proto_duration),
            dial_in,
            tls,
            mux: self.mux,
        })
    }

    /// The fields that were said: labels one by one, so that the others stay.
    pub(crate) fn mask(&self, with_address: bool) -> Vec<String> {
        let said = [
            ("address", with_address),
            ("password_file", self.password_file.is_some()),
            ("hold", self.hold.is_some()),
            ("disconnect", self.disconnect.is_some()),
            ("log", self.log.is_some()),
            ("bytecount", self.bytecount.is_some()),
            ("status_interval", self.status_interval.is_some()),
            ("clients_max", self.clients_max.is_some()),
            (
                "unresponsive_reconnect",
                self.unresponsive_reconnect.is_some(),
            ),
            ("dial_in", !self.dial_in.is_empty()),
            ("tls", !self.tls.is_empty()),
            ("mux", !self.mux.is_empty()),
        ];
        let fields = said.into_iter().filter(|(_, is_said)| *is_said);
        let labels = self
            .labels
            .iter()
            .map(|(label, _)| format!("labels.{label}"));
        fields
            .map(|(field, _)| field.to_owned())
            .chain(labels)
            .collect()
    }
}

/// Keys of one option, each taken by name.
struct Keys {
    option: &'static str,
    values: HashMap<String, String>,
    known: Vec<&'static str>,
}

impl Keys {
    fn of(option: &'static str, pairs: &[(String, String)]) -> Result<Self, String> {
        let mut values = HashMap::new();
        for (key, value) in pairs {
            if values.insert(key.clone(), value.clone()).is_some() {
                return Err(format!("{option} has {key} twice"));
            }
        }
        let known = Vec::new();
        Ok(Self {
            option,
            values,
            known,
        })
    }

    fn take(&mut self, key: &'static str) -> String {
        self.known.push(key);
        self.values.remove(key).unwrap_or_default()
    }

    fn finish(self) -> Result<(), String> {
        match self.values.keys().min() {
            None => Ok(()),
            Some(key) => Err(format!(
                "{} has no key {key}: it has {}",
                self.option,
                self.known.join(", ")
            )),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn duration_or_off(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        text => duration(text),
    }
}

/// `unix:/run/x.sock,policy=operator,commands=status+version`
fn mux(text: &str) -> Result<MuxSocket, String> {
    let mut parts = text.split(',');
    let address = parts.next().unwrap_or_default().to_owned();
    let pairs: Vec<_> = parts.map(pair).collect::<Result<_, _>>()?;
    let mut keys = Keys::of("--mux", &pairs)?;
    let commands = keys.take("commands");
    let commands = commands.split('+').filter(|command| !command.is_empty());
    let socket = MuxSocket {
        address,
        policy: keys.take("policy"),
        commands: commands.map(str::to_owned).collect(),
        password_file: keys.take("password_file"),
        away: keys.take("away"),
        mode: keys.take("mode"),
        owner: keys.take("owner"),
        group: keys.take("group"),
        tls: None,
        certificates: Vec::new(),
    };
    keys.finish()?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, InstanceCommand, parse_from};

    fn args(options: &[&str]) -> DefinitionArgs {
        let line = ["ovfleet", "instance", "set", "eu1"].iter().chain(options);
        match parse_from(line).unwrap().command {
            Command::Instance(InstanceCommand::Set(args)) => args.definition,
            other => panic!("{other:?}"),
        }
    }

    /// An option that is not in the mask would be ignored without a word; one that was not given must stay as it is.
    #[test]
    fn what_is_said_is_in_the_mask_and_in_the_definition() {
        let options = [
            ("--password-file=/pw", "password_file"),
            ("--hold=keep", "hold"),
            ("--disconnect=destructive", "disconnect"),
            ("--log=false", "log"),
            ("--bytecount=off", "bytecount"),
            ("--status-interval=5s", "status_interval"),
            ("--clients-max=5", "clients_max"),
            ("--unresponsive-reconnect=1m", "unresponsive_reconnect"),
            ("--dial-in=mode=0600", "dial_in"),
            ("--tls=ca=/ca.crt", "tls"),
            (
                "--mux=unix:/run/x.sock,policy=full,commands=status+pid",
                "mux",
            ),
            ("--label=region=eu", "labels.region"),
        ];
        let nothing = args(&[]).definition("eu1".to_owned(), None).unwrap();
        for (option, field) in options {
            let args = args(&[option]);
            assert_eq!(args.mask(false), [field]);
            let definition = args.definition("eu1".to_owned(), None).unwrap();
            assert_ne!(definition, nothing, "{option}");
        }
        let all: Vec<_> = options.iter().map(|(option, _)| *option).collect();
        assert_eq!(args(&all).mask(true).len(), options.len() + 1);
    }

    #[test]
    fn unknown_keys_are_named() {
        let wrong = args(&["--tls=certificate=/x"]);
        let error = wrong.definition("a".to_owned(), None).unwrap_err();
        assert!(
            error.contains("certificate") && error.contains("cert"),
            "{error}"
        );
        assert!(mux("unix:/x,colour=blue").is_err());
        assert!(pair("=x").is_err() && pair("x").is_err());
    }
}
