//! Which instances, which clients: options in, selector and filter out.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::Args;
use ovfleet_proto::v1::{ClientFilter, ClientRef, InstanceSelector};
use prost::bytes::Bytes;

/// Which instances.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Instances")]
pub(crate) struct InstanceArgs {
    /// By label: region=eu, proto!=tcp, 'tier in (a,b)', canary, !canary; all that are given hold
    #[arg(short, long, value_name = "LABELS")]
    labels: Vec<String>,
    /// By name: INSTANCE or GATEWAY/INSTANCE (repeatable)
    #[arg(long, value_name = "NAME")]
    instance: Vec<String>,
    /// Every instance (what reading commands take when nothing is said)
    #[arg(long, conflicts_with_all = ["labels", "instance"])]
    all: bool,
}

impl InstanceArgs {
    /// Nothing was said: for an action, a mistake.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.instance.is_empty() && !self.all
    }

    /// Part of the fleet was said: finding nothing there is worth an exit code.
    pub(crate) fn is_narrow(&self) -> bool {
        !self.labels.is_empty() || !self.instance.is_empty()
    }

    /// The selector; empty when nothing was said.
    pub(crate) fn selector(&self) -> InstanceSelector {
        InstanceSelector {
            names: self.instance.clone(),
            labels: self.labels.join(","),
            all: self.all,
        }
    }
}

/// Which clients.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Clients (values of one option are alternatives)")]
pub(crate) struct FilterArgs {
    /// By common name, exactly; bytes that are not UTF-8 are taken as they are
    #[arg(long, value_name = "NAME", value_parser = clap::value_parser!(OsString))]
    common_name: Vec<OsString>,
    /// By username, exactly
    #[arg(long, value_name = "NAME", value_parser = clap::value_parser!(OsString))]
    username: Vec<OsString>,
    /// By where they come from: address, address:port or network (192.0.2.0/24)
    #[arg(long, value_name = "ADDRESS")]
    real_address: Vec<String>,
    /// By address inside the VPN, or network
    #[arg(long, value_name = "ADDRESS")]
    virtual_address: Vec<String>,
    /// One client, as --wide shows it
    #[arg(long = "ref", value_name = "GATEWAY/INSTANCE/GENERATION/CID", value_parser = client_ref)]
    refs: Vec<ClientRef>,
    /// Only half-open clients, which have no name yet; =false: only complete ones
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    half_open: Option<bool>,
}

impl FilterArgs {
    /// The filter; empty when nothing was said.
    pub(crate) fn filter(&self) -> ClientFilter {
        let (common_names, common_names_raw) = text_or_bytes(&self.common_name);
        let (usernames, usernames_raw) = text_or_bytes(&self.username);
        ClientFilter {
            refs: self.refs.clone(),
            common_names,
            usernames,
            real_addresses: self.real_address.clone(),
            virtual_addresses: self.virtual_address.clone(),
            half_open: self.half_open,
            common_names_raw,
            usernames_raw,
        }
    }

    /// Nothing was said: every client.
    pub(crate) fn is_empty(&self) -> bool {
        self.filter() == ClientFilter::default()
    }

    /// The instances that the references name, as `gateway/instance`.
    pub(crate) fn ref_instances(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .refs
            .iter()
            .map(|client| format!("{}/{}", client.gateway, client.instance))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Splits values into those that are UTF-8 and those that are not: the API has
/// a field for each.
fn text_or_bytes(values: &[OsString]) -> (Vec<String>, Vec<Bytes>) {
    let (mut text, mut raw) = (Vec::new(), Vec::new());
    for value in values {
        match OsStr::to_str(value) {
            Some(value) => text.push(value.to_owned()),
            None => raw.push(Bytes::from(value.clone().into_vec())),
        }
    }
    debug_assert!(
        raw.iter()
            .all(|bytes| OsStr::from_bytes(bytes).to_str().is_none())
    );
    (text, raw)
}

/// A reference as tables show it: `gateway/instance/generation/cid`.
pub(crate) fn client_ref(text: &str) -> Result<ClientRef, String> {
    let parts: Vec<_> = text.split('/').collect();
    let [gateway, instance, generation, cid] = parts[..] else {
        return Err("a reference is GATEWAY/INSTANCE/GENERATION/CID".to_owned());
    };
    if gateway.is_empty() || instance.is_empty() {
        return Err("gateway and instance must not be empty".to_owned());
    }
    if generation.is_empty() || !generation.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "`{generation}` is no generation: it is a decimal number"
        ));
    }
    let cid = cid
        .parse()
        .map_err(|_| format!("`{cid}` is no CID: it is a decimal number"))?;
    Ok(ClientRef {
        gateway: gateway.to_owned(),
        instance: instance.to_owned(),
        generation: generation.to_owned(),
        cid,
    })
}

/// The reference as `client_ref` takes it.
pub(crate) fn show_ref(client: &ClientRef) -> String {
    let ClientRef {
        gateway,
        instance,
        generation,
        cid,
    } = client;
    format!("{gateway}/{instance}/{generation}/{cid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_reads_back_as_it_is_shown() {
        let text = "vpn1/eu1/1763650000000000/17";
        assert_eq!(show_ref(&client_ref(text).unwrap()), text);
        for text in [
            "",
            "17",
            "a/b/c",
            "a/b/1/x",
            "a/b/x/1",
            "/b/1/1",
            "a/b/1/1/1",
            "a/b/1/-1",
        ] {
            assert!(client_ref(text).is_err(), "{text}");
        }
    }

    /// A name that is not UTF-8 would otherwise be refused, or hit whoever has
    /// U+FFFD in the name.
    #[test]
    fn bytes_that_are_not_utf8_go_to_the_raw_fields() {
        let args = FilterArgs {
            common_name: vec!["müller".into(), OsString::from_vec(b"caf\xe9".to_vec())],
            username: vec![OsString::from_vec(vec![0xff])],
            ..FilterArgs::default()
        };
        let filter = args.filter();
        assert_eq!(filter.common_names, ["müller"]);
        assert_eq!(filter.common_names_raw, [&b"caf\xe9"[..]]);
        assert!(filter.usernames.is_empty());
        assert_eq!(filter.usernames_raw, [&[0xff][..]]);
    }
}
