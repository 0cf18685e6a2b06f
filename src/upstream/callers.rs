//! The accounts of callers at one upstream (`proxy.authorize: caller`).
//!
//! Each account is an [`Upstream`] with credentials, tokens and remembered challenges of its own, over
//! the same connections. It stays in memory, so that the upstream's tokens for a login are requested
//! once and never leave the mirror.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use quick_cache::sync::Cache;

use super::error::SetupError;
use super::{Login, Upstream};

/// Accounts of one upstream that are remembered; the least used go first.
const MAX_ACCOUNTS: usize = 4096;

/// Identifies an account at one upstream for as long as the process runs: a keyed hash of the login,
/// from which the login can't be found out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerId([u8; 32]);

impl CallerId {
    /// The account of callers that present no login.
    pub const ANONYMOUS: Self = Self([0; 32]);
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerId")
    }
}

pub(super) struct Callers {
    /// Random.
    key: hmac::Key,
    known: Cache<CallerId, Arc<Upstream>>,
}

impl Callers {
    pub(super) fn new() -> Result<Self, SetupError> {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        Ok(Self {
            key: key.map_err(|_unspecified| SetupError::Random)?,
            known: Cache::new(MAX_ACCOUNTS),
        })
    }

    fn id(&self, login: &Login) -> CallerId {
        let tag = hmac::sign(&self.key, login.header().as_bytes());
        let hash = tag.as_ref().try_into();
        // HMAC-SHA256 has 32 bytes (RFC 4868).
        CallerId(hash.unwrap_or(CallerId::ANONYMOUS.0))
    }
}

impl Upstream {
    /// The account that requests are sent with, where that is the caller's own. None where all callers
    /// share the mirror's account.
    pub fn caller(&self) -> Option<CallerId> {
        self.caller
    }

    /// This upstream for a caller with a login. Where all callers share the mirror's account, and for
    /// callers without a login, that is this one.
    pub fn with_login(self: &Arc<Self>, login: Option<&Arc<Login>>) -> Arc<Self> {
        let (Some(callers), Some(login)) = (&self.callers, login) else {
            return Arc::clone(self);
        };
        let id = callers.id(login);
        let make = || {
            Ok(Arc::new(Self {
                config: Arc::clone(&self.config),
                endpoints: Arc::new(self.endpoints.with_login(login, id)),
                caller: Some(id),
                callers: None,
                peers: self.peers.clone(),
            }))
        };
        let Ok::<_, Infallible>(upstream) = callers.known.get_or_insert_with(&id, make);
        upstream
    }

    /// The id of the account of a login. None where all callers share the mirror's account.
    pub fn caller_of(&self, login: Option<&Arc<Login>>) -> Option<CallerId> {
        match (&self.callers, login) {
            (Some(callers), Some(login)) => Some(callers.id(login)),
            _ => self.caller,
        }
    }
}
