//! Wires what a pull goes through, downloads and the mirror, and the upkeep of what it left.

use std::num::NonZeroU64;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::cache::{ScrubSettings, VERIFIED_FIRST};
use crate::config::{self, Config};
use crate::download::{DownloadSettings, Downloader, DownloaderOptions};
use crate::mirror::{Mirror, MirrorOptions, MirrorPolicy, PrefetchLimits, RangeRules, Upstreams};

/// The configured limits and policies of downloads.
pub(super) fn downloads(proxy: &config::Proxy) -> DownloadSettings {
    DownloadSettings {
        segments: proxy.segments,
        streams: proxy.streams,
        on_abandon: proxy.on_abandon,
        fill_after: proxy.fill_after,
        max_blob: proxy.max_blob_size,
        verified_first: VERIFIED_FIRST,
    }
}

/// What the operator wants of pulls.
pub(super) fn policy(proxy: &config::Proxy) -> MirrorPolicy {
    MirrorPolicy {
        tags: proxy.tags.clone(),
        negative_ttl: proxy.negative_ttl,
        ranges: RangeRules {
            rules: proxy.range_rules.clone(),
            otherwise: proxy.ranges,
        },
        prefetch: PrefetchLimits {
            downloads: proxy.prefetch.downloads,
            image: proxy.prefetch.max_size,
            layer: proxy.max_blob_size,
        },
    }
}

impl Shared {
    pub(super) fn mirror(
        &self,
        proxy: &config::Proxy,
        upstreams: Upstreams,
        downloader: Downloader,
    ) -> Arc<Mirror> {
        Mirror::new(MirrorOptions {
            upstreams,
            policy: policy(proxy),
            downloader,
            cache: self.cache.clone(),
            bucket: self.bucket.clone(),
            tasks: self.tasks.clone(),
            stop: self.stop_accepting.clone(),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock,
        })
    }

    /// The downloads; partial ones are looked after in the background until the stop.
    pub(super) fn downloader(&self, proxy: &config::Proxy) -> Downloader {
        let (partials, stop) = (self.cache.clone(), self.stop_accepting.clone());
        self.background.spawn_required("partials", async move {
            stop.run_until_cancelled(partials.look_after_partials())
                .await;
        });
        Downloader::new(DownloaderOptions {
            settings: downloads(proxy),
            cache: self.cache.clone(),
            metrics: Arc::clone(&self.metrics),
            tasks: self.background.tracked_by(&self.tasks),
            drain: self.stop_accepting.clone(),
            stop: self.stop_now.clone(),
        })
    }

    /// Keeps the configured tags fresh, until `stop`.
    pub(super) fn keep_fresh(
        &self,
        mirror: &Arc<Mirror>,
        config: &Config,
        stop: &CancellationToken,
    ) {
        let settings = Arc::new(config.proxy.keep_fresh.clone());
        if settings.images.is_empty() {
            return;
        }
        let mirror = Arc::clone(mirror);
        let keep = move || Arc::clone(&mirror).keep_fresh(Arc::clone(&settings));
        self.background
            .spawn_restarted("keepfresh", stop.clone(), keep);
    }

    /// Starts the slow check in the background, where one is wanted, until `stop`.
    pub(super) fn scrub(&self, config: &Config, stop: &CancellationToken) {
        if let Some(scrub) = config.limits.scrub {
            let rate = NonZeroU64::new(scrub.rate);
            let settings = ScrubSettings { rate, repair: true };
            let cache = self.cache.clone();
            let check = move || {
                let cache = cache.clone();
                async move { cache.background(scrub.interval, settings).await }
            };
            self.background
                .spawn_restarted("scrub", stop.clone(), check);
        }
    }
}
