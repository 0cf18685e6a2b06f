//! Callers: who they are and where they are.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::upstream::Login;

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// None for an anonymous caller.
    pub user: Option<Arc<User>>,
    /// None on a unix socket.
    pub address: Option<IpAddr>,
    /// The request came through a unix socket.
    pub is_local: bool,
    /// What the caller presents to the upstream (`proxy.authorize: caller`); see
    /// [`login_for`](Self::login_for).
    pub login: Option<Arc<Login>>,
    /// The only upstream that may get the login; None is the one that the request is for.
    pub login_upstream: Option<Arc<str>>,
    /// What the token of an external token service permits; None is no limit.
    pub granted: Option<Arc<Grants>>,
}

/// A caller that has said who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// The certificate of a client, which its TLS handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// DER (RFC 5280).
    pub der: Vec<u8>,
}

/// What a token permits (distribution's "Token Authentication Implementation", claim `access`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants(Vec<Grant>);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

impl Grants {
    pub(super) fn new(grants: Vec<Grant>) -> Self {
        Self(grants)
    }

    fn permit(&self, kind: &str, name: &str, action: &str) -> bool {
        let mut grants = self.0.iter();
        grants.any(|grant| {
            let mut actions = grant.actions.iter();
            grant.kind == kind
                && grant.name == name
                && actions.any(|granted| granted == action || granted == "*")
        })
    }
}

impl Caller {
    pub const fn anonymous(address: Option<IpAddr>) -> Self {
        Self {
            user: None,
            address,
            is_local: false,
            login: None,
            login_upstream: None,
            granted: None,
        }
    }

    /// Whether nobody vouches for the caller: neither a user nor a token that permits something.
    pub fn is_anonymous(&self) -> bool {
        self.user.is_none() && self.granted.is_none()
    }

    /// What the caller presents to an upstream. A login within a token was for one upstream, and goes
    /// to no other.
    pub fn login_for(&self, upstream: &str) -> Option<&Arc<Login>> {
        let login = self.login.as_ref();
        login.filter(|_| {
            self.login_upstream
                .as_deref()
                .is_none_or(|only| only == upstream)
        })
    }

    /// Whether the caller's token permits an action (`pull`, `push`, `delete`) on a repository, by its
    /// name with the upstream's before it, where that isn't the default one. Without an external token service, every token does.
    pub fn grants(&self, repository: &str, action: &str) -> bool {
        let granted = self.granted.as_ref();
        granted.is_none_or(|granted| granted.permit("repository", repository, action))
    }

    /// The same for the catalog.
    pub fn grants_catalog(&self) -> bool {
        let granted = self.granted.as_ref();
        granted.is_none_or(|granted| granted.permit("registry", "catalog", "*"))
    }
}
