//! What clients push: files that grow at their end, and become blobs.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;

use super::{Modified, Reader, StoreError};
use crate::oci::{Digest, RepoName, Tag, UploadId};

/// The file of an upload that is open for writing. It stays, whether this is dropped or the process is
/// killed, until it is committed or removed ([`Store::remove_upload`](super::Store::remove_upload)).
///
/// All methods but `content` block: call them on the blocking pool.
pub trait UploadFile: Debug + Send + 'static {
    /// Bytes that have been written.
    fn size(&self) -> u64;

    /// Reads what has been written so far, also after the commit.
    fn content(&self) -> Reader;

    /// Writes the chunks one after the other at the end. After an error none of them is there.
    fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError>;

    /// Gives the content the name of its digest, which the caller has verified, and removes the
    /// upload. After an error the upload stays. Returns the modification time of the file that was
    /// written here; none when another one stays, or when it can't be told.
    fn commit(
        self: Box<Self>,
        digest: &Digest,
        placing: Placing,
    ) -> Result<Option<Modified>, StoreError>;
}

/// How a file gets the name of its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placing {
    /// Makes it durable first. Otherwise [`Store::publish`](super::Store::publish) does that later.
    pub sync: bool,
    /// Replaces a blob of the same size: that one may be damaged.
    pub replace: bool,
}

/// Tags that will name a manifest.
#[derive(Debug, Clone)]
pub struct Tagging {
    pub repo: RepoName,
    pub tags: Vec<Tag>,
    pub digest: Digest,
}

/// Some blobs, links or tags couldn't be made durable.
#[derive(Debug, thiserror::Error)]
#[error("what was pushed couldn't be made durable: {source}")]
pub struct SyncError {
    /// Blobs whose bytes may have been lost: what is read of them may not be what the disk has.
    pub lost: Vec<Digest>,
    /// Tags that name the manifest nevertheless.
    pub tagged: Vec<Tag>,
    /// The first error.
    pub source: StoreError,
}

/// The directory of one upload, to this server or to the reference registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Below a repository's `_uploads`; empty in a store that has no files.
    pub(super) path: PathBuf,
    /// None where the names aren't those of an upload.
    pub session: Option<(RepoName, UploadId)>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When something in it was written last.
    pub modified: SystemTime,
}
