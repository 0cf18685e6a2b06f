//! Callers: who they are and where they are.

use std::net::IpAddr;
use std::sync::Arc;

use crate::upstream::Login;

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// None for an anonymous caller.
    pub user: Option<Arc<User>>,
    /// None on a unix socket.
    pub address: Option<IpAddr>,
    /// What the caller presents to the upstream (`proxy.authorize: caller`).
    pub login: Option<Arc<Login>>,
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

impl Caller {
    pub const fn anonymous(address: Option<IpAddr>) -> Self {
        Self {
            user: None,
            address,
            login: None,
        }
    }
}
