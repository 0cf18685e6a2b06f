//! Who sends a request: from what the client presented ([`Presented`]) to a [`Caller`]. What a caller
//! may do is decided by [`access`](crate::access).
//!
//! The header is parsed (`authorization`), and its credentials are verified: passwords by `htpasswd`,
//! slowed down by `throttle`; our own tokens by `seal`; those of an external token service by
//! `external`, and identity tokens by `oidc` (both over `jwt`). Without credentials, a client
//! certificate (`certificates`) or the address (`origin`) may say who it is.
//!
//! Docker, podman and skopeo choose between Basic and Bearer by the answer to `GET /v2/` alone, and an
//! anonymous docker daemon can't use a mirror that asks for Basic there. So the challenge is Bearer
//! with the built-in token service, which gives anonymous callers a token, too. A token says who the
//! caller is; what it may do is decided at each request.
//!
//! What must never happen: a password or a token in a log, an error or a metric; a caller that is
//! taken for another one; a password for an upstream that is sent to another one.

mod authorization;
mod caller;
mod certificates;
mod error;
mod external;
mod failures;
mod files;
mod htpasswd;
mod jwt;
mod oidc;
mod origin;
mod renewals;
mod seal;
mod service;
mod throttle;
mod upstream_logins;
mod users;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::spawn_blocking;

pub use caller::{Caller, Certificate, Grants, User};
pub use error::{AuthError, AuthSetupError};
pub use failures::{AuthFailure, AuthFailureLog};
pub use jwt::JwtError;
pub use service::{MAX_FORM, TokenRequest};
pub use upstream_logins::{Counted, UpstreamLogins};

use crate::clock::Clock;
use crate::config;
use crate::metrics::Metrics;
use crate::renewal::Renewable;
use authorization::Authorization;
use origin::Origins;
use users::Users;

/// What a path shows unescaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// What a client presented of itself with a request.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    pub headers: &'a HeaderMap,
    /// The address of the connection; none for a unix socket.
    pub address: Option<IpAddr>,
    /// The certificate that the client proved to own in the TLS handshake.
    pub certificate: Option<&'a Arc<Certificate>>,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// The host in the request's target, for requests without a Host header.
    pub authority: Option<&'a str>,
}

/// What identifying callers depends on.
#[derive(Debug)]
pub struct AuthenticatorOptions {
    pub config: config::Auth,
    /// Scheme and host at which clients reach the server, without a slash at the end, if configured.
    pub origin: Option<String>,
    /// Path before `/v2/` and `/token`.
    pub prefix: String,
    pub trusted_proxies: Vec<IpNet>,
    /// Where the key of tokens is kept; without it and without a configured key, tokens end with the
    /// process.
    pub key: Option<PathBuf>,
    /// Where credentials that aren't known here may be a caller's account at an upstream: asks it.
    pub logins: Option<Arc<dyn UpstreamLogins>>,
    /// Is told of failed authentications.
    pub failures: Arc<dyn AuthFailureLog>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
}

/// Tells who sends a request.
#[derive(Debug, Default)]
pub struct Authenticator {
    origins: Origins,
    prefix: String,
    /// None where nobody needs credentials: then Authorization headers are ignored.
    users: Option<Arc<Users>>,
    renewals: Vec<Arc<dyn Renewable>>,
}

/// What the caller lacks, for the challenge.
#[derive(Debug, Clone, Copy)]
pub struct Lacking<'a> {
    /// The name of the upstream.
    pub upstream: &'a str,
    /// The repository as the client wrote it, if the request is for one.
    pub repository: Option<&'a str>,
    /// What the client wants to do there, as a scope names it: `pull`, `pull,push` or `delete`.
    pub actions: &'a str,
    pub error: &'a AuthError,
}

