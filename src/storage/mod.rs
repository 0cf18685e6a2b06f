//! Blobs by digest, and per repository the links and tags that name them.
//!
//! Data flows in through a [`Stage`]: the caller writes what it downloads, anywhere and in any order,
//! verifies the digest itself, and commits; until then no other name shows the content. Data flows out
//! through a [`Reader`], which reads a committed blob and a growing stage in the same way.
//!
//! An unfinished download can outlive the process. While a stage is written, its caller writes
//! checkpoints, which claim what has been written, with checksums. A stage that is left, or whose
//! process is killed, is a [`Partial`] from then on; [`Store::resume`] opens it as a stage again, with
//! the bytes that match their checksums. There is at most one stage for each digest and upstream.
//!
//! Manifests are blobs too. The store never parses content, never talks to an upstream, never
//! decides what is deleted, and never returns half-written content under its final name. A damaged
//! or missing entry reads as missing: the upstream has the content again.
//!
//! [`FsStore`] stores files in the reference registry's layout, [`MemoryStore`] stores in memory. Tests
//! also have a store whose calls fail or stall (`testkit/faulty`). `contract` has the tests that each of
//! them passes.
//!
//! ```text
//! mod      Store, Stage, Partial                   content      reading
//! fs       the store on files                      stage        a staged file
//! memory   the store in memory                     claims       checksums of what was written
//! layout   every path                              checkpoint   the text beside a staged file
//! disk     small steps on files                    partials     the spool's files, at the start too
//! spool    the directory's lock and drafts         modes        permissions and owners
//! upload   what clients push                       unsynced     pushed files that aren't durable yet
//! ```

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::metrics::Histogram;
use crate::oci::{Digest, Pattern, RangeSet, RepoName, Tag, UploadId};

mod checkpoint;
mod claims;
mod content;
#[cfg(test)]
pub mod contract;
mod disk;
mod error;
#[cfg(test)]
#[path = "../../testkit/faulty/mod.rs"]
pub mod faulty;
#[cfg(test)]
mod faulty_tests;
pub mod fs;
mod key_locks;
pub mod layout;
pub mod memory;
mod modes;
mod origins;
mod partials;
mod spool;
mod stage;
mod survey;
mod unreadable;
mod unsynced;
mod upload;

pub use content::{Content, MAX_READ, Modified, Piece, ReadGate, Reader};
pub use disk::sync_directory;
pub use error::StoreError;
#[cfg(test)]
pub use faulty::FaultyStore;
pub use fs::FsStore;
pub(crate) use key_locks::{KeyLock, KeyLocks};
pub use layout::Layout;
pub use memory::MemoryStore;
pub use modes::Modes;
pub use origins::UpstreamChange;
pub use survey::{DiskSpeed, Survey};
pub use unreadable::{Unreadable, UnreadableEntry};
pub use upload::{Placing, SyncError, Tagging, Upload, UploadFile};

