//! Wires what a pull goes through: downloads and the mirror.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, VERIFIED_FIRST};
use crate::clock::Clock;
use crate::config;
use crate::download::{self, Downloader};
use crate::metrics::Metrics;
use crate::mirror::{Mirror, MirrorOptions, PrefetchLimits, RangeRules, Upstreams};
use crate::tasks::Tasks;

/// What both need.
pub(super) struct Pulling {
    pub(super) cache: Cache,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tasks: TaskTracker,
    pub(super) stop_accepting: CancellationToken,
    pub(super) stop_now: CancellationToken,
    pub(super) clock: Clock,
}

impl Pulling {
    /// The downloads; partial ones are looked after in the background until the stop.
    pub(super) fn downloader(&self, proxy: &config::Proxy, background: &Tasks) -> Downloader {
        let downloader = Downloader::new(download::DownloaderOptions {
            settings: download::DownloadSettings {
                segments: proxy.segments,
                streams: proxy.streams,
                on_abandon: proxy.on_abandon,
                fill_after: proxy.fill_after,
                max_blob: proxy.max_blob_size,
                verified_first: VERIFIED_FIRST,
            },
            cache: self.cache.clone(),
            metrics: Arc::clone(&self.metrics),
            tasks: background.tracked_by(&self.tasks),
            drain: self.stop_accepting.clone(),
            stop: self.stop_now.clone(),
        });
        let (partials, stop) = (self.cache.clone(), self.stop_accepting.clone());
        background.spawn_required("partials", async move {
            stop.run_until_cancelled(partials.look_after_partials())
                .await;
        });
        downloader
    }

    pub(super) fn mirror(
        self,
        proxy: &config::Proxy,
        upstreams: Upstreams,
        downloader: Downloader,
    ) -> Arc<Mirror> {
        Mirror::new(MirrorOptions {
            upstreams,
            downloader,
            cache: self.cache,
            tags_ttl: proxy.tags_ttl,
            ranges: RangeRules {
                rules: proxy.range_rules.clone(),
                otherwise: proxy.ranges,
            },
            prefetch: PrefetchLimits {
                downloads: proxy.prefetch.downloads,
                image: proxy.prefetch.max_size,
                layer: proxy.max_blob_size,
            },
            tasks: self.tasks,
            stop: self.stop_accepting,
            metrics: self.metrics,
            clock: self.clock,
        })
    }
}
