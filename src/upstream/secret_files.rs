//! Credentials that are in files, which are read again when they may have changed.
//!
//! A file that has become unreadable or wrong, for example in the middle of being written, doesn't
//! invalidate what it said before: that is used on.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind::NotFound;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::account::{Account, AccountId, Secret};
use super::credential_error::CredentialError;
use super::docker_config::{DockerConfig, Found, Server};
use crate::config::{Upstream, Written};
use crate::error_chain::on_one_line;
use crate::oci::RepoName;

/// Files are read again this long after they were last read, when their content is needed.
pub(super) const REREAD: Duration = Duration::from_secs(10);
/// The same, when they could not be used.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// The largest file of a user name or password, in bytes.
const MAX_SECRET: u64 = 64 * 1024;
/// The largest Docker configuration, in bytes.
const MAX_DOCKER_CONFIG: u64 = 1024 * 1024;

/// What a reader makes of files, and when that was.
struct Kept<T> {
    read_at: Instant,
    /// The last usable value.
    value: Option<T>,
    /// Why the files gave nothing when they were last read.
    error: Option<CredentialError>,
}

/// A value that is read from files. The mutex is held while they are read: whoever needs the value
/// waits for it.
struct Reread<T>(Mutex<Option<Kept<T>>>);

impl<T: Clone> Kept<T> {
    /// The value or the error, unless it is time to read again.
    fn current(&self, is_stale: impl FnOnce(&T) -> bool) -> Option<Result<T, CredentialError>> {
        let limit = if self.error.is_some() { RETRY } else { REREAD };
        if self.read_at.elapsed() >= limit {
            return None;
        }
        match (&self.value, &self.error) {
            (Some(value), _) => (!is_stale(value)).then(|| Ok(value.clone())),
            (None, error) => error.clone().map(Err),
        }
    }
}

impl<T: Clone> Reread<T> {
    const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

    /// The value, read again if it was last read too long ago or `is_stale` says so of it. `read` gets
    /// the value before.
    async fn get(
        &self,
        is_stale: impl FnOnce(&T) -> bool,
        read: impl AsyncFnOnce(Option<&T>) -> Result<T, CredentialError>,
    ) -> Result<T, CredentialError> {
        let mut kept = self.0.lock().await;
        if let Some(current) = kept.as_ref().and_then(|kept| kept.current(is_stale)) {
            return current;
        }
        let before = kept.as_ref().and_then(|kept| kept.value.clone());
        let result = read(before.as_ref()).await;
        let read_at = Instant::now();
        let (value, error) = match &result {
            Ok(value) => (Some(value.clone()), None),
            Err(error) => (before.clone(), Some(error.clone())),
        };
        let was_usable = kept.as_ref().is_some_and(|kept| kept.error.is_none());
        if let Some(error) = error.as_ref().filter(|_| was_usable) {
            tracing::warn!(
                error = %on_one_line(error),
                "changed credentials can't be used; the ones before are used on"
            );
        }
        *kept = Some(Kept {
            read_at,
            value,
            error,
        });
        result.or_else(|error| before.ok_or(error))
    }
}

/// A user name and a password, of which at least one is in a file.
pub(super) struct LoginFiles {
    username: Written,
    password: Written,
    account: Reread<Arc<Account>>,
}

impl LoginFiles {
    pub(super) const fn new(username: Written, password: Written) -> Self {
        Self {
            username,
            password,
            account: Reread::new(),
        }
    }

    /// The account, but not the `rejected` one unless the files still say so.
    pub(super) async fn get(
        &self,
        rejected: Option<AccountId>,
    ) -> Result<Arc<Account>, CredentialError> {
        let read = async |before: Option<&Arc<Account>>| {
            let username = text(&self.username).await?;
            let password = text(&self.password).await?;
            let secret = Secret::basic(username.expose_secret(), password.expose_secret())?;
            Ok(Account::renewed(before, secret))
        };
        let is_rejected = |account: &Arc<Account>| Some(account.id) == rejected;
        self.account.get(is_rejected, read).await
    }
}

/// A Docker configuration.
pub(super) struct DockerFile {
    path: PathBuf,
    content: Reread<Arc<DockerConfig>>,
    /// The accounts of its entries, by their keys: of those that repositories needed, so there are at
    /// most as many as entries have been in the file.
    accounts: parking_lot::Mutex<HashMap<String, Arc<Account>>>,
}

