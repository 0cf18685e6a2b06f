//! The accounts of one upstream: which credentials a repository's requests go out with, and how they
//! are renewed.
//!
//! Files are read again every few seconds while they are used; a helper's credentials are kept for
//! its lifetime. What the upstream refuses is renewed at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::account::{Account, AccountId, Secret};
use super::credential_error::CredentialError;
use super::docker_config::Server;
use super::helper;
use super::login::Login;
use super::secret_files::{DockerFile, Entry, LoginFiles};
use crate::config::{self, Credentials};
use crate::oci::{Pattern, RepoName};

/// How long the credentials of a Docker configuration's helper are used; Docker runs it each time.
const DOCKER_LIFETIME: Duration = Duration::from_mins(5);
/// The shortest lifetime: requests that come at the same time run a helper once.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// A helper that has failed, or whose renewed credentials are those that were refused, is not run again
/// for this long.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// The accounts of one upstream.
pub(super) struct Accounts {
    server: Server,
    /// The first one that matches counts.
    of_repositories: Vec<(Vec<Pattern>, Source)>,
    /// For all other repositories.
    general: Option<Source>,
}

/// Where an account comes from.
enum Source {
    Fixed(Result<Arc<Account>, CredentialError>),
    Files(LoginFiles),
    Docker(DockerFile, Mutex<HashMap<String, Arc<Helper>>>),
    Helper(Helper),
}

impl Accounts {
    pub(super) fn new(upstream: &config::Upstream) -> Self {
        let of_repositories = upstream.repository_credentials.iter();
        let of_repositories = of_repositories.map(|item| {
            let source = Source::new(&item.credentials);
            (item.repositories.clone(), source)
        });
        Self {
            server: Server::of(upstream),
            of_repositories: of_repositories.collect(),
            general: upstream.credentials.as_ref().map(Source::new),
        }
    }

    /// One account for all repositories.
    pub(super) fn further(upstream: &config::Upstream, account: &Credentials) -> Self {
        Self {
            server: Server::of(upstream),
            of_repositories: Vec::new(),
            general: Some(Source::new(account)),
        }
    }

    /// The account of a caller for all repositories, or none.
    pub(super) fn of_caller(upstream: &config::Upstream, login: Option<&Login>) -> Self {
        let account = |login: &Login| {
            let secret = Secret::Basic(login.header().clone());
            Source::Fixed(Ok(Account::renewed(None, secret)))
        };
        Self {
            server: Server::of(upstream),
            of_repositories: Vec::new(),
            general: login.map(account),
        }
    }

    /// The position of a repository's account: 0 is the one for all other repositories.
    pub(super) fn position(&self, repo: &RepoName) -> usize {
        let mut special = self.of_repositories.iter();
        let special = special.position(|(patterns, _)| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| pattern.matches(repo.as_str()))
        });
        special.map_or(0, |index| index + 1)
    }

    fn source(&self, repo: &RepoName) -> Option<&Source> {
        match self.position(repo).checked_sub(1) {
            None => self.general.as_ref(),
            Some(index) => self.of_repositories.get(index).map(|(_, source)| source),
        }
    }

    /// Whether credentials are configured for a repository.
    pub(super) fn has(&self, repo: &RepoName) -> bool {
        self.source(repo).is_some()
    }

    /// The account that was last used for a repository if it comes from a helper, and its lifetime isn't
    /// over, or `even_if_over`; none in all other cases.
    pub(super) async fn kept(&self, repo: &RepoName, even_if_over: bool) -> Option<AccountId> {
        match self.source(repo)? {
            Source::Fixed(_) | Source::Files(_) => None,
            source => Box::pin(source.kept(&self.server, repo, even_if_over)).await,
        }
    }

    /// The account for a repository, if one is configured; renewed if it is the `rejected` one.
    pub(super) async fn get(
        &self,
        repo: &RepoName,
        rejected: Option<AccountId>,
    ) -> Result<Option<Arc<Account>>, CredentialError> {
        match self.source(repo) {
            None => Ok(None),
            Some(Source::Fixed(account)) => account.clone().map(Some),
            // On the heap: all other requests have no room for it.
            Some(source) => Box::pin(source.get(&self.server, repo, rejected))
                .await
                .map(Some),
        }
    }
}

impl Source {
    fn new(credentials: &Credentials) -> Self {
        match credentials.clone() {
            Credentials::Fixed { username, password } => {
                let secret = Secret::basic(&username, password.expose_secret());
                let account = secret.map(|secret| Account::renewed(None, secret));
                Self::Fixed(account.map_err(CredentialError::from))
            }
            Credentials::Files { username, password } => {
                Self::Files(LoginFiles::new(username, password))
            }
            Credentials::DockerConfig(path) => {
                Self::Docker(DockerFile::new(path), Mutex::default())
            }
            Credentials::Helper(helper) => Self::Helper(Helper::new(helper)),
        }
    }

    async fn get(
        &self,
        server: &Server,
        repo: &RepoName,
        rejected: Option<AccountId>,
    ) -> Result<Arc<Account>, CredentialError> {
        match self {
            Self::Fixed(account) => account.clone(),
            Self::Files(files) => files.get(rejected).await,
            Self::Helper(helper) => helper.get(server, rejected).await,
            Self::Docker(file, helpers) => match file.get(server, repo.as_str(), rejected).await? {
                Entry::Account(account) => Ok(account),
                Entry::Helper(program) => named(helpers, program).get(server, rejected).await,
            },
        }
    }

