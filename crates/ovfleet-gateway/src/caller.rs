//! Who calls, and what they may do.

use std::{fmt, net::SocketAddr, sync::Arc};

use openvpn_fleet::CallerName;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// Longest common name of a certificate that is taken into a caller's name, in bytes.
const COMMON_NAME_BYTES_MAX: usize = 64;
/// Bytes of a certificate's SHA-256 that tell it from others in a caller's name.
const FINGERPRINT_BYTES: usize = 8;

/// Who makes a call. Every request carries one in its extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    name: CallerName,
    identity: Arc<Identity>,
    read_only: bool,
}

/// How a caller is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Identity {
    /// A local process: the kernel said so.
    Unix {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its process id, where the kernel tells.
        pid: Option<i32>,
    },
    /// The owner of a certificate that an accepted authority signed.
    Certificate {
        /// Common name of its subject; empty when it has none.
        common_name: String,
        /// SHA-256 of the certificate.
        sha256: [u8; 32],
    },
    /// Nobody in particular: whoever can reach the listener from here.
    Address(SocketAddr),
}

/// The names in a certificate that TLS has verified, as they stand there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct CertificateNames {
    /// The last common name of the subject, which is the most specific one.
    pub(crate) common_name: Option<String>,
    /// DNS names among the alternative names.
    pub(crate) dns: Vec<String>,
    /// URIs among the alternative names.
    pub(crate) uris: Vec<String>,
}

/// The caller came through a listener that only reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this listener is read-only: call over the Unix socket or with a client certificate, \
     or set plaintext_control = true on it"
)]
pub struct ReadOnlyListener;

impl Caller {
    pub(crate) fn new(identity: Identity, read_only: bool) -> Self {
        let name = CallerName::new(&identity.to_string());
        Self {
            name,
            identity: Arc::new(identity),
            read_only,
        }
    }

    /// The caller of a request that one of our listeners took.
    ///
    /// Without a listener, as in a test that calls a service directly, it is
    /// nobody, who may only read.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_else(|| {
            Self::new(Identity::Address(SocketAddr::from(([0, 0, 0, 0], 0))), true)
        })
    }

    /// The name under which its actions are recorded.
    #[must_use]
    pub fn name(&self) -> &CallerName {
        &self.name
    }

    /// How it is known.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// That it may change something.
    ///
    /// # Errors
    /// [`ReadOnlyListener`] when it may not.
    pub fn require_control(&self) -> Result<(), ReadOnlyListener> {
        if self.read_only {
            Err(ReadOnlyListener)
        } else {
            Ok(())
        }
    }
}

impl Identity {
    /// The owner of a certificate that TLS has verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        let fits = |name: &String| {
            name.len() <= COMMON_NAME_BYTES_MAX && !name.chars().any(char::is_control)
        };
        let common_name = CertificateNames::of(certificate).common_name;
        Self::Certificate {
            common_name: common_name.filter(fits).unwrap_or_default(),
            sha256,
        }
    }
}

impl CertificateNames {
    /// What cannot be read is no name.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        let common_name = certificate.subject().iter_common_name().last();
        let mut names = Self {
            common_name: common_name.and_then(|name| name.as_str().ok().map(str::to_owned)),
            ..Self::default()
        };
        if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                    GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                    _ => {}
                }
            }
        }
        names
    }
}

/// `uid:1000`, `cert:alice#0f1e2d3c4b5a6978`, `addr:127.0.0.1`. A number rather
/// than a user's name: names change owners.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, .. } => write!(f, "uid:{uid}"),
            Self::Certificate {
                common_name,
                sha256,
            } => {
                write!(f, "cert:{common_name}#")?;
                sha256[..FINGERPRINT_BYTES]
                    .iter()
                    .try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            // Without the port: a caller that connects again is the same one.
            Self::Address(address) => write!(f, "addr:{}", address.ip()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that no listener vouched for must not act.
    #[test]
    fn a_request_from_nowhere_may_only_read() {
        let caller = Caller::of(&tonic::Request::new(()));
        assert_eq!(caller.require_control(), Err(ReadOnlyListener));
    }

    /// The names appear in actions and request ids are scoped by them: two
    /// different callers must never share one.
    #[test]
    fn names_tell_callers_apart() {
        let unix = Identity::Unix {
            uid: 1000,
            gid: 5,
            pid: Some(7),
        };
        assert_eq!(unix.to_string(), "uid:1000");
        let address = Identity::Address("[::1]:9".parse().unwrap());
        assert_eq!(address.to_string(), "addr:::1");
        let certificate = Identity::Certificate {
            common_name: "alice".to_owned(),
            sha256: [0xab; 32],
        };
        assert_eq!(certificate.to_string(), "cert:alice#abababababababab");
    }

    /// What a socket may do is decided on these names: one that is not read, or read as another kind, decides wrongly.
    #[test]
    fn every_name_of_a_certificate_is_read_as_it_stands() {
        let uri = rcgen::SanType::URI("spiffe://vpn/ops".try_into().unwrap());
        let mut params =
            rcgen::CertificateParams::new(["*.tools".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(uri);
        let long = "n".repeat(COMMON_NAME_BYTES_MAX + 1);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, long.clone());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let names = CertificateNames::of(certificate.der());
        let expected = CertificateNames {
            common_name: Some(long),
            dns: vec!["*.tools".to_owned()],
            uris: vec!["spiffe://vpn/ops".to_owned()],
        };
        assert_eq!(names, expected);
        // It is not shown whole.
        let shown = Identity::of_certificate(certificate.der()).to_string();
        assert!(shown.starts_with("cert:#"), "{shown}");
        let damaged = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!(CertificateNames::of(&damaged), CertificateNames::default());
    }
}
