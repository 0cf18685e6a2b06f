//! Why a listener's TLS can't be set up.

use std::io;
use std::path::PathBuf;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem;

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the file {path} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the file {path} has more than {MAX_FILE} bytes")]
    TooLarge { path: PathBuf },
    #[error("the file {path} is not valid PEM: {source}")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("the file {path} has no certificate; it must have one in PEM (BEGIN CERTIFICATE)")]
    NoCertificate { path: PathBuf },
    #[error("the certificate in {path} is malformed")]
    Certificate { path: PathBuf },
    #[error(
        "the file {path} has no private key; it must have one in PEM without a passphrase (BEGIN \
         PRIVATE KEY)"
    )]
    NoKey { path: PathBuf },
    #[error("the private key in {path} can't be used: {source}")]
    Key {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("the private key in {key} doesn't belong to the certificate in {certificate}")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    /// Only where another one is in use.
    #[error("the certificate in {path} has expired")]
    Expired { path: PathBuf },
    #[error("a certificate in {path} can't be an authority's: {source}")]
    Authority {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("TLS can't be set up: {0}")]
    Setup(#[from] rustls::Error),
}
