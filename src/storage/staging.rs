//! Staged writes: content that isn't committed yet, and what a later download resumes of it.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;

use super::{Modified, Reader, StoreError};
use crate::oci::RangeSet;

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

    /// Writes the chunks one after the other from `offset` (in bytes) on, over what is there. After
    /// an error the stage can't be written to or committed any more, because how much of the chunks
    /// was written is unknown; what was written elsewhere before stays readable and resumable.
    fn write_at(&mut self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError>;

    /// Replaces the checkpoint by one of everything that has been written of a blob of `total` bytes.
    /// It outlives the process, but a power cut only if `sync` is set, which makes file and checkpoint
    /// durable and takes as long as the disk does. After an error the earlier checkpoint stays.
    fn checkpoint(&mut self, total: u64, sync: bool) -> Result<(), StoreError>;

    /// Ends the stage and leaves what its last checkpoint claims, for [`Store::resume`]. Without a
    /// checkpoint this is the same as dropping.
    ///
    /// [`Store::resume`]: super::Store::resume
    fn leave(self: Box<Self>);

    /// Makes the content durable and gives it its name. The caller has verified the digest. When
    /// the store has a blob of the same size already, that one stays and this one is removed; one of
    /// another size is damaged, and replaced. Removes the digest's partials of all upstreams.
    ///
    /// Returns the modification time of the file that this stage has written; none when another
    /// one stays, of which nothing is known, or when it can't be told.
    fn commit(self: Box<Self>) -> Result<Option<Modified>, StoreError>;
}
