//! What a copy tells of its progress.

use std::time::Duration;

use super::error::CopyError;
use crate::oci::Digest;
use crate::upstream::UpstreamError;

/// Sees the progress of a copy. It is called on the copy's own task, so it must not wait.
pub trait Observer: Send + Sync {
    fn on(&self, event: &Event<'_>);
}

/// Sees nothing.
impl Observer for () {
    fn on(&self, _: &Event<'_>) {}
}

/// Something has happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// It is known what an image consists of.
    Planned {
        image: &'a str,
        manifests: usize,
        blobs: usize,
        /// Of all blobs.
        bytes: u64,
    },
    /// A blob.
    Blob {
        digest: &'a Digest,
        size: u64,
        step: BlobStep,
    },
    /// A registry asks for a pause, or a request has failed and is tried again.
    Waiting {
        host: &'a str,
        error: &'a UpstreamError,
        wait: Duration,
    },
    /// An image is copied, or was there already.
    Done { image: &'a str, copied: &'a Copied },
    Failed {
        image: &'a str,
        error: &'a CopyError,
    },
}

/// How far a blob has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobStep {
    /// So many bytes of it were sent, those of earlier runs included. May be less than before, where the
    /// destination has lost some.
    Sent(u64),
    Ended(BlobEnd),
}

/// How a blob came to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlobEnd {
    /// It was there.
    Exists,
    /// The registry mounted it from another repository of its own.
    Mounted,
    /// Of so many bytes; this run has sent the second number of them or more.
    Copied,
}

/// What was done for one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Of the manifest that the destination has; None where nothing was copied because of `--no-clobber`.
    pub digest: Option<Digest>,
    /// Whether the destination's digest isn't the source's, because only some platforms were copied.
    pub is_sparse: bool,
    /// Whether the destination had it already, and all that is attached to it.
    pub is_unchanged: bool,
    pub blobs: usize,
    /// Blobs that were sent, and their bytes.
    pub sent: (usize, u64),
    pub mounted: usize,
    /// Manifests that are attached to the image: signatures, attestations and others.
    pub referrers: usize,
}
