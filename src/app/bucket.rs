//! Wires the bucket that replicas share.

use std::sync::Arc;

use super::{Shared, StartError};
use crate::bucket::{Bucket, Keeping, Retention, random_replica, replica_key};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, Storage};
use crate::metrics::Metrics;
use crate::storage::Layout;

/// The key whose owner sweeps the bucket.
const SWEEPER: &str = "sweeper";

/// This replica's name in the record of uses.
fn replica(config: &Config) -> String {
    let own = config.replicas.as_ref();
    let own = own.and_then(|replicas| replicas.own.as_deref());
    own.map_or_else(random_replica, replica_key)
}

/// Opens the bucket, if there is one. Blocks: files are read.
pub(super) fn open(
    config: &Config,
    cache: &Cache,
    clock: Clock,
    metrics: &Metrics,
) -> Result<Option<Arc<Bucket>>, StartError> {
    let Some(bucket) = &config.bucket else {
        return Ok(None);
    };
    let path = match &config.storage {
        Storage::Filesystem { root, .. } => Some(Layout::new(root).uploads_to_bucket()),
        Storage::Memory => None,
    };
    let bucket = Bucket::open(bucket, path, cache.clone(), (clock, metrics))?;
    Ok(Some(Arc::new(bucket)))
}

impl Shared {
    /// Uploads what is committed, until the stop, which waits for it.
    pub(super) fn run_bucket(&self, config: &Config) {
        let Some(bucket) = &self.bucket else { return };
        self.keep_bucket(bucket, config);
        let stop = self.stop_now.clone();
        let (uploader, drain) = (Arc::clone(bucket), self.stop_accepting.clone());
        let upload = move || Arc::clone(&uploader).upload_all(drain.clone());
        self.background.tracked_by(&self.tasks).spawn_restarted(
            "uploads to the bucket",
            stop.clone(),
            upload,
        );
        let keeper = Arc::clone(bucket);
        let keep = move || Arc::clone(&keeper).keep_queue();
        self.background
            .spawn_restarted("queue of uploads", stop, keep);
        if let Some(losses) = self.cache.losses() {
            let (follower, stop) = (Arc::clone(bucket), self.stop_now.clone());
            let peers = self.replication.as_ref();
            let peers = peers.map(|replication| Arc::clone(&replication.peers));
            let is_writer = move || peers.as_ref().is_none_or(|peers| peers.writes_hosted());
            self.background.spawn(async move {
                let following = follower.follow_losses(losses, is_writer);
                stop.run_until_cancelled(following).await;
            });
        }
        let (greeted, stop) = (Arc::clone(bucket), self.stop_now.clone());
        self.background.spawn(async move {
            stop.run_until_cancelled(greeted.greet()).await;
        });
    }

    /// Records what is used, and sweeps the bucket while this replica is the one that does.
    fn keep_bucket(&self, bucket: &Arc<Bucket>, config: &Config) {
        let Some(settings) = &config.bucket else {
            return;
        };
        let peers = self.replication.as_ref();
        let peers = peers.map(|replication| Arc::clone(&replication.peers));
        let (sweepers, hosts) = (peers, self.cache.clone());
        let keeping = Keeping {
            retention: Retention {
                ttl: settings.shared.ttl,
                max_size: settings.shared.max_size,
            },
            replica: replica(config),
            is_sweeper: Arc::new(move || sweepers.as_ref().is_none_or(|peers| peers.owns(SWEEPER))),
            is_hosted: Arc::new(move |repo| hosts.hosts(repo)),
        };
        let bucket = Arc::clone(bucket);
        let keep = move || Arc::clone(&bucket).keep(keeping.clone());
        self.background
            .spawn_restarted("retention of the bucket", self.stop_now.clone(), keep);
    }

    /// Saves what is yet to be uploaded.
    pub(super) async fn save_uploads(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.save_queue().await;
        }
    }
}