    /// What a helper last gave.
    async fn kept(
        &self,
        server: &Server,
        repo: &RepoName,
        even_if_over: bool,
    ) -> Option<AccountId> {
        let account = match self {
            Self::Fixed(_) | Self::Files(_) => None,
            Self::Helper(helper) => helper.kept(even_if_over),
            Self::Docker(file, helpers) => match file.get(server, repo.as_str(), None).await {
                Ok(Entry::Helper(program)) => named(helpers, program).kept(even_if_over),
                _ => None,
            },
        };
        account.map(|account| account.id)
    }
}

/// The helper of a Docker configuration that is this program. There are as many as the file has named.
fn named(helpers: &Mutex<HashMap<String, Arc<Helper>>>, program: String) -> Arc<Helper> {
    let mut helpers = helpers.lock();
    let helper = helpers.entry(program).or_insert_with_key(|program| {
        Arc::new(Helper::new(config::Helper {
            command: program.clone(),
            lifetime: Some(DOCKER_LIFETIME),
        }))
    });
    Arc::clone(helper)
}

/// A helper, and what it gave.
struct Helper {
    config: config::Helper,
    state: Mutex<State>,
    /// Held by whoever runs it: the others wait and get the result.
    running: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// With the time at which it was given.
    account: Option<(Arc<Account>, Instant)>,
    /// Why it gave none when it last ran.
    failed: Option<(CredentialError, Instant)>,
    /// When it last gave the very account that had been rejected.
    in_vain: Option<Instant>,
}

impl State {
    /// What needs no run.
    fn current(
        &self,
        lifetime: Option<Duration>,
        rejected: Option<AccountId>,
    ) -> Option<Result<Arc<Account>, CredentialError>> {
        let is_recent = |at: &Instant| at.elapsed() < PAUSE;
        let kept = self.kept(lifetime).filter(|account| {
            Some(account.id) != rejected || self.in_vain.as_ref().is_some_and(is_recent)
        });
        // A failure says nothing about an account that is still good.
        kept.map(|account| Ok(Arc::clone(account))).or_else(|| {
            let (error, at) = self.failed.as_ref()?;
            is_recent(at).then(|| Err(error.clone()))
        })
    }

    /// What a helper gave, unless its lifetime is over.
    fn kept(&self, lifetime: Option<Duration>) -> Option<&Arc<Account>> {
        let (account, given_at) = self.account.as_ref()?;
        let is_over = lifetime.is_some_and(|lifetime| given_at.elapsed() >= lifetime);
        (!is_over).then_some(account)
    }
}

impl Helper {
    fn new(config: config::Helper) -> Self {
        Self {
            config: config::Helper {
                lifetime: config.lifetime.map(|lifetime| lifetime.max(MIN_LIFETIME)),
                ..config
            },
            state: Mutex::default(),
            running: tokio::sync::Mutex::default(),
        }
    }

    fn kept(&self, even_if_over: bool) -> Option<Arc<Account>> {
        let lifetime = self.config.lifetime.filter(|_| !even_if_over);
        self.state.lock().kept(lifetime).cloned()
    }

    async fn get(
        &self,
        server: &Server,
        rejected: Option<AccountId>,
    ) -> Result<Arc<Account>, CredentialError> {
        let current = || self.state.lock().current(self.config.lifetime, rejected);
        if let Some(current) = current() {
            return current;
        }
        let _running = self.running.lock().await;
        if let Some(current) = current() {
            return current;
        }
        let given = helper::get(&self.config.command, &server.key).await;
        let now = Instant::now();
        let mut state = self.state.lock();
        match given {
            Ok(secret) => {
                let before = state.account.as_ref().map(|(account, _)| account);
                let account = Account::renewed(before, secret);
                state.in_vain = (Some(account.id) == rejected).then_some(now);
                state.account = Some((Arc::clone(&account), now));
                state.failed = None;
                Ok(account)
            }
            Err(error) => {
                let error = CredentialError::Helper {
                    command: self.config.command.clone(),
                    server: server.key.clone(),
                    error,
                };
                state.failed = Some((error.clone(), now));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_takes_no_good_account_away() {
        let account = Account::renewed(None, Secret::basic("user", "one").unwrap());
        let now = Instant::now();
        let state = State {
            account: Some((Arc::clone(&account), now)),
            failed: Some((CredentialError::Exposed, now)),
            in_vain: None,
        };
        let lifetime = Some(Duration::from_mins(1));
        let is_account = |current: Option<Result<Arc<Account>, _>>| {
            current.map(|current| current.is_ok_and(|found| found.id == account.id))
        };
        assert_eq!(is_account(state.current(lifetime, None)), Some(true));
        // Where it is refused or its lifetime is over, the failure counts, and later the helper runs.
        let rejected = Some(account.id);
        assert_eq!(is_account(state.current(lifetime, rejected)), Some(false));
        tokio::time::advance(PAUSE).await;
        assert_eq!(is_account(state.current(lifetime, rejected)), None);
        assert_eq!(is_account(state.current(Some(PAUSE), None)), None);
    }
}
