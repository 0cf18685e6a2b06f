//! A store in memory: `storage.inmemory`, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::Context as _;
use super::key_locks::{KeyLock, KeyLocks};
use super::{
    Content, Link, LinkKind, Modified, Partial, Placing, Reader, Resumed, Stage, Store, StoreError,
    SyncError, Tagging, Upload, UploadFile,
};
use crate::clock::Clock;
use crate::oci::{Digest, RangeSet, RepoName, Tag, UploadId};

pub(super) mod file;

use file::MemoryFile;

/// Keeps everything until it is removed. Clones share their content, partials included.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<MemoryState>>,
    locks: Arc<KeyLocks<Key>>,
    /// Dates checkpoints, as a file system does by itself.
    clock: Clock,
}

#[derive(Debug, Default)]
struct MemoryState {
    blobs: BTreeMap<Digest, Arc<MemoryFile>>,
    links: BTreeSet<Link>,
    tags: BTreeMap<(RepoName, Tag), Digest>,
    /// Those without a stage.
    partials: BTreeMap<Key, (Arc<MemoryFile>, Checkpoint)>,
    /// With when they were written last.
    uploads: BTreeMap<(RepoName, UploadId), (Arc<MemoryFile>, SystemTime)>,
}

/// The digest, and the name of the upstream.
type Key = (Digest, Arc<str>);

/// What may be resumed, and when it was said.
type Checkpoint = (Partial, SystemTime);

impl MemoryStore {
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            locks: Arc::default(),
            clock: Clock::system(),
        }
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
        self.state.lock().blobs.get(digest).map(|file| Content {
            size: file.len(),
            modified: Modified::from_bits(file.id),
            reader: Reader::of_memory(Arc::clone(file)),
        })
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.state.lock().blobs.get(digest).map(|file| file.len()))
    }

    async fn stage(&self, digest: &Digest, upstream: &str) -> Result<Box<dyn Stage>, StoreError> {
        let lock = self.locks.lock((*digest, upstream.into())).await;
        self.state.lock().partials.remove(&lock.key);
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
        let partial = self.state.lock().partials.remove(&lock.key);
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
        let state = self.state.lock();
        let all = state.partials.iter();
        let all = all.map(|((digest, _), (_, (partial, at)))| (*digest, partial.clone(), *at));
        Ok(all.collect())
    }

    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        let removed = self
            .state
            .lock()
            .partials
            .remove(&(*digest, upstream.into()));
        Ok(removed.is_some())
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.state.lock().blobs.remove(digest).is_some())
    }

    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        // There is no place where an operator could look at it.
        self.remove(digest).await
    }

    async fn linked(&self, link: &Link) -> Result<bool, StoreError> {
        Ok(self.state.lock().links.contains(link))
    }

    async fn link(&self, link: &Link) -> Result<(), StoreError> {
        self.state.lock().links.insert(link.clone());
        Ok(())
    }

    async fn unlink(&self, link: &Link) -> Result<bool, StoreError> {
        Ok(self.state.lock().links.remove(link))
    }

    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        let key = (repo.clone(), tag.clone());
        Ok(self.state.lock().tags.get(&key).copied())
    }

    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let key = (repo.clone(), tag.clone());
        self.state.lock().tags.insert(key, *digest);
        Ok(())
    }

    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError> {
        let key = (repo.clone(), tag.clone());
        Ok(self.state.lock().tags.remove(&key).is_some())
    }

    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError> {
        let state = self.state.lock();
        let own = state.tags.keys().filter(|(owner, _)| owner == repo);
        Ok(own.map(|(_, tag)| tag.clone()).collect())
    }

    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        let state = self.state.lock();
        let all = state.links.iter();
        let own = all.filter(|link| link.repo == *repo && link.kind == kind);
        Ok(own.map(|link| link.digest).collect())
    }

    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        let state = self.state.lock();
        let all = state.blobs.iter();
        let some = all.filter(|(digest, _)| digest.first_byte() == first);
        Ok(some.map(|(digest, file)| (*digest, file.len())).collect())
    }

    async fn write_blob(&self, digest: &Digest, content: Bytes) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        let present = state.blobs.get(digest);
        if present.is_some_and(|present| present.len() == content.len() as u64) {
            return Ok(false);
        }
        let file = MemoryFile::default();
        let path = Path::new("memory").join(digest.to_string());
        file.write_at(0, &[content]).context("write", &path)?;
        state.blobs.insert(*digest, Arc::new(file));
        Ok(true)
    }

    async fn publish(
        &self,
        _blobs: &[Digest],
        _links: &[Link],
        tagging: Option<&Tagging>,
    ) -> Result<(), SyncError> {
        let mut state = self.state.lock();
        if let Some(Tagging { repo, tags, digest }) = tagging {
            let tags = tags.iter().map(|tag| (repo.clone(), tag.clone()));
            state.tags.extend(tags.map(|key| (key, *digest)));
        }
        Ok(())
    }

    async fn start_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        started: SystemTime,
    ) -> Result<Box<dyn UploadFile>, StoreError> {
        let (key, file) = ((repo.clone(), *id), Arc::default());
        let new = (Arc::clone(&file), started);
        self.state.lock().uploads.insert(key.clone(), new);
        let store = self.clone();
        Ok(Box::new(MemoryUpload { store, key, file }))
    }

    async fn open_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError> {
        let key = (repo.clone(), *id);
        let found = self.state.lock().uploads.get(&key).cloned();
        let store = self.clone();
        Ok(found.map(|(file, _)| Box::new(MemoryUpload { store, key, file }) as _))
    }

    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        let state = self.state.lock();
        let uploads = state.uploads.iter().map(|(key, (file, modified))| Upload {
            path: PathBuf::new(),
            session: Some(key.clone()),
            bytes: file.len(),
            modified: *modified,
        });
        Ok(uploads.collect())
    }

    async fn remove_upload(&self, upload: &Upload) -> Result<bool, StoreError> {
        match &upload.session {
            Some((repo, id)) => self.cancel_upload(repo, id).await,
            None => Ok(false),
        }
    }

    async fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError> {
        let removed = self.state.lock().uploads.remove(&(repo.clone(), *id));
        Ok(removed.is_some())
    }

    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        let state = self.state.lock();
        let linking = state.links.iter().map(|link| &link.repo);
        let tagging = state.tags.keys().map(|(repo, _)| repo);
        let names: BTreeSet<_> = linking.chain(tagging).cloned().collect();
        Ok(names.into_iter().collect())
    }
}

