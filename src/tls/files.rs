//! The files of a listener's TLS.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::{MAX_FILE, TlsError};
use crate::config::Tls;

/// What the files hold, as bytes.
pub(super) struct Files<'a> {
    settings: &'a Tls,
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_cas: Vec<Vec<u8>>,
}

/// Tells whether files have changed, without holding a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl<'a> Files<'a> {
    /// Blocks.
    pub(super) fn read(settings: &'a Tls) -> Result<Self, TlsError> {
        let client_cas = settings.client_cas.iter().map(|path| read(path));
        Ok(Self {
            settings,
            certificate: read(&settings.certificate)?,
            key: read(&settings.key)?,
            client_cas: client_cas.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let authorities = self.client_cas.iter().map(Vec::as_slice);
        let all: Vec<_> = [&*self.certificate, &*self.key]
            .into_iter()
            .chain(authorities)
            .collect();
        Fingerprint::of(&all)
    }

    pub(super) fn authorities_fingerprint(&self) -> Fingerprint {
        let authorities: Vec<_> = self.client_cas.iter().map(Vec::as_slice).collect();
        Fingerprint::of(&authorities)
    }

    /// The server's certificate and those of its issuers; at least one.
    pub(super) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(&self.settings.certificate, &self.certificate)
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let path = || self.settings.key.clone();
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::NoKey { path: path() },
            // An error could quote the key.
            _ => TlsError::Pem {
                path: path(),
                source: without_text(error),
            },
        })
    }

    /// The authorities of clients' certificates. None where there are none.
    pub(super) fn authorities(&self) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        let mut roots = RootCertStore::empty();
        for (path, pem) in self.settings.client_cas.iter().zip(&self.client_cas) {
            for certificate in certificates(path, pem)? {
                roots
                    .add(certificate)
                    .map_err(|source| TlsError::Authority {
                        path: path.clone(),
                        source,
                    })?;
            }
        }
        Ok((!roots.is_empty()).then(|| Arc::new(roots)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        let path = path.to_owned();
        return Err(TlsError::TooLarge { path });
    }
    Ok(bytes)
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let path = path.to_owned();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::NoCertificate { path }),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::Pem {
            path,
            source: without_text(error),
        }),
    }
}

/// The same error without the lines of the file that it quotes.
fn without_text(error: pem::Error) -> pem::Error {
    match error {
        pem::Error::IllegalSectionStart { .. } => {
            pem::Error::IllegalSectionStart { line: Vec::new() }
        }
        pem::Error::Base64Decode(_) => pem::Error::Base64Decode("invalid".to_owned()),
        other => other,
    }
}
