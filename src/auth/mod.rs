//! Who sends a request: from what the client presented ([`Presented`]) to a [`Caller`]. What a caller
//! may do is decided by [`access`](crate::access).
//!
//! What must never happen: a password or a token in a log, an error or a metric; a caller that is
//! taken for another one.

mod caller;
mod error;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};

pub use caller::{Caller, Certificate, User};
pub use error::AuthError;

/// What a client presented of itself with a request.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    pub headers: &'a HeaderMap,
    /// The address of the connection; none for a unix socket.
    pub address: Option<IpAddr>,
    /// The certificate that the client proved to own in the TLS handshake.
    pub certificate: Option<&'a Arc<Certificate>>,
}

/// Tells who sends a request.
#[derive(Debug, Default)]
pub struct Authenticator {}

impl Authenticator {
    /// Finds the caller. Who presents nothing is anonymous.
    #[expect(
        clippy::unused_async,
        reason = "passwords are verified on the blocking pool"
    )]
    pub async fn identify(&self, presented: &Presented<'_>) -> Result<Caller, AuthError> {
        Ok(Caller::anonymous(presented.address))
    }

    /// The challenge for a caller that may do more once it says who it is: the value of
    /// `WWW-Authenticate` (RFC 9110, section 11.6.1). None where nobody can.
    pub fn challenge(&self) -> Option<HeaderValue> {
        None
    }
}
