//! Who takes part in which download: the one place where joining, leading, leaving, pausing and
//! committing are put in order.
//!
//! No more than synchronisation: `tests/interleavings` compiles this file a second time, with
//! locks that try thousands of orders of events.

use std::collections::HashMap;

use super::sync::{Mutex, MutexGuard, PoisonError};
use crate::oci::{Digest, RepoName};

/// The running downloads by digest.
#[derive(Debug)]
pub(super) struct Running<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    downloads: HashMap<Digest, Entry<T>>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    download: T,
    clients: usize,
    /// It goes on although no client follows.
    standing: bool,
    /// Linked to the blob when it is committed; none once that has begun.
    repositories: Option<Vec<RepoName>>,
}

/// What came of joining.
#[derive(Debug)]
pub(super) enum Place<T> {
    /// The download is new: its task is the caller's to start.
    Lead(T),
    Follow(T),
    /// It has just been committed: the store has it.
    Committed,
}

impl<T: Clone> Running<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            downloads: HashMap::new(),
            next_id: 0,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_running(&self, digest: &Digest) -> bool {
        self.state().downloads.contains_key(digest)
    }

    /// One more client, if the download runs and is for `repository` already.
    pub(super) fn follow(&self, digest: &Digest, repository: &RepoName) -> Option<T> {
        let mut state = self.state();
        let entry = state.downloads.get_mut(digest)?;
        if !entry.repositories.as_ref()?.contains(repository) {
            return None;
        }
        entry.clients += 1;
        Some(entry.download.clone())
    }

    /// The download, if it runs and is for `repository` already.
    #[cfg_attr(test, allow(dead_code, reason = "`interleavings` doesn't need it"))]
    pub(super) fn peek(&self, digest: &Digest, repository: &RepoName) -> Option<T> {
        let state = self.state();
        let entry = state.downloads.get(digest)?;
        let repositories = entry.repositories.as_ref()?;
        let is_for = repositories.contains(repository);
        is_for.then(|| entry.download.clone())
    }

    /// One more client of the download, which `make` makes when there is none; `make` is given what
    /// the download is called here.
    pub(super) fn join(
        &self,
        digest: Digest,
        repository: &RepoName,
        make: impl FnOnce(u64) -> T,
    ) -> Place<T> {
        let mut state = self.state();
        if let Some(entry) = state.downloads.get_mut(&digest) {
            let Some(repositories) = &mut entry.repositories else {
                return Place::Committed;
            };
            if !repositories.contains(repository) {
                repositories.push(repository.clone());
            }
            entry.clients += 1;
            return Place::Follow(entry.download.clone());
        }
        Place::Lead(state.insert(digest, repository, false, make))
    }

    /// A download without clients; none when one is running.
    pub(super) fn stand(
        &self,
        digest: Digest,
        repository: &RepoName,
        make: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        let mut state = self.state();
        if state.downloads.contains_key(&digest) {
            return None;
        }
        Some(state.insert(digest, repository, true, make))
    }

    /// From now on the download goes on for its clients only.
    pub(super) fn stand_no_more(&self, digest: &Digest, id: u64) {
        if let Some(entry) = self.state().entry(digest, id) {
            entry.standing = false;
        }
    }

    /// A client has left.
    pub(super) fn leave(&self, digest: &Digest, id: u64) {
        if let Some(entry) = self.state().entry(digest, id) {
            entry.clients = entry.clients.saturating_sub(1);
        }
    }

    /// Whether the download would go on for nobody.
    pub(super) fn is_abandoned(&self, digest: &Digest, id: u64) -> bool {
        self.state()
            .entry(digest, id)
            .is_some_and(|entry| entry.is_abandoned())
    }

    /// Whether a client follows.
    pub(super) fn has_clients(&self, digest: &Digest, id: u64) -> bool {
        self.state()
            .entry(digest, id)
            .is_some_and(|entry| entry.clients > 0)
    }

    /// Forgets the download if it is abandoned. False when somebody has come meanwhile: then it
    /// must go on.
    pub(super) fn close(&self, digest: &Digest, id: u64) -> bool {
        let mut state = self.state();
        let abandoned = state
            .entry(digest, id)
            .is_some_and(|entry| entry.is_abandoned());
        if abandoned {
            state.downloads.remove(digest);
        }
        abandoned
    }

    /// The blob is committed: nobody joins from here on. The repositories that it is linked into.
    pub(super) fn committed(&self, digest: &Digest, id: u64) -> Vec<RepoName> {
        let mut state = self.state();
        let entry = state.entry(digest, id);
        entry
            .and_then(|entry| entry.repositories.take())
            .unwrap_or_default()
    }

    /// Forgets the download, unless another one has taken its place.
    pub(super) fn forget(&self, digest: &Digest, id: u64) {
        let mut state = self.state();
        if state.entry(digest, id).is_some() {
            state.downloads.remove(digest);
        }
    }
}

impl<T: Clone> State<T> {
    fn insert(
        &mut self,
        digest: Digest,
        repository: &RepoName,
        standing: bool,
        make: impl FnOnce(u64) -> T,
    ) -> T {
        let id = self.next_id;
        self.next_id += 1;
        let download = make(id);
        let entry = Entry {
            id,
            download: download.clone(),
            clients: usize::from(!standing),
            standing,
            repositories: Some(vec![repository.clone()]),
        };
        self.downloads.insert(digest, entry);
        download
    }

    fn entry(&mut self, digest: &Digest, id: u64) -> Option<&mut Entry<T>> {
        self.downloads
            .get_mut(digest)
            .filter(|entry| entry.id == id)
    }
}

impl<T> Entry<T> {
    fn is_abandoned(&self) -> bool {
        self.clients == 0 && !self.standing && self.repositories.is_some()
    }
}
