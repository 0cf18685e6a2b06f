//! What is kept: blobs by digest, and per repository the links and tags that name them.
//!
//! Data flows in through a [`Stage`]: the caller writes what it downloads, anywhere and in any order,
//! keeps account of what is there (a [`RangeSet`](crate::oci::RangeSet)), verifies the digest itself,
//! and commits; until then no other name shows the content. Data flows out through a [`Reader`],
//! which reads a committed blob and a growing stage in the same way.
//!
//! A download that doesn't come to its end may outlive the process as a [`Partial`]. While the stage
//! is written, its [`Keeper`] makes what is there durable and then notes which ranges that is; a
//! stage that is left, or cut short by a crash, is a partial from then on. [`Store::resume`] takes it
//! up as a stage again. A note never claims bytes that aren't durable.
//!
//! Manifests are blobs too. The store never parses content, never talks to an upstream, never
//! decides what is deleted, and never returns half-written content under its final name. A damaged
//! or missing entry reads as "not there": it is a cache, and the upstream has the content again.
//!
//! [`FsStore`] keeps everything in the reference registry's layout, [`MemoryStore`] in memory. Tests
//! also have a store whose calls fail or stall (`testkit/faulty`). `contract` holds what they all must
//! do.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::oci::{Digest, RepoName, Tag};

mod content;
#[cfg(test)]
pub mod contract;
mod disk;
#[cfg(test)]
#[path = "../../testkit/faulty/mod.rs"]
pub mod faulty;
#[cfg(test)]
mod faulty_tests;
pub mod fs;
mod keep;
pub mod layout;
pub mod memory;
mod modes;
mod origins;
mod partial;
mod spool;
mod stage;
mod trust;
mod unreadable;

pub use content::{Content, MAX_READ, Piece, ReadGate, Reader};
#[cfg(test)]
pub use faulty::FaultyStore;
pub use fs::FsStore;
pub use layout::Layout;
pub use memory::MemoryStore;
pub use modes::Modes;
pub use origins::UpstreamChange;
pub use partial::{Keeper, MAX_KEPT_RANGES, Partial};
pub use trust::Modified;
pub use unreadable::{Unreadable, UnreadableEntry};

/// A partial that was taken up: the stage to go on with, and what is there.
pub type Resumed = (Box<dyn Stage>, Partial);

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

    /// Starts a staged write for this digest. Any number of them may run for one digest; they
    /// don't see one another.
    async fn stage(&self, digest: &Digest) -> Result<Box<dyn Stage>, StoreError>;

    /// Resumes the partial that was downloaded from this upstream: `None` when there is none, or a
    /// stage has it in hand. A partial that is damaged is removed, and reads as none. What the stage then does is what any
    /// stage does: dropping it removes the partial, leaving it leaves what was kept last.
    async fn resume(&self, digest: &Digest, upstream: &str) -> Result<Option<Resumed>, StoreError>;

    /// The partials that no stage has in hand, sorted by digest and upstream, each with when it was
    /// kept last.
    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError>;

    /// Removes the partial that was downloaded from this upstream. False when there is none, or a
    /// stage has it in hand.
    async fn discard(&self, digest: &Digest, upstream: &str) -> Result<bool, StoreError>;

    /// Removes a blob, whether or not anything links it. False when it wasn't there.
    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Sets a corrupt blob aside, under a name that nothing is served from, for the operator to look
    /// at; one that was set aside earlier under the same digest is replaced. Whoever has the blob
    /// open goes on reading it. False when it wasn't there.
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

    /// Whether the store works: for health checks. Tries what pulls need, reading and writing.
    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// What the listings above left out because it couldn't be read.
    async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        Ok(Vec::new())
    }

    /// Removes a link or a tag that can't be read. False when there was none, and for what isn't a
    /// link or a tag: blobs are quarantined.
    async fn remove_unreadable(&self, _unreadable: &Unreadable) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// What pushes to the reference registry have left in the directory.
    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        Ok(Vec::new())
    }

    /// Removes such an upload. False when it wasn't there.
    async fn remove_upload(&self, _upload: &Upload) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// The directory of one upload to the reference registry, below a repository's `_uploads`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When something in it was written last.
    pub modified: SystemTime,
}

impl Upload {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A staged write.
///
/// All but `content` and `keeper` block, and so may dropping: call them on the blocking pool. Dropping
/// an uncommitted stage removes what was written and what was kept of it; readers that are open go on
/// reading it.
pub trait Stage: Debug + Send + 'static {
    /// Reads what has been written so far, while the stage grows and after the commit. What hasn't
    /// been written reads as zeros when something behind it was, else as the end: the caller knows.
    fn content(&self) -> Reader;

    /// Writes the chunks one after the other from `offset` (in bytes) on, over what is there. After
    /// an error the stage can't be written to or committed any more, because how much of the chunks
    /// was written is unknown; what was written elsewhere before stays readable, and may be left.
    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError>;

