//! The story of a pull, above the store, the upstreams and the downloads, and below HTTP.
//!
//! [`targets`] chooses the upstream; [`manifests`] and [`blobs`] answer from the store, else from
//! the upstream; [`lists`] has tags, referrers and the catalog. What comes out names its
//! [`Outcome`](crate::metrics::Outcome), so that clients, logs and metrics are told alike where an answer came from.
//!
//! What must never happen: content that was proved for one repository is given to another; content
//! that wasn't verified is given to anybody as if it were.

mod blobs;
mod error;
mod flights;
mod lists;
mod manifests;
mod tags;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::oci::{Digest, RepoName};
use crate::store::{Link, LinkKind, Store, StoreError};

pub use blobs::{BlobAnswer, BlobBody};
pub use error::MirrorError;
use flights::Flights;
pub use lists::{CatalogPage, ReferrersAnswer, TagsAnswer};
pub use manifests::ManifestAnswer;
use tags::TagRecords;
pub use targets::{Target, UpstreamEntry, Upstreams};

/// Whether the content is asked for, or only what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    Head,
    Content,
}

/// A mirror of some upstreams over one store.
#[derive(Debug)]
pub struct Mirror {
    upstreams: Upstreams,
    store: Arc<dyn Store>,
    fetcher: Fetcher,
    records: TagRecords,
    manifest_flights: Flights<manifests::FlightKey, Result<manifests::Resolved, MirrorError>>,
    proofs: Flights<(RepoName, Digest), Result<Option<u64>, MirrorError>>,
    metrics: Arc<Metrics>,
}

impl Mirror {
    /// `tags_ttl` is how long a tag's digest is believed without asking the upstream; `tasks` owns
    /// the requests that are shared by several clients.
    pub fn new(
        upstreams: Upstreams,
        store: Arc<dyn Store>,
        fetcher: Fetcher,
        tags_ttl: Duration,
        tasks: TaskTracker,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstreams,
            store,
            fetcher,
            records: TagRecords::new(tags_ttl, clock),
            manifest_flights: Flights::new(tasks.clone()),
            proofs: Flights::new(tasks),
            metrics,
        })
    }

    /// The upstreams that requests are routed to.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// A store that can't be read is no reason to fail a pull: what it might have had is asked of
    /// the upstream instead.
    fn readable<T: Default>(&self, what: &'static str, result: Result<T, StoreError>) -> T {
        result.unwrap_or_else(|error| {
            self.metrics.store_failed();
            tracing::error!(%error, what, "the store can't be read; asking the upstream instead");
            T::default()
        })
    }

    /// Nor is a store that can't be written: the client has its answer, and the cache goes without.
    fn written(&self, what: &'static str, result: Result<(), StoreError>) -> bool {
        let Err(error) = result else { return true };
        self.metrics.store_failed();
        tracing::error!(%error, what, "served but not cached");
        false
    }
}

impl Target {
    fn link(&self, kind: LinkKind, digest: Digest) -> Link {
        Link {
            repo: self.stored.clone(),
            kind,
            digest,
        }
    }
}
