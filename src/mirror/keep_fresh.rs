//! Tags that are kept fresh (`proxy.keepfresh`): revalidated just before their time is over, so that no
//! client waits for it, and when one has moved, its new image is fetched before clients ask for it.
//!
//! The tags are those that the configuration names, and those that match its patterns and whose images
//! were used lately, as the cache's index knows, also after a restart. One task looks after all of them.
//!
//! What must never happen: a client waits for this; an upstream is asked while it, or the operator, has
//! little left for clients; something is evicted for this; the bytes of a day are passed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::tags::TagKey;
use super::{ManifestHit, Mirror, MirrorError, ReadMode, Target};
use crate::cache::CachedManifest;
use crate::config::{KeepFresh, Platform};
use crate::error_chain::on_one_line;
use crate::metrics::KeptFresh;
use crate::oci::manifest::QUICK;
use crate::oci::{Accept, Digest, ImagePattern, RepoName, Tag};

/// Tags that are kept fresh; further ones of the patterns are not.
const MAX_TAGS: usize = 1_000;
/// Images that are fetched at the same time.
const MAX_IMAGES: usize = 2;
/// How often the cache is searched for tags, and the time of day compared.
const SEARCH: Duration = Duration::from_mins(1);
/// The longest time before the end of a tag's time at which it is revalidated.
const MARGIN: Duration = Duration::from_secs(15);
/// The shortest time between two requests for one tag.
const PAUSE: Duration = Duration::from_secs(15);
/// The same after a failure.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_mins(1);

/// The bytes that may be fetched in a day.
#[derive(Debug, Default)]
pub(super) struct DailyBytes(Mutex<(u64, u64)>);

impl DailyBytes {
    /// Takes bytes of a day, unless that would pass the limit.
    fn take(&self, day: u64, bytes: u64, limit: u64) -> bool {
        let mut taken = self.0.lock();
        let (of, before) = *taken;
        let before = if of == day { before } else { 0 };
        let after = before.saturating_add(bytes);
        let fits = after <= limit;
        *taken = (day, if fits { after } else { before });
        fits
    }
}

/// A tag that is kept fresh.
#[derive(Debug, Clone)]
struct Kept {
    target: Target,
    key: TagKey,
    /// Whether the configuration names it.
    is_named: bool,
}

/// What has been done for a tag.
#[derive(Debug, Clone, Copy)]
struct Progress {
    not_before: Instant,
    /// The manifest whose content has been fetched, as far as it is to be.
    complete: Option<Digest>,
    is_fetching: bool,
}