    /// Reads back what was written, as far as one read goes: fewer bytes than the buffer takes
    /// needn't be the end. 0 is the end (or the buffer is empty).
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError>;

    /// Keeps what is written from another thread, while this stage is being written to. Several
    /// keepers of one stage overwrite one another's notes.
    fn keeper(&self) -> Box<dyn Keeper>;

    /// Ends the stage, and leaves what was kept last as a partial, in place of another that was left
    /// before it. Without anything kept it is the same as dropping.
    fn leave(self: Box<Self>);

    /// Makes the content durable and gives it its name. The caller has verified the digest. When
    /// the store has a blob of the same size already, that one stays and this one goes; one of
    /// another size is damaged, and replaced. Partials of the digest that nobody has in hand go, and
    /// what was kept of this stage.
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

/// What went wrong in the store. A thing that isn't there is no error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store couldn't {operation} {}", path.display())]
    Io {
        /// A verb in the infinitive.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the store directory {} can't be used: {} can't be written; check that the directory \
         exists on a writable file system and belongs to the user that runs millpond",
        root.display(), path.display()
    )]
    NotWritable {
        root: PathBuf,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the store directory {} is in use by {}; each millpond needs its own: stop that process, wait \
         until it ends where it is `millpond scrub` or `millpond purge`, or name another directory",
        root.display(),
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        root: PathBuf,
        /// Its process id, where the lock file tells it.
        holder: Option<u32>,
    },
    #[error("the data directory {} doesn't exist; a server makes it when it starts", root.display())]
    Missing { root: PathBuf },
    #[error("the staged file {} lacks data because an earlier write failed", path.display())]
    Incomplete { path: PathBuf },
    #[error("{digest} has {size} bytes, more than the {max} that are read at once")]
    TooLarge { digest: Digest, size: u64, max: u64 },
    #[error("{digest} ends at byte {end} of {size}")]
    Truncated { digest: Digest, end: u64, size: u64 },
    #[error("a blocking step of the store was lost")]
    Lost { source: tokio::task::JoinError },
}

impl StoreError {
    /// What the operating system said, where it said something.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::NotWritable { source, .. } => Some(source.kind()),
            Self::InUse { .. }
            | Self::Missing { .. }
            | Self::Incomplete { .. }
            | Self::TooLarge { .. }
            | Self::Truncated { .. }
            | Self::Lost { .. } => None,
        }
    }

    /// No space or no quota is left (ENOSPC, EDQUOT): deleting something would help.
    pub fn is_full(&self) -> bool {
        matches!(
            self.kind(),
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }

    /// The file can't be read, and trying again won't help: its medium or its file system is
    /// damaged. Errors that may pass (no descriptors, no memory, no permission) aren't meant.
    pub fn is_damage(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        let code = source.raw_os_error();
        code.is_some_and(|code| DAMAGE.contains(&code)) || source.kind() == io::ErrorKind::Other
    }

    /// The file system is mounted, or has turned, read-only (EROFS): reads go on, writes can't.
    pub fn is_read_only(&self) -> bool {
        self.kind() == Some(io::ErrorKind::ReadOnlyFilesystem)
    }

    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// Codes of the operating system for a damaged medium or file system: EIO, ENXIO, ELOOP and EBADMSG,
/// and on Linux EUCLEAN and EREMOTEIO.
#[cfg(unix)]
const DAMAGE: &[i32] = &[
    rustix::io::Errno::IO.raw_os_error(),
    rustix::io::Errno::NXIO.raw_os_error(),
    rustix::io::Errno::LOOP.raw_os_error(),
    rustix::io::Errno::BADMSG.raw_os_error(),
    #[cfg(target_os = "linux")]
    rustix::io::Errno::UCLEAN.raw_os_error(),
    #[cfg(target_os = "linux")]
    rustix::io::Errno::REMOTEIO.raw_os_error(),
];

/// ERROR_CRC, ERROR_IO_DEVICE and ERROR_FILE_CORRUPT.
#[cfg(not(unix))]
const DAMAGE: &[i32] = &[23, 1117, 1392];

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
    let mut stage = store.stage(digest).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_full_disk_from_a_read_only_one() {
        let error = |kind: io::ErrorKind| StoreError::io("write", Path::new("/x"), kind.into());
        for (kind, full, read_only) in [
            (io::ErrorKind::StorageFull, true, false),
            (io::ErrorKind::QuotaExceeded, true, false),
            (io::ErrorKind::ReadOnlyFilesystem, false, true),
            (io::ErrorKind::PermissionDenied, false, false),
        ] {
            assert_eq!(error(kind).is_full(), full, "{kind}");
            assert_eq!(error(kind).is_read_only(), read_only, "{kind}");
        }
        assert_eq!(
            error(io::ErrorKind::StorageFull).to_string(),
            "the store couldn't write /x"
        );
    }
}