/// Keeps blobs, links and tags. Every method is safe to call at any time from any task.
#[async_trait::async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// A committed blob, open for reading. It stays readable when it is removed meanwhile.
    async fn open(&self, digest: &Digest) -> Result<Option<Content>, StoreError>;

    /// The same, when the blob can be opened without waiting: none says nothing of whether it is
    /// there.
    fn open_warm(&self, _digest: &Digest) -> Option<Content> {
        None
    }

    /// The size of a committed blob, in bytes.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Starts a staged write of what this upstream sends; the empty name is for content that no
    /// download resumes. Waits until an earlier stage of the same digest and upstream has ended, and
    /// takes the place of a partial. Cancel safe.
    async fn stage(&self, digest: &Digest, upstream: &str) -> Result<Box<dyn Stage>, StoreError>;

    /// Resumes the partial that was downloaded from this upstream, if there is one. Waits like
    /// [`stage`](Self::stage). Reads all that the checkpoint claims, and returns what matches its
    /// checksums: the caller downloads the rest. A partial that can't be resumed is removed. Dropping
    /// the stage removes the partial, leaving it leaves what its last checkpoint claims.
    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError>;

    /// The partials that have no stage, sorted by digest and upstream, each with when its checkpoint
    /// was written. What they claim isn't verified.
    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError>;

    /// Removes the partial that was downloaded from this upstream. False when there is none, or it has
    /// a stage.
    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError>;

    /// Removes a blob, whether or not anything links it. False when it wasn't there.
    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Sets a corrupt blob aside, under a name that nothing is served from, for the operator to look
    /// at; one that was set aside earlier under the same digest is replaced. Open readers go on
    /// reading it. False when it wasn't there.
    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Whether a repository has this link.
    async fn linked(&self, link: &Link) -> Result<bool, StoreError>;

    /// Makes a link; its blob need not be there.
    async fn link(&self, link: &Link) -> Result<(), StoreError>;

    /// Removes a link. False when it wasn't there.
    async fn unlink(&self, link: &Link) -> Result<bool, StoreError>;

    /// The manifest digest that a tag was last known to name.
    async fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, StoreError>;

    /// Makes a tag name this digest, whatever it named before. A crash leaves the old or the new.
    async fn set_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<(), StoreError>;

    /// Removes a tag with its history. False when it wasn't there.
    async fn remove_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool, StoreError>;

    /// The tags of a repository, sorted. Empty for an unknown repository.
    async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, StoreError>;

    /// The digests that a repository links in one way, sorted. Empty for an unknown repository.
    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError>;

    /// The committed blobs whose digest's first byte is `first`, with their sizes in bytes, sorted:
    /// one part in 256 of the store, so that no listing of it gets out of hand.
    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError>;

    /// Every repository that has a link or a tag, sorted; names below other names included.
    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError>;

    /// Links of a repository that don't count until they are made anew, because they are of another
    /// upstream; see [`FsStore::set_upstreams`].
    async fn unproved(&self, _repo: &RepoName, _kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        Ok(Vec::new())
    }

    /// Whether there may be such links. False where no upstream was ever replaced by another one.
    fn may_have_unproved(&self) -> bool {
        false
    }

    /// Whether the store works: for health checks. Tries what pulls need, reading and writing.
    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Bytes that the file system has left for this process; none where that is unknown.
    async fn free_space(&self) -> Option<u64> {
        None
    }

    /// Measures reads of committed blobs that wait for the disk, from now on.
    fn measure_reads(&self, _reads: Histogram) {}

    /// What the listings above left out because it couldn't be read.
    async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        Ok(Vec::new())
    }

    /// Removes a link or a tag that can't be read. False when there was none, and for what isn't a
    /// link or a tag: blobs are quarantined.
    async fn remove_unreadable(&self, _unreadable: &Unreadable) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Says which repositories are hosted, before anything is asked of them: their links are of no
    /// upstream, and [`publish`](Self::publish) makes what is written of them durable.
    fn set_hosted(&self, _patterns: Vec<Pattern>) {}

    /// The patterns of the process before this one that hosted something, and notes those of this one.
    async fn hosted_before(&self) -> Result<Vec<Pattern>, StoreError> {
        Ok(Vec::new())
    }

    /// Starts an upload with an empty file.
    async fn start_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        started: SystemTime,
    ) -> Result<Box<dyn UploadFile>, StoreError>;

    /// Opens the file of an upload; none where there is no such upload. At most one caller at a time.
    async fn open_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError>;

    /// The uploads of all repositories, finished or not.
    async fn uploads(&self) -> Result<Vec<Upload>, StoreError>;

    /// Removes an upload with all that belongs to it. False when it wasn't there.
    async fn remove_upload(&self, upload: &Upload) -> Result<bool, StoreError>;

    /// Removes the upload of a repository. False when it wasn't there.
    async fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool, StoreError>;

    /// Stores a small blob, whose digest the caller has verified: for manifests. One of the same size
    /// stays, one of another is damaged and replaced. Returns whether it was written; it isn't durable
    /// then.
    async fn write_blob(&self, digest: &Digest, content: Bytes) -> Result<bool, StoreError>;

    /// Makes durable what is stored of blobs and of links of hosted repositories, and was not yet; then
    /// makes tags name what they shall, durable, too. A crash leaves the old or the new digest of a tag.
    async fn publish(
        &self,
        blobs: &[Digest],
        links: &[Link],
        tagging: Option<&Tagging>,
    ) -> Result<(), SyncError>;
}

