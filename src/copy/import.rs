//! Puts content into the cache that comes from somewhere else than an upstream, for an operator. The operator
//! vouches that the repositories have it; each byte is verified against its digest.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::cache::{
    Admission, AdmitError, Cache, Full, Opened, ReadMode, SpaceRequest, Stage, StoreError,
};
use crate::error_chain::on_one_line;
use crate::oci::manifest::{MAX_MANIFEST, ManifestError};
use crate::oci::{Classified, Digest, ErrorKind, Hasher, Manifest, RepoName, Tag};
use crate::workers::WorkLost;

/// Bytes that are hashed and written together.
const BATCH: usize = 1024 * 1024;
/// Space is reserved for so many bytes more, once that many have come.
const SPACE: u64 = 64 * 1024 * 1024;
/// How long the sender may be silent.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the cache has of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holding {
    /// The repository has it.
    Linked,
    /// Another mirrored repository has it.
    Stored,
    Missing,
}

/// Why content isn't imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("the content has the digest {got}, and not {expected}")]
    Digest {
        expected: Box<Digest>,
        got: Box<Digest>,
    },
    #[error("the content has {got} bytes, and not {expected}")]
    Size { expected: u64, got: u64 },
    #[error("the content has more bytes than were announced")]
    TooMuch,
    #[error("the content broke off: {0}")]
    BrokeOff(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no more of the content has come for {PATIENCE:?}")]
    Silent,
    #[error("there is no such content: its repository, tag or digest isn't valid")]
    Query,
    #[error("a manifest has at most {MAX_MANIFEST} bytes")]
    TooLarge,
    #[error("{0} is hosted here: push to it")]
    Hosted(RepoName),
    #[error("{0} isn't cached")]
    Missing(Box<Digest>),
    #[error("the manifest can't be used")]
    Manifest(#[from] ManifestError),
    #[error("{0} can't be stored; the log says why")]
    NotStored(Box<Digest>),
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lost(#[from] WorkLost),
}

impl Classified for ImportError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Digest { .. }
            | Self::Size { .. }
            | Self::TooMuch
            | Self::Query
            | Self::Hosted(_)
            | Self::BrokeOff(_)
            | Self::Silent
            | Self::Manifest(_) => ErrorKind::BadRequest,
            Self::TooLarge => ErrorKind::TooLarge,
            Self::Missing(_) => ErrorKind::NotFound,
            Self::NotStored(_) | Self::Full(_) | Self::Store(_) | Self::Lost(_) => {
                ErrorKind::Internal
            }
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        on_one_line(self).into()
    }
}

impl From<AdmitError> for ImportError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Full(full) => full.into(),
            AdmitError::Store(error) => error.into(),
        }
    }
}

/// Gives content in pieces; none is its end, and an error that it broke off.
#[async_trait::async_trait]
pub trait Chunks: Send {
    async fn next(&mut self) -> Result<Option<Bytes>, ImportError>;
}

/// Imports into one repository of a cache.
#[derive(Debug, Clone)]
pub struct Importer {
    cache: Cache,
    /// By its stored name.
    repo: RepoName,
}

/// A blob on its way into the store.
struct Arrival {
    stage: Box<dyn Stage>,
    hasher: Hasher,
    /// Bytes that are hashed and written.
    written: u64,
}

impl Importer {
    /// Of a mirrored repository. What a hosted one has is accepted by a push alone, which checks more.
    pub fn new(cache: &Cache, repo: RepoName) -> Result<Self, ImportError> {
        if cache.hosts(&repo) {
            return Err(ImportError::Hosted(repo));
        }
        let cache = cache.clone();
        Ok(Self { cache, repo })
    }

    /// What the cache has of these blobs for the repository.
    pub async fn holdings(&self, digests: &[Digest]) -> Vec<Holding> {
        let repo = &self.repo;
        let mut found = Vec::with_capacity(digests.len());
        for digest in digests {
            found.push(match self.cache.open(repo, digest, ReadMode::Head).await {
                Opened::Linked(_) => Holding::Linked,
                Opened::Unlinked(_) if self.is_shared(digest).await => Holding::Stored,
                Opened::Unlinked(_) | Opened::Missing => Holding::Missing,
            });
        }
        found
    }

    /// Whether a mirrored repository has it. What only hosted ones have isn't given away to those who may
    /// read this one because a bundle names its digest.
    async fn is_shared(&self, digest: &Digest) -> bool {
        let is_mirrored = |repo: &RepoName| !self.cache.hosts(repo);
        self.cache.is_linked_by(digest, is_mirrored).await
    }

    /// Links a blob that another mirrored repository has.
    pub async fn link(&self, digest: &Digest) -> Result<(), ImportError> {
        let repo = &self.repo;
        match self.cache.open(repo, digest, ReadMode::Head).await {
            Opened::Linked(_) => Ok(()),
            Opened::Unlinked(_) if !self.is_shared(digest).await => {
                Err(ImportError::Missing((*digest).into()))
            }
            Opened::Unlinked(blob) if self.cache.link(repo, digest, &blob).await => Ok(()),
            Opened::Unlinked(_) => Err(ImportError::NotStored((*digest).into())),
            Opened::Missing => Err(ImportError::Missing((*digest).into())),
        }
    }

