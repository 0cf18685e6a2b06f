//! The certificates of clients: which of them a handshake accepts, and which are verified.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    DistinguishedName, Error, HandshakeKind, RootCertStore, ServerConnection,
};

use super::error::TlsError;
use super::signatures::signature_methods;
use crate::config::ClientAuth;

/// How the certificates of clients are verified.
#[derive(Debug)]
pub(super) struct ClientCertificates {
    /// A certificate that isn't valid ends the handshake.
    is_strict: bool,
    /// Knows the authorities; none without them.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// What the handshake asks.
    in_handshake: Arc<dyn ClientCertVerifier>,
}

impl ClientCertificates {
    /// None where clients aren't asked for certificates.
    pub(super) fn new(
        mode: ClientAuth,
        authorities: Option<Arc<RootCertStore>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Self>, TlsError> {
        let verifier = |roots| {
            let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            let builder = match mode {
                ClientAuth::VerifyIfGiven => builder.allow_unauthenticated(),
                _ => builder,
            };
            let built = builder.build();
            built.map_err(|error| Error::General(error.to_string()))
        };
        let verifier = authorities.map(verifier).transpose()?;
        let any = |is_mandatory| -> Arc<dyn ClientCertVerifier> {
            Arc::new(AnyCertificate {
                is_mandatory,
                algorithms: provider.signature_verification_algorithms,
            })
        };
        let (is_strict, in_handshake) = match (mode, &verifier) {
            (ClientAuth::None, _) => return Ok(None),
            (ClientAuth::Request, _) => (false, any(false)),
            (ClientAuth::RequireAny, _) => (false, any(true)),
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, Some(verifier)) => {
                (true, Arc::clone(verifier))
            }
            // The configuration refuses it.
            (ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify, None) => {
                return Err(Error::NoCertificatesPresented.into());
            }
        };
        Ok(Some(Self {
            is_strict,
            verifier,
            in_handshake,
        }))
    }

    pub(super) fn in_handshake(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.in_handshake)
    }

    /// The client's certificate, if it is verified. An error where a client without a valid one isn't
    /// accepted.
    ///
    /// A resumed session has the certificate of the handshake that began it, which may have expired
    /// since, or lost its authority: it is verified again.
    pub(super) fn verified(
        &self,
        connection: &ServerConnection,
        now: UnixTime,
    ) -> Result<Option<CertificateDer<'static>>, Error> {
        let shown = connection.peer_certificates();
        let Some((leaf, issuers)) = shown.and_then(<[_]>::split_first) else {
            // The handshake demands one where that is the mode.
            return Ok(None);
        };
        let Some(verifier) = &self.verifier else {
            return Ok(None);
        };
        let was_verified =
            self.is_strict && connection.handshake_kind() != Some(HandshakeKind::Resumed);
        if !was_verified && let Err(error) = verifier.verify_client_cert(leaf, issuers, now) {
            return if self.is_strict { Err(error) } else { Ok(None) };
        }
        Ok(Some(leaf.clone()))
    }
}

/// Accepts every certificate whose key the client has: the modes `request-client-cert` and
/// `require-any-client-cert`. It proves nothing about who the client is.
#[derive(Debug)]
struct AnyCertificate {
    is_mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    signature_methods!();
}
