//! What is counted of the cache: figures that are copied before each rendering, and removals.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::labels::{Removal, RemovedFor};
use super::{CopiedCounter, Metrics, Registrar, set};

/// What is known of the cache, at one moment; `GAUGES` and `COUNTERS` say what each figure is.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheFigures {
    pub bytes: u64,
    pub reserved_bytes: u64,
    /// Those of the reserved bytes that are on disk.
    pub staging_bytes: u64,
    /// None where there is no limit.
    pub limit_bytes: Option<u64>,
    pub links: u64,
    pub expiring_links: u64,
    pub blobs: u64,
    pub delete_queue: u64,
    pub delete_failures: u64,
    pub save_failures: u64,
    pub full: u64,
    pub unreadable: u64,
    /// Blobs that hosted repositories have lost.
    pub lost: u64,
}

type Figure = fn(&CacheFigures) -> u64;

/// The gauges of the cache: name, help, and the figure that each shows.
const GAUGES: [(&str, &str, Figure); 10] = [
    ("bytes", "Bytes of all files", |cache| cache.bytes),
    (
        "reserved_bytes",
        "Bytes reserved for downloads that run or are paused",
        |cache| cache.reserved_bytes,
    ),
    (
        "staging_bytes",
        "Bytes on disk of downloads that run or are paused",
        |cache| cache.staging_bytes,
    ),
    (
        "limit_bytes",
        "Bytes that may be used; 0 is no limit",
        |cache| cache.limit_bytes.unwrap_or(0),
    ),
    (
        "links",
        "Blobs and manifests linked into repositories",
        |cache| cache.links,
    ),
    (
        "expiry_queue_links",
        "Links that wait for their expiry",
        |cache| cache.expiring_links,
    ),
    ("blobs", "Files", |cache| cache.blobs),
    (
        "delete_queue_blobs",
        "Blobs of which something waits to be deleted",
        |cache| cache.delete_queue,
    ),
    (
        "unreadable",
        "Entries of the store that could not be read at the start",
        |cache| cache.unreadable,
    ),
    (
        "hosted_lost_blobs",
        "Blobs of hosted repositories that are damaged or missing",
        |cache| cache.lost,
    ),
];

/// The counters of the cache.
const COUNTERS: [(&str, &str, Figure); 3] = [
    (
        "delete_failures",
        "Removals that failed and are tried again",
        |cache| cache.delete_failures,
    ),
    (
        "save_failures",
        "Saves of the expiry state that failed",
        |cache| cache.save_failures,
    ),
    (
        "full",
        "Downloads that found no space and were passed through",
        |cache| cache.full,
    ),
];

/// Metrics of the cache.
#[derive(Debug)]
pub(super) struct CacheMetrics {
    gauges: [Gauge; GAUGES.len()],
    counters: [CopiedCounter; COUNTERS.len()],
    blobs: Family<RemovedFor, Counter>,
    bytes: Family<RemovedFor, Counter>,
    recently_used: Counter,
    quarantined: Counter,
}

impl CacheMetrics {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            gauges: GAUGES.map(|(name, help, _)| r.metric(&format!("cache_{name}"), help)),
            counters: COUNTERS.map(|(name, help, _)| r.metric(&format!("cache_{name}"), help)),
            blobs: r.metric(
                "cache_evictions",
                "Blobs removed from the cache, by the reason",
            ),
            bytes: r.bytes(
                "cache_evicted",
                "Bytes of blobs removed from the cache, by the reason",
            ),
            recently_used: r.bytes(
                "cache_evicted_recently_used",
                "Bytes of blobs evicted for space within an hour of their last use: the cache is too small",
            ),
            quarantined: r.metric(
                "cache_quarantined_blobs",
                "Damaged blobs that were moved to quarantine",
            ),
        }
    }

    pub(super) fn start_at_zero(&self) {
        for &reason in Removal::ALL {
            let labels = RemovedFor { reason };
            drop(self.blobs.get_or_create_owned(&labels));
            drop(self.bytes.get_or_create_owned(&labels));
        }
    }
}

impl Metrics {
    /// Takes over what is known of the cache.
    pub fn cache(&self, figures: &CacheFigures) {
        for (gauge, (_, _, figure)) in self.cache.gauges.iter().zip(GAUGES) {
            set(gauge, figure(figures));
        }
        for (counter, (_, _, figure)) in self.cache.counters.iter().zip(COUNTERS) {
            counter.set(figure(figures));
        }
    }

    /// A blob was removed from the cache. `recently_used`: less than an hour ago.
    pub fn removed(&self, reason: Removal, bytes: u64, recently_used: bool) {
        let labels = RemovedFor { reason };
        self.cache.blobs.get_or_create_owned(&labels).inc();
        let removed = self.cache.bytes.get_or_create_owned(&labels);
        removed.inc_by(bytes);
        if recently_used && matches!(reason, Removal::MaxSize | Removal::MinFree) {
            self.cache.recently_used.inc_by(bytes);
        }
    }

    /// A damaged blob was moved to quarantine.
    pub fn quarantined(&self) {
        self.cache.quarantined.inc();
    }
}
