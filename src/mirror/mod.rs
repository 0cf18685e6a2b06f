//! Pulls, above the cache, the upstreams and the downloads, and below HTTP.
//!
//! [`targets`] chooses the upstream; [`manifests`] and [`blobs`] answer from the cache, else from the
//! upstream; [`lists`] has tags and the catalog, [`referrers`] what is attached to a manifest;
//! [`prefetch`] downloads an image's layers before they are requested. Where an upstream is asked with the
//! accounts of callers, [`private`] lets each request pass only after the upstream's permission, which
//! [`verdicts`] remembers. Every answer names its
//! [`Outcome`](crate::metrics::Outcome): clients, logs and metrics agree on where a response came from.
//!
//! What must never happen: content that was proved for one repository is served for another; content
//! that wasn't verified is served as verified; a caller's account decides what another caller gets.

mod blobs;
mod described;
mod error;
mod exchange;
mod lists;
mod logins;
mod manifest_store;
mod manifests;
mod prefetch;
mod private;
mod ranges;
mod recovery;
mod referrers;
mod remembered;
mod single_flight;
mod tags;
mod targets;
mod verdicts;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::cache::ReadMode;
use crate::cache::{Cache, CachedManifest};
use crate::clock::Clock;
use crate::download::{Downloader, Party};
use crate::metrics::Metrics;
use crate::oci::{Digest, RepoName};

pub use blobs::{BlobAnswer, BlobContent};
use described::Described;
pub use error::MirrorError;
pub use exchange::Exchange;
use lists::TagList;
pub use lists::{CatalogPage, Shows, TagsAnswer};
pub use logins::LoginChecks;
pub use manifests::{ManifestAnswer, ManifestHit};
use prefetch::Prefetch;
pub use prefetch::{PrefetchLimits, Visit};
pub use ranges::RangeRules;
pub use recovery::{Recovery, Sent};
use referrers::Referrers;
pub use referrers::ReferrersAnswer;
use remembered::Remembered;
use single_flight::SingleFlight;
use tags::TagRecords;
pub use targets::{Target, Upstreams};
use verdicts::Verdicts;

/// A mirror of some upstreams over one cache.
#[derive(Debug)]
pub struct Mirror {
    pub upstreams: Upstreams,
    downloader: Downloader,
    cache: Cache,
    records: TagRecords,
    manifest_flights: SingleFlight<manifests::FlightKey, Result<ManifestAnswer, MirrorError>>,
    ranges: RangeRules,
    tag_lists: Remembered<RepoName, TagList>,
    referrers: Remembered<(RepoName, Digest), Referrers>,
    proofs: SingleFlight<(Party, Digest), Result<Option<u64>, MirrorError>>,
    verdicts: Verdicts,
    prefetch: Prefetch,
    /// Sizes of blobs, by the descriptors of manifests.
    sizes: Described<u64>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
pub struct MirrorOptions {
    pub upstreams: Upstreams,
    pub downloader: Downloader,
    pub cache: Cache,
    /// How long a tag is fresh: served without asking the upstream.
    pub tags_ttl: Duration,
    pub ranges: RangeRules,
    pub prefetch: PrefetchLimits,
    /// Owns the upstream requests that several clients share, and the prefetches.
    pub tasks: TaskTracker,
    /// Ends the prefetches.
    pub stop: CancellationToken,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

impl Mirror {
    pub fn new(parts: MirrorOptions) -> Arc<Self> {
        let prefetch = Prefetch::new(
            parts.prefetch,
            &parts.upstreams,
            parts.tasks.clone(),
            parts.stop,
            Arc::clone(&parts.metrics),
            parts.clock,
        );
        Arc::new(Self {
            prefetch,
            sizes: Described::new(),
            upstreams: parts.upstreams,
            downloader: parts.downloader,
            cache: parts.cache,
            records: TagRecords::new(parts.tags_ttl, parts.clock),
            ranges: parts.ranges,
            manifest_flights: SingleFlight::new(parts.tasks.clone()),
            tag_lists: Remembered::new(parts.tasks.clone(), parts.clock),
            referrers: Remembered::new(parts.tasks.clone(), parts.clock),
            verdicts: Verdicts::new(parts.tasks.clone(), parts.clock),
            proofs: SingleFlight::new(parts.tasks),
            metrics: parts.metrics,
        })
    }

    /// Remembers what a manifest says of its blobs.
    fn note_manifest(&self, manifest: &CachedManifest) {
        let (digest, manifest) = (manifest.meta.digest, &manifest.parsed);
        for descriptor in manifest.config.iter().chain(&manifest.blobs) {
            self.sizes.note(descriptor.digest, descriptor.size);
        }
        self.prefetch.note(digest, manifest);
    }
}

impl Target {
    /// Logs that the upstream failed, if that is what the error says, and what was done instead.
    pub fn report(&self, error: &MirrorError, instead: &str) {
        if let Some(error) = error.upstream() {
            self.upstream.report(error, instead);
        }
    }
}
