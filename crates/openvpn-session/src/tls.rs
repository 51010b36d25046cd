//! TLS to what stands before a management port: `stunnel`, `socat` or the like.

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, OtherError,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::config::TlsConfig;
use crate::file::open_file;

/// Largest PEM file that is read. A bundle of every public authority is a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// SHA-256 of a certificate in DER form.
pub(crate) type Pin = [u8; SHA256_OUTPUT_LEN];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nothing is configured by which the server could be known.
    #[error("nothing tells which server is the right one: set ca or pin")]
    Identity,
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
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
    /// Certificate and key are not both there, or do not belong together.
    #[error("the client certificate cannot be used with its key: {reason}")]
    Pair {
        /// Why.
        reason: String,
    },
    /// The server's name is none.
    #[error("{name:?} is no name that a certificate could have: set server_name")]
    Name {
        /// The name.
        name: String,
    },
    /// The handshake failed, or what follows it; why, with the remedy where there is one.
    #[error("{0}")]
    Failed(String),
}

impl TlsConfig {
    /// Whether the files are there and can be used; see [`open_file`] for `within`. Blocks.
    ///
    /// # Errors
    /// [`TlsError`], as a dial would report it.
    pub fn check(&self, within: Option<&Path>) -> Result<(), TlsError> {
        client_config(self, within).map(drop)
    }
}

/// A TLS connection whose server has shown that it is the right one.
#[derive(Debug)]
pub(crate) struct TlsStream {
    tcp: TcpStream,
    tls: ClientConnection,
}

/// A read of the socket.
type ReadSocket = fn(&TcpStream, &mut [u8]) -> io::Result<usize>;

impl TlsStream {
    /// Shakes hands over `tcp` with the server at `host`. The files are read anew each time, so that renewed ones count.
    pub(crate) async fn connect(
        tcp: TcpStream,
        host: &str,
        config: TlsConfig,
        within: Option<PathBuf>,
    ) -> Result<Self, TlsError> {
        let name = config.server_name.as_deref().unwrap_or(host).to_owned();
        let server_name =
            ServerName::try_from(name.clone()).map_err(|_| TlsError::Name { name })?;
        let config = spawn_blocking(move || client_config(&config, within.as_deref()))
            .await
            .unwrap_or_else(|panic| Err(TlsError::Failed(panic.to_string())))?;
        let tls = ClientConnection::new(Arc::new(config), server_name)
            .map_err(|error| TlsError::Failed(explain(&error)))?;
        let mut stream = Self { tcp, tls };
        stream
            .shake_hands()
            .await
            .map_err(|error| TlsError::Failed(error.to_string()))?;
        Ok(stream)
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                flushed => flushed?,
            }
            if !self.tls.is_handshaking() {
                return Ok(());
            }
            self.ready(Interest::READABLE).await?;
            match self.receive(read_announced) {
                Ok(0) => {
                    let what = "the server closed the connection during the handshake";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    /// Takes one read's worth of ciphertext; 0 is the end.
    fn receive(&mut self, read: ReadSocket) -> io::Result<usize> {
        let mut socket = Socket {
            tcp: &self.tcp,
            read,
        };
        let length = self.tls.read_tls(&mut socket)?;
        if let Err(error) = self.tls.process_new_packets() {
            // Tells the other side why, if it still listens.
            drop(self.flush());
            let failed = TlsError::Failed(explain(&error));
            return Err(io::Error::new(io::ErrorKind::InvalidData, failed));
        }
        Ok(length)
    }

    fn read_with(&mut self, read: ReadSocket, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Wrappers close without a farewell when the daemon does. Nothing is lost by that: the protocol's lines
                // have ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.receive(read)?;
        }
    }

    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_with(read_announced, buffer)
    }

    /// Reads past tokio, which would not ask the kernel before its own poll has said that there is something.
    pub(crate) fn read_unannounced(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_with(|tcp, buffer| (&*SockRef::from(tcp)).read(buffer), buffer)
    }