    /// Stores a blob of `size` bytes, and links it.
    pub async fn blob(
        &self,
        digest: Digest,
        size: u64,
        chunks: &mut dyn Chunks,
    ) -> Result<(), ImportError> {
        let request = SpaceRequest {
            bytes: size.min(SPACE),
            blob: size,
            evict: true,
        };
        let (mut admission, stage) = self.cache.admit(&digest, "", request).await?;
        let mut arrival = Some(Arrival {
            stage,
            hasher: Hasher::new(digest.algorithm()),
            written: 0,
        });
        let receiving = self.receive(&mut arrival, &mut admission, (digest, size), chunks);
        let received = receiving.await;
        let Arrival { stage, .. } = arrival.ok_or(WorkLost)?;
        if let Err(error) = received {
            let removed = tokio::task::spawn_blocking(move || drop(stage)).await;
            removed.map_err(|_panicked| WorkLost)?;
            return Err(error);
        }
        let links = || vec![self.repo.clone()];
        admission
            .commit(stage, size, Some(self.repo.clone()), links)
            .await?;
        Ok(())
    }

    /// Hashes and writes all of a blob, and verifies it. `arrival` is none only after a panic.
    async fn receive(
        &self,
        arrival: &mut Option<Arrival>,
        admission: &mut Admission,
        (digest, size): (Digest, u64),
        chunks: &mut dyn Chunks,
    ) -> Result<(), ImportError> {
        let mut left = size;
        let mut batch = next_batch(chunks, &mut left).await?;
        while !batch.is_empty() {
            let mut own = arrival.take().ok_or(WorkLost)?;
            let writing = tokio::task::spawn_blocking(move || {
                let written = own.take(&batch);
                (own, written)
            });
            // The next batch is read while this one is hashed and written.
            let (written, next) = tokio::join!(writing, next_batch(chunks, &mut left));
            let (own, written) = written.map_err(|_panicked| WorkLost)?;
            let on_disk = own.written;
            *arrival = Some(own);
            written?;
            batch = next?;
            self.reserve(admission, on_disk, size).await?;
        }
        let own = arrival.as_ref().ok_or(WorkLost)?;
        let (got, expected) = (own.written, size);
        if got != expected {
            return Err(ImportError::Size { expected, got });
        }
        let got = own.hasher.clone().finish();
        if got != digest {
            return Err(ImportError::Digest {
                expected: digest.into(),
                got: got.into(),
            });
        }
        Ok(())
    }

    /// Keeps space reserved for what comes next of a blob.
    async fn reserve(
        &self,
        admission: &mut Admission,
        on_disk: u64,
        size: u64,
    ) -> Result<(), ImportError> {
        let reserved = admission.reservation.bytes();
        if on_disk + SPACE / 2 > reserved && reserved < size {
            let request = SpaceRequest {
                bytes: (size - reserved).min(SPACE),
                blob: size,
                evict: true,
            };
            let more = self.cache.reserve_step(request).await?;
            admission.reservation.merge(more);
        }
        admission.reservation.fill(on_disk);
        Ok(())
    }

    /// Stores a manifest, and links it.
    pub async fn manifest(
        &self,
        digest: Digest,
        size: u64,
        chunks: &mut dyn Chunks,
    ) -> Result<(), ImportError> {
        if size > MAX_MANIFEST {
            return Err(ImportError::TooLarge);
        }
        let leave = self.cache.workers().admit(size).await?;
        let (mut content, mut left) = (BytesMut::new(), size);
        loop {
            let batch = next_batch(chunks, &mut left).await?;
            if batch.is_empty() {
                break;
            }
            for chunk in &batch {
                content.extend_from_slice(chunk);
            }
        }
        let (content, expected) = (content.freeze(), size);
        let document = content.clone();
        let check = move || {
            let got = Digest::of(digest.algorithm(), &document);
            (got, Manifest::parse(&document))
        };
        let (got, parsed) = leave.run(check).await?;
        if content.len() as u64 != size {
            let got = content.len() as u64;
            return Err(ImportError::Size { expected, got });
        }
        if got != digest {
            return Err(ImportError::Digest {
                expected: digest.into(),
                got: got.into(),
            });
        }
        match self
            .cache
            .put_manifest(&self.repo, digest, content, parsed?)
            .await
        {
            (_, true) => Ok(()),
            (_, false) => Err(ImportError::NotStored(digest.into())),
        }
    }

    /// Makes a tag name a manifest that the repository has.
    pub async fn tag(&self, tag: &Tag, digest: &Digest) -> Result<(), ImportError> {
        let repo = &self.repo;
        if self.cache.peek_manifest(repo, digest).await.is_none() {
            return Err(ImportError::Missing((*digest).into()));
        }
        if self.cache.tag(repo, tag, digest).await {
            Ok(())
        } else {
            Err(ImportError::NotStored((*digest).into()))
        }
    }
}

impl Arrival {
    /// Hashes and writes the next chunks. Blocks.
    fn take(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.stage.write_at(self.written, chunks)?;
        for chunk in chunks {
            self.hasher.update(chunk);
            self.written += chunk.len() as u64;
        }
        Ok(())
    }
}

/// Chunks that are hashed and written together; none at the end. Counts what is `left` of the announced
/// bytes: more than those are an error.
async fn next_batch(chunks: &mut dyn Chunks, left: &mut u64) -> Result<Vec<Bytes>, ImportError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH {
        let next = timeout(PATIENCE, chunks.next()).await;
        let Some(chunk) = next.map_err(|_elapsed| ImportError::Silent)?? else {
            break;
        };
        let length = chunk.len() as u64;
        *left = left.checked_sub(length).ok_or(ImportError::TooMuch)?;
        bytes += chunk.len();
        if !chunk.is_empty() {
            batch.push(chunk);
        }
    }
    Ok(batch)
}
