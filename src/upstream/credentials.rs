//! What the requests of an upstream are authorized with: one account's or the operator's accounts, the
//! ways in which repositories authenticate, and tokens.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::accounts::Accounts;
use super::login::Login;
use super::token::{TokenRequest, Tokens};
use crate::config;
use crate::oci::RepoName;

/// Repositories whose way of authenticating is remembered.
const MAX_REPOSITORIES: usize = 4096;
/// The same for the account of one caller.
const MAX_CALLER_REPOSITORIES: usize = 64;

/// How requests for a repository are authorized.
#[derive(Clone, PartialEq)]
pub(super) enum Scheme {
    /// With the account's user name and password.
    Basic,
    Bearer(Arc<TokenRequest>),
}

pub(super) struct Auth {
    pub accounts: Accounts,
    pub schemes: Cache<RepoName, Scheme>,
    pub tokens: Tokens,
}

impl Auth {
    /// With the accounts that the operator configured.
    pub(super) fn new(config: &config::Upstream) -> Self {
        Self {
            accounts: Accounts::new(config),
            schemes: Cache::new(MAX_REPOSITORIES),
            tokens: Tokens::new(),
        }
    }

    /// With the account of a caller, or with none.
    pub(super) fn of_caller(config: &config::Upstream, login: Option<&Login>) -> Self {
        Self {
            accounts: Accounts::of_caller(config, login),
            schemes: Cache::new(MAX_CALLER_REPOSITORIES),
            tokens: Tokens::of_caller(),
        }
    }
}
