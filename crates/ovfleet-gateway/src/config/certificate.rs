//! `tls` and `certificates` of a virtual socket: who its tools are, and what each of them may do.

use std::path::PathBuf;

use openvpn_mux::Policy;

use super::{
    error::{Mistakes, Place},
    instance::Templated,
    listen::TlsFiles,
    mux::read_policy,
    reader::{Section, Value},
    template::Values,
};
use crate::caller::CertificateNames;

/// Most certificates that one socket tells apart.
const CERTIFICATES_MAX: usize = 1_000;

/// What the tools of one socket may do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rights {
    /// By certificate, each name once.
    pub certificates: Vec<(CertificateName, Policy)>,
    /// What all others may do; `None`: nobody else is let in.
    pub others: Option<Policy>,
}

/// A name that stands in a certificate, compared byte for byte.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateName {
    /// The common name of the subject.
    CommonName(String),
    /// A DNS name among the alternative names; one with a wildcard means itself.
    Dns(String),
    /// A URI among the alternative names.
    Uri(String),
}

impl Rights {
    /// What the owner of a certificate may do, or, without one, anybody; `None` for one that is not let in. Of several
    /// entries that name one certificate the first counts.
    pub(crate) fn of(&self, names: Option<&CertificateNames>) -> Option<&Policy> {
        let is_named = |(name, _): &&(CertificateName, Policy)| {
            names.is_some_and(|names| match name {
                CertificateName::CommonName(name) => names.common_name.as_ref() == Some(name),
                CertificateName::Dns(name) => names.dns.contains(name),
                CertificateName::Uri(name) => names.uris.contains(name),
            })
        };
        let listed = self.certificates.iter().find(is_named);
        listed.map(|(_, policy)| policy).or(self.others.as_ref())
    }
}

/// `tls` of a listener before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct TlsFilesTemplate {
    place: Place,
    key: String,
    cert: Templated,
    cert_key: Templated,
    client_ca: Templated,
}

impl TlsFilesTemplate {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let mut section = value.section()?;
        let text = |section: &mut Section<'_>, key| {
            let value = section.require(key);
            value.and_then(|value| Templated::read(&value))
        };
        let cert = text(&mut section, "cert");
        let cert_key = text(&mut section, "key");
        // Its certificate is all that tells who a tool is.
        let client_ca = text(&mut section, "client_ca");
        section.finish();
        Some(Self {
            place: value.place().clone(),
            key: value.key().to_owned(),
            cert: cert?,
            cert_key: cert_key?,
            client_ca: client_ca?,
        })
    }

    pub(super) fn error(&self, mistakes: &Mistakes, message: impl Into<String>) {
        mistakes.add(&self.place, &self.key, message);
    }

    /// `None` after mistakes.
    pub(super) fn build(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<TlsFiles> {
        let path = |template: &Templated| -> Option<PathBuf> {
            let path = template.require(values, mistakes)?;
            if path.is_empty() {
                template.error(mistakes, "must not be empty");
                return None;
            }
            template.file(&path, values, mistakes)
        };
        Some(TlsFiles {
            cert: path(&self.cert)?,
            key: path(&self.cert_key)?,
            client_ca: Some(path(&self.client_ca)?),
        })
    }
}

/// `certificates` before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct CertificatesTemplate {
    place: Place,
    key: String,
    entries: Vec<Entry>,
}

/// Which of a certificate's names one is.
type Kind = fn(String) -> CertificateName;

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    name: Templated,
    policy: Policy,
}

