//! A store over another store, whose calls fail or stall as a test decides.
//!
//! The library's own tests and its integration tests include this source with `#[path]`: each has
//! another trait `Store` to implement, as unit tests compile the library a second time. No build of
//! the program contains it. Both crates provide the modules `oci` and `storage`.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each of the two crates uses a part of it"
)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::oci::{Digest, Pattern, RepoName, Tag, UploadId};
use crate::storage::{
    Content, Link, LinkKind, Modified, Partial, Placing, ReadGate, Reader, Resumed, Stage, Store,
    StoreError, SyncError, Tagging, Unreadable, Upload, UploadFile,
};

mod script;

use script::{Effect, Gate, Script};

/// A call that can be made to fail or stall: the methods of [`Store`], and of every [`Stage`] and
/// [`Reader`] that it hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Open,
    Read,
    Size,
    Stage,
    Write,
    Checkpoint,
    Commit,
    Resume,
    Partials,
    Discard,
    Remove,
    Quarantine,
    Linked,
    Link,
    Unlink,
    Tag,
    SetTag,
    RemoveTag,
    Tags,
    Links,
    Blobs,
    Repositories,
    Check,
    StartUpload,
    OpenUpload,
    CancelUpload,
    Append,
    CommitUpload,
    /// Every blob that it was to make durable is lost.
    Sync,
}

/// Passes every call on, save those that a fault was set for.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    script: Arc<Script>,
}

/// A call that waits. Dropping this lets the call go on.
#[derive(Debug)]
#[must_use = "the call goes on when this is dropped"]
pub struct Stall(Gate);

impl FaultyStore {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            script: Arc::default(),
        }
    }

    /// The `nth` call of this operation from now on fails and has no effect; 1 is the next call.
    pub fn fail(&self, operation: Operation, nth: u64, kind: io::ErrorKind) {
        self.script.add(operation, nth, Effect::FailOnce(kind));
    }

    /// Like [`fail`](Self::fail), and so does every call after it: a disk that is full stays full.
    pub fn fail_from(&self, operation: Operation, nth: u64, kind: io::ErrorKind) {
        self.script.add(operation, nth, Effect::FailAlways(kind));
    }

    /// The `nth` call of this operation from now on waits, before it has any effect, until it is
    /// released. A stalled `write_at`, `checkpoint` or `commit` blocks its thread, which has to be one of
    /// the blocking pool, as for every call of these.
    pub fn stall(&self, operation: Operation, nth: u64) -> Stall {
        let gate = Gate::default();
        self.script.add(operation, nth, Effect::Stall(gate.clone()));
        Stall(gate)
    }

    /// The `nth` call of this operation from now on panics.
    pub fn panic(&self, operation: Operation, nth: u64) {
        self.script.add(operation, nth, Effect::Panic);
    }

    /// The `nth` read from now on returns at most `max` bytes.
    pub fn shorten(&self, nth: u64, max: usize) {
        self.script.add(Operation::Read, nth, Effect::Short(max));
    }

    /// From now on each call of `operations` fails with the probability `per_mille`, with one of some
    /// errors, or (half of the reads) falls short. 0 ends that. The same seed and the same order of
    /// calls give the same failures.
    pub fn fail_by_chance(&self, seed: u64, per_mille: u32, operations: &[Operation]) {
        self.script.chance(seed, per_mille, operations);
    }

    /// From now on each call that isn't of a stage, an upload or a reader takes up to `max`, by chance.
    pub fn delay_by_chance(&self, seed: u64, max: Duration) {
        self.script.delay(seed, max);
    }

    fn faulty(&self, inner: Box<dyn Stage>) -> Box<dyn Stage> {
        Box::new(FaultyStage {
            inner,
            script: Arc::clone(&self.script),
            broken: false,
        })
    }
}

impl Stall {
    /// Waits until the call is made.
    pub async fn reached(&self) {
        self.0.reached.cancelled().await;
    }

    /// Lets the call go on, also when it is yet to be made.
    pub fn release(&self) {
        self.0.released.cancel();
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.release();
    }
}

#[async_trait::async_trait]
impl Store for FaultyStore {
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError> {
        self.script.pass(Operation::Open).await?;
        let content = self.inner.open(digest).await?;
        Ok(content.map(|content| Content {
            reader: Reader::gated(content.reader, Arc::clone(&self.script) as _),
            ..content
        }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.script.pass(Operation::Size).await?;
        self.inner.size(digest).await
    }

    async fn stage(&self, digest: &Digest, upstream: &str) -> Result<Box<dyn Stage>, StoreError> {
        self.script.pass(Operation::Stage).await?;
        Ok(self.faulty(self.inner.stage(digest, upstream).await?))
    }

    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError> {
        self.script.pass(Operation::Resume).await?;
        let resumed = self.inner.resume(digest, upstream).await?;
        Ok(resumed.map(|(stage, partial)| (self.faulty(stage), partial)))
    }

    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        self.script.pass(Operation::Partials).await?;
        self.inner.partials().await
    }

    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError> {
        self.script.pass(Operation::Discard).await?;
        self.inner.discard(digest, upstream).await
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.script.pass(Operation::Remove).await?;
        self.inner.remove(digest).await
    }

    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.script.pass(Operation::Quarantine).await?;
        self.inner.quarantine(digest).await
    }

    async fn linked(&self, link: &Link) -> Result<bool, StoreError> {
        self.script.pass(Operation::Linked).await?;
        self.inner.linked(link).await
    }

    async fn link(&self, link: &Link) -> Result<(), StoreError> {
        self.script.pass(Operation::Link).await?;
        self.inner.link(link).await
    }

