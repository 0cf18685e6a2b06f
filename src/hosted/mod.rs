//! Hosted repositories: what clients push, beside what is mirrored.
//!
//! ```text
//! sessions, session   uploads: which there are, and who writes      blobs      read, mount, delete
//! writer              hashes and writes bytes as they arrive        manifests  check, keep, tag, delete
//! settings, error, body                                             lists      tags, referrers
//! ```
//!
//! The bytes of an upload go to a file of the store while they are hashed. A finished upload becomes
//! a blob of the cache that the repository links. A manifest finds its parts in the repository, under the
//! index's lock, and holds them until it refers to them. Its success promises that it and
//! all that it refers to survive a power cut.
//!
//! What must never happen: a success is answered for content that isn't whole; a part of a manifest that
//! was accepted is removed; a repository's content is served to callers of another one; an upstream
//! is asked.

mod body;
mod error;
mod settings;

use std::sync::Arc;

use bytes::Bytes;

pub use body::{BodyError, Part, PushBody};
pub use error::HostedError;
pub use settings::{Incomplete, SpaceSettings, SyncMode};

use crate::cache::{Cache, CachedBlob, CachedManifest, HostedPolicy, ReadMode};
use crate::clock::Clock;
use crate::oci::{Algorithm, Descriptor, Digest, Reference, RepoName, Tag, UploadId};
use crate::tasks::Tasks;
use tokio_util::sync::CancellationToken;

/// Which repositories a caller may pull from, by their stored names.
pub type MayPull<'a> = dyn Fn(&RepoName) -> bool + Sync + 'a;

/// What a pushed manifest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub digest: Digest,
    pub subject: Option<Digest>,
}

/// All hosted repositories. Clones share them.
#[derive(Debug, Clone)]
pub struct Hosted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    spaces: Arc<[SpaceSettings]>,
}

impl Hosted {
    /// Starts. `cache` was started with the policies of these spaces, in this order. `tasks` owns what
    /// outlives a request; `stop` ends the background work.
    pub fn start(
        cache: Cache,
        clock: Clock,
        spaces: Vec<SpaceSettings>,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        unimplemented!()
    }

    /// The same with other settings of the same spaces: open uploads go on.
    #[must_use]
    pub fn renewed(&self, spaces: Vec<SpaceSettings>) -> Self {
        unimplemented!()
    }

    /// Whether a repository is hosted.
    pub fn is_hosted(&self, repo: &RepoName) -> bool {
        unimplemented!()
    }

    /// Starts an upload. `algorithm` is that of the digest which will be asked for, if that is known.
    pub async fn start_upload(
        &self,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
    ) -> Result<UploadId, HostedError> {
        unimplemented!()
    }

    /// Bytes that an upload has received. Waits for a request that still writes what it received.
    pub async fn upload_status(&self, repo: &RepoName, id: &UploadId) -> Result<u64, HostedError> {
        unimplemented!()
    }

    /// Adds a part to an upload, and returns how many bytes it has received in total. What arrived
    /// before an error is kept.
    pub async fn append(
        &self,
        repo: &RepoName,
        id: &UploadId,
        part: Part,
        body: &mut dyn PushBody,
    ) -> Result<u64, HostedError> {
        unimplemented!()
    }

    /// Adds the last part to an upload, and makes it a blob of the repository.
    pub async fn finish(
        &self,
        repo: &RepoName,
        id: &UploadId,
        digest: &Digest,
        part: Part,
        body: &mut dyn PushBody,
    ) -> Result<(), HostedError> {
        unimplemented!()
    }

    /// Ends an upload, and removes what it has received.
    pub async fn cancel(&self, repo: &RepoName, id: &UploadId) -> Result<(), HostedError> {
        unimplemented!()
    }

    /// Stores a blob that one request has whole, of this length in bytes if it was announced.
    pub async fn put_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        length: Option<u64>,
        body: &mut dyn PushBody,
    ) -> Result<(), HostedError> {
        unimplemented!()
    }

    /// Makes a blob of another repository one of this one. False when no repository that the caller
    /// may pull from has it. `from` is a stored name; none looks through all.
    pub async fn mount(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
        may_pull: &MayPull<'_>,
    ) -> Result<bool, HostedError> {
        unimplemented!()
    }

    /// A warm blob; none says nothing of whether there is one.
    pub fn warm_blob(&self, repo: &RepoName, digest: &Digest) -> Option<CachedBlob> {
        self.0.cache.open_warm(repo, digest)
    }

    /// A blob of the repository; where the space permits that, also one of 1 KiB or more of a mirrored
    /// repository for which `may_reuse` is true: then it is held for a manifest that will refer to it.
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        mode: ReadMode,
        may_reuse: &MayPull<'_>,
    ) -> Result<CachedBlob, HostedError> {
        unimplemented!()
    }

    /// Removes a blob from the repository, which doesn't have it any more at once.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest) -> Result<(), HostedError> {
        unimplemented!()
    }

    /// Stores a manifest. `tags` are further ones, beside that of the reference. Parts that were found
    /// for reuse are linked if `may_reuse` is true for a repository that has them.
    pub async fn put_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        tags: &[Tag],
        content_type: Option<&str>,
        body: Bytes,
        may_reuse: &MayPull<'_>,
    ) -> Result<Pushed, HostedError> {
        unimplemented!()
    }

    /// A manifest of the repository.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Arc<CachedManifest>, HostedError> {
        unimplemented!()
    }

    /// Removes a tag, or a manifest with all its tags.
    pub async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<(), HostedError> {
        unimplemented!()
    }

    /// All tags of a repository, in the order of their bytes.
    pub async fn tags(&self, repo: &RepoName) -> Result<Vec<Tag>, HostedError> {
        unimplemented!()
    }

    /// The manifests of the repository that have this subject, by digest, with the entries of a tag that
    /// lists them.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Vec<Arc<Descriptor>>, HostedError> {
        unimplemented!()
    }

    /// All hosted repositories that have something, sorted.
    pub async fn repositories(&self) -> Result<Vec<RepoName>, HostedError> {
        unimplemented!()
    }
}
