//! What the requests of an upstream are authorized with: one account's or the operator's accounts, the
//! ways in which repositories authenticate, and tokens.

use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::accounts::Accounts;
use super::limits::Limits;
use super::login::Login;
use super::token::{TokenRequest, Tokens};
use crate::config::{self, Credentials, Reserve};
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

/// One account for most repositories, and those for others.
pub(super) struct Auth {
    pub accounts: Accounts,
    /// By the position of an account among [`accounts`](Self::accounts).
    limits: Vec<Limits>,
    pub schemes: Cache<RepoName, Scheme>,
    pub tokens: Tokens,
}

impl Auth {
    /// With the accounts that the operator configured. `limits` gives the limits of an account with a
    /// name.
    pub(super) fn new(config: &config::Upstream, limits: &dyn Fn(String) -> Limits) -> Self {
        let of_repositories = config.repository_credentials.iter().zip(1..);
        let of_repositories = of_repositories.map(|(item, number)| {
            let other = || format!("repositories {number}");
            name(&item.credentials).unwrap_or_else(other)
        });
        let general = config.credentials.as_ref();
        let general = general.map_or_else(
            || "anonymous".to_owned(),
            |general| name(general).unwrap_or_else(|| "account 1".to_owned()),
        );
        let names = std::iter::once(general).chain(of_repositories);
        Self::with(Accounts::new(config), names.map(limits).collect())
    }

    /// With another account for the repositories without credentials of their own, the `number`th.
    pub(super) fn further(
        config: &config::Upstream,
        account: &Credentials,
        number: usize,
        limits: &dyn Fn(String) -> Limits,
    ) -> Self {
        let name = name(account).unwrap_or_else(|| format!("account {number}"));
        Self::with(Accounts::further(config, account), vec![limits(name)])
    }

    fn with(accounts: Accounts, limits: Vec<Limits>) -> Self {
        Self {
            accounts,
            limits,
            schemes: Cache::new(MAX_REPOSITORIES),
            tokens: Tokens::new(),
        }
    }

    /// With the account of a caller, or with none.
    pub(super) fn of_caller(
        config: &config::Upstream,
        login: Option<&Login>,
        reserve: Reserve,
    ) -> Self {
        let limits = Limits::new(&config.name, "a caller's".to_owned(), reserve, None);
        Self {
            accounts: Accounts::of_caller(config, login),
            limits: vec![limits],
            schemes: Cache::new(MAX_CALLER_REPOSITORIES),
            tokens: Tokens::of_caller(),
        }
    }

    /// The limits of the account of a repository.
    pub(super) fn limits(&self, repo: &RepoName) -> &Limits {
        let limits = self.limits.get(self.accounts.position(repo));
        limits.unwrap_or_else(|| self.general_limits())
    }

    #[expect(clippy::indexing_slicing, reason = "there is always one")]
    pub(super) fn general_limits(&self) -> &Limits {
        &self.limits[0]
    }

    /// See [`Budget::stretch`](super::budget::Budget::stretch).
    pub(super) fn stretch(&self, now: Instant) -> u32 {
        self.general_limits().budget.stretch(now)
    }

    pub(super) fn all_limits(&self) -> &[Limits] {
        &self.limits
    }
}

/// What an account is called where that needs no file to be read.
fn name(credentials: &Credentials) -> Option<String> {
    match credentials {
        Credentials::Fixed { username, .. } => Some(username.clone()),
        Credentials::Files { .. } | Credentials::DockerConfig(_) | Credentials::Helper(_) => None,
    }
}
