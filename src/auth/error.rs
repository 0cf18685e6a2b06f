//! Why a caller isn't accepted.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use super::jwt::JwtError;
use crate::metrics::RefusedCaller;
use crate::oci::{Classified, ErrorKind};

/// No variant shows a credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    #[error("the request needs credentials, and those it has aren't valid")]
    Refused,
    #[error("credentials are needed")]
    Needed,
    #[error("the token isn't accepted: {0}")]
    Token(#[from] JwtError),
    #[error("the token doesn't permit this")]
    Scope,
    #[error("{0}")]
    Malformed(&'static str),
    /// After wrong passwords.
    #[error("too many wrong passwords; try again later")]
    Throttled(Duration),
    #[error("too many passwords wait to be verified; try again later")]
    Busy,
    /// The built-in token service is off.
    #[error("there is no token service here")]
    NoTokenService,
    #[error("the issuer of the token can't be asked for its keys")]
    Issuer,
    #[error("the upstream can't be asked about the login; the log says why")]
    Upstream,
    #[error("a token can't be made")]
    Unsealed,
}

impl AuthError {
    /// What the metrics say of it; none where the caller isn't the reason.
    pub fn counted_as(&self) -> Option<RefusedCaller> {
        Some(match self {
            Self::Refused | Self::Token(_) => RefusedCaller::Wrong,
            Self::Needed => RefusedCaller::Needed,
            Self::Scope => RefusedCaller::Scope,
            Self::Malformed(_) => RefusedCaller::Malformed,
            Self::Throttled(_) => RefusedCaller::Throttled,
            Self::Busy | Self::Issuer | Self::Upstream => RefusedCaller::Unavailable,
            Self::NoTokenService | Self::Unsealed => return None,
        })
    }
}

impl Classified for AuthError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused | Self::Needed | Self::Token(_) | Self::Scope => ErrorKind::Unauthorized,
            Self::Malformed(_) => ErrorKind::BadRequest,
            Self::Throttled(_) => ErrorKind::RateLimited,
            Self::Busy => ErrorKind::Busy,
            Self::NoTokenService => ErrorKind::NoSuchPath,
            Self::Issuer | Self::Upstream => ErrorKind::Unreachable,
            Self::Unsealed => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled(after) => Some(*after),
            Self::Busy => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Why callers can't be identified at all: the server doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum AuthSetupError {
    #[error("{path} can't be read: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the key {path} can't be stored: {source}")]
    WriteKey {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the key in {0} has fewer than 32 bytes")]
    ShortKey(PathBuf),
    #[error("the system has no randomness")]
    Random,
    #[error("{0} holds no usable certificate")]
    Certificates(PathBuf),
    #[error("{path} is not a set of public keys (RFC 7517): {source}")]
    Keys {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the issuer {issuer} can't be asked: {source}")]
    Issuer {
        issuer: String,
        source: crate::upstream::SetupError,
    },
}
