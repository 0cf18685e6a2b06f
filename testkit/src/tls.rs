//! Keys and certificates: a server's that it signs itself, and those that an authority signs.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, DnType, IsCa, KeyPair,
    date_time_ymd, generate_simple_self_signed,
};
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

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A key and its certificate, which an authority has signed; both in PEM.
pub struct Signed {
    pub certificate: String,
    pub key: String,
    /// The certificate in DER.
    pub der: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server at `127.0.0.1` and `localhost`.
    pub fn server(&self) -> Signed {
        self.server_until((4000, 1, 1))
    }

    /// The same with a certificate that expires at the beginning of a day: year, month, day.
    pub fn server_until(&self, (year, month, day): (i32, u8, u8)) -> Signed {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, month, day);
        self.sign(&params)
    }

    /// A client with this common name.
    pub fn client(&self, name: &str) -> Signed {
        self.sign(&named(name))
    }

    /// The same with a certificate that expires at the beginning of a day.
    pub fn client_until(&self, name: &str, (year, month, day): (i32, u8, u8)) -> Signed {
        let mut params = named(name);
        params.not_after = date_time_ymd(year, month, day);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
