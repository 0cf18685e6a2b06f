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
//! is of a platform nobody pulls, that clients get from the bucket, or for which something would have to be
//! evicted.

mod ledger;
mod session;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
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
use super::described::Described;
use super::{Mirror, Target, Upstreams};
use crate::clock::Clock;
use crate::config::RangeMode;
use crate::download::DownloadError;
use crate::error_chain::on_one_line;
use crate::metrics::{Metrics, Outcome};
use crate::oci::manifest::media_type;
use crate::oci::{Descriptor, Digest, Manifest};
use crate::telemetry;
use crate::upstream::Failure;
use ledger::Ledger;
pub use session::Visit;
use session::{Session, Sessions};

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
    permits: HashMap<String, Permits>,
    limits: PrefetchLimits,
    /// The manifest that names a layer. A request for a layer that several images share doesn't tell
    /// which one is pulled.
    layers: Described<Digest>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchLimits {
    /// Layers of one upstream at the same time; 0 turns prefetching off.
    pub downloads: usize,
    /// Bytes of one image.
    pub image: u64,
    /// Bytes of one layer: larger ones aren't cached.
    pub layer: u64,
}

/// What may be done at one upstream at the same time.
#[derive(Debug, Clone)]
struct Permits {
    images: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

/// One image to be fetched ahead.
#[derive(Debug)]
struct Image {
    target: Target,
    session: Session,
    permits: Permits,
    /// One of the upstream's images.
    _permit: OwnedSemaphorePermit,
}

impl Prefetch {
    pub(super) fn new(
        limits: PrefetchLimits,
        upstreams: &Upstreams,
        tasks: TaskTracker,
        stop: CancellationToken,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let permits = |name: &str| {
            let permits = Permits {
                images: Arc::new(Semaphore::new(MAX_IMAGES)),
                downloads: Arc::new(Semaphore::new(limits.downloads)),
            };
            (name.to_owned(), permits)
        };
        Self {
            permits: upstreams.names().map(permits).collect(),
            limits,
            layers: Described::new(),
            recent: Cache::new(MAX_RECENT),
            sessions: Arc::default(),
            ledger: Arc::new(Ledger::new(Arc::clone(&metrics))),
            tasks,
            stop,
            metrics,
            clock,
        }
    }

    /// Prefetches with other limits or for other upstreams. None if both are the same.
    pub(super) fn renewed(&self, limits: PrefetchLimits, upstreams: &Upstreams) -> Option<Self> {
        let names: HashSet<&str> = upstreams.names().collect();
        let is_known = |name: &&str| self.permits.contains_key(*name);
        let are_same = names.len() == self.permits.len() && names.iter().all(is_known);
        (limits != self.limits || !are_same).then(|| {
            Self::new(
                limits,
                upstreams,
                self.tasks.clone(),
                self.stop.clone(),
                Arc::clone(&self.metrics),
                self.clock,
            )
        })
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
            self.layers.note(layer.digest, digest);
        }
    }

    /// The image that a client pulls when it requests this blob; none where that isn't known. A hit
    /// starts nothing, and so is looked up only while something is being fetched ahead.
    fn image_of(&self, digest: &Digest, outcome: Outcome) -> Option<Digest> {
        if outcome == Outcome::Hit && self.sessions.is_empty() {
            return None;
        }
        self.layers.get(digest)
    }

    /// Begins to fetch an image ahead, unless that was done lately.
    fn begin(&self, target: &Target, manifest: Digest) -> Option<(Image, Visit)> {
        let now = self.clock.now();
        let lately = |since: Instant| now < since + PAUSE;
        if self.recent.get(&manifest).is_some_and(lately) {
            return None;
        }
        let permits = self.permits.get(target.upstream.name())?.clone();
        let (session, visit) = Sessions::start(&self.sessions, &target.stored, manifest)?;
        let Ok(permit) = Arc::clone(&permits.images).try_acquire_owned() else {
            self.metrics.downloads.prefetch_dropped.inc();
            return None;
        };
        self.recent.insert(manifest, now);
        let image = Image {
            target: target.clone(),
            session,
            permits,
            _permit: permit,
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
        // A running download isn't cancelled with the prefetch: the downloader ends it.
        let fetching = stop.run_until_cancelled_owned(mirror.fetch_image(image));
        prefetch
            .tasks
            .spawn(telemetry::caused("prefetch an image", fetching).0);
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
            self.prefetch.recent.remove(&image.session.manifest);
        }
    }

    /// Fetches the missing layers. False when the repository doesn't have the image.
    async fn fetch_layers(&self, image: &Image) -> bool {
        let digest = image.session.manifest;
        let repo = &image.target.stored;
        let Some(manifest) = self.cache.peek_manifest(repo, &digest).await else {
            return false;
        };
        let layers = in_turn(self.missing(&image.target, &manifest.parsed).await);
        let given_up = &AtomicBool::new(false);
        stream::iter(layers)
            .for_each_concurrent(self.prefetch.limits.downloads, |layer| async move {
                self.fetch_layer(image, layer, given_up).await;
            })
            .await;
        true
    }

