//! Pulls, above the cache, the upstreams and the downloads, and below HTTP.
//!
//! [`targets`] chooses the upstream; [`manifests`] and [`blobs`] answer from the cache, else from the
//! upstream; [`lists`] has tags and the catalog, [`referrers`] what is attached to a manifest;
//! [`prefetch`] downloads an image's layers before they are requested, [`keep_fresh`] whole images of tags
//! that the operator chose. Where an upstream is asked with the
//! accounts of callers, [`private`] lets each request pass only after the upstream's permission, which
//! [`verdicts`] remembers; [`negatives`] remembers what an upstream doesn't have. Every answer names its
//! [`Outcome`](crate::metrics::Outcome): clients, logs and metrics agree on where a response came from.
//!
//! What must never happen: content that was proved for one repository is served for another; content
//! that wasn't verified is served as verified; a caller's account decides what another caller gets.

mod blobs;
mod bucket_blob;
mod bucket_manifest;
mod described;
mod error;
mod exchange;
mod hosted;
mod keep_fresh;
mod lists;
mod logins;
mod manifest_store;
mod manifests;
mod negatives;
mod prefetch;
mod private;
mod ranges;
mod recovery;
mod redirect;
mod referrers;
mod remembered;
#[cfg(test)]
mod simulation;
mod single_flight;
mod tags;
mod targets;
mod verdicts;
mod warming;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bucket::Bucket;
pub use crate::cache::ReadMode;
use crate::cache::{Cache, CachedManifest};
use crate::clock::Clock;
use crate::config::Tags;
use crate::download::{Downloader, Party};
use crate::metrics::Metrics;
use crate::oci::{Digest, RepoName};

pub use blobs::{BlobAnswer, BlobContent};
use described::Described;
pub use error::MirrorError;
pub use exchange::Exchange;
use keep_fresh::DailyBytes;
use lists::TagList;
pub use lists::{CatalogPage, Shows, TagsAnswer};
pub use logins::LoginChecks;
pub use manifests::{ManifestAnswer, ManifestHit};
use negatives::Negatives;
use prefetch::Prefetch;
pub use prefetch::{PrefetchLimits, Visit};
pub use ranges::RangeRules;
pub use recovery::{Recovery, Sent};
use redirect::Redirecting;
use referrers::Referrers;
pub use referrers::ReferrersAnswer;
use remembered::Remembered;
use single_flight::SingleFlight;
use tags::TagRecords;
pub use targets::{Target, Upstreams};
use verdicts::Verdicts;

/// Questions whether a repository has a blob: its size, if it does. The last of the key says whether other
/// replicas may be asked.
type Proofs = SingleFlight<(Party, Digest, bool), Result<Option<u64>, MirrorError>>;

/// A mirror of some upstreams over one cache.
#[derive(Debug)]
pub struct Mirror {
    pub upstreams: Upstreams,
    downloader: Downloader,
    cache: Cache,
    /// None where there is no bucket.
    bucket: Option<Arc<Bucket>>,
    records: Arc<TagRecords>,
    manifest_flights: Arc<SingleFlight<manifests::FlightKey, Result<ManifestAnswer, MirrorError>>>,
    /// Owns what goes on without a client.
    tasks: TaskTracker,
    ranges: RangeRules,
    tag_lists: Arc<Remembered<RepoName, TagList>>,
    referrers: Arc<Remembered<(RepoName, Digest), Referrers>>,
    proofs: Arc<Proofs>,
    redirecting: Arc<Redirecting>,
    verdicts: Arc<Verdicts>,
    negatives: Arc<Negatives>,
    prefetch: Arc<Prefetch>,
    /// Those that were fetched for tags that are kept fresh.
    kept_bytes: Arc<DailyBytes>,
    /// Sizes of blobs, by the descriptors of manifests.
    sizes: Arc<Described<u64>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug)]
pub struct MirrorOptions {
    pub upstreams: Upstreams,
    pub policy: MirrorPolicy,
    pub downloader: Downloader,
    pub cache: Cache,
    /// Asked before the upstreams, after other replicas.
    pub bucket: Option<Arc<Bucket>>,
    /// Owns the upstream requests that several clients share, and the prefetches.
    pub tasks: TaskTracker,
    /// Ends the prefetches.
    pub stop: CancellationToken,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// What the operator wants of pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPolicy {
    pub tags: Tags,
    /// How long a 404 or 403 of an upstream is remembered; 0: not at all.
    pub negative_ttl: Duration,
    pub ranges: RangeRules,
    pub prefetch: PrefetchLimits,
}

impl Mirror {
    pub fn new(parts: MirrorOptions) -> Arc<Self> {
        let (clock, metrics) = (parts.clock, &parts.metrics);
        let negatives = Negatives::new(parts.policy.negative_ttl, Arc::clone(metrics), clock);
        let prefetch = Prefetch::new(
            parts.policy.prefetch,
            &parts.upstreams,
            parts.tasks.clone(),
            parts.stop,
            Arc::clone(&parts.metrics),
            parts.clock,
        );
        Arc::new(Self {
            prefetch: Arc::new(prefetch),
            negatives: Arc::new(negatives),
            sizes: Arc::new(Described::new()),
            upstreams: parts.upstreams,
            downloader: parts.downloader,
            cache: parts.cache,
            bucket: parts.bucket,
            records: Arc::new(TagRecords::new(parts.policy.tags, parts.clock)),
            ranges: parts.policy.ranges,
            manifest_flights: Arc::new(SingleFlight::new(parts.tasks.clone())),
            tasks: parts.tasks.clone(),
            tag_lists: Arc::new(Remembered::new(parts.tasks.clone(), parts.clock)),
            referrers: Arc::new(Remembered::new(parts.tasks.clone(), parts.clock)),
            verdicts: Arc::new(Verdicts::new(parts.tasks.clone(), parts.clock)),
            redirecting: Arc::new(SingleFlight::new(parts.tasks.clone())),
            proofs: Arc::new(SingleFlight::new(parts.tasks)),
            kept_bytes: Arc::default(),
            metrics: parts.metrics,
            clock: parts.clock,
        })
    }

    /// The same mirror of other upstreams, with another policy: what it has learned and what it is doing
    /// stay shared. A name must mean the registry that it meant before. Other limits of prefetches, and
    /// other rules for tags, begin with nothing learned. What upstreams didn't have or give is forgotten.
    #[must_use]
    pub fn renewed(&self, upstreams: Upstreams, policy: MirrorPolicy) -> Arc<Self> {
        let prefetch = self.prefetch.renewed(policy.prefetch, &upstreams);
        let records = self.records.renewed(&policy.tags);
        Arc::new(Self {
            upstreams,
            ranges: policy.ranges,
            prefetch: prefetch.map_or_else(|| Arc::clone(&self.prefetch), Arc::new),
            records: records.map_or_else(|| Arc::clone(&self.records), Arc::new),
            negatives: Arc::new(self.negatives.renewed(policy.negative_ttl)),
            downloader: self.downloader.clone(),
            cache: self.cache.clone(),
            bucket: self.bucket.clone(),
            manifest_flights: Arc::clone(&self.manifest_flights),
            tasks: self.tasks.clone(),
            tag_lists: Arc::clone(&self.tag_lists),
            referrers: Arc::clone(&self.referrers),
            proofs: Arc::clone(&self.proofs),
            redirecting: Arc::clone(&self.redirecting),
            verdicts: Arc::clone(&self.verdicts),
            sizes: Arc::clone(&self.sizes),
            kept_bytes: Arc::clone(&self.kept_bytes),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock,
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
