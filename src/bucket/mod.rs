//! The bucket that replicas share: a durable second tier of the cache on an object store.
//!
//! ```text
//! mirror ── content, tag ──► reading ───────────────┐
//! mirror, hosted ── upload ──► queue ──► uploads ──► client ──► the store
//! hosted ── share ──► hosted ────────────────┘   │   └ http: deadlines, counts
//!                     retention ──► uses, sweep ─┘
//! ```
//!
//! Its objects are the files of the reference registry ([`keys`]); millpond's own are below `millpond/`.
//! [`reading`] asks for content and for the link that lets a repository have it. [`queue`] holds what was
//! committed here and isn't in the bucket yet, over restarts, too; [`uploads`] writes it: content first, then
//! links, then tags; [`buffers`] is the memory of its parts. A bucket that fails is left alone for a while
//! ([`circuit`]): it costs pulls nothing but a request to the upstream. [`redirects`] sends clients to it.
//! [`hosted`] is what a push promises, and [`retention`] removes what nobody uses ([`sweep`]).
//!
//! What must never happen: content is served that wasn't verified; a link is written before its content.

mod addresses;
mod buffers;
mod circuit;
mod client;
mod day;
mod digests;
mod error;
mod holdings;
mod hosted;
mod http;
mod inventory;
mod keys;
mod names;
mod pointers;
mod quarantine;
mod queue;
mod reading;
mod redirects;
mod retention;
mod stores;
mod sweep;
#[cfg(test)]
mod tests;
mod unfinished;
mod uploads;
mod uses;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::sleep;

use circuit::Circuit;
use client::Objects;
pub use error::{BucketError, BucketSetupError};
use http::{Date, Http};
pub use inventory::{Inventories, Inventory};
use queue::Queue;
pub use queue::{Claim, Upload};
pub use reading::{Hosted, SharedContent};
pub use redirects::{KnownRedirect, MIN_REDIRECTED, Redirect, Redirects};
pub use retention::Keeping;
use sweep::announcement::Announced;
pub use sweep::{IsHosted, Retention};
use uploads::Uploading;
use uses::Uses;
pub use uses::{random_replica, replica_key};

use crate::cache::{Cache, KeyLocks};
use crate::clock::Clock;
use crate::config;
use crate::error_chain::on_one_line;
use crate::kept_file;
use crate::metrics::{BucketMetrics, Metrics};
use crate::oci::{Digest, RepoName, Tag};

/// How often the queue is saved, if it has changed.
const SAVED_EVERY: Duration = Duration::from_secs(5);
/// The largest file of the queue that is read, in bytes: more than the most uploads of the longest names take.
const MAX_QUEUE_FILE: u64 = 16 * 1024 * 1024;

/// Small requests of one task that are sent at a time.
pub const REQUESTS_AT_A_TIME: usize = 16;
/// What is remembered of pushes.
const MAX_SHARED: usize = 100_000;
/// Links and tags of hosted repositories that are remembered.
const MAX_POINTERS: usize = 10_000;

/// The bucket.
#[derive(Debug)]
pub struct Bucket {
    objects: Objects,
    circuit: Circuit,
    queue: Queue,
    /// Tags that are being changed.
    tags: Arc<KeyLocks<(RepoName, Tag)>>,
    /// What a push has uploaded.
    shared: quick_cache::sync::Cache<Upload, ()>,
    /// Links and tags that were read, with their etags.
    pointers: quick_cache::sync::Cache<String, (String, Digest)>,
    uploading: Uploading,
    cache: Cache,
    /// How long unused content stays; none is forever.
    ttl: Option<Duration>,
    /// Where the queue is saved; none for a store that doesn't outlive the process.
    path: Option<PathBuf>,
    /// The version of the queue that the file has.
    saved: tokio::sync::Mutex<u64>,
    uses: Uses,
    /// None where clients are never redirected.
    redirects: Option<Redirects>,
    /// What sweeps are about to delete.
    announced: Announced,
    metrics: Arc<BucketMetrics>,
}

impl Bucket {
    /// Opens the bucket, and the queue that an earlier process has left. Nothing is sent yet. Blocks: files
    /// are read.
    pub fn open(
        config: &config::Bucket,
        path: Option<PathBuf>,
        cache: Cache,
        (clock, metrics): (Clock, &Metrics),
    ) -> Result<Self, BucketSetupError> {
        let (metrics, date) = (metrics.bucket(), Arc::new(Date::default()));
        let skip_verify = match &config.store {
            config::BucketStore::S3(s3) => s3.skip_verify,
            config::BucketStore::Azure(azure) => azure.skip_verify,
            config::BucketStore::Gcs(_) => false,
        };
        let http = Http {
            metrics: Arc::clone(&metrics),
            date: Arc::clone(&date),
            timeout: config.shared.timeout,
            accepts_invalid_certificates: skip_verify,
        };
        let stores = stores::open(&config.store, http)?;
        let objects = Objects::new(stores, config.store.root(), date, clock);
        let bucket = Self {
            objects: objects.map_err(|error| BucketSetupError::Client(Arc::new(error)))?,
            circuit: Circuit::default(),
            queue: Queue::default(),
            tags: Arc::default(),
            shared: quick_cache::sync::Cache::new(MAX_SHARED),
            pointers: quick_cache::sync::Cache::new(MAX_POINTERS),
            uploading: Uploading::new(config.store.chunk_size()),
            cache,
            ttl: config.shared.ttl,
            path,
            saved: tokio::sync::Mutex::new(0),
            uses: Uses::default(),
            redirects: Redirects::new(&config.shared, &metrics),
            announced: Announced::default(),
            metrics,
        };
        bucket.restore();
        Ok(bucket)
    }

    fn restore(&self) {
        let Some(path) = &self.path else { return };
        match kept_file::read_or_default(path, MAX_QUEUE_FILE) {
            Ok(saved) => self.queue.restore(saved),
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %on_one_line(&error), "the queue of uploads can't be read; what it had is fetched from the upstream when it is needed");
            }
        }
        self.metrics.queued(self.queue.len());
    }

    /// Whether it has failed and hasn't answered since.
    pub fn is_missing(&self) -> bool {
        self.circuit.is_open()
    }

    /// Asks once whether the bucket is there and lets itself be read. Only the log and the health are told.
    pub async fn greet(&self) {
        // A list tells a bucket that isn't there from an object that isn't.
        let first = self.objects.list("millpond/quarantine").next().await;
        self.circuit.note(&first.transpose());
    }

    /// Saves the queue again and again.
    pub async fn keep_queue(self: Arc<Self>) {
        loop {
            sleep(SAVED_EVERY).await;
            self.save_queue().await;
        }
    }

    /// Saves the queue, if it has changed.
    pub async fn save_queue(&self) {
        let Some(path) = self.path.clone() else {
            return;
        };
        // Held until the file is written: two writers would share the draft.
        let mut saved = self.saved.lock().await;
        if *saved == self.queue.version() {
            return;
        }
        let (version, queue) = self.queue.saved();
        let writing = tokio::task::spawn_blocking(move || kept_file::replace(&path, &queue));
        match writing.await {
            Ok(Ok(())) => *saved = version,
            Ok(Err(error)) => {
                tracing::warn!(error = %on_one_line(&error), "the queue of uploads can't be saved; trying again soon");
            }
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "the queue of uploads can't be saved");
            }
        }
    }
}
