//! An account at an upstream: the secret that proves who asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

/// The user name for which credential helpers give a refresh token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// Distinguishes all secrets that this process has seen: tokens are kept under the one that they were
/// obtained with, so that none outlives its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AccountId(u64);

/// An account; another secret is another account.
pub(super) struct Account {
    pub id: AccountId,
    pub secret: Secret,
}

/// The secret of an account.
#[derive(Clone)]
pub(super) enum Secret {
    /// User name and password as the `Authorization` header (RFC 7617). Sensitive.
    Basic(HeaderValue),
    /// A refresh token (RFC 6749), which Docker calls an identity token.
    Refresh(SecretString),
}

/// Why a user name and a secret make no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error("the user name contains a colon")]
    Colon,
    #[error("the password is empty")]
    Empty,
    #[error("the user name or the password contains a line break or another control character")]
    Control,
}

impl Account {
    /// An account, which keeps the identity of the one `before` it if the secret is the same.
    pub(super) fn renewed(before: Option<&Arc<Self>>, secret: Secret) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match before {
            Some(before) if before.secret == secret => Arc::clone(before),
            _ => Arc::new(Self {
                id: AccountId(NEXT.fetch_add(1, Ordering::Relaxed)),
                secret,
            }),
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Account").field(&self.id).finish()
    }
}

impl Secret {
    /// A user name and its password.
    pub(super) fn basic(username: &str, password: &str) -> Result<Self, LoginError> {
        if username.contains(':') {
            return Err(LoginError::Colon);
        }
        if username
            .chars()
            .chain(password.chars())
            .any(char::is_control)
        {
            return Err(LoginError::Control);
        }
        if password.is_empty() {
            return Err(LoginError::Empty);
        }
        let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
        // Base64 always fits a header.
        let header = HeaderValue::try_from(format!("Basic {encoded}"));
        let mut header = header.map_err(|_never| LoginError::Control)?;
        header.set_sensitive(true);
        Ok(Self::Basic(header))
    }

    /// What a credential helper gave: a user name and its password, or a refresh token.
    pub(super) fn of_helper(username: &str, secret: &str) -> Result<Self, LoginError> {
        match username {
            TOKEN_USER if secret.is_empty() => Err(LoginError::Empty),
            TOKEN_USER => Ok(Self::Refresh(secret.into())),
            username => Self::basic(username, secret),
        }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Basic(one), Self::Basic(other)) => one == other,
            (Self::Refresh(one), Self::Refresh(other)) => {
                one.expose_secret() == other.expose_secret()
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_rfcs_and_is_never_printed() {
        let secret = Secret::basic("Aladdin", "open sesame").unwrap();
        let Secret::Basic(header) = secret.clone() else {
            panic!("not Basic");
        };
        assert_eq!(header, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        let shown = format!("{header:?} {:?}", Account::renewed(None, secret));
        assert!(!shown.contains("QWx"), "{shown}");
    }

    #[test]
    fn only_another_secret_is_another_account() {
        let secret = |password| Secret::of_helper("user", password).unwrap();
        let first = Account::renewed(None, secret("one"));
        assert_eq!(Account::renewed(Some(&first), secret("one")).id, first.id);
        assert_ne!(Account::renewed(Some(&first), secret("two")).id, first.id);
        let token = Secret::of_helper("<token>", "one").unwrap();
        assert!(matches!(token, Secret::Refresh(_)) && token != secret("one"));
    }

    #[test]
    fn unusable_logins_are_refused() {
        for (username, password, error) in [
            ("a:b", "secret", LoginError::Colon),
            ("a", "", LoginError::Empty),
            ("<token>", "", LoginError::Empty),
            ("a", "secret\n", LoginError::Control),
            ("a\r", "secret", LoginError::Control),
        ] {
            let refused = Secret::of_helper(username, password).err();
            assert_eq!(refused, Some(error), "{username:?} {password:?}");
        }
    }
}