impl CertificatesTemplate {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let items = value.items();
        if items.is_empty() || items.len() > CERTIFICATES_MAX {
            value.error(format!(
                "lists {} certificates: give 1 to {CERTIFICATES_MAX}, or leave the key out",
                items.len()
            ));
            return None;
        }
        // All of them first: each mistake is told.
        let entries: Vec<Option<Entry>> = items.iter().map(Entry::read).collect();
        Some(Self {
            place: value.place().clone(),
            key: value.key().to_owned(),
            entries: entries.into_iter().collect::<Option<_>>()?,
        })
    }

    pub(super) fn error(&self, mistakes: &Mistakes, message: impl Into<String>) {
        mistakes.add(&self.place, &self.key, message);
    }

    /// `None` after mistakes.
    pub(super) fn build(
        &self,
        values: &Values<'_>,
        mistakes: &Mistakes,
    ) -> Option<Vec<(CertificateName, Policy)>> {
        let mut certificates: Vec<(CertificateName, Policy)> = Vec::new();
        for entry in &self.entries {
            let text = entry.name.require(values, mistakes)?;
            if text.is_empty() {
                entry.name.error(mistakes, "must not be empty");
                return None;
            }
            let name = (entry.kind)(text);
            if certificates.iter().any(|(other, _)| *other == name) {
                entry
                    .name
                    .error(mistakes, "is listed twice: the first entry would count");
                return None;
            }
            certificates.push((name, entry.policy.clone()));
        }
        Some(certificates)
    }
}

impl Entry {
    fn read(value: &Value<'_>) -> Option<Self> {
        const KINDS: [(&str, Kind); 3] = [
            ("common_name", CertificateName::CommonName),
            ("dns_name", CertificateName::Dns),
            ("uri", CertificateName::Uri),
        ];
        let mut section = value.section()?;
        let mut names = Vec::new();
        for (key, kind) in KINDS {
            if let Some(name) = section.take(key) {
                names.push((kind, Templated::read(&name)));
            }
        }
        let policy = section
            .require("policy")
            .and_then(|value| read_policy(&value));
        section.finish();
        let Ok([(kind, name)]) = <[_; 1]>::try_from(names) else {
            value.error("needs one of common_name, dns_name and uri");
            return None;
        };
        Some(Self {
            kind,
            name: name?,
            policy: policy?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that passed for another kind of name, or for a similar one, would hand a stranger the daemon.
    #[test]
    fn names_are_matched_by_kind_and_byte() {
        let rights = Rights {
            certificates: vec![
                (CertificateName::CommonName("ops".into()), Policy::Operator),
                (CertificateName::Dns("*.tools".into()), Policy::Full),
                (CertificateName::Uri("spiffe://a/b".into()), Policy::Full),
                (CertificateName::Dns("ops".into()), Policy::Full),
            ],
            others: Some(Policy::ReadOnly),
        };
        let names = |common_name: Option<&str>, dns: &[&str], uris: &[&str]| CertificateNames {
            common_name: common_name.map(str::to_owned),
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            uris: uris.iter().map(|name| (*name).to_owned()).collect(),
        };
        let table = [
            (names(Some("ops"), &[], &[]), Policy::Operator),
            (names(Some("ops"), &["*.tools"], &[]), Policy::Operator),
            (names(None, &["x", "*.tools"], &[]), Policy::Full),
            (names(None, &[], &["spiffe://a/b"]), Policy::Full),
            (names(None, &["ops"], &[]), Policy::Full),
            (names(Some("Ops"), &["x.tools"], &["ops"]), Policy::ReadOnly),
            (
                names(Some("*.tools"), &["spiffe://a/b"], &[]),
                Policy::ReadOnly,
            ),
            (
                names(Some("ops "), &[], &["spiffe://a/B"]),
                Policy::ReadOnly,
            ),
            (names(None, &[], &[]), Policy::ReadOnly),
        ];
        for (names, policy) in &table {
            assert_eq!(rights.of(Some(names)), Some(policy), "{names:?}");
        }
        let closed = Rights {
            others: None,
            ..rights
        };
        assert_eq!(closed.of(Some(&table[0].0)), Some(&Policy::Operator));
        assert_eq!(closed.of(Some(&table[5].0)), None);
    }
}
