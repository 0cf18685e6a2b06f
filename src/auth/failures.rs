//! Authentications that failed, for whoever logs them.

use std::fmt::Debug;
use std::net::IpAddr;

use super::authorization::Basic;
use super::error::AuthError;
use super::jwt::JwtError;

/// A failed authentication. Never with a password or a token.
#[derive(Debug, Clone, Copy)]
pub struct AuthFailure<'a> {
    /// The name that the client gave. None with a token, and where the password is empty: such a name
    /// may be a secret.
    pub user: Option<&'a str>,
    pub address: Option<IpAddr>,
    pub reason: &'static str,
}

/// Is told of failed authentications.
pub trait AuthFailureLog: Debug + Send + Sync {
    fn failed(&self, failure: &AuthFailure<'_>);
}

/// The name to log.
pub(super) fn shown_user(basic: &Basic) -> Option<&str> {
    (!basic.password().is_empty()).then_some(&*basic.user)
}

/// Why, for errors that mean a failed authentication. Not for a token that has expired: clients present
/// theirs once more as a rule, and get a new one.
pub(super) fn reason(error: &AuthError) -> Option<&'static str> {
    match error {
        AuthError::Throttled(_) => Some("throttled after wrong passwords"),
        AuthError::Refused => Some("wrong password or token"),
        AuthError::Token(error) if *error != JwtError::Expired => Some("wrong token"),
        AuthError::Token(_)
        | AuthError::Needed
        | AuthError::Scope
        | AuthError::Malformed(_)
        | AuthError::Busy
        | AuthError::NoTokenService
        | AuthError::Issuer
        | AuthError::Upstream
        | AuthError::Unsealed => None,
    }
}