/// Why something isn't done.
enum Interrupted {
    /// The upstream, or the operator, has nothing left for background work.
    Deferred(&'static str),
    Failed(MirrorError),
}

impl From<MirrorError> for Interrupted {
    fn from(error: MirrorError) -> Self {
        Self::Failed(error)
    }
}

/// What is read of an index.
#[derive(Deserialize)]
struct Children {
    #[serde(default)]
    manifests: Vec<Child>,
}

#[derive(Deserialize)]
struct Child {
    digest: Digest,
    platform: Option<ChildPlatform>,
}

#[derive(Deserialize)]
struct ChildPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Child {
    /// `os/architecture`, and the same with the variant.
    fn platforms(&self) -> Vec<String> {
        let Some(platform) = &self.platform else {
            return Vec::new();
        };
        let plain = format!("{}/{}", platform.os, platform.architecture);
        let variant = platform.variant.iter();
        let full = variant.map(|variant| format!("{plain}/{variant}"));
        let full: Vec<_> = full.collect();
        [vec![plain], full].concat()
    }
}

fn children(manifest: &CachedManifest) -> Vec<Child> {
    // Larger ones would hold the thread.
    if manifest.content.len() > QUICK {
        return Vec::new();
    }
    let read = serde_json::from_slice::<Children>(&manifest.content);
    read.map(|children| children.manifests).unwrap_or_default()
}

/// A tag whose image was fetched, and the image's digest if nothing of it is left to be fetched.
type Fetched = (TagKey, Option<Digest>);

/// The one task that looks after all tags.
struct Keeper {
    mirror: Arc<Mirror>,
    settings: Arc<KeepFresh>,
    tags: Vec<Kept>,
    searched_at: Option<Instant>,
    progress: HashMap<TagKey, Progress>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

impl Keeper {
    /// Looks after the tags whose time is nearly over. Returns when the next one's is.
    async fn round(&mut self) -> Instant {
        let now = self.mirror.clock.now();
        if !self.settings.times.are_now(self.mirror.clock.wall()) {
            return now + SEARCH;
        }
        if self.searched_at.is_none_or(|at| now >= at + SEARCH) {
            self.searched_at = Some(now);
            self.tags = self.mirror.kept_tags(&self.settings).await;
            let tags = &self.tags;
            self.progress
                .retain(|key, _| tags.iter().any(|kept| kept.key == *key));
        }
        let is_due = |kept: &&Kept| self.due(kept) <= now;
        let due: Vec<Kept> = self.tags.iter().filter(is_due).cloned().collect();
        for kept in due {
            self.refresh(kept).await;
        }
        let next = self.tags.iter().map(|kept| self.due(kept)).min();
        let now = self.mirror.clock.now();
        let soonest = now + Duration::from_secs(1);
        next.unwrap_or(now + SEARCH).clamp(soonest, now + SEARCH)
    }

    fn due(&self, kept: &Kept) -> Instant {
        let ends = self.mirror.records.renewed_from(&kept.key, MARGIN);
        let progress = self.progress.get(&kept.key);
        progress.map_or(ends, |progress| ends.max(progress.not_before))
    }

    async fn refresh(&mut self, kept: Kept) {
        let before = self.progress.get(&kept.key).copied();
        let revalidated = self.mirror.revalidate_ahead(&kept).await;
        let pause = if revalidated.is_ok() {
            PAUSE
        } else {
            PAUSE_AFTER_FAILURE
        };
        let mut progress = Progress {
            not_before: self.mirror.clock.now() + pause,
            complete: before.and_then(|before| before.complete),
            is_fetching: before.is_some_and(|before| before.is_fetching),
        };
        match revalidated {
            Ok((manifest, last)) => {
                let digest = manifest.meta.digest;
                // Its clients have fetched what they need of it.
                if before.is_none() && last == Some(digest) && !kept.is_named {
                    progress.complete = Some(digest);
                }
                let has_room = !progress.is_fetching && self.fetches.len() < MAX_IMAGES;
                if progress.complete != Some(digest) && has_room {
                    progress.is_fetching = true;
                    let earlier = progress.complete.or(last).filter(|last| *last != digest);
                    let (mirror, settings) = (Arc::clone(&self.mirror), Arc::clone(&self.settings));
                    let fetching = mirror.fetch_kept(settings, kept.clone(), manifest, earlier);
                    self.fetches.push(Box::pin(fetching));
                }
            }
            Err(reason) => self.mirror.report_kept(&kept, &reason),
        }
        self.progress.insert(kept.key, progress);
    }

    fn on_fetched(&mut self, (key, complete): Fetched) {
        if let Some(progress) = self.progress.get_mut(&key) {
            progress.is_fetching = false;
            progress.complete = complete.or(progress.complete);
        }
    }
}

impl Mirror {
    /// Keeps tags fresh until cancelled.
    pub async fn keep_fresh(self: Arc<Self>, settings: Arc<KeepFresh>) {
        let mut keeper = Keeper {
            mirror: self,
            settings,
            tags: Vec::new(),
            searched_at: None,
            progress: HashMap::new(),
            fetches: FuturesUnordered::new(),
        };
        loop {
            let next = keeper.round().await;
            tokio::select! {
                () = sleep_until(next) => {}
                Some(fetched) = keeper.fetches.next() => keeper.on_fetched(fetched),
            }
        }
    }