impl Authenticator {
    /// Reads the files of passwords and keys.
    pub async fn open(options: AuthenticatorOptions) -> Result<Self, AuthSetupError> {
        let origins = Origins {
            configured: options.origin.clone(),
            trusted: options.trusted_proxies.clone(),
        };
        let prefix = options.prefix.clone();
        let (users, renewals) = if options.config.is_configured() || options.logins.is_some() {
            let opened = spawn_blocking(move || renewals::open(options)).await;
            let (users, renewals) = opened.map_err(|_panicked| AuthSetupError::Random)??;
            (Some(users), renewals)
        } else {
            (None, Vec::new())
        };
        Ok(Self {
            origins,
            prefix,
            users,
            renewals,
        })
    }

    /// What is read again when its files change. The file of passwords is looked at when one comes.
    pub fn renewals(&self) -> &[Arc<dyn Renewable>] {
        &self.renewals
    }

    /// Whether credentials that aren't known here may be a caller's account at an upstream.
    pub fn takes_logins(&self) -> bool {
        self.users
            .as_ref()
            .is_some_and(|users| users.takes_logins())
    }

    /// The address of the caller: the connection's, unless that is a trusted proxy's. None where it isn't
    /// known.
    pub fn address(&self, presented: &Presented<'_>) -> Result<Option<IpAddr>, AuthError> {
        self.origins.address(presented)
    }

    /// Finds the caller. Who presents nothing is anonymous, unless its certificate or its address
    /// says who it is.
    pub async fn identify(&self, presented: &Presented<'_>) -> Result<Caller, AuthError> {
        let address = self.origins.address(presented)?;
        match &self.users {
            None => Ok(Caller {
                is_local: presented.address.is_none(),
                ..Caller::anonymous(address)
            }),
            Some(users) => users.identify(presented, address).await,
        }
    }

    /// Whether the check for a registry, `/v2/`, shall tell a caller how to get a token. A token for
    /// an anonymous caller is enough.
    pub fn wants_token(&self, presented: &Presented<'_>, caller: &Caller) -> bool {
        let has_token = || {
            let parsed = Authorization::parse(presented.headers);
            matches!(parsed, Ok(Authorization::Bearer(_)))
        };
        self.users.is_some() && caller.is_anonymous() && caller.login.is_none() && !has_token()
    }

    /// The challenge for a caller that may do more once it says who it is: the value of
    /// `WWW-Authenticate` (RFC 9110, section 11.6.1; RFC 6750, section 3). None where nobody can.
    pub fn challenge(
        &self,
        presented: &Presented<'_>,
        lacking: &Lacking<'_>,
    ) -> Option<HeaderValue> {
        let users = self.users.as_ref()?;
        let (realm, service) = if let Some(external) = users.external() {
            (external.realm.clone(), external.service.as_str())
        } else {
            let origin = self.origins.origin(presented)?;
            let upstream = utf8_percent_encode(lacking.upstream, SEGMENT);
            let realm = format!("{origin}{}/token/{upstream}", self.prefix);
            (realm, service::SERVICE)
        };
        let scope = lacking.repository.map_or_else(String::new, |repository| {
            format!(",scope=\"repository:{repository}:{}\"", lacking.actions)
        });
        let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}");
        challenge.push_str(match lacking.error {
            AuthError::Scope => ",error=\"insufficient_scope\"",
            AuthError::Token(_) => ",error=\"invalid_token\"",
            _ => "",
        });
        challenge.try_into().ok()
    }

    /// Issues a token: the document that the client gets.
    pub async fn token(
        &self,
        presented: &Presented<'_>,
        request: &TokenRequest,
    ) -> Result<Vec<u8>, AuthError> {
        let users = self
            .users
            .as_ref()
            .filter(|users| users.external().is_none());
        let users = users.ok_or(AuthError::NoTokenService)?;
        let address = self.origins.address(presented)?;
        users.token(presented, address, request).await
    }

    /// Whether there is a token service here.
    pub fn issues_tokens(&self) -> bool {
        self.users
            .as_ref()
            .is_some_and(|users| users.external().is_none())
    }
}
