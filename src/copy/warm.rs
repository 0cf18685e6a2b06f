//! Fetches images into the cache before clients pull them.
//!
//! Each image is pulled as a client would pull it: its manifests through the mirror, then the blobs that
//! the cache lacks, of all images together a bounded number at a time. Someone waits for it, so downloads
//! have a client's priority. What happens is told as [`Event`]s; when nobody takes them any more, it ends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use super::image::Image;
use super::platform::{self, Platform};
use crate::cache::{Cache, CachedManifest, Piece, PinError};
use crate::download::{DownloadError, Follower};
use crate::error_chain::on_one_line;
use crate::mirror::{BlobContent, Mirror, MirrorError, Target};
use crate::oci::{Descriptor, Digest, Reference, RepoName};
use crate::workers::WorkLost;

/// Images that are looked at together.
const IMAGES: usize = 8;
/// Blobs that are fetched together.
const BLOBS: usize = 16;
/// Manifests of one image, all platforms and what is attached to them included.
const MAX_MANIFESTS: usize = 1_000;
/// Bytes of all of them: what they refer to is in memory until the image is complete.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Events that wait to be taken.
const MAX_EVENTS: usize = 256;
/// Bytes of a blob that are told in one event.
const STEP: u64 = 256 * 1024;

/// What is to be fetched.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WarmRequest {
    /// Names, as people write them.
    pub images: Vec<String>,
    /// Of an index, only the images of these platforms; empty is all.
    pub platforms: Vec<Platform>,
    /// Fetches no blob: reports what would be fetched.
    pub check: bool,
    /// Also what is attached to the images: signatures, SBOMs.
    pub referrers: bool,
    /// Reports what belongs to each image.
    pub contents: bool,
    /// Pins each image that is complete.
    pub pin: Option<Pinning>,
}

/// How long pins last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pinning {
    UntilUnpinned,
    Seconds(u64),
}

impl Pinning {
    /// Of pins that last so long; none is until they are unpinned.
    pub fn lasting(lasting: Option<Duration>) -> Self {
        lasting.map_or(Self::UntilUnpinned, |lasting| {
            Self::Seconds(lasting.as_secs().max(1))
        })
    }

    /// In seconds; none is until they are unpinned.
    pub fn seconds(self) -> Option<u64> {
        match self {
            Self::UntilUnpinned => None,
            Self::Seconds(seconds) => Some(seconds),
        }
    }
}

/// What has happened; `image` is the position in the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The manifests of an image have been read.
    Planned {
        image: usize,
        /// Bytes of the blobs that aren't cached.
        missing: u64,
    },
    /// So many bytes of missing blobs more have arrived.
    Arrived { image: usize, bytes: u64 },
    /// All of the image has been looked at.
    Ended { image: usize, result: WarmResult },
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WarmResult {
    Complete(Box<WarmReport>),
    /// On one line.
    Failed(String),
}

/// What there was of an image, and what was fetched, or would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// By its stored name: `repository:tag` or `repository@digest`.
    pub stored: String,
    pub digest: Digest,
    /// Blobs that were cached already.
    pub cached: Amount,
    pub fetched: Amount,
    /// Where it was asked for.
    pub contents: Option<Contents>,
}

/// What belongs to an image, all of it stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The repository, by its stored name.
    pub repository: String,
    /// The image itself.
    pub root: Descriptor,
    /// The manifests that are attached to it or to a part of it.
    pub attached: Vec<Descriptor>,
    /// All manifests, each with its size in bytes.
    pub manifests: Vec<(Digest, u64)>,
    /// All blobs, likewise.
    pub blobs: Vec<(Digest, u64)>,
}

/// Blobs and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    pub blobs: u64,
    pub bytes: u64,
}

