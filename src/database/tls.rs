//! TLS to the server: which `sslmode` asks for what, whose certificates are trusted, and what a refused
//! handshake means.
//!
//! The modes are libpq's. Where OpenSSL and rustls differ, certificates are judged as rustls does: they
//! must be of X.509 version 3, and names stand in `subjectAltName`.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use serde::Deserialize;
use tokio_postgres_rustls::MakeRustlsConnect;

/// What is asked of a connection, in libpq's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS where the server has it; whose server it is is not looked at.
    #[default]
    Prefer,
    /// TLS. With a root certificate file the same as `VerifyCa`, as libpq has it.
    Require,
    /// TLS with a certificate that a trusted authority has signed, for whatever name.
    VerifyCa,
    /// TLS with a trusted certificate for the host that is connected to.
    VerifyFull,
}

impl SslMode {
    /// Every mode, from the weakest on.
    pub const NAMES: &'static [&'static str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];

    /// The mode in libpq's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl FromStr for SslMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Disable, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or(())
    }
}

/// Certificates of authorities that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be used.
    #[error("{key} = {path}: {reason}", path = .path.display())]
    File {
        /// What named the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Everybody can have a certificate that one of the system's authorities has signed.
    #[error(
        "sslmode=verify-ca needs a file with the authority's certificate: name it in database.ssl_root_cert, or set sslmode = \"verify-full\""
    )]
    Nobody,
    /// The system has none.
    #[error(
        "sslmode={0} needs certificates of authorities, and this system has none: name a file in database.ssl_root_cert, or install ca-certificates"
    )]
    None(&'static str),
}

/// Where certificates of authorities come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Roots {
    /// `~/.postgresql/root.crt` where it exists, else the system's.
    #[default]
    Default,
    /// The system's.
    System,
    /// A file, and what named it.
    File(&'static str, PathBuf),
}

impl Roots {
    /// From a setting: a path, or libpq's word `system`.
    pub(super) fn given(key: &'static str, path: &Path) -> Self {
        if path == Path::new("system") { Self::System } else { Self::File(key, path.to_owned()) }
    }

    /// The file, if it is one.
    fn file(&self) -> Option<(&'static str, PathBuf)> {
        match self {
            Self::File(key, path) => Some((key, path.clone())),
            Self::System => None,
            Self::Default => {
                let path = env::home_dir()?.join(".postgresql/root.crt");
                path.exists().then_some(("the default root certificate file", path))
            }
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file() {
            Some((_, path)) => write!(out, "{}", path.display()),
            None => out.write_str("the system's certificates"),
        }
    }
}

/// Makes what opens TLS over a connection. Reads the files that the mode needs.
pub(super) fn connector(mode: SslMode, roots: &Roots) -> Result<MakeRustlsConnect, RootsError> {
    let trusted = match mode {
        SslMode::Disable | SslMode::Prefer => None,
        SslMode::Require => roots.file().map(|(key, path)| read(key, &path)).transpose()?,
        SslMode::VerifyCa | SslMode::VerifyFull => Some(match roots.file() {
            Some((key, path)) => read(key, &path)?,
            None if mode == SslMode::VerifyCa => return Err(RootsError::Nobody),
            None => of_the_system(mode)?,
        }),
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { trusted, name_counts: mode == SslMode::VerifyFull, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // What servers from version 17 on want of a connection that begins with TLS.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

/// Trusted certificates.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

fn read(key: &'static str, path: &Path) -> Result<Trusted, RootsError> {
    let wrong = |reason: String| RootsError::File { key, path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(format!("is not a file of PEM certificates: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| wrong(format!("holds a certificate that cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate: it must have the PEM text of the authority's".to_owned()));
    }
    Ok(Trusted { roots, certificates })
}

fn of_the_system(mode: SslMode) -> Result<Trusted, RootsError> {
    let mut roots = RootCertStore::empty();
    // Single files that cannot be read are no reason to distrust the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(RootsError::None(mode.name()));
    }
    Ok(Trusted { roots, certificates: Vec::new() })
}

/// Judges the server's certificate as the mode asks. That the server has the key of the certificate is
/// always proven.
#[derive(Debug)]
struct Verifier {
    /// None: any certificate will do.
    trusted: Option<Trusted>,
    name_counts: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &trusted.roots,
            intermediates,
            now,
            algorithms,
        )
        .or_else(|error| {
            // A server's own self-signed certificate, as `openssl req -x509` makes it, is marked as an
            // authority's. Where it is itself in the file there is no chain to follow. Its time was looked
            // at before the mark.
            let is_trusted_itself = is_authority(&error) && trusted.certificates.contains(end_entity);
            if is_trusted_itself { Ok(()) } else { Err(error) }
        })?;
        if self.name_counts {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether an authority's certificate was met where a server's should be.
fn is_authority(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(_)))
        && error.to_string().contains("CaUsedAsEndEntity")
}

/// Whether the handshake failed, on whichever side.
pub(super) fn is_handshake(error: &tokio_postgres::Error) -> bool {
    error.to_string().starts_with("error performing TLS handshake")
}

/// What to do about a handshake that failed, with its leading separator.
pub(super) fn advice(error: &tokio_postgres::Error, roots: &Roots) -> Option<String> {
    use std::error::Error as _;
    if !is_handshake(error) {
        return None;
    }
    let cause = error.source()?;
    if cause.to_string().contains("does not support TLS") {
        return Some(": set ssl = on on the server, or choose a weaker sslmode".to_owned());
    }
    let rustls = cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<Error>();
    let Some(Error::InvalidCertificate(wrong)) = rustls else { return Some(String::new()) };
    Some(match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            ": it was not signed by an authority in {roots}: name the file of the one that did in database.ssl_root_cert"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ": connect by a name that it holds, or ask for sslmode=verify-ca".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ": renew the server's certificate".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("UnsupportedCertVersion") => {
            ": issue the server's certificate as X.509 version 3, with its names in subjectAltName".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => format!(
            ": it signs itself and is not in {roots}: put it into the file that database.ssl_root_cert names"
        ),
        _ => ": look at the server's ssl_cert_file".to_owned(),
    })
}
