//! TLS of a listener, from PEM files.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use openvpn_session::open_file;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::config::TlsFiles;

/// Largest PEM file that is read, in bytes. A bundle of every public authority is a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not the PEM that it should be.
    #[error("{} holds no {what} in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// An authority cannot be used.
    #[error("the authority in {} cannot be used: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("{} and {} cannot be used together", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
}

/// Reads what a TLS listener needs; `protocol` is what is spoken on it, in the words of ALPN, if it has a name there.
///
/// TLS 1.3 only: every gRPC implementation in use speaks it, and OpenSSL since 1.1.1.
pub(crate) fn load(
    files: &TlsFiles,
    protocol: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    load_within(files, protocol, None)
}

/// The same with files that must be where they seem to be, see [`open_file`].
pub(crate) fn load_within(
    files: &TlsFiles,
    protocol: Option<&[u8]>,
    within: Option<&Path>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let TlsFiles {
        cert,
        key,
        client_ca,
    } = files;
    let chain = certificates(cert, within)?;
    let pem = read(key, within)?;
    let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem {
        path: key.clone(),
        what: "private key",
    })?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let pair_error = |source| TlsError::Pair {
        cert: cert.clone(),
        key: key.clone(),
        source,
    };
    let builder = builder.map_err(pair_error)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let error = |reason: String| TlsError::Authority {
                path: path.clone(),
                reason,
            };
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, within)? {
                roots
                    .add(authority)
                    .map_err(|cause| error(cause.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build().map_err(|cause| error(cause.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, private_key)
        .map_err(pair_error)?;
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    // A resumed session would outlive the certificate it was made with.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(
    path: &Path,
    within: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, within)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::Pem {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn read(path: &Path, within: Option<&Path>) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut pem = Vec::new();
        open_file(path, within)?
            .take(PEM_BYTES_MAX + 1)
            .read_to_end(&mut pem)?;
        if u64::try_from(pem.len()).is_ok_and(|length| length > PEM_BYTES_MAX) {
            return Err(io::Error::other("the file is too large"));
        }
        Ok(pem)
    };
    read().map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}