impl Amount {
    /// Adds another amount.
    pub fn add(&mut self, other: Self) {
        self.blobs += other.blobs;
        // The sizes are what manifests say.
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn of(blobs: &[Descriptor]) -> Self {
        Self {
            blobs: blobs.len() as u64,
            bytes: blobs
                .iter()
                .fold(0, |sum, blob| sum.saturating_add(blob.size)),
        }
    }
}

/// Why an image isn't complete.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    #[error("{name:?} isn't an image: {advice}")]
    Name { name: String, advice: &'static str },
    #[error("{0} is hosted here and has no upstream")]
    Hosted(RepoName),
    #[error(transparent)]
    Mirror(Box<MirrorError>),
    #[error("blob {digest}: {source}")]
    Blob {
        digest: Box<Digest>,
        source: Box<MirrorError>,
    },
    #[error(
        "blob {digest} isn't stored: there is no space, it is larger than `proxy.maxblobsize`, or the disk fails; the log says which"
    )]
    NotStored { digest: Box<Digest> },
    #[error("the image has more than {MAX_MANIFESTS} manifests, or more than 8 MiB of them")]
    TooMany,
    #[error("it has no image of the platforms that were asked for")]
    Platform,
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Lost(#[from] WorkLost),
    #[error("nobody waits for the result any more")]
    Abandoned,
}

impl From<MirrorError> for WarmError {
    fn from(error: MirrorError) -> Self {
        Self::Mirror(error.into())
    }
}

impl From<DownloadError> for WarmError {
    fn from(error: DownloadError) -> Self {
        MirrorError::from(error).into()
    }
}

/// Fetches images through a mirror into its cache.
#[derive(Debug, Clone)]
pub struct Warmer {
    pub mirror: Arc<Mirror>,
    pub cache: Cache,
}

/// One run.
struct Run {
    warmer: Warmer,
    request: WarmRequest,
    /// Blobs of all images.
    permits: Semaphore,
    events: mpsc::Sender<Event>,
}

/// The blobs of one image.
struct Plan {
    root: Arc<CachedManifest>,
    target: Target,
    missing: Vec<Descriptor>,
    cached: Amount,
    contents: Contents,
}

impl Warmer {
    /// Fetches the images. Everything is done while the events are taken.
    pub fn warm(self, request: WarmRequest) -> impl Stream<Item = Event> + Send + use<> {
        let (events, taken) = mpsc::channel(MAX_EVENTS);
        let run = Run {
            warmer: self,
            request,
            permits: Semaphore::new(BLOBS),
            events,
        };
        let working = stream::once(async move { run.all().await }).filter_map(std::future::ready);
        let taken = stream::unfold(taken, async |mut taken| {
            let event = taken.recv().await?;
            Some((event, taken))
        });
        stream::select(taken, working)
    }
}

impl Run {
    /// Fetches all images, a few at a time. Never returns an event: they have been sent.
    async fn all(self) -> Option<Event> {
        let run = &self;
        stream::iter(0..self.request.images.len())
            .for_each_concurrent(IMAGES, |image| async move {
                let result = match Box::pin(run.image(image)).await {
                    Ok(report) => WarmResult::Complete(report.into()),
                    Err(error) => WarmResult::Failed(on_one_line(&error)),
                };
                // Nobody may take it any more.
                drop(run.events.send(Event::Ended { image, result }).await);
            })
            .await;
        None
    }

    async fn tell(&self, event: Event) -> Result<(), WarmError> {
        let sent = self.events.send(event).await;
        sent.map_err(|_nobody| WarmError::Abandoned)
    }

