//! A TLS handshake that keeps the certificates it saw, also when they aren't trusted.
//!
//! The verdict is the one of the upstream client: both use the system's authorities as
//! `rustls-platform-verifier` reads them, and those of `ca`.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, Error, ProtocolVersion, RootCertStore, version};
use url::{Host, Url};

use crate::config::TlsVersion;
use crate::tls::signature_methods;

/// Whom a client trusts, and who it says it is.
#[derive(Default)]
pub(super) struct Trust {
    /// Authorities (PEM) besides those of the system.
    pub(super) ca: Option<Vec<u8>>,
    /// Only those.
    pub(super) ca_only: bool,
    /// The client certificate and its key (PEM).
    pub(super) identity: Option<Vec<u8>>,
    /// Everybody.
    pub(super) insecure: bool,
    pub(super) minimum: TlsVersion,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

/// What a handshake has led to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The protocol's version, or why there is no connection: a [`rustls::Error`](Error) within.
    pub(super) result: io::Result<&'static str>,
    /// The server's certificate and those of its issuers, if it has sent them.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// Makes a handshake on a new connection, and closes it.
pub(super) async fn handshake(stream: TcpStream, url: &Url, trust: &Trust) -> Outcome {
    let recorder = match Recorder::new(trust) {
        Ok(recorder) => Arc::new(recorder),
        Err(error) => {
            return Outcome {
                result: Err(io::Error::other(error)),
                chain: Vec::new(),
            };
        }
    };
    let connected = secured(stream, url, trust, Arc::clone(&recorder)).await;
    let version = |connected: TlsStream<_>| match connected.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    let result = connected.map(version);
    let chain = std::mem::take(&mut *recorder.chain.lock());
    Outcome { result, chain }
}

/// Makes a handshake on a new connection. The host of the URL is whose certificate is expected.
pub(super) async fn connect(
    stream: TcpStream,
    url: &Url,
    trust: &Trust,
) -> io::Result<TlsStream<TcpStream>> {
    let recorder = Recorder::new(trust).map_err(io::Error::other)?;
    secured(stream, url, trust, Arc::new(recorder)).await
}

async fn secured(
    stream: TcpStream,
    url: &Url,
    trust: &Trust,
    recorder: Arc<Recorder>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = match url.host() {
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()),
        Some(Host::Ipv4(address)) => Ok(ServerName::IpAddress(address.into())),
        Some(Host::Ipv6(address)) => Ok(ServerName::IpAddress(address.into())),
        None => ServerName::try_from(String::new()),
    };
    let name = name.map_err(io::Error::other)?;
    let config = config(trust, recorder).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

fn config(trust: &Trust, recorder: Arc<Recorder>) -> Result<ClientConfig, Error> {
    let versions = match trust.minimum {
        TlsVersion::Tls12 => &[&version::TLS13, &version::TLS12][..],
        TlsVersion::Tls13 => &[&version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&recorder.provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(recorder);
    let Some(identity) = &trust.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_slice(identity);
    let key = key.map_err(|_pem| Error::General("the client's key isn't valid PEM".to_owned()))?;
    builder.with_client_auth_cert(certificates(identity)?, key)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|_pem| Error::General("a file of certificates isn't valid PEM".to_owned()))
}

/// Verifies certificates like the upstream client, and keeps them.
#[derive(Debug)]
struct Recorder {
    /// None accepts every certificate.
    inner: Option<Arc<dyn ServerCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl Recorder {
    fn new(trust: &Trust) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let ca = trust.ca.as_deref().map(certificates).transpose()?;
        let (ca, own) = (ca.unwrap_or_default(), Arc::clone(&provider));
        let inner: Option<Arc<dyn ServerCertVerifier>> = if trust.insecure {
            None
        } else if trust.ca_only {
            let mut roots = RootCertStore::empty();
            for certificate in ca {
                roots.add(certificate)?;
            }
            let built = WebPkiServerVerifier::builder_with_provider(roots.into(), own).build();
            Some(built.map_err(|error| Error::General(error.to_string()))?)
        } else {
            Some(Arc::new(Verifier::new_with_extra_roots(ca, own)?))
        };
        Ok(Self {
            inner,
            algorithms: provider.signature_verification_algorithms,
            provider,
            chain: Mutex::default(),
        })
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let all = std::iter::once(end_entity).chain(intermediates);
        *self.chain.lock() = all.map(|der| der.clone().into_owned()).collect();
        match &self.inner {
            None => Ok(ServerCertVerified::assertion()),
            Some(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    signature_methods!();
}
