//! A server's key and its self-signed certificate.

use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

pub struct Identity(CertifiedKey<KeyPair>);

impl Identity {
    /// A new identity of `127.0.0.1`.
    pub fn new() -> Self {
        Self(generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap())
    }

    /// The certificate, to be trusted by a client.
    pub fn pem(&self) -> Vec<u8> {
        self.0.cert.pem().into_bytes()
    }

    /// The certificate and its key, to be shown by a client.
    pub fn pem_with_key(&self) -> Vec<u8> {
        let key = self.0.signing_key.serialize_pem().into_bytes();
        [self.pem(), key].concat()
    }

    /// A server that demands the certificate of `client`, if one is given.
    pub(crate) fn acceptor(
        &self,
        client: Option<&Self>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsAcceptor {
        let key = PrivateKeyDer::try_from(self.0.signing_key.serialize_der()).unwrap();
        let verifier = match client {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(client.0.cert.der().clone()).unwrap();
                WebPkiClientVerifier::builder(Arc::new(roots))
                    .build()
                    .unwrap()
            }
        };
        let config = ServerConfig::builder_with_protocol_versions(versions)
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.0.cert.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}
