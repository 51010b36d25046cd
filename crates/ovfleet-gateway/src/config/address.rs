//! The parts of a management address that placeholders can name.

use std::{collections::BTreeMap, sync::LazyLock};

use openvpn_session::Address;

use super::{secrets::FileRule, template::Values};

/// This machine's name, as the kernel knows it.
static HOST_NAME: LazyLock<String> = LazyLock::new(|| {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
});

pub(super) fn host_name() -> &'static str {
    &HOST_NAME
}

/// What `{host}`, `{stem}` and `{port}` stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressParts {
    host: Option<String>,
    stem: Option<String>,
    port: Option<String>,
}

impl AddressParts {
    pub(super) fn of(address: &Address) -> Self {
        match address {
            Address::Unix(path) | Address::ListenUnix(path) => Self {
                host: Some(host_name().to_owned()),
                stem: path
                    .file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
                port: None,
            },
            Address::Tcp { host, port } | Address::Tls { host, port } => Self {
                host: Some(host.clone()),
                stem: None,
                port: Some(port.to_string()),
            },
            Address::ListenTcp(address) => Self {
                host: Some(address.ip().to_string()),
                stem: None,
                port: Some(address.port().to_string()),
            },
        }
    }

    pub(super) fn values<'a>(
        &'a self,
        name: Option<&'a str>,
        labels: &'a BTreeMap<String, String>,
    ) -> Values<'a> {
        Values {
            name,
            host: self.host.as_deref(),
            stem: self.stem.as_deref(),
            port: self.port.as_deref(),
            labels: Some(labels),
            files: FileRule::Any,
        }
    }
}
