//! `tls`: how the server at a `tls:` address is known, and how we are.

use std::path::PathBuf;

use openvpn_session::{Address, TlsConfig};

use super::{
    error::{Mistakes, Place},
    instance::Templated,
    reader::{Section, Value},
    template::Values,
};

/// `tls` before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct TlsTemplate {
    place: Place,
    key: String,
    ca: Option<Templated>,
    pin: Option<Templated>,
    cert: Option<Templated>,
    cert_key: Option<Templated>,
    server_name: Option<Templated>,
}

impl TlsTemplate {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let mut section = value.section()?;
        let text = |section: &mut Section<'_>, key| {
            section.take(key).and_then(|value| Templated::read(&value))
        };
        let template = Self {
            place: value.place().clone(),
            key: value.key().to_owned(),
            ca: text(&mut section, "ca"),
            pin: text(&mut section, "pin"),
            cert: text(&mut section, "cert"),
            cert_key: text(&mut section, "key"),
            server_name: text(&mut section, "server_name"),
        };
        section.finish();
        Some(template)
    }

    /// Reports that it is written for an address without TLS: whoever wrote it must not believe that it protects.
    pub(super) fn refuse(&self, address: &Address, mistakes: &Mistakes) {
        let message = format!("has no meaning for {address}: TLS is for tls:host:port");
        mistakes.add(&self.place, &self.key, message);
    }

    /// `None` after mistakes.
    pub(super) fn build(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<TlsConfig> {
        let text = |template: &Option<Templated>| match template {
            None => Some(None),
            Some(template) => template.require(values, mistakes).map(Some),
        };
        let path = |template: &Option<Templated>| -> Option<Option<PathBuf>> {
            match template {
                None => Some(None),
                Some(template) => {
                    let text = template.require(values, mistakes)?;
                    template.file(&text, values, mistakes).map(Some)
                }
            }
        };
        let pin = match &self.pin {
            None => None,
            Some(template) => {
                let pin = TlsConfig::parse_pin(&template.require(values, mistakes)?);
                Some(
                    pin.map_err(|error| template.error(mistakes, error.to_string()))
                        .ok()?,
                )
            }
        };
        let config = TlsConfig {
            ca: path(&self.ca)?,
            pin,
            cert: path(&self.cert)?,
            key: path(&self.cert_key)?,
            server_name: text(&self.server_name)?,
        };
        let mistake = |message: &str| {
            mistakes.add(&self.place, &self.key, message);
            None
        };
        if config.ca.is_none() && config.pin.is_none() {
            return mistake("nothing tells which server is the right one: set ca or pin");
        }
        if config.cert.is_some() != config.key.is_some() {
            return mistake("set both cert and key, or neither");
        }
        Some(config)
    }
}
