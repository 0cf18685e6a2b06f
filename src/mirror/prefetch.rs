//! Layers that a client is about to ask for, fetched before it does.
//!
//! Who asks for an image's config pulls the image; who asks for its manifest mostly looks whether it
//! has changed. So a manifest that is read leaves a note of its config, and the first GET of that
//! config starts one task, which fetches the layers that aren't there: a few of one upstream at a
//! time, and behind everything that clients wait for.
//!
//! What must never happen: a client waits for this, or fails because of it; a manifest is used for a
//! repository that doesn't have it; a layer is fetched that an upstream isn't to be asked for.

mod ledger;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
use crate::fetch::FetchError;
use crate::metrics::{Metrics, Outcome};
use crate::oci::manifest::media_type;
use crate::oci::{Digest, Manifest, RepoName};
use crate::upstream::UpstreamError;
use ledger::Ledger;

/// Configs that manifests have been seen to name; the least used go first.
const MAX_CONFIGS: usize = 10_000;
/// Manifests remembered of one config: conversions of an image share it.
const MAX_NAMING: usize = 4;
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
    /// Layers of one upstream that are fetched at a time; 0: never any.
    downloads: usize,
    /// The manifests that name a config, the one seen last first. Whether a repository has one of
    /// them is asked when it is used.
    configs: Cache<Digest, Arc<[Digest]>>,
    /// When a config of a repository was acted upon, and which manifest was seen last then.
    recent: Cache<(RepoName, Digest), (Instant, Digest)>,
    /// Makes looking into `recent` and writing to it one step.
    claim: Mutex<()>,
    ledger: Arc<Ledger>,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What is being done at one upstream.
#[derive(Debug, Clone)]
struct Lane {
    images: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

/// What prefetching is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) downloads: usize,
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
    config: Digest,
    /// The manifests that may be it.
    manifests: Arc<[Digest]>,
    lane: Lane,
    /// Its place among the images of the upstream.
    _place: OwnedSemaphorePermit,
}

impl Prefetch {
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let lane = |name: &str| {
            let lane = Lane {
                images: Arc::new(Semaphore::new(MAX_IMAGES)),
                downloads: Arc::new(Semaphore::new(parts.downloads)),
            };
            (name.to_owned(), lane)
        };
        Self {
            lanes: parts.upstreams.names().map(lane).collect(),
            downloads: parts.downloads,
            configs: Cache::new(MAX_CONFIGS),
            recent: Cache::new(MAX_RECENT),
            claim: Mutex::default(),
            ledger: Arc::new(Ledger::new(Arc::clone(&parts.metrics))),
            tasks: parts.tasks,
            stop: parts.stop,
            metrics: parts.metrics,
            clock: parts.clock,
        }
    }

    /// Notes which config a manifest names. Called where manifests are parsed: mostly a look-up.
    pub(super) fn note(&self, digest: Digest, manifest: &Manifest) {
        let Some(config) = &manifest.config else {
            return;
        };
        // All artifacts share the empty config: it says nothing of what is pulled.
        if self.downloads == 0 || config.media_type == media_type::EMPTY {
            return;
        }
        let known = self.configs.get(&config.digest);
        let known = known.as_deref().unwrap_or_default();
        if !known.contains(&digest) {
            let older = known.iter().copied().take(MAX_NAMING - 1);
            let naming = [digest].into_iter().chain(older).collect();
            self.configs.insert(config.digest, naming);
        }
    }

    /// What a GET of this blob makes to be fetched ahead. None for nearly all: it is no config, or
    /// its image has been dealt with lately.
    fn due(&self, target: &Target, digest: &Digest) -> Option<Image> {
        let manifests = self.configs.get(digest)?;
        let newest = *manifests.first()?;
        let key = (target.stored.clone(), *digest);
        let now = self.clock.now();
        let lately = |(since, seen): (Instant, Digest)| seen == newest && now < since + PAUSE;
        if self.recent.get(&key).is_some_and(lately) {
            return None;
        }
        let lane = self.lanes.get(&target.upstream.name)?.clone();
        let _claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if self.recent.get(&key).is_some_and(lately) {
            return None;
        }
        let Ok(place) = Arc::clone(&lane.images).try_acquire_owned() else {
            self.metrics.prefetch_dropped();
            return None;
        };
        self.recent.insert(key, (now, newest));
        Some(Image {
            target: target.clone(),
            config: *digest,
            manifests,
            lane,
            _place: place,
        })
    }
}