    async fn image(&self, image: usize) -> Result<WarmReport, WarmError> {
        let name = self.request.images.get(image).ok_or(WarmError::Abandoned)?;
        let (target, reference) = self.warmer.resolve(name)?;
        let plan = self.plan(&target, &reference).await?;
        let missing = Amount::of(&plan.missing).bytes;
        self.tell(Event::Planned { image, missing }).await?;
        if !self.request.check {
            let blobs = plan.missing.iter();
            let blobs: Vec<_> = blobs.map(|blob| self.blob(image, &plan, blob)).collect();
            let mut fetching = stream::iter(blobs).buffer_unordered(BLOBS);
            while let Some(fetched) = fetching.next().await {
                fetched?;
            }
        }
        let stored = match &reference {
            Reference::Tag(tag) => format!("{}:{tag}", target.stored),
            Reference::Digest(digest) => format!("{}@{digest}", target.stored),
        };
        if let Some(pinning) = self.request.pin.filter(|_| !self.request.check) {
            let lasting = pinning.seconds().map(Duration::from_secs);
            self.warmer.cache.pin(vec![stored.clone()], lasting).await?;
        }
        Ok(WarmReport {
            stored,
            digest: plan.root.meta.digest,
            cached: plan.cached,
            fetched: Amount::of(&plan.missing),
            contents: self.request.contents.then_some(plan.contents),
        })
    }

    /// Reads all manifests of an image, and finds out which blobs are missing.
    async fn plan(&self, target: &Target, reference: &Reference) -> Result<Plan, WarmError> {
        let root = self.manifest(target, reference).await?;
        let mut plan = Plan {
            target: target.clone(),
            missing: Vec::new(),
            cached: Amount::default(),
            contents: Contents {
                repository: target.stored.to_string(),
                root: describe(&root),
                attached: Vec::new(),
                manifests: Vec::new(),
                blobs: Vec::new(),
            },
            root: Arc::clone(&root),
        };
        let mut seen = HashSet::from([root.meta.digest]);
        // Only their digests: so many manifests would be gigabytes.
        let (mut unread, mut has_image, mut bytes) = (Vec::new(), false, 0);
        let mut next = Some(root);
        while let Some(manifest) = next {
            has_image |= manifest.parsed.manifests.is_empty();
            let (digest, size) = (manifest.meta.digest, manifest.meta.size);
            plan.contents.manifests.push((digest, size));
            bytes += size;
            for blob in manifest.parsed.config.iter().chain(&manifest.parsed.blobs) {
                // A registry may lack a foreign layer; clients have it from elsewhere.
                if !blob.is_foreign() && seen.insert(blob.digest) {
                    self.look_at(&mut plan, blob).await;
                }
            }
            let children = self.children(&manifest).await?.into_iter();
            unread.extend(
                children
                    .filter(|child| seen.insert(*child))
                    .map(|child| (child, None)),
            );
            if self.request.referrers {
                let attached = self.warmer.mirror.attached(target, digest).await?;
                let attached = attached.into_iter().filter(|one| seen.insert(*one));
                unread.extend(attached.map(|one| (one, Some(digest))));
            }
            if plan.contents.manifests.len() + unread.len() > MAX_MANIFESTS || bytes > MAX_BYTES {
                return Err(WarmError::TooMany);
            }
            next = self.next(&mut plan, &mut unread).await?;
        }
        has_image.then_some(plan).ok_or(WarmError::Platform)
    }

