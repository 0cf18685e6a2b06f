//! What the requests of an upstream are authorized with: the operator's user name and password, and
//! tokens.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use quick_cache::sync::Cache;
use secrecy::ExposeSecret as _;

use super::Login;
use super::token::{TokenRequest, Tokens};
use crate::config::Credentials;
use crate::oci::RepoName;

/// Repositories whose way of authenticating is remembered.
const MAX_REPOSITORIES: usize = 4096;
/// The same for the account of one caller.
const MAX_ACCOUNT_REPOSITORIES: usize = 64;

/// How requests for a repository are authorized.
#[derive(Clone, PartialEq)]
pub(super) enum Scheme {
    Basic(HeaderValue),
    Bearer(Arc<TokenRequest>),
}

pub(super) struct Auth {
    /// The header of Basic credentials.
    pub credentials: Option<HeaderValue>,
    pub schemes: Cache<RepoName, Scheme>,
    pub tokens: Tokens,
}

impl Auth {
    pub(super) fn new(credentials: Option<&Credentials>) -> Self {
        Self {
            credentials: credentials.and_then(header),
            schemes: Cache::new(MAX_REPOSITORIES),
            tokens: Tokens::new(),
        }
    }

    /// That of a caller: with the login's credentials, or with none.
    pub(super) fn of_account(login: Option<&Arc<Login>>) -> Self {
        Self {
            credentials: login.map(|login| login.header().clone()),
            schemes: Cache::new(MAX_ACCOUNT_REPOSITORIES),
            tokens: Tokens::of_account(),
        }
    }
}

/// The `Authorization` header (RFC 7617). Base64 always fits one.
fn header(Credentials { username, password }: &Credentials) -> Option<HeaderValue> {
    let pair = format!("{username}:{}", password.expose_secret());
    let encoded = format!("Basic {}", BASE64_STANDARD.encode(pair));
    let mut header = HeaderValue::try_from(encoded).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_rfcs_and_is_never_printed() {
        let credentials = Credentials {
            username: "Aladdin".into(),
            password: "open sesame".into(),
        };
        let sent = header(&credentials).unwrap();
        assert_eq!(sent, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        let shown = format!("{credentials:?} {sent:?}");
        assert!(
            !shown.contains("sesame") && !shown.contains("QWxh"),
            "{shown}"
        );
    }
}
