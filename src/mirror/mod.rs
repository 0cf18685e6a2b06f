//! The story of a pull, above the store, the upstreams and the downloads, and below HTTP.
//!
//! [`targets`] chooses the upstream; [`manifests`] and [`blobs`] answer from the store, else from
//! the upstream; [`lists`] has tags and the catalog, [`referrers`] what is attached to a manifest;
//! [`prefetch`]
//! has an image's layers fetched before they are asked for. What comes out names its
//! [`Outcome`](crate::metrics::Outcome), so that clients, logs and metrics are told alike where an answer came from.
//!
//! What must never happen: content that was proved for one repository is given to another; content
//! that wasn't verified is given to anybody as if it were.

mod blobs;
mod error;
mod exchange;
mod lists;
mod manifest_cache;
mod manifest_store;
mod manifests;
mod prefetch;
mod ranges;
mod referrers;
mod remembered;
mod single_flight;
mod sizes;
mod stored;
mod tags;
mod targets;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::download::Downloader;
use crate::error_chain::on_one_line;
use crate::metrics::Metrics;
use crate::oci::{Digest, Manifest, RepoName};
use crate::storage::{Link, LinkKind, Store, StoreError};

pub use blobs::{BlobAnswer, BlobContent};
pub use error::MirrorError;
pub use exchange::Exchange;
use lists::TagList;
pub use lists::{CatalogPage, TagsAnswer};
pub use manifest_cache::CachedManifest;
use manifest_cache::ManifestCache;
pub use manifests::{ManifestAnswer, ManifestHit};
use prefetch::Prefetch;
pub use prefetch::{PrefetchLimits, Visit};
pub use ranges::RangeRules;
pub use referrers::ReferrersAnswer;
use referrers::{Referrers, Subject};
use remembered::Remembered;
use single_flight::SingleFlight;
use sizes::BlobSizes;
pub use stored::{Recovery, Sent, StoredBlob};
pub use tags::ManifestMeta;
use tags::TagRecords;
pub use targets::{Target, UpstreamEntry, Upstreams};
use workers::Workers;

/// Whether the content is asked for, or only what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadMode {
    Head,
    Content,
}

/// A mirror of some upstreams over one store.
#[derive(Debug)]
pub struct Mirror {
    upstreams: Upstreams,
    store: Arc<dyn Store>,
    downloader: Downloader,
    cache: Cache,
    records: TagRecords,
    manifest_flights: SingleFlight<manifests::FlightKey, Result<ManifestAnswer, MirrorError>>,
    cached_manifests: ManifestCache,
    workers: Workers,
    ranges: RangeRules,
    tag_lists: Remembered<RepoName, TagList>,
    referrers: Remembered<Subject, Referrers>,
    proofs: SingleFlight<(RepoName, Digest), Result<Option<u64>, MirrorError>>,
    prefetch: Prefetch,
    sizes: BlobSizes,
    metrics: Arc<Metrics>,
}

/// What a mirror is made of.
#[derive(Debug)]
pub struct MirrorOptions {
    pub upstreams: Upstreams,
    pub store: Arc<dyn Store>,
    pub downloader: Downloader,
    pub cache: Cache,
    /// How long a tag's digest is believed without asking the upstream.
    pub tags_ttl: Duration,
    /// What ranges of blobs that aren't there cause.
    pub ranges: RangeRules,
    /// What is fetched ahead of clients.
    pub prefetch: PrefetchLimits,
    /// Owns the requests that are shared by several clients, and what is done ahead of them.
    pub tasks: TaskTracker,
    /// Nothing is begun ahead of clients any more.
    pub stop: CancellationToken,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

impl Mirror {
    pub fn new(parts: MirrorOptions) -> Arc<Self> {
        let prefetch = Prefetch::new(prefetch::PrefetchContext {
            limits: parts.prefetch,
            upstreams: &parts.upstreams,
            tasks: parts.tasks.clone(),
            stop: parts.stop,
            metrics: Arc::clone(&parts.metrics),
            clock: parts.clock,
        });
        Arc::new(Self {
            prefetch,
            sizes: BlobSizes::new(),
            upstreams: parts.upstreams,
            store: parts.store,
            downloader: parts.downloader,
            cache: parts.cache,
            records: TagRecords::new(parts.tags_ttl, parts.clock),
            ranges: parts.ranges,
            manifest_flights: SingleFlight::new(parts.tasks.clone()),
            cached_manifests: ManifestCache::new(),
            workers: Workers::new(),
            tag_lists: Remembered::new(parts.tasks.clone(), parts.clock),
            referrers: Remembered::new(parts.tasks.clone(), parts.clock),
            proofs: SingleFlight::new(parts.tasks),
            metrics: parts.metrics,
        })
    }

    /// The upstreams that requests are routed to.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// Remembers what a verified manifest says of its blobs.
    fn note_manifest(&self, digest: Digest, manifest: &Manifest) {
        self.sizes.note(manifest);
        self.prefetch.note(digest, manifest);
    }

    /// A store that can't be read is no reason to fail a pull: what it might have had is asked of
    /// the upstream instead.
    fn readable<T: Default>(&self, what: &'static str, result: Result<T, StoreError>) -> T {
        result.unwrap_or_else(|error| {
            self.metrics.store_failed();
            tracing::error!(error = %on_one_line(&error), what, "the store can't be read; asking the upstream instead");
            T::default()
        })
    }

    /// Nor is a store that can't be written: the client has its answer, and the cache goes without.
    fn written(&self, what: &'static str, result: Result<(), StoreError>) -> bool {
        let Err(error) = result else { return true };
        self.metrics.store_failed();
        tracing::error!(error = %on_one_line(&error), what, "served but not cached");
        false
    }
}

impl Target {
    /// Logs that the upstream failed, if that is what the error says, and what was done instead.
    pub fn report(&self, error: &MirrorError, instead: &str) {
        if let Some(error) = error.upstream() {
            self.upstream.client.report(error, instead);
        }
    }

    fn link(&self, kind: LinkKind, digest: Digest) -> Link {
        Link {
            repo: self.stored.clone(),
            kind,
            digest,
        }
    }
}
