//! Layers that a client is about to ask for, fetched before it does.
//!
//! A manifest that is read leaves a note of its layers. Manifests and configs alone are mostly read
//! for their metadata, so nothing happens before a client requests a layer that isn't cached. That
//! starts one task, which fetches the image's other missing layers: a few of one upstream at a time,
//! behind everything that clients wait for, and for as long as a client is being sent layers of the
//! image.
//!
//! What must never happen: a client waits for this, or fails because of it; a manifest is used for a
//! repository that doesn't have it; a layer is fetched that an upstream isn't to be asked for, that
//! is of a platform nobody pulls, or for which something would have to be evicted.

mod ledger;
mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::blobs::UpstreamBlob;
use super::{Mirror, Target};
use crate::clock::Clock;
use crate::config::RangeMode;
use crate::download::DownloadError;
use crate::error_chain::on_one_line;
use crate::metrics::{Metrics, Outcome};
use crate::oci::manifest::media_type;
use crate::oci::{Digest, Manifest};
use crate::upstream::Failure;
use ledger::Ledger;
pub use session::Visit;
use session::{Session, Sessions};

/// Layers whose manifest is remembered; the least used go first.
const MAX_NOTED: usize = 32_768;
/// Images remembered as fetched ahead lately.
const MAX_RECENT: usize = 10_000;
/// How long an image isn't looked at again.
const PAUSE: Duration = Duration::from_mins(10);
/// Images of one upstream that are being fetched ahead, or wait for that.
const MAX_IMAGES: usize = 64;
/// Layers of one image that are fetched ahead; most runtimes refuse more than 127.
const MAX_LAYERS: usize = 256;

/// What is known of images, and what is being done ahead of clients.
#[derive(Debug)]
pub(super) struct Prefetch {
    /// By the upstream's name.
    lanes: HashMap<String, Lane>,
    limits: PrefetchLimits,
    /// The manifest that a layer is of; none where several images share the layer, so that a request
    /// for it doesn't tell which one is pulled.
    layers: Cache<Digest, Option<Digest>>,
    /// When an image was fetched ahead.
    recent: Cache<Digest, Instant>,
    sessions: Arc<Sessions>,
    ledger: Arc<Ledger>,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// How much is fetched ahead.
#[derive(Debug, Clone, Copy)]
pub struct PrefetchLimits {
    /// Layers of one upstream at the same time; 0 turns prefetching off.
    pub downloads: usize,
    /// Bytes of one image.
    pub image: u64,
    /// Bytes of one layer: larger ones aren't cached.
    pub layer: u64,
}

/// What is being done at one upstream.
#[derive(Debug, Clone)]
struct Lane {
    images: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

/// What prefetching is made of.
#[derive(Debug)]
pub(super) struct PrefetchContext<'a> {
    pub(super) limits: PrefetchLimits,
    pub(super) upstreams: &'a super::Upstreams,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

/// One image to be fetched ahead.
#[derive(Debug)]
struct Image {
    target: Target,
    session: Session,
    lane: Lane,
    /// Its place among the images of the upstream.
    _place: OwnedSemaphorePermit,
}

/// A layer to be fetched ahead.
#[derive(Debug, Clone, Copy)]
struct Layer {
    digest: Digest,
    /// Bytes by the manifest's descriptor.
    size: u64,
}

impl Prefetch {
    pub(super) fn new(parts: PrefetchContext<'_>) -> Self {
        let lane = |name: &str| {
            let lane = Lane {
                images: Arc::new(Semaphore::new(MAX_IMAGES)),
                downloads: Arc::new(Semaphore::new(parts.limits.downloads)),
            };
            (name.to_owned(), lane)
        };
        Self {
            lanes: parts.upstreams.names().map(lane).collect(),
            limits: parts.limits,
            layers: Cache::new(MAX_NOTED),
            recent: Cache::new(MAX_RECENT),
            sessions: Arc::default(),
            ledger: Arc::new(Ledger::new(Arc::clone(&parts.metrics))),
            tasks: parts.tasks,
            stop: parts.stop,
            metrics: parts.metrics,
            clock: parts.clock,
        }
    }

    /// Notes which layers a manifest names. Called where manifests are parsed.
    pub(super) fn note(&self, digest: Digest, manifest: &Manifest) {
        let Some(config) = &manifest.config else {
            return;
        };
        // Clients of an artifact often want one file of many.
        if self.limits.downloads == 0 || config.media_type == media_type::EMPTY {
            return;
        }
        for layer in manifest.blobs.iter().take(MAX_LAYERS) {
            match self.layers.get(&layer.digest) {
                None => self.layers.insert(layer.digest, Some(digest)),
                Some(Some(known)) if known != digest => self.layers.insert(layer.digest, None),
                Some(_) => {}
            }
        }
    }

    /// The image that a client pulls when it requests this blob; none where that isn't known. A hit
    /// starts nothing, and so is looked up only while something is being fetched ahead.
    fn image_of(&self, digest: &Digest, outcome: Outcome) -> Option<Digest> {
        if outcome == Outcome::Hit && self.sessions.is_empty() {
            return None;
        }
        self.layers.get(digest)?
    }