    /// The tags that the configuration names, and those of its patterns whose images were used lately.
    async fn kept_tags(&self, settings: &KeepFresh) -> Vec<Kept> {
        let named = settings.images.iter().filter_map(ImagePattern::exact);
        let named = named.map(|(repo, tag)| (repo, tag, true));
        let since = self.clock.wall() - settings.used_within;
        let used = self.cache.tags_used_since(since).await;
        let is_kept = |(repo, tag): &(RepoName, Tag)| {
            settings.images.iter().any(|image| image.names(repo, tag))
        };
        let used = used.into_iter().filter(is_kept);
        let used = used.map(|(repo, tag)| (repo, tag, false));
        let mut kept: HashMap<TagKey, Kept> = HashMap::new();
        for (repo, tag, is_named) in named.chain(used) {
            let Some(target) = self.upstreams.stored_target(&repo) else {
                continue;
            };
            // There is no caller whose account could be used.
            if target.upstream.caller().is_some() || kept.len() >= MAX_TAGS {
                continue;
            }
            let key = TagKey {
                repo,
                tag,
                accept: Accept::everything(),
            };
            let entry = Kept {
                target,
                key: key.clone(),
                is_named,
            };
            kept.entry(key).or_insert(entry);
        }
        kept.into_values().collect()
    }

    /// Asks the upstream what the tag names, and fetches the manifest. Returns that and what the tag named
    /// before.
    async fn revalidate_ahead(
        self: &Arc<Self>,
        kept: &Kept,
    ) -> Result<(Arc<CachedManifest>, Option<Digest>), Interrupted> {
        let Kept { target, key, .. } = kept;
        if !target.upstream.has_spare_requests() {
            return Err(Interrupted::Deferred("the upstream's rate limit"));
        }
        let last = match self.records.last(key) {
            Some(known) => Some(known.digest),
            None => self.cache.tagged(&key.repo, &key.tag).await,
        };
        let question = self.question_of_tag(target, key, ReadMode::Content).await;
        let answer = question.await??;
        let manifest = self.manifest_of(target, answer.found).await?;
        let has_moved = last.is_some_and(|last| last != manifest.meta.digest);
        self.metrics.kept_fresh(if has_moved {
            KeptFresh::Moved
        } else {
            KeptFresh::Unchanged
        });
        Ok((manifest, last))
    }

    /// The content of a manifest that the upstream has named. No use of it.
    async fn manifest_of(
        self: &Arc<Self>,
        target: &Target,
        found: ManifestHit,
    ) -> Result<Arc<CachedManifest>, MirrorError> {
        let digest = match found {
            ManifestHit::Whole(manifest) => return Ok(manifest),
            ManifestHit::Head(known) => known.digest,
        };
        if let Some(cached) = self.cache.peek_manifest(&target.stored, &digest).await {
            return Ok(cached);
        }
        let fetching = Box::pin(self.by_digest(target, digest, ReadMode::Content));
        match fetching.await?.found {
            ManifestHit::Whole(manifest) => Ok(manifest),
            ManifestHit::Head(_) => Err(MirrorError::Lost),
        }
    }

    fn report_kept(&self, kept: &Kept, reason: &Interrupted) {
        let (repo, tag) = (&kept.key.repo, &kept.key.tag);
        match reason {
            Interrupted::Deferred(reason) => {
                self.metrics.kept_fresh(KeptFresh::Deferred);
                tracing::debug!(%repo, %tag, reason, "a tag isn't kept fresh for now");
            }
            Interrupted::Failed(error) => {
                self.metrics.kept_fresh(KeptFresh::Failed);
                tracing::debug!(%repo, %tag, error = %on_one_line(error), "a tag can't be kept fresh");
            }
        }
    }

