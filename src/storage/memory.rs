//! A store in memory: for tests, and the proof that [`Store`] doesn't mean "files".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::trust::Trust;
use super::{
    Content, Keeper, Link, LinkKind, Modified, Partial, Reader, Resumed, Stage, Store, StoreError,
};
use crate::clock::Clock;
use crate::oci::{Digest, RepoName, Tag};

/// Keeps everything until it is removed. Clones share their content, partials included.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<MemoryState>>,
    /// Says when a partial was kept, as a file system does by itself.
    clock: Clock,
}

#[derive(Debug, Default)]
struct MemoryState {
    blobs: BTreeMap<Digest, Arc<MemoryFile>>,
    quarantined: BTreeMap<Digest, Arc<MemoryFile>>,
    links: BTreeSet<Link>,
    tags: BTreeMap<(RepoName, Tag), Digest>,
    /// Those that nobody has in hand.
    partials: BTreeMap<Key, Part>,
}

/// The digest, and the name of the upstream that a partial was downloaded from.
type Key = (Digest, Arc<str>);

/// What a stage writes, and what was kept of it.
#[derive(Debug, Clone, Default)]
struct Part {
    file: Arc<MemoryFile>,
    kept: Arc<Mutex<Kept>>,
}

impl Part {
    /// None before anything was kept.
    fn key(&self, digest: Digest) -> Option<Key> {
        let kept = lock(&self.kept);
        let (partial, _modified) = kept.partial.as_ref()?;
        Some((digest, Arc::clone(&partial.upstream)))
    }
}

/// Whoever locks this and the state locks the state first.
#[derive(Debug, Default)]
struct Kept {
    partial: Option<(Partial, SystemTime)>,
    /// Committed or removed: nothing is kept any more.
    gone: bool,
}

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

/// No invariant spans two steps, so a panic elsewhere leaves nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryFile {
    /// At most `max` bytes from `offset` on; empty at the end.
    pub(super) fn read_at(&self, offset: u64, max: usize) -> Bytes {
        let content = lock(&self.content);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.get(offset..))
            .unwrap_or_default();
        Bytes::copy_from_slice(rest.get(..max).unwrap_or(rest))
    }

    /// Fills `buffer` from `offset` on as far as there is content; returns how far that is.
    pub(super) fn read_into(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let content = lock(&self.content);
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
        let mut content = lock(&self.content);
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
        lock(&self.content).len() as u64
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            clock: Clock::system(),
        }
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        lock(&self.state)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryState {
    /// Removes a partial.
    fn discard(&mut self, key: &Key) -> bool {
        let part = self.partials.remove(key);
        part.inspect(|part| lock(&part.kept).gone = true).is_some()
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

    async fn stage(&self, digest: &Digest) -> Result<Box<dyn Stage>, StoreError> {
        Ok(Box::new(MemoryStage {
            store: self.clone(),
            digest: *digest,
            part: Part::default(),
            state: StageState::Open,
        }))
    }

    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError> {
        let Some(part) = self.state().partials.remove(&(*digest, upstream.into())) else {
            return Ok(None);
        };
        let kept = lock(&part.kept).partial.clone();
        Ok(kept.map(|(partial, _modified)| {
            let stage = MemoryStage {
                store: self.clone(),
                digest: *digest,
                part,
                state: StageState::Open,
            };
            (Box::new(stage) as Box<dyn Stage>, partial)
        }))
    }

    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        let state = self.state();
        let all = state.partials.iter().filter_map(|((digest, _), part)| {
            let (partial, modified) = lock(&part.kept).partial.clone()?;
            Some((*digest, partial, modified))
        });
        Ok(all.collect())
    }

    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        Ok(self.state().discard(&(*digest, upstream.into())))
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
    part: Part,
    state: StageState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StageState {
    Open,
    /// The next stage has the part in hand.
    Left,
}

impl Stage for MemoryStage {
    fn content(&self) -> Reader {
        Reader::of_memory(Arc::clone(&self.part.file))
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.part.file.write_at(offset, chunks).map_err(|source| {
            let path = Path::new("memory").join(self.digest.to_string());
            StoreError::io("write", &path, source)
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        Ok(self.part.file.read_into(offset, buffer))
    }

    fn keeper(&self) -> Box<dyn Keeper> {
        Box::new(MemoryKeeper {
            store: self.store.clone(),
            digest: self.digest,
            part: self.part.clone(),
        })
    }

    fn leave(mut self: Box<Self>) {
        let store = self.store.clone();
        let mut state = store.state();
        if let Some(key) = self.part.key(self.digest) {
            state.discard(&key);
            state.partials.insert(key, self.part.clone());
            self.state = StageState::Left;
        }
    }

    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        let mut state = self.store.state();
        let file = Arc::clone(&self.part.file);
        let present = state.blobs.get(&self.digest);
        let keeps = present.filter(|present| present.len() == file.len());
        let placed = keeps.map_or(file, Arc::clone);
        state.blobs.insert(self.digest, Arc::clone(&placed));
        let of_blob = |key: &&Key| key.0 == self.digest;
        let keys: Vec<_> = state.partials.keys().filter(of_blob).cloned().collect();
        for key in keys {
            state.discard(&key);
        }
        let is_own = Arc::ptr_eq(&placed, &self.part.file);
        Ok(is_own.then(|| placed.modified()))
    }
}

impl Drop for MemoryStage {
    fn drop(&mut self) {
        if self.state == StageState::Open {
            lock(&self.part.kept).gone = true;
        }
    }
}

#[derive(Debug)]
struct MemoryKeeper {
    store: MemoryStore,
    digest: Digest,
    part: Part,
}

impl Keeper for MemoryKeeper {
    fn keep(&self, partial: &Partial) -> Result<(), StoreError> {
        let modified = self.store.clock.wall();
        let mut state = self.store.state();
        {
            let mut kept = lock(&self.part.kept);
            if kept.gone {
                return Ok(());
            }
            kept.partial = Some((partial.kept(), modified));
        }
        let key = (self.digest, Arc::clone(&partial.upstream));
        let left = state.partials.get(&key);
        if left.is_some_and(|left| !Arc::ptr_eq(&left.kept, &self.part.kept)) {
            state.discard(&key);
        }
        Ok(())
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