/// What a Docker configuration has for a repository.
pub(super) enum Entry {
    Account(Arc<Account>),
    /// The program that has it.
    Helper(String),
}

impl DockerFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            content: Reread::new(),
            accounts: parking_lot::Mutex::default(),
        }
    }

    /// The entry for a repository of a server, read at once if it is `rejected`.
    pub(super) async fn get(
        &self,
        server: &Server,
        repo: &str,
        rejected: Option<AccountId>,
    ) -> Result<Entry, CredentialError> {
        let read = async |_before: Option<&Arc<DockerConfig>>| {
            let path = self.path.clone();
            blocking(&self.path, move || {
                let bytes = read_file(&path, MAX_DOCKER_CONFIG)?;
                let config = DockerConfig::parse(bytes.expose_secret());
                config.map_err(|error| CredentialError::DockerConfig { path, error })
            })
            .await
            .map(Arc::new)
        };
        // A helper's credentials are not the file's.
        let is_rejected = |config: &Arc<DockerConfig>| {
            rejected.is_some_and(|rejected| match self.entry(config, server, repo) {
                Ok(Entry::Account(account)) => account.id == rejected,
                _ => false,
            })
        };
        let config = self.content.get(is_rejected, read).await?;
        self.entry(&config, server, repo)
    }

    fn entry(
        &self,
        config: &DockerConfig,
        server: &Server,
        repo: &str,
    ) -> Result<Entry, CredentialError> {
        let path = || self.path.clone();
        let found = config.find(server, repo);
        match found.map_err(|error| CredentialError::DockerConfig {
            path: path(),
            error,
        })? {
            None => Err(CredentialError::NoEntry {
                path: path(),
                server: server.key.clone(),
            }),
            Some(Found::Helper(program)) => Ok(Entry::Helper(program)),
            Some(Found::Secret(key, secret)) => {
                let mut accounts = self.accounts.lock();
                let account = Account::renewed(accounts.get(key), secret);
                accounts.insert(key.to_owned(), Arc::clone(&account));
                Ok(Entry::Account(account))
            }
        }
    }
}

/// The first of some files, as Docker and containers keep them, that has an account for a repository; and
/// whether it surely has one, because the account is in the file itself. Files that don't exist are passed
/// over.
pub async fn find_account(
    files: &[PathBuf],
    upstream: &Upstream,
    repo: &RepoName,
) -> Result<Option<(PathBuf, bool)>, CredentialError> {
    let server = Server::of(upstream);
    for path in files {
        let file = DockerFile::new(path.clone());
        match file.get(&server, repo.as_str(), None).await {
            Ok(entry) => return Ok(Some((path.clone(), matches!(entry, Entry::Account(_))))),
            Err(CredentialError::NoEntry { .. }) => {}
            Err(CredentialError::File { source, .. }) if source.kind() == NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// A configured value, or what is in its file without the line's end.
async fn text(written: &Written) -> Result<SecretString, CredentialError> {
    let path = match written {
        Written::Text(text) => return Ok(text.clone()),
        Written::File(path) => path.clone(),
    };
    let bytes = {
        let path = path.clone();
        blocking(&path.clone(), move || read_file(&path, MAX_SECRET)).await?
    };
    let text = std::str::from_utf8(bytes.expose_secret()).ok();
    let text = text.map(|text| text.trim_end_matches(['\r', '\n']));
    let text = text.filter(|text| !text.is_empty());
    let text = text.ok_or(CredentialError::Content { path })?;
    Ok(text.into())
}

/// Runs `read` on the blocking pool.
async fn blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, CredentialError> + Send + 'static,
) -> Result<T, CredentialError> {
    let result = tokio::task::spawn_blocking(read).await;
    result.unwrap_or_else(|lost| Err(unreadable(path, io::Error::other(lost))))
}

fn unreadable(path: &Path, error: io::Error) -> CredentialError {
    CredentialError::File {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

fn read_file(path: &Path, limit: u64) -> Result<SecretSlice<u8>, CredentialError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    let length = read.map_err(|error| unreadable(path, error))?;
    let bytes = SecretSlice::from(bytes);
    if length as u64 > limit {
        let path = path.to_owned();
        return Err(CredentialError::TooLarge { path, limit });
    }
    Ok(bytes)
}
