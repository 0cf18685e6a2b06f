//! A store in memory: for tests, and the proof that [`Store`] doesn't mean "files".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::stage_locks::{StageLock, StageLocks};
use super::trust::Trust;
use super::{
    Content, Link, LinkKind, Modified, Partial, Reader, Resumed, Stage, Store, StoreError,
};
use crate::clock::Clock;
use crate::oci::{Digest, RangeSet, RepoName, Tag};

/// Keeps everything until it is removed. Clones share their content, partials included.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<MemoryState>>,
    locks: Arc<StageLocks<Key>>,
    /// Dates checkpoints, as a file system does by itself.
    clock: Clock,
}

#[derive(Debug, Default)]
struct MemoryState {
    blobs: BTreeMap<Digest, Arc<MemoryFile>>,
    quarantined: BTreeMap<Digest, Arc<MemoryFile>>,
    links: BTreeSet<Link>,
    tags: BTreeMap<(RepoName, Tag), Digest>,
    /// Those without a stage.
    partials: BTreeMap<Key, (Arc<MemoryFile>, Checkpoint)>,
}

/// The digest, and the name of the upstream.
type Key = (Digest, Arc<str>);

/// What may be resumed, and when it was said.
type Checkpoint = (Partial, SystemTime);

/// Content that grows while it is staged.
pub(super) struct MemoryFile {
    content: Mutex<Vec<u8>>,
    trust: Trust,
    /// Tells it from every other one of the process.
    id: u64,
}

impl Default for MemoryFile {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            content: Mutex::default(),
            trust: Trust::default(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFile({} bytes)", self.len())
    }
}

impl MemoryFile {
    /// At most `max` bytes from `offset` on; empty at the end.
    pub(super) fn read_at(&self, offset: u64, max: usize) -> Bytes {
        let content = self.content.lock();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.get(offset..))
            .unwrap_or_default();
        Bytes::copy_from_slice(rest.get(..max).unwrap_or(rest))
    }

    /// Fills `buffer` from `offset` on as far as there is content; returns how far that is.
    pub(super) fn read_into(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let content = self.content.lock();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.get(offset..))
            .unwrap_or_default();
        let there = rest.len().min(buffer.len());
        if let (Some(from), Some(to)) = (rest.get(..there), buffer.get_mut(..there)) {
            to.copy_from_slice(from);
        }
        there
    }

    /// Writes the chunks one after the other; zeros fill a gap before them. Nothing when there
    /// isn't so much memory.
    fn write_at(&self, offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        let too_far = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        if bytes == 0 {
            return Ok(());
        }
        let mut at = usize::try_from(offset).map_err(|_wider_than_memory| too_far())?;
        let end = at.checked_add(bytes).ok_or_else(too_far)?;
        let mut content = self.content.lock();
        let more = end.saturating_sub(content.len());
        content.try_reserve(more).map_err(io::Error::from)?;
        // What is appended needs no zeros first.
        if content.len() < at {
            content.resize(at, 0);
        }
        for chunk in chunks {
            let (over, behind) = chunk.split_at(chunk.len().min(content.len() - at));
            if let Some(there) = content.get_mut(at..at + over.len()) {
                there.copy_from_slice(over);
            }
            content.extend_from_slice(behind);
            at += chunk.len();
        }
        Ok(())
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    fn modified(&self) -> Modified {
        Modified::from_bits(self.id)
    }

    fn len(&self) -> u64 {
        self.content.lock().len() as u64
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            locks: Arc::default(),
            clock: Clock::system(),
        }
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError> {
        Ok(self.open_warm(digest))
    }

    fn open_warm(&self, digest: &Digest) -> Option<Content> {
        self.state().blobs.get(digest).map(|file| Content {
            size: file.len(),
            modified: file.modified(),
            reader: Reader::of_memory(Arc::clone(file)),
        })
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.state().blobs.get(digest).map(|file| file.len()))
    }

    async fn stage(&self, digest: &Digest, upstream: &str) -> Result<Box<dyn Stage>, StoreError> {
        let lock = self.locks.lock((*digest, upstream.into())).await;
        self.state().partials.remove(lock.key());
        Ok(Box::new(MemoryStage {
            store: self.clone(),
            lock,
            file: Arc::default(),
            written: RangeSet::new(),
            checkpoint: None,
        }))
    }

    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError> {
        let lock = self.locks.lock((*digest, upstream.into())).await;
        let partial = self.state().partials.remove(lock.key());
        Ok(partial.map(|(file, checkpoint)| {
            let partial = checkpoint.0.clone();
            let stage = MemoryStage {
                store: self.clone(),
                lock,
                file,
                written: partial.ranges.clone(),
                checkpoint: Some(checkpoint),
            };
            (Box::new(stage) as Box<dyn Stage>, partial)
        }))
    }

    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        let state = self.state();
        let all = state.partials.iter();
        let all = all.map(|((digest, _), (_, (partial, at)))| (*digest, partial.clone(), *at));
        Ok(all.collect())
    }

    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        let removed = self.state().partials.remove(&(*digest, upstream.into()));
        Ok(removed.is_some())
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
    lock: StageLock<Key>,
    file: Arc<MemoryFile>,
    written: RangeSet,
    checkpoint: Option<Checkpoint>,
}

impl Stage for MemoryStage {
    fn content(&self) -> Reader {
        Reader::of_memory(Arc::clone(&self.file))
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.file.write_at(offset, chunks).map_err(|source| {
            let path = Path::new("memory").join(self.lock.key().0.to_string());
            StoreError::io("write", &path, source)
        })?;
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        self.written.insert(offset, offset + bytes);
        Ok(())
    }

    fn checkpoint(&mut self, total: u64, _sync: bool) -> Result<(), StoreError> {
        let partial = Partial {
            upstream: Arc::clone(&self.lock.key().1),
            total,
            ranges: self.written.clone(),
        };
        self.checkpoint = Some((partial, self.store.clock.wall()));
        Ok(())
    }

    fn leave(self: Box<Self>) {
        if let Some(checkpoint) = self.checkpoint {
            let partial = (self.file, checkpoint);
            let key = self.lock.key().clone();
            self.store.state.lock().partials.insert(key, partial);
        }
    }

    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        let (digest, _) = self.lock.key();
        let mut state = self.store.state();
        let present = state.blobs.get(digest);
        let stays = present.filter(|present| present.len() == self.file.len());
        let placed = Arc::clone(stays.unwrap_or(&self.file));
        state.blobs.insert(*digest, Arc::clone(&placed));
        state.partials.retain(|(of, _), _| of != digest);
        let is_own = Arc::ptr_eq(&placed, &self.file);
        Ok(is_own.then(|| placed.modified()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::holds(async || (Arc::new(MemoryStore::new()) as Arc<dyn Store>, None)).await;
    }
}
