//! A store in memory: for tests, and the proof that [`Store`] doesn't mean "files".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Content, Link, LinkKind, Reader, Stage, Store, StoreError};
use crate::oci::{Digest, RepoName, Tag};

/// Keeps everything until it is removed. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Arc<MemoryFile>>,
    quarantined: BTreeMap<Digest, Arc<MemoryFile>>,
    links: BTreeSet<Link>,
    tags: BTreeMap<(RepoName, Tag), Digest>,
}

/// Content that grows while it is staged.
#[derive(Default)]
pub(super) struct MemoryFile(Mutex<Vec<u8>>);

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFile({} bytes)", self.len())
    }
}

/// No invariant spans two steps, so a panic elsewhere leaves nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryFile {
    /// At most `max` bytes from `offset` on; empty at the end.
    pub(super) fn read_at(&self, offset: u64, max: usize) -> Bytes {
        let content = lock(&self.0);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.get(offset..))
            .unwrap_or_default();
        Bytes::copy_from_slice(rest.get(..max).unwrap_or(rest))
    }

    fn len(&self) -> u64 {
        lock(&self.0).len() as u64
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError> {
        Ok(self.state().blobs.get(digest).map(|file| Content {
            size: file.len(),
            reader: Reader::of_memory(Arc::clone(file)),
        }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.state().blobs.get(digest).map(|file| file.len()))
    }

    async fn stage(&self, digest: &Digest) -> Result<Box<dyn Stage>, StoreError> {
        Ok(Box::new(MemoryStage {
            store: self.clone(),
            digest: *digest,
            file: Arc::default(),
        }))
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.state().blobs.remove(digest).is_some())
    }

    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(file) = state.blobs.remove(digest) else {
            return Ok(false);
        };
        state.quarantined.insert(*digest, file);
        Ok(true)
    }

    async fn linked(&self, link: &Link) -> Result<bool, StoreError> {
        Ok(self.state().links.contains(link))
    }

    async fn link(&self, link: &Link) -> Result<(), StoreError> {
        self.state().links.insert(link.clone());
        Ok(())
    }

    async fn unlink(&self, link: &Link) -> Result<bool, StoreError> {
        Ok(self.state().links.remove(link))
    }

    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        let key = (repo.clone(), tag.clone());
        Ok(self.state().tags.get(&key).copied())
    }

    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let key = (repo.clone(), tag.clone());
        self.state().tags.insert(key, *digest);
        Ok(())
    }

    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError> {
        let key = (repo.clone(), tag.clone());
        Ok(self.state().tags.remove(&key).is_some())
    }

    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError> {
        let state = self.state();
        let own = state.tags.keys().filter(|(owner, _)| owner == repo);
        Ok(own.map(|(_, tag)| tag.clone()).collect())
    }

    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        let state = self.state();
        let own = state
            .links
            .iter()
            .filter(|link| link.repo == *repo && link.kind == kind);
        Ok(own.map(|link| link.digest).collect())
    }

    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        let state = self.state();
        let mut blobs: Vec<_> = state
            .blobs
            .iter()
            .filter(|(digest, _)| digest.first_byte() == first)
            .map(|(digest, file)| (*digest, file.len()))
            .collect();
        blobs.sort_unstable();
        Ok(blobs)
    }

    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        let state = self.state();
        let linking = state.links.iter().map(|link| &link.repo);
        let tagging = state.tags.keys().map(|(repo, _)| repo);
        let names: BTreeSet<_> = linking.chain(tagging).cloned().collect();
        Ok(names.into_iter().collect())
    }
}

#[derive(Debug)]
struct MemoryStage {
    store: MemoryStore,
    digest: Digest,
    file: Arc<MemoryFile>,
}

impl Stage for MemoryStage {
    fn content(&self) -> Reader {
        Reader::of_memory(Arc::clone(&self.file))
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let mut content = lock(&self.file.0);
        for chunk in chunks {
            content.extend_from_slice(chunk);
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self {
            store,
            digest,
            file,
        } = *self;
        store.state().blobs.entry(digest).or_insert(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::holds(async || (Arc::new(MemoryStore::new()) as Arc<dyn Store>, None)).await;
    }
}
