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

use super::credentials::Auth;
use super::error::SetupError;
use super::{Login, Upstream};

/// Accounts of one upstream that are remembered; the least used go first.
const MAX_ACCOUNTS: usize = 4096;

/// Identifies an account at one upstream for as long as the process runs: a keyed hash of the login,
/// from which the login can't be found out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountId([u8; 32]);

impl AccountId {
    /// The account of callers that present no login.
    pub const ANONYMOUS: Self = Self([0; 32]);
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountId")
    }
}

pub(super) struct Accounts {
    /// Random.
    key: hmac::Key,
    known: Cache<AccountId, Arc<Upstream>>,
}

impl Accounts {
    pub(super) fn new() -> Result<Self, SetupError> {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        Ok(Self {
            key: key.map_err(|_unspecified| SetupError::Random)?,
            known: Cache::new(MAX_ACCOUNTS),
        })
    }

    fn id(&self, login: &Login) -> AccountId {
        let tag = hmac::sign(&self.key, login.header().as_bytes());
        let hash = tag.as_ref().try_into();
        // HMAC-SHA256 has 32 bytes (RFC 4868).
        AccountId(hash.unwrap_or(AccountId::ANONYMOUS.0))
    }
}

impl Upstream {
    /// The account that requests are sent with, where that is the caller's own. None where all callers
    /// share the mirror's account.
    pub fn account(&self) -> Option<AccountId> {
        self.account
    }

    /// This upstream for a caller with a login. Where all callers share the mirror's account, and for
    /// callers without a login, that is this one.
    pub fn with_login(self: &Arc<Self>, login: Option<&Arc<Login>>) -> Arc<Self> {
        let (Some(accounts), Some(login)) = (&self.accounts, login) else {
            return Arc::clone(self);
        };
        let id = accounts.id(login);
        let make = || {
            Ok(Arc::new(Self {
                config: Arc::clone(&self.config),
                transport: Arc::clone(&self.transport),
                auth: Auth::of_account(Some(login)),
                multi_range: Arc::clone(&self.multi_range),
                account: Some(id),
                accounts: None,
            }))
        };
        let Ok::<_, Infallible>(upstream) = accounts.known.get_or_insert_with(&id, make);
        upstream
    }

    /// The id of the account of a login. None where all callers share the mirror's account.
    pub fn account_of(&self, login: Option<&Arc<Login>>) -> Option<AccountId> {
        match (&self.accounts, login) {
            (Some(accounts), Some(login)) => Some(accounts.id(login)),
            _ => self.account,
        }
    }
}