#[derive(Debug)]
struct MemoryStage {
    store: MemoryStore,
    lock: KeyLock<Key>,
    file: Arc<MemoryFile>,
    written: RangeSet,
    checkpoint: Option<Checkpoint>,
}

impl Stage for MemoryStage {
    fn content(&self) -> Reader {
        Reader::of_memory(Arc::clone(&self.file))
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let path = Path::new("memory").join(self.lock.key.0.to_string());
        let written = self.file.write_at(offset, chunks);
        written.context("write", &path)?;
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        self.written.insert(offset, offset + bytes);
        Ok(())
    }

    fn checkpoint(&mut self, total: u64, _sync: bool) -> Result<(), StoreError> {
        let partial = Partial {
            upstream: Arc::clone(&self.lock.key.1),
            total,
            ranges: self.written.clone(),
        };
        self.checkpoint = Some((partial, self.store.clock.wall()));
        Ok(())
    }

    fn leave(self: Box<Self>) {
        if let Some(checkpoint) = self.checkpoint {
            let partial = (self.file, checkpoint);
            let key = self.lock.key.clone();
            self.store.state.lock().partials.insert(key, partial);
        }
    }

    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        let (digest, _) = &self.lock.key;
        let mut state = self.store.state.lock();
        state.partials.retain(|(of, _), _| of != digest);
        let present = state.blobs.get(digest);
        if present.is_some_and(|present| present.len() == self.file.len()) {
            return Ok(None);
        }
        state.blobs.insert(*digest, Arc::clone(&self.file));
        Ok(Some(Modified::from_bits(self.file.id)))
    }
}

#[derive(Debug)]
struct MemoryUpload {
    store: MemoryStore,
    key: (RepoName, UploadId),
    file: Arc<MemoryFile>,
}

impl UploadFile for MemoryUpload {
    fn size(&self) -> u64 {
        self.file.len()
    }

    fn content(&self) -> Reader {
        Reader::of_memory(Arc::clone(&self.file))
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let path = Path::new("memory").join(self.key.1.to_string());
        let written = self.file.write_at(self.file.len(), chunks);
        written.context("write", &path)?;
        if let Some((_, modified)) = self.store.state.lock().uploads.get_mut(&self.key) {
            *modified = self.store.clock.wall();
        }
        Ok(())
    }

    fn commit(
        self: Box<Self>,
        digest: &Digest,
        placing: Placing,
    ) -> Result<Option<Modified>, StoreError> {
        let mut state = self.store.state.lock();
        state.uploads.remove(&self.key);
        let present = state.blobs.get(digest);
        let stays = present.is_some_and(|present| present.len() == self.file.len());
        if stays && !placing.replace {
            return Ok(None);
        }
        state.blobs.insert(*digest, Arc::clone(&self.file));
        Ok(Some(Modified::from_bits(self.file.id)))
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