    /// Begins to fetch an image ahead, unless that was done lately.
    fn begin(&self, target: &Target, manifest: Digest) -> Option<(Image, Visit)> {
        let now = self.clock.now();
        let lately = |since: Instant| now < since + PAUSE;
        if self.recent.get(&manifest).is_some_and(lately) {
            return None;
        }
        let lane = self.lanes.get(&target.upstream.name)?.clone();
        let (session, visit) = Sessions::start(&self.sessions, &target.stored, manifest)?;
        let Ok(place) = Arc::clone(&lane.images).try_acquire_owned() else {
            self.metrics.prefetch_dropped();
            return None;
        };
        self.recent.insert(manifest, now);
        let image = Image {
            target: target.clone(),
            session,
            lane,
            _place: place,
        };
        Some((image, visit))
    }
}

impl Mirror {
    /// A client is given a blob. The visit lasts as long as it is being sent.
    pub(super) fn blob_given(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        outcome: Outcome,
    ) -> Option<Visit> {
        let prefetch = &self.prefetch;
        if prefetch.limits.downloads == 0 {
            return None;
        }
        prefetch.ledger.asked(digest, outcome);
        let manifest = prefetch.image_of(digest, outcome)?;
        let visit = prefetch.sessions.visit(&target.stored, &manifest);
        if visit.is_some() || outcome == Outcome::Hit {
            return visit;
        }
        // Where ranges don't cause whole downloads, other layers mustn't be downloaded either.
        if self.ranges.mode(&target.stored) == RangeMode::Passthrough {
            return None;
        }
        let (image, visit) = prefetch.begin(target, manifest)?;
        let (mirror, stop) = (Arc::clone(self), prefetch.stop.clone());
        prefetch.tasks.spawn(async move {
            // A running download isn't cancelled with the prefetch: the downloader ends it.
            stop.run_until_cancelled_owned(mirror.fetch_image(image))
                .await
        });
        Some(visit)
    }

    async fn fetch_image(self: Arc<Self>, image: Image) {
        let all_clients_left = tokio::select! {
            biased;
            () = image.session.deserted() => true,
            was_possible = self.fetch_layers(&image) => !was_possible,
        };
        if all_clients_left {
            // The next client's image is looked at anew.
            self.prefetch.recent.remove(&image.session.manifest());
        }
    }

    /// Fetches the missing layers. False when the repository doesn't have the image.
    async fn fetch_layers(&self, image: &Image) -> bool {
        let digest = image.session.manifest();
        let repo = &image.target.stored;
        let Some(manifest) = self.cache.peek_manifest(repo, &digest).await else {
            return false;
        };
        let layers = self.missing(&image.target, manifest.parsed()).await;
        let given_up = &AtomicBool::new(false);
        stream::iter(layers)
            .for_each_concurrent(self.prefetch.limits.downloads, |layer| async move {
                self.fetch_layer(image, layer, given_up).await;
            })
            .await;
        true
    }

    /// The layers that are to be fetched, in the order in which clients ask for them.
    async fn missing(&self, target: &Target, manifest: &Manifest) -> Vec<Layer> {
        let mut missing: Vec<Layer> = Vec::new();
        let mut left = self.prefetch.limits.image;
        for descriptor in manifest.blobs.iter().take(MAX_LAYERS) {
            let (digest, size) = (descriptor.digest, descriptor.size);
            let fits = size <= left && self.can_fetch_ahead(size);
            if fits
                && !descriptor.is_foreign()
                && !missing.iter().any(|layer| layer.digest == digest)
                && self.is_missing(target, &digest).await
            {
                left -= size;
                missing.push(Layer { digest, size });
            }
        }
        missing
    }

    /// Whether a layer can be cached, and nothing has to be evicted for it.
    fn can_fetch_ahead(&self, size: u64) -> bool {
        size <= self.prefetch.limits.layer && self.cache.has_idle_space(size)
    }

    /// Whether a blob is neither there, for whichever repository, nor on its way. One that is there
    /// for another repository costs a client no more than a HEAD.
    async fn is_missing(&self, target: &Target, digest: &Digest) -> bool {
        !self.downloader.is_running(&target.upstream.name, digest)
            && self.cache.is_missing(digest).await
    }

    async fn fetch_layer(&self, image: &Image, layer: Layer, given_up: &AtomicBool) {
        let Ok(_permit) = image.lane.downloads.acquire().await else {
            return;
        };
        let Layer { digest, size } = layer;
        // Much may have happened before it was this layer's turn.
        // The stop ends the task, but only where it waits: what it waited for comes first.
        let over = self.prefetch.stop.is_cancelled() || given_up.load(Ordering::Relaxed);
        if over || !self.can_fetch_ahead(size) || !self.is_missing(&image.target, &digest).await {
            return;
        }
        let target = image.target.clone();
        let repository = target.stored.clone();
        let source = Arc::new(UpstreamBlob {
            target,
            digest,
            described_size: Some(size),
        });
        let entry = Ledger::begin(&self.prefetch.ledger, digest);
        match self
            .downloader
            .fetch_ahead(digest, &repository, source)
            .await
        {
            Ok(fetched) => entry.fetched(fetched),
            Err(error) => {
                tracing::debug!(repo = %repository, %digest, error = %on_one_line(&error), "a layer can't be fetched ahead");
                if !is_of_one_layer(&error) {
                    given_up.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Whether the next layer may well be better. Otherwise it is the upstream that can't or won't
/// answer, or this mirror that can't store.
fn is_of_one_layer(error: &DownloadError) -> bool {
    match error {
        DownloadError::Upstream(error) => matches!(
            error.failure,
            Failure::NotFound(_) | Failure::Unexpected(_) | Failure::Protocol(_)
        ),
        DownloadError::Digest { .. }
        | DownloadError::Length { .. }
        | DownloadError::Changed { .. } => true,
        DownloadError::Store(_)
        | DownloadError::Lost
        | DownloadError::Stuck
        | DownloadError::Stopping
        | DownloadError::Busy => false,
    }
}
