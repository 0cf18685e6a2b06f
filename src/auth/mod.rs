//! Who sends a request: from what the client presented ([`Presented`]) to a [`Caller`]. What a caller
//! may do is decided by [`access`](crate::access).
//!
//! What must never happen: a password or a token in a log, an error or a metric; a caller that is
//! taken for another one.

mod caller;
mod error;

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::upstream::Login;

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
pub struct Authenticator {
    /// Whether an upstream is asked with the accounts of callers.
    logins: bool,
}

impl Authenticator {
    /// `logins`: whether Basic credentials are a caller's account at an upstream.
    pub const fn new(logins: bool) -> Self {
        Self { logins }
    }

    /// Finds the caller. Who presents nothing is anonymous.
    #[expect(
        clippy::unused_async,
        reason = "passwords are verified on the blocking pool"
    )]
    pub async fn identify(&self, presented: &Presented<'_>) -> Result<Caller, AuthError> {
        Ok(Caller {
            login: self.login(presented.headers),
            ..Caller::anonymous(presented.address)
        })
    }

    /// The caller's account at an upstream: its Basic credentials (RFC 7617). An empty user is anonymous.
    fn login(&self, headers: &HeaderMap) -> Option<Arc<Login>> {
        let header = headers.get(AUTHORIZATION).filter(|_| self.logins)?;
        let (scheme, encoded) = header.to_str().ok()?.split_once(' ')?;
        let pair = BASE64_STANDARD.decode(encoded.trim()).ok()?;
        let named = pair.contains(&b':') && pair.first() != Some(&b':');
        if !scheme.eq_ignore_ascii_case("basic") || !named {
            return None;
        }
        // One login has one form, whatever the client's spelling.
        let header = format!("Basic {}", BASE64_STANDARD.encode(pair));
        Some(Arc::new(Login::new(header.try_into().ok()?)))
    }

    /// The challenge beside an upstream's refusal, where a login could satisfy the upstream.
    pub fn login_challenge(&self) -> Option<HeaderValue> {
        let challenge = HeaderValue::from_static("Basic realm=\"millpond\"");
        self.logins.then_some(challenge)
    }

    /// The challenge for a caller that may do more once it says who it is: the value of
    /// `WWW-Authenticate` (RFC 9110, section 11.6.1). None where nobody can.
    pub fn challenge(&self) -> Option<HeaderValue> {
        None
    }
}