    /// Reads the next manifest, each with the one that it is said to be attached to.
    async fn next(
        &self,
        plan: &mut Plan,
        unread: &mut Vec<(Digest, Option<Digest>)>,
    ) -> Result<Option<Arc<CachedManifest>>, WarmError> {
        while let Some((digest, subject)) = unread.pop() {
            let reference = Reference::Digest(digest);
            let read = self.manifest(&plan.target, &reference);
            let Some(subject) = subject else {
                return read.await.map(Some);
            };
            let manifest = match read.await {
                // A list may still name what is gone.
                Err(WarmError::Mirror(error)) if error.is_not_found() => continue,
                read => read?,
            };
            let refers = manifest.parsed.subject.as_ref();
            if refers.is_some_and(|of| of.digest == subject) {
                plan.contents.attached.push(describe(&manifest));
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Adds a blob to a plan.
    async fn look_at(&self, plan: &mut Plan, blob: &Descriptor) {
        plan.contents.blobs.push((blob.digest, blob.size));
        if self
            .warmer
            .mirror
            .has_blob(&plan.target, &blob.digest)
            .await
        {
            plan.cached.add(Amount::of(std::slice::from_ref(blob)));
        } else {
            plan.missing.push(blob.clone());
        }
    }

    async fn manifest(
        &self,
        target: &Target,
        reference: &Reference,
    ) -> Result<Arc<CachedManifest>, WarmError> {
        let found = self.warmer.mirror.whole_manifest(target, reference).await?;
        match found {
            (manifest, true) => Ok(manifest),
            (manifest, false) => Err(WarmError::NotStored {
                digest: manifest.meta.digest.into(),
            }),
        }
    }

    /// The images of an index that are wanted.
    async fn children(&self, manifest: &CachedManifest) -> Result<Vec<Digest>, WarmError> {
        let children = &manifest.parsed.manifests;
        if children.is_empty() || self.request.platforms.is_empty() {
            return Ok(children.iter().map(|child| child.digest).collect());
        }
        let (content, platforms) = (manifest.content.clone(), self.request.platforms.clone());
        let workers = self.warmer.cache.workers();
        let leave = workers.admit(manifest.meta.size).await?;
        Ok(leave
            .run(move || platform::matching(&content, &platforms))
            .await?)
    }

    /// Fetches one blob, and waits until it is stored.
    async fn blob(&self, image: usize, plan: &Plan, blob: &Descriptor) -> Result<(), WarmError> {
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|_closed| WarmError::Abandoned)?;
        let (target, digest) = (&plan.target, blob.digest);
        let failed = |source| WarmError::Blob {
            digest: digest.into(),
            source,
        };
        let answer = self.warmer.mirror.fetch_blob(target, digest).await;
        let answer = answer.map_err(|error| failed(error.into()))?;
        if let Some(BlobContent::Fetching(follower)) = answer.body {
            let followed = self.follow(image, follower).await;
            followed.map_err(|error| match error {
                WarmError::Mirror(source) => failed(source),
                other => other,
            })?;
        } else {
            let bytes = blob.size;
            self.tell(Event::Arrived { image, bytes }).await?;
        }
        if self.warmer.mirror.has_blob(target, &digest).await {
            Ok(())
        } else {
            let digest = digest.into();
            Err(WarmError::NotStored { digest })
        }
    }

    /// Reads a download to its end, as a client does, so that it has a client's priority.
    async fn follow(&self, image: usize, mut follower: Follower) -> Result<(), WarmError> {
        let (mut at, mut told) = (0, 0);
        while let Some(piece) = follower.piece(at, None, true).await? {
            at = match piece {
                Piece::Bytes(bytes) => at + bytes.len() as u64,
                Piece::File { end, .. } => end,
            };
            if at - told >= STEP {
                let bytes = at - told;
                told = at;
                self.tell(Event::Arrived { image, bytes }).await?;
            }
        }
        follower.concluded().await;
        let bytes = at - told;
        self.tell(Event::Arrived { image, bytes }).await
    }
}

impl Warmer {
    /// The repository and the reference that a name means. A name without a registry is the default
    /// upstream's.
    pub fn resolve(&self, name: &str) -> Result<(Target, Reference), WarmError> {
        let upstreams = &self.mirror.upstreams;
        let home = upstreams.default_name();
        let image = Image::parse_at(name, home).map_err(|advice| WarmError::Name {
            name: name.to_owned(),
            advice,
        })?;
        let registry = Some(image.registry.as_str()).filter(|registry| *registry != home);
        let target = upstreams.target(registry, None, &image.repo)?;
        if self.cache.hosts(&target.stored) {
            return Err(WarmError::Hosted(target.stored));
        }
        Ok((target, image.reference))
    }
}

/// A manifest as an index names it.
fn describe(manifest: &CachedManifest) -> Descriptor {
    let (digest, size) = (manifest.meta.digest, manifest.meta.size);
    let mut descriptor = manifest.parsed.descriptor(digest, size);
    descriptor.annotations.clear();
    descriptor
}