    /// Fetches what is missing of a tag's image. `earlier`: what the tag named before.
    async fn fetch_kept(
        self: Arc<Self>,
        settings: Arc<KeepFresh>,
        kept: Kept,
        manifest: Arc<CachedManifest>,
        earlier: Option<Digest>,
    ) -> Fetched {
        let digest = manifest.meta.digest;
        let fetching = self.fetch_content(&settings, &kept.target, &manifest, earlier);
        match fetching.await {
            Ok(bytes) => {
                let (repo, tag) = (&kept.key.repo, &kept.key.tag);
                tracing::info!(%repo, %tag, %digest, bytes, "the tag's image is fetched ahead of clients");
                (kept.key, Some(digest))
            }
            Err(reason) => {
                self.report_kept(&kept, &reason);
                (kept.key, None)
            }
        }
    }

    /// Fetches what is missing of an image, or of the wanted platforms of an index. Returns the bytes.
    async fn fetch_content(
        self: &Arc<Self>,
        settings: &KeepFresh,
        target: &Target,
        manifest: &CachedManifest,
        earlier: Option<Digest>,
    ) -> Result<u64, Interrupted> {
        if manifest.parsed.manifests.is_empty() {
            return self.fetch_blobs(settings, target, manifest).await;
        }
        let wanted = self.wanted_platforms(settings, target, earlier).await;
        let mut bytes = 0;
        for child in children(manifest) {
            if !child
                .platforms()
                .iter()
                .any(|platform| wanted.contains(platform))
            {
                continue;
            }
            if !target.upstream.has_spare_requests() {
                return Err(Interrupted::Deferred("the upstream's rate limit"));
            }
            let answer = Box::pin(self.by_digest(target, child.digest, ReadMode::Content)).await?;
            if let ManifestHit::Whole(image) = answer.found {
                bytes += self.fetch_blobs(settings, target, &image).await?;
            }
        }
        Ok(bytes)
    }

    /// The platforms of the earlier index of which clients have pulled a layer, else the configured ones.
    async fn wanted_platforms(
        &self,
        settings: &KeepFresh,
        target: &Target,
        earlier: Option<Digest>,
    ) -> Vec<String> {
        let mut pulled = Vec::new();
        if let Some(earlier) = earlier
            && let Some(index) = self.cache.peek_manifest(&target.stored, &earlier).await
        {
            for child in children(&index) {
                let image = self
                    .cache
                    .peek_manifest(&target.stored, &child.digest)
                    .await;
                let layer = image.and_then(|image| Some(image.parsed.blobs.first()?.digest));
                if let Some(layer) = layer
                    && !self.cache.is_missing(&layer).await
                {
                    pulled.extend(child.platforms().pop());
                }
            }
        }
        if pulled.is_empty() {
            let configured = settings.platforms.iter().map(Platform::as_str);
            pulled.extend(configured.map(str::to_owned));
        }
        pulled
    }

    async fn fetch_blobs(
        &self,
        settings: &KeepFresh,
        target: &Target,
        image: &CachedManifest,
    ) -> Result<u64, Interrupted> {
        let mut fetched = 0;
        for blob in image.parsed.config.iter().chain(&image.parsed.blobs) {
            if blob.is_foreign() || !self.is_missing(target, &blob.digest).await {
                continue;
            }
            let now = self.clock.wall();
            if !settings.times.are_now(now) {
                return Err(Interrupted::Deferred("the time of day"));
            }
            if !self.can_fetch_ahead(blob.size) {
                return Err(Interrupted::Deferred("space"));
            }
            let day = settings.times.day(now);
            if !self.kept_bytes.take(day, blob.size, settings.daily) {
                return Err(Interrupted::Deferred("the bytes of the day"));
            }
            let bytes = self.fetch_blob_ahead(target, blob).await;
            let bytes = bytes.map_err(MirrorError::from)?.unwrap_or(0);
            self.metrics.kept_fresh_bytes(bytes);
            fetched += bytes;
        }
        Ok(fetched)
    }
}