impl Mirror {
    /// A client is given a blob.
    pub(super) fn blob_given(self: &Arc<Self>, target: &Target, digest: &Digest, outcome: Outcome) {
        let prefetch = &self.prefetch;
        if prefetch.downloads == 0 {
            return;
        }
        prefetch.ledger.asked(digest, outcome);
        let Some(image) = prefetch.due(target, digest) else {
            return;
        };
        // Where ranges don't cause whole downloads, the config of a lazy pull mustn't either.
        if self.ranges.mode(&target.stored) == RangeMode::Passthrough {
            return;
        }
        let (mirror, stop) = (Arc::clone(self), prefetch.stop.clone());
        prefetch.tasks.spawn(async move {
            // Ends in the midst of it: what runs is the fetcher's to end.
            stop.run_until_cancelled_owned(mirror.fetch_image(image))
                .await
        });
    }

    async fn fetch_image(self: Arc<Self>, image: Image) {
        let Some(manifest) = self.pulled(&image).await else {
            // It isn't this repository's, or not yet: the next client may have more of it.
            let key = (image.target.stored.clone(), image.config);
            self.prefetch.recent.remove(&key);
            return;
        };
        let layers = self.missing(&manifest).await;
        let (mirror, image, given_up) = (&self, &image, &AtomicBool::new(false));
        stream::iter(layers)
            .for_each_concurrent(self.prefetch.downloads, |layer| async move {
                mirror.fetch_layer(image, layer, given_up).await;
            })
            .await;
    }

    /// The manifest that was seen last of those that the repository has.
    async fn pulled(&self, image: &Image) -> Option<Manifest> {
        for digest in image.manifests.iter() {
            if let Some(stored) = self.linked_document(&image.target, *digest).await {
                return Some(stored.manifest);
            }
        }
        None
    }

    /// The layers that are to be fetched, in the order in which clients ask for them.
    async fn missing(&self, manifest: &Manifest) -> Vec<Digest> {
        let mut missing = Vec::new();
        for layer in manifest.blobs.iter().take(MAX_LAYERS) {
            if !layer.is_foreign()
                && !missing.contains(&layer.digest)
                && self.is_missing(&layer.digest).await
            {
                missing.push(layer.digest);
            }
        }
        missing
    }

    /// Whether a blob is neither there, for whichever repository, nor on its way. One that is there
    /// for another repository costs a client no more than a HEAD.
    async fn is_missing(&self, digest: &Digest) -> bool {
        if self.fetcher.is_running(digest) {
            return false;
        }
        match self.store.size(digest).await {
            Ok(size) => size.is_none(),
            Err(error) => {
                tracing::debug!(%digest, %error, "not fetched ahead: the store can't be read");
                false
            }
        }
    }

    async fn fetch_layer(&self, image: &Image, digest: Digest, given_up: &AtomicBool) {
        let Ok(_permit) = image.lane.downloads.acquire().await else {
            return;
        };
        // Much may have happened before it was this layer's turn.
        // The stop ends the task, but only where it waits: what it waited for comes first.
        let over = self.prefetch.stop.is_cancelled() || given_up.load(Ordering::Relaxed);
        if over || !self.is_missing(&digest).await {
            return;
        }
        let target = image.target.clone();
        let repository = target.stored.clone();
        let source = Arc::new(UpstreamBlob {
            target,
            digest,
            described_size: self.sizes.get(&digest),
        });
        let entry = Ledger::begin(&self.prefetch.ledger, digest);
        match self.fetcher.fetch_ahead(digest, &repository, source).await {
            Ok(fetched) => entry.fetched(fetched),
            Err(error) => {
                tracing::debug!(repo = %repository, %digest, %error, "a layer can't be fetched ahead");
                if !is_of_one_layer(&error) {
                    given_up.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Whether the next layer may well be better. Otherwise it is the upstream that can't or won't
/// answer, or this mirror that can't store.
fn is_of_one_layer(error: &FetchError) -> bool {
    match error {
        FetchError::Upstream(error) => matches!(
            error,
            UpstreamError::NotFound { .. }
                | UpstreamError::Unexpected { .. }
                | UpstreamError::Protocol { .. }
        ),
        FetchError::Digest { .. }
        | FetchError::Length { .. }
        | FetchError::Changed { .. }
        | FetchError::Present => true,
        FetchError::Store(_) | FetchError::Lost | FetchError::Abandoned | FetchError::Stopping => {
            false
        }
    }
}
