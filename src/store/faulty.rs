//! A store whose calls fail or stall as a test wants it, over another store.
//!
//! Public and always compiled, because the tests of every other room use it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    Content, Keeper, Link, LinkKind, Partial, Reader, Resumed, Stage, Store, StoreError,
    Unreadable, Upload,
};
use crate::oci::{Digest, RepoName, Tag};

/// A call that can be made to fail or stall: the methods of [`Store`], and of every [`Stage`] and
/// [`Keeper`] that it hands out. Reads can't: a [`Reader`] goes straight to the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Open,
    Size,
    Stage,
    Write,
    Keep,
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

#[derive(Debug, Clone, Default)]
struct Gate {
    reached: CancellationToken,
    released: CancellationToken,
}

#[derive(Debug, Default)]
struct Script(Mutex<Vec<Fault>>);

#[derive(Debug)]
struct Fault {
    operation: Operation,
    /// Calls of the operation that still pass before this fault strikes.
    passing: u64,
    effect: Effect,
}

#[derive(Debug, Clone)]
enum Effect {
    FailOnce(io::ErrorKind),
    FailAlways(io::ErrorKind),
    Stall(Gate),
    Panic,
}

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
    /// released. A stalled `write_at`, `keep` or `commit` blocks its thread, which has to be one of
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

    fn faulty(&self, inner: Box<dyn Stage>) -> Box<dyn Stage> {
        Box::new(FaultyStage {
            inner,
            script: Arc::clone(&self.script),
            broken: false,
        })
    }

    async fn pass(&self, operation: Operation) -> Result<(), StoreError> {
        let due = self.script.strike(operation);
        for gate in &due.stalls {
            gate.wait().await;
        }
        due.outcome(operation)
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

impl Gate {
    async fn wait(&self) {
        self.reached.cancel();
        self.released.cancelled().await;
    }
}

/// What one call meets.
#[derive(Debug, Default)]
struct Due {
    stalls: Vec<Gate>,
    failure: Option<io::ErrorKind>,
    panics: bool,
}

impl Due {
    fn outcome(&self, operation: Operation) -> Result<(), StoreError> {
        assert!(!self.panics, "a scripted panic of {operation:?}");
        self.failure.map_or(Ok(()), |kind| {
            let path = Path::new("a faulty store").join(format!("{operation:?}"));
            Err(StoreError::io("pass", &path, kind.into()))
        })
    }
}

impl Script {
    fn add(&self, operation: Operation, nth: u64, effect: Effect) {
        let fault = Fault {
            operation,
            passing: nth.saturating_sub(1),
            effect,
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(fault);
    }

    fn pass_blocking(&self, operation: Operation) -> Result<(), StoreError> {
        let due = self.strike(operation);
        for gate in &due.stalls {
            tokio::runtime::Handle::current().block_on(gate.wait());
        }
        due.outcome(operation)
    }

    /// Counts a call; faults that strike once are used up.
    fn strike(&self, operation: Operation) -> Due {
        let mut due = Due::default();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain_mut(|fault| {
                if fault.operation != operation {
                    return true;
                }
                if fault.passing > 0 {
                    fault.passing -= 1;
                    return true;
                }
                match &fault.effect {
                    Effect::FailOnce(kind) | Effect::FailAlways(kind) => due.failure = Some(*kind),
                    Effect::Stall(gate) => due.stalls.push(gate.clone()),
                    Effect::Panic => due.panics = true,
                }
                matches!(fault.effect, Effect::FailAlways(_))
            });
        due
    }
}

#[async_trait::async_trait]
impl Store for FaultyStore {
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError> {
        self.pass(Operation::Open).await?;
        self.inner.open(digest).await
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.pass(Operation::Size).await?;
        self.inner.size(digest).await
    }

    async fn stage(&self, digest: &Digest) -> Result<Box<dyn Stage>, StoreError> {
        self.pass(Operation::Stage).await?;
        Ok(self.faulty(self.inner.stage(digest).await?))
    }

    async fn resume(&self, digest: &Digest) -> Result<Option<Resumed>, StoreError> {
        self.pass(Operation::Resume).await?;
        let resumed = self.inner.resume(digest).await?;
        Ok(resumed.map(|(stage, partial)| (self.faulty(stage), partial)))
    }

    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        self.pass(Operation::Partials).await?;
        self.inner.partials().await
    }

    async fn discard(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.pass(Operation::Discard).await?;
        self.inner.discard(digest).await
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.pass(Operation::Remove).await?;
        self.inner.remove(digest).await
    }

    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.pass(Operation::Quarantine).await?;
        self.inner.quarantine(digest).await
    }

    async fn linked(&self, link: &Link) -> Result<bool, StoreError> {
        self.pass(Operation::Linked).await?;
        self.inner.linked(link).await
    }

    async fn link(&self, link: &Link) -> Result<(), StoreError> {
        self.pass(Operation::Link).await?;
        self.inner.link(link).await
    }

    async fn unlink(&self, link: &Link) -> Result<bool, StoreError> {
        self.pass(Operation::Unlink).await?;
        self.inner.unlink(link).await
    }

    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.pass(Operation::Tag).await?;
        self.inner.tag(repo, tag).await
    }

    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        self.pass(Operation::SetTag).await?;
        self.inner.set_tag(repo, tag, digest).await
    }

    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError> {
        self.pass(Operation::RemoveTag).await?;
        self.inner.remove_tag(repo, tag).await
    }

    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError> {
        self.pass(Operation::Tags).await?;
        self.inner.tags(repo).await
    }

    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        self.pass(Operation::Links).await?;
        self.inner.links(repo, kind).await
    }

    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.pass(Operation::Blobs).await?;
        self.inner.blobs(first).await
    }

    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        self.pass(Operation::Repositories).await?;
        self.inner.repositories().await
    }

    async fn unproved(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        self.inner.unproved(repo, kind).await
    }

    async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        self.inner.unreadable().await
    }

    async fn remove_unreadable(&self, unreadable: &Unreadable) -> Result<bool, StoreError> {
        self.inner.remove_unreadable(unreadable).await
    }

    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        self.inner.uploads().await
    }

    async fn remove_upload(&self, upload: &Upload) -> Result<bool, StoreError> {
        self.inner.remove_upload(upload).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.pass(Operation::Check).await?;
        self.inner.check().await
    }
}

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
        self.script.pass_blocking(operation)
    }
}