    async fn unlink(&self, link: &Link) -> Result<bool, StoreError> {
        self.script.pass(Operation::Unlink).await?;
        self.inner.unlink(link).await
    }

    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.script.pass(Operation::Tag).await?;
        self.inner.tag(repo, tag).await
    }

    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        self.script.pass(Operation::SetTag).await?;
        self.inner.set_tag(repo, tag, digest).await
    }

    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError> {
        self.script.pass(Operation::RemoveTag).await?;
        self.inner.remove_tag(repo, tag).await
    }

    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError> {
        self.script.pass(Operation::Tags).await?;
        self.inner.tags(repo).await
    }

    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        self.script.pass(Operation::Links).await?;
        self.inner.links(repo, kind).await
    }

    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.script.pass(Operation::Blobs).await?;
        self.inner.blobs(first).await
    }

    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        self.script.pass(Operation::Repositories).await?;
        self.inner.repositories().await
    }

    async fn unproved(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        self.inner.unproved(repo, kind).await
    }

    fn may_have_unproved(&self) -> bool {
        self.inner.may_have_unproved()
    }

    async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        self.inner.unreadable().await
    }

    async fn remove_unreadable(&self, unreadable: &Unreadable) -> Result<bool, StoreError> {
        self.inner.remove_unreadable(unreadable).await
    }

    fn set_hosted(&self, patterns: Vec<Pattern>) {
        self.inner.set_hosted(patterns);
    }

    async fn hosted_before(&self) -> Result<Vec<Pattern>, StoreError> {
        self.inner.hosted_before().await
    }

    async fn start_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        started: SystemTime,
    ) -> Result<Box<dyn UploadFile>, StoreError> {
        self.script.pass(Operation::StartUpload).await?;
        let inner = self.inner.start_upload(repo, id, started).await?;
        let script = Arc::clone(&self.script);
        Ok(Box::new(FaultyUpload { inner, script }))
    }

    async fn open_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError> {
        self.script.pass(Operation::OpenUpload).await?;
        let opened = self.inner.open_upload(repo, id).await?;
        let script = Arc::clone(&self.script);
        Ok(opened.map(|inner| Box::new(FaultyUpload { inner, script }) as _))
    }

    async fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError> {
        self.script.pass(Operation::CancelUpload).await?;
        self.inner.cancel_upload(repo, id).await
    }

    async fn write_blob(&self, digest: &Digest, content: Bytes) -> Result<bool, StoreError> {
        self.script.pass(Operation::Commit).await?;
        self.inner.write_blob(digest, content).await
    }

    async fn publish(
        &self,
        blobs: &[Digest],
        links: &[Link],
        tagging: Option<&Tagging>,
    ) -> Result<(), SyncError> {
        let failed = |lost, source| SyncError {
            lost,
            tagged: Vec::new(),
            source,
        };
        let synced = self.script.pass(Operation::Sync).await;
        synced.map_err(|source| failed(blobs.to_vec(), source))?;
        if tagging.is_some() {
            let tagged = self.script.pass(Operation::SetTag).await;
            tagged.map_err(|source| failed(Vec::new(), source))?;
        }
        self.inner.publish(blobs, links, tagging).await
    }

    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        self.inner.uploads().await
    }

    async fn remove_upload(&self, upload: &Upload) -> Result<bool, StoreError> {
        self.inner.remove_upload(upload).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.script.pass(Operation::Check).await?;
        self.inner.check().await
    }
}

/// An upload of the store within, whose calls and readers may fail.
#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn UploadFile>,
    script: Arc<Script>,
}

impl UploadFile for FaultyUpload {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn content(&self) -> Reader {
        Reader::gated(self.inner.content(), Arc::clone(&self.script) as _)
    }

    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.script.pass_blocking(Operation::Append)?;
        self.inner.append(chunks)
    }

    fn commit(
        self: Box<Self>,
        digest: &Digest,
        placing: Placing,
    ) -> Result<Option<Modified>, StoreError> {
        self.script.pass_blocking(Operation::CommitUpload)?;
        self.inner.commit(digest, placing)
    }
}

/// A stage of the store within, whose calls and readers may fail.
#[derive(Debug)]
struct FaultyStage {
    inner: Box<dyn Stage>,
    script: Arc<Script>,
    /// A write failed here, so the stage within lacks data without knowing it.
    broken: bool,
}

impl FaultyStage {
    fn pass(&self, operation: Operation) -> Result<(), StoreError> {
        if self.broken {
            let path = PathBuf::from("a faulty stage");
            return Err(StoreError::Incomplete { path });
        }
        self.script.pass_blocking(operation).map(drop)
    }
}

impl Stage for FaultyStage {
    fn content(&self) -> Reader {
        Reader::gated(self.inner.content(), Arc::clone(&self.script) as _)
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let passed = self.pass(Operation::Write);
        self.broken |= passed.is_err();
        passed?;
        self.inner.write_at(offset, chunks)
    }

    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError> {
        self.script.pass_blocking(Operation::Checkpoint)?;
        self.inner.checkpoint(total, sync)
    }

    fn leave(self: Box<Self>) {
        self.inner.leave();
    }

    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError> {
        self.pass(Operation::Commit)?;
        self.inner.commit()
    }
}

#[async_trait::async_trait]
impl ReadGate for Script {
    async fn pass(&self) -> Result<usize, StoreError> {
        self.pass(Operation::Read).await
    }

    fn pass_blocking(&self) -> Result<usize, StoreError> {
        self.pass_blocking(Operation::Read)
    }
}