    /// The layers that are to be fetched, in the manifest's order.
    async fn missing<'a>(&self, target: &Target, manifest: &'a Manifest) -> Vec<&'a Descriptor> {
        let mut missing: Vec<&Descriptor> = Vec::new();
        let mut left = self.prefetch.limits.image;
        for layer in manifest.blobs.iter().take(MAX_LAYERS) {
            let fits = layer.size <= left && self.can_fetch_ahead(layer.size);
            if fits
                && !layer.is_foreign()
                && !missing.iter().any(|other| other.digest == layer.digest)
                && self.is_missing(target, &layer.digest).await
            {
                left -= layer.size;
                missing.push(layer);
            }
        }
        missing
    }

    /// Whether a layer can be cached, and nothing has to be evicted for it.
    pub(super) fn can_fetch_ahead(&self, size: u64) -> bool {
        size <= self.prefetch.limits.layer && self.cache.has_idle_space(size)
    }

    /// Whether a blob is neither there, for whichever repository, nor on its way. One that is there
    /// for another repository costs a client no more than a HEAD.
    pub(super) async fn is_missing(&self, target: &Target, digest: &Digest) -> bool {
        !self.downloader.is_running(target.upstream.name(), digest)
            && self.cache.is_missing(digest).await
    }

    async fn fetch_layer(&self, image: &Image, layer: &Descriptor, given_up: &AtomicBool) {
        let Ok(_permit) = image.permits.downloads.acquire().await else {
            return;
        };
        let digest = layer.digest;
        // While it waited, anything may have happened; a stop ends the task only where it waits.
        let over = self.prefetch.stop.is_cancelled() || given_up.load(Ordering::Relaxed);
        if over
            || !self.can_fetch_ahead(layer.size)
            || !self.is_missing(&image.target, &digest).await
            || self.gets_from_bucket(&image.target, digest).await
        {
            return;
        }
        if let Err(error) = self.fetch_blob_ahead(&image.target, layer).await {
            let repo = &image.target.stored;
            tracing::debug!(%repo, %digest, error = %on_one_line(&error), "a layer can't be fetched ahead");
            if !is_of_one_layer(&error) {
                given_up.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Fetches a blob that no client waits for. Returns the bytes; none when somebody else has fetched it.
    pub(super) async fn fetch_blob_ahead(
        &self,
        target: &Target,
        blob: &Descriptor,
    ) -> Result<Option<u64>, DownloadError> {
        let source = UpstreamBlob::new(target, blob.digest, Some(blob.size));
        let is_believed = self.bucket.is_some() && self.may_share(target, &blob.digest).await;
        let source = Arc::new(source.with_bucket(self.bucket.as_ref(), is_believed));
        let (party, entry) = (
            target.party(),
            Ledger::begin(&self.prefetch.ledger, blob.digest),
        );
        let fetching = self.downloader.fetch_ahead(blob.digest, &party, source);
        let fetched = fetching.await?;
        entry.fetched(fetched);
        Ok(fetched)
    }
}

/// Takes the first layer, the largest, the next, the next largest, and so on. Clients request layers in
/// the manifest's order, so its next layers are due soon; but an image is complete no sooner than its
/// largest layer, which must not begin last.
fn in_turn(layers: Vec<&Descriptor>) -> Vec<&Descriptor> {
    let mut by_size = layers.clone();
    by_size.sort_by_key(|layer| Reverse(layer.size));
    let mut taken = HashSet::with_capacity(layers.len());
    let both = layers.into_iter().zip(by_size);
    let mut ordered: Vec<&Descriptor> = both.flat_map(|(next, largest)| [next, largest]).collect();
    ordered.retain(|layer| taken.insert(layer.digest));
    ordered
}

/// Whether the next layer may well be better. Otherwise it is the upstream that can't or won't
/// answer, or this mirror that can't store.
fn is_of_one_layer(error: &DownloadError) -> bool {
    match error {
        DownloadError::Upstream(error) => matches!(
            error.failure,
            Failure::NotFound(_)
                | Failure::Rejected { .. }
                | Failure::Unexpected(_)
                | Failure::Protocol(_)
        ),
        DownloadError::Digest { .. }
        | DownloadError::Length { .. }
        | DownloadError::Changed { .. } => true,
        DownloadError::Lost
        | DownloadError::Stuck
        | DownloadError::Stopping
        | DownloadError::Busy => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_layers_are_fetched_beside_the_next_ones() {
        let layers = [3, 1, 20, 2, 50, 4].map(|size| {
            let digest = format!("sha256:{size:064}");
            format!(r#"{{"mediaType": "application/octet-stream", "digest": "{digest}", "size": {size}}}"#)
        });
        let json = format!(
            r#"{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {}, "layers": [{}]}}"#,
            layers[0],
            layers.join(",")
        );
        let manifest = Manifest::parse(json.as_bytes()).unwrap();
        let ordered = in_turn(manifest.blobs.iter().take(6).collect());
        let ordered: Vec<_> = ordered.iter().map(|layer| layer.size).collect();
        assert_eq!(ordered, [3, 50, 1, 20, 4, 2]);
        assert!(in_turn(Vec::new()).is_empty());
    }
}