impl Stage for FaultyStage {
    fn content(&self) -> Reader {
        self.inner.content()
    }

    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let passed = self.pass(Operation::Write);
        self.broken |= passed.is_err();
        passed?;
        self.inner.write_at(offset, chunks)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        self.inner.read_at(offset, buffer)
    }

    fn keeper(&self) -> Box<dyn Keeper> {
        Box::new(FaultyKeeper {
            inner: self.inner.keeper(),
            script: Arc::clone(&self.script),
        })
    }

    fn leave(self: Box<Self>) {
        self.inner.leave();
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.pass(Operation::Commit)?;
        self.inner.commit()
    }
}

#[derive(Debug)]
struct FaultyKeeper {
    inner: Box<dyn Keeper>,
    script: Arc<Script>,
}

impl Keeper for FaultyKeeper {
    fn keep(&self, partial: &Partial) -> Result<(), StoreError> {
        self.script.pass_blocking(Operation::Keep)?;
        self.inner.keep(partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, RangeSet};
    use crate::store::{MemoryStore, contract, put};

    fn faulty() -> FaultyStore {
        FaultyStore::new(Arc::new(MemoryStore::new()))
    }

    fn content() -> (Digest, Bytes) {
        let content = Bytes::from_static(b"content");
        (Digest::of(Algorithm::Sha256, &content), content)
    }

    #[tokio::test]
    async fn without_faults_keeps_the_contract() {
        contract::holds(async || (Arc::new(faulty()) as Arc<dyn Store>, None)).await;
    }

    #[tokio::test]
    async fn the_nth_call_fails_once_or_for_good() {
        let store = faulty();
        let (digest, _) = content();
        store.fail(Operation::Size, 2, io::ErrorKind::StorageFull);
        assert_eq!(store.size(&digest).await.unwrap(), None);
        assert_eq!(store.linked_nothing().await, Ok(false));
        assert!(store.size(&digest).await.unwrap_err().is_full());
        assert_eq!(store.size(&digest).await.unwrap(), None);

        store.fail_from(Operation::Size, 2, io::ErrorKind::ReadOnlyFilesystem);
        store.size(&digest).await.unwrap();
        for _ in 0..2 {
            assert!(store.size(&digest).await.unwrap_err().is_read_only());
        }
    }

    impl FaultyStore {
        /// A call of another operation.
        async fn linked_nothing(&self) -> Result<bool, String> {
            let link = Link {
                repo: "a".parse().unwrap(),
                kind: LinkKind::Layer,
                digest: content().0,
            };
            self.linked(&link).await.map_err(|error| error.to_string())
        }
    }

    #[tokio::test]
    async fn a_failed_write_or_commit_leaves_no_blob() {
        let store = faulty();
        let (digest, content) = content();
        for operation in [Operation::Write, Operation::Commit] {
            store.fail(operation, 1, io::ErrorKind::StorageFull);
            let error = put(&store, &digest, content.clone()).await.unwrap_err();
            assert!(error.is_full());
            assert_eq!(store.size(&digest).await.unwrap(), None);
        }
        let mut stage = store.stage(&digest).await.unwrap();
        store.fail(Operation::Write, 1, io::ErrorKind::StorageFull);
        stage
            .write_at(0, std::slice::from_ref(&content))
            .unwrap_err();
        assert!(stage.write_at(0, std::slice::from_ref(&content)).is_err());
        assert!(stage.commit().is_err());
        put(&store, &digest, content).await.unwrap();
    }

    #[tokio::test]
    async fn what_fails_with_a_partial_leaves_it_as_it_was() {
        let store = faulty();
        let (digest, content) = content();
        let mut stage = store.stage(&digest).await.unwrap();
        stage.write_at(0, &[content]).unwrap();
        let mut partial = Partial {
            total: 7,
            ranges: RangeSet::new(),
        };
        let full = io::ErrorKind::StorageFull;
        store.fail(Operation::Keep, 2, full);
        stage.keeper().keep(&partial).unwrap();
        partial.ranges.insert(0, 7);
        assert!(stage.keeper().keep(&partial).unwrap_err().is_full());
        // A stage that lacks data can still be left.
        store.fail(Operation::Write, 1, full);
        stage.write_at(0, &[]).unwrap_err();
        stage.leave();

        for operation in [Operation::Resume, Operation::Partials, Operation::Discard] {
            store.fail(operation, 1, full);
        }
        assert!(store.resume(&digest).await.unwrap_err().is_full());
        assert!(store.partials().await.unwrap_err().is_full());
        assert!(store.discard(&digest).await.unwrap_err().is_full());
        let (stage, kept) = store.resume(&digest).await.unwrap().unwrap();
        assert!(kept.ranges.is_empty());
        stage.keeper().keep(&partial).unwrap();
        store.fail(Operation::Commit, 1, full);
        assert!(stage.commit().unwrap_err().is_full());
        assert!(store.partials().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_stalled_call_waits_for_its_release() {
        let store = Arc::new(faulty());
        let (digest, content) = content();
        for operation in [Operation::Stage, Operation::Write, Operation::Commit] {
            store.remove(&digest).await.unwrap();
            let stall = store.stall(operation, 1);
            let (putting, content) = (Arc::clone(&store), content.clone());
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move { put(&*putting, &digest, content).await });
            stall.reached().await;
            assert_eq!(store.size(&digest).await.unwrap(), None, "{operation:?}");
            stall.release();
            tasks.join_next().await.unwrap().unwrap().unwrap();
            assert!(store.size(&digest).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn a_dropped_stall_holds_nobody() {
        let store = faulty();
        drop(store.stall(Operation::Tags, 1));
        let repo = "a".parse().unwrap();
        assert!(store.tags(&repo).await.unwrap().is_empty());
    }
}