/// The bytes of a blob that a checkpoint claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The name of the upstream that they were downloaded from. Never resumed from another one.
    pub upstream: Arc<str>,
    /// The size of the whole blob, in bytes.
    pub total: u64,
    /// What has been written, all of it below `total`.
    pub ranges: RangeSet,
}

/// A resumed stage, and the bytes that are in it.
pub type Resumed = (Box<dyn Stage>, Partial);

/// A staged write.
///
/// All methods but `content` block, and so may dropping: call them on the blocking pool. Dropping an
/// uncommitted stage removes its file and its checkpoint; readers that are open go on reading it.
pub trait Stage: Debug + Send + 'static {
    /// Reads what has been written so far, while the stage grows, after the commit, and after the
    /// stage was dropped. A hole reads as zeros when something behind it was written, else as the end.
    fn content(&self) -> Reader;

    /// Writes the chunks one after the other from `offset` (in bytes) on, over earlier content. After
    /// an error the stage can't be written to or committed any more, because how much of the chunks
    /// was written is unknown; what was written elsewhere before stays readable and resumable.
    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError>;

    /// Replaces the checkpoint by one of everything that has been written of a blob of `total` bytes.
    /// It outlives the process, but a power cut only if `sync` is set, which makes file and checkpoint
    /// durable and takes as long as the disk does. After an error the earlier checkpoint stays.
    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError>;

    /// Ends the stage and leaves what its last checkpoint claims, for [`Store::resume`]. Without a
    /// checkpoint this is the same as dropping.
    fn leave(self: Box<Self>);

    /// Makes the content durable and gives it its name. The caller has verified the digest. When
    /// the store has a blob of the same size already, that one stays and this one is removed; one of
    /// another size is damaged, and replaced. Removes the digest's partials of all upstreams.
    ///
    /// Returns the modification time of the file that this stage has written; none when another
    /// one stays, of which nothing is known, or when it can't be told.
    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError>;
}

/// How a repository refers to a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkKind {
    /// A layer or a config: below `_layers`.
    Layer,
    /// A manifest or an index: below `_manifests/revisions`.
    Revision,
}

/// A repository's claim on a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    pub repo: RepoName,
    pub kind: LinkKind,
    pub digest: Digest,
}

impl Link {
    pub fn new(repo: &RepoName, kind: LinkKind, digest: &Digest) -> Self {
        Self {
            repo: repo.clone(),
            kind,
            digest: *digest,
        }
    }
}

/// The whole of a committed blob, when it has at most `max` bytes: for manifests.
pub async fn read_all(
    store: &dyn Store,
    digest: &Digest,
    max: u64,
) -> Result<Option<Bytes>, StoreError> {
    match store.open(digest).await? {
        Some(content) => read_content(content, digest, max).await.map(Some),
        None => Ok(None),
    }
}

/// The whole of a blob that has been opened, when it has at most `max` bytes.
pub async fn read_content(
    content: Content,
    digest: &Digest,
    max: u64,
) -> Result<Bytes, StoreError> {
    let Content { size, reader, .. } = content;
    let too_large = || StoreError::TooLarge {
        digest: *digest,
        size,
        max,
    };
    if size > max {
        return Err(too_large());
    }
    let wanted = usize::try_from(size).map_err(|_wider_than_memory| too_large())?;
    let mut whole = BytesMut::new();
    while whole.len() < wanted {
        let end = whole.len() as u64;
        let piece = reader.read_at(end, wanted - whole.len()).await?;
        if piece.is_empty() {
            return Err(StoreError::Truncated {
                digest: *digest,
                end,
                size,
            });
        }
        if piece.len() == wanted {
            return Ok(piece);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// Stages and commits content that is in memory: for manifests. The caller has verified the digest.
pub async fn put(store: &dyn Store, digest: &Digest, content: Bytes) -> Result<(), StoreError> {
    let mut stage = store.stage(digest, "").await?;
    blocking(move || {
        stage.write_at(0, &[content])?;
        stage.commit().map(drop)
    })
    .await
}

/// Runs a blocking step off the runtime's own threads.
async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(step)
        .await
        .map_err(|source| StoreError::Lost { source })?
}