    /// Takes bytes as long as the socket takes what they become; what it does not take is kept, and flushed later.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let length = self.tls.writer().write(bytes)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(length),
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            let mut socket = Socket {
                tcp: &self.tcp,
                read: read_announced,
            };
            self.tls.write_tls(&mut socket)?;
        }
        Ok(())
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<()> {
        // What was decrypted and not read yet is no longer in the socket.
        if !self.tls.is_handshaking() && !self.tls.wants_read() {
            return Ok(());
        }
        let interest = if self.tls.wants_write() {
            interest | Interest::WRITABLE
        } else {
            interest
        };
        self.tcp.ready(interest).await.map(drop)
    }
}

fn read_announced(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    tcp.try_read(buffer)
}

/// A socket as rustls reads and writes it: never waiting.
struct Socket<'a> {
    tcp: &'a TcpStream,
    read: ReadSocket,
}

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.read)(self.tcp, buffer)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn client_config(config: &TlsConfig, within: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let chain = match &config.ca {
        Some(path) => Some(chain_verifier(path, within, Arc::clone(&provider))?),
        None => None,
    };
    if chain.is_none() && config.pin.is_none() {
        return Err(TlsError::Identity);
    }
    let verifier = Verifier {
        pin: config.pin,
        chain,
        algorithms,
    };
    let pair = |reason: String| TlsError::Pair { reason };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| pair(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut client = match (&config.cert, &config.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let pem = read(key, within)?;
            let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem {
                path: key.clone(),
                what: "private key",
            })?;
            builder
                .with_client_auth_cert(certificates(cert, within)?, private_key)
                .map_err(|error| pair(error.to_string()))?
        }
        _ => return Err(pair("set both cert and key, or neither".to_owned())),
    };
    // The server shows its certificate every time.
    client.resumption = Resumption::disabled();
    Ok(client)
}

fn chain_verifier(
    path: &Path,
    within: Option<&Path>,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let error = |reason: String| TlsError::Authority {
        path: path.to_owned(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, within)? {
        roots
            .add(authority)
            .map_err(|cause| error(cause.to_string()))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|cause| error(cause.to_string()))
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
    read().map_err(|error| TlsError::Read {
        path: path.to_owned(),
        error,
    })
}

/// Knows the server by an authority that vouches for its name, by its certificate itself, or by both.
#[derive(Debug)]
struct Verifier {
    pin: Option<Pin>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The server has another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate is not the pinned one; if it was renewed, and only then, set pin = \"sha256:{shown}\""
)]
struct PinMismatch {
    shown: String,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(pin) = self.pin {
            let found = digest(&SHA256, end_entity);
            if found.as_ref() != pin {
                let hex = found.as_ref().iter().map(|byte| format!("{byte:02x}"));
                let mismatch = PinMismatch {
                    shown: hex.collect(),
                };
                let other = OtherError(Arc::new(mismatch));
                return Err(CertificateError::Other(other).into());
            }
        }
        match &self.chain {
            Some(chain) => {
                chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None if self.pin.is_some() => Ok(ServerCertVerified::assertion()),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What failed, with the remedy where there is one.
fn explain(error: &rustls::Error) -> String {
    use CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(cause) => match cause {
            Certificate::Other(OtherError(cause)) => cause.to_string(),
            // The second where an authority of that name was made anew.
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "the server's certificate is not signed by the authority in ca: correct ca, or set pin".to_owned()
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => format!(
                "the server's certificate is for another name: set server_name if that name is right ({cause})"
            ),
            cause => format!("the server's certificate is not accepted: {cause}"),
        },
        rustls::Error::InvalidMessage(_) => "what listens there does not speak TLS".to_owned(),
        rustls::Error::AlertReceived(alert) => format!(
            "the server refused us ({alert:?}): it may want a client certificate, see cert and key"
        ),
        error => error.to_string(),
    }
}
