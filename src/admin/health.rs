//! Health checks: whether the store, the index and the tasks that the server needs are working.
//!
//! A check fails where a restart or an operator is needed. Conditions under which the server still
//! serves (a full or read-only disk, an upstream that doesn't answer) fail nothing; the metric
//! `millpond_degraded` shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::bucket::Bucket;
use crate::cache::{Cache, StoreError};
use crate::error_chain::on_one_line;
use crate::health::Availability;
use crate::metrics::{Degraded, Metrics};
use crate::tasks::Tasks;
use crate::upstream::Peers;

/// How long the store may take to answer a check, and an earlier check to end.
const CHECK_TIME: Duration = Duration::from_secs(5);
/// Lost blobs that a check names.
const MAX_NAMED: usize = 3;

/// Whether the server answers requests: the document of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    /// By name.
    pub checks: BTreeMap<String, PartOfReadiness>,
}

/// One check of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartOfReadiness {
    pub ok: bool,
    /// Why it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The checks of one server.
#[derive(Debug)]
pub struct Health {
    pub(super) cache: Cache,
    pub(super) tasks: Tasks,
    pub(super) metrics: Arc<Metrics>,
    /// The checks of the operator, and whether the server stops.
    availability: Availability,
    /// One check of the store at a time: a disk that doesn't answer must not take every thread of
    /// the blocking pool.
    one_check: Arc<Semaphore>,
    /// None where this server works alone.
    replicas: Option<Arc<Peers>>,
    /// None where there is no bucket.
    bucket: Option<Arc<Bucket>>,
}

impl Health {
    /// Checks of a cache and of `tasks`, beside those that the operator configured.
    pub fn new(
        cache: Cache,
        tasks: Tasks,
        metrics: Arc<Metrics>,
        availability: Availability,
    ) -> Self {
        Self {
            cache,
            tasks,
            metrics,
            availability,
            one_check: Arc::new(Semaphore::new(1)),
            replicas: None,
            bucket: None,
        }
    }

    /// The same, which reports other replicas that don't answer. Nothing fails because of them.
    #[must_use]
    pub fn with_replicas(self, replicas: Option<&Arc<Peers>>) -> Self {
        Self {
            replicas: replicas.cloned(),
            ..self
        }
    }

    /// The same, which reports a bucket that doesn't answer. Nothing fails because of it.
    #[must_use]
    pub fn with_bucket(self, bucket: Option<&Arc<Bucket>>) -> Self {
        Self {
            bucket: bucket.cloned(),
            ..self
        }
    }

    /// What is to be said of the bucket.
    fn missing_bucket(&self) -> Option<String> {
        let is_missing = self.bucket.as_ref()?.is_missing();
        self.metrics.degraded(Degraded::BucketMissing, is_missing);
        is_missing.then(|| "it has failed and isn't asked for a while".to_owned())
    }

    /// What is to be said of the other replicas.
    fn missing_replicas(&self) -> Option<String> {
        let (known, failed) = self.replicas.as_ref()?.status();
        let is_degraded = !failed.is_empty();
        self.metrics
            .degraded(Degraded::ReplicasMissing, is_degraded);
        let failed = failed.join(", ");
        is_degraded.then(|| format!("of {known} other replicas, these don't answer: {failed}"))
    }

    /// Runs the checks. Returns the failing ones by name, each with its reason; takes at most twice
    /// [`CHECK_TIME`]. The degraded conditions are counted on the way.
    pub async fn check(&self) -> BTreeMap<String, String> {
        self.missing_replicas();
        self.missing_bucket();
        let parts = self.parts().await.into_iter();
        let mut failing: BTreeMap<_, _> = parts
            .filter_map(|(name, reason)| Some((name, reason?)))
            .collect();
        let (lost, count) = self.cache.lost(MAX_NAMED);
        if count > 0 {
            let lost: Vec<_> = lost.iter().map(ToString::to_string).collect();
            let lost = lost.join(", ");
            let reason = format!("{count} blobs are damaged or missing; push them again: {lost}");
            failing.insert("hosted repositories".to_owned(), reason);
        }
        for down in self.tasks.failing() {
            failing.insert(format!("task {}", down.task), down.reason);
        }
        failing
    }

    /// Whether requests are answered, part by part. A task that is down isn't among the parts: the
    /// server does without it, or is stopping.
    pub async fn readiness(&self) -> Readiness {
        let mut checks = self.parts().await;
        let stopping = self.availability.is_stopping();
        let stopping = stopping.then(|| "it is stopping".to_owned());
        checks.insert("server".to_owned(), stopping);
        let checks = checks.into_iter().map(|(name, error)| {
            let ok = error.is_none();
            (name, PartOfReadiness { ok, error })
        });
        let mut checks: BTreeMap<_, _> = checks.collect();
        if self.replicas.is_some() {
            let error = self.missing_replicas();
            checks.insert("replicas".to_owned(), PartOfReadiness { ok: true, error });
        }
        if self.bucket.is_some() {
            let error = self.missing_bucket();
            checks.insert("bucket".to_owned(), PartOfReadiness { ok: true, error });
        }
        Readiness {
            ready: checks.values().all(|part| part.ok),
            checks,
        }
    }

    /// What pulls need, and the configured checks, by name; those that fail with the reason.
    async fn parts(&self) -> BTreeMap<String, Option<String>> {
        let mut parts = self.availability.checks();
        parts.insert("store".to_owned(), self.check_store().await.err());
        parts.insert("index".to_owned(), self.cache.health().err());
        parts
    }

    async fn check_store(&self) -> Result<(), String> {
        let late = |_elapsed| format!("no answer within {} s", CHECK_TIME.as_secs());
        let permit = timeout(CHECK_TIME, Arc::clone(&self.one_check).acquire_owned());
        let permit = permit
            .await
            .map_err(late)?
            .map_err(|closed| closed.to_string())?;
        let (cache, metrics) = (self.cache.clone(), Arc::clone(&self.metrics));
        // It goes on, and keeps others off, where the caller gives up.
        let check = self.tasks.tracker().spawn(async move {
            let failure = cache.check_store().await.err();
            metrics.store_free(cache.free_space().await);
            let is = |condition: fn(&StoreError) -> bool| failure.as_ref().is_some_and(condition);
            let (full, read_only) = (is(StoreError::is_full), is(StoreError::is_read_only));
            metrics.degraded(Degraded::StoreFull, full);
            metrics.degraded(Degraded::StoreReadOnly, read_only);
            drop(permit);
            failure.filter(|_| !full && !read_only)
        });
        let checked = timeout(CHECK_TIME, check).await.map_err(late)?;
        let failure = checked.map_err(|lost| lost.to_string())?;
        failure.map_or(Ok(()), |failure| Err(on_one_line(&failure)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    use crate::cache::CacheSettings;
    use crate::clock::Clock;
    use crate::storage::faulty::Operation;
    use crate::storage::{FaultyStore, MemoryStore, Store};
    use tokio_util::sync::CancellationToken;

    struct Setup {
        store: Arc<FaultyStore>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
        health: Health,
    }

    impl Setup {
        fn over(store: FaultyStore) -> Self {
            let (store, tasks, metrics) = (Arc::new(store), Tasks::new(), Arc::default());
            let cache = Cache::start(
                Arc::clone(&store) as Arc<dyn Store>,
                Arc::default(),
                Clock::system(),
                CacheSettings::unlimited(),
                &tasks,
                &CancellationToken::new(),
            );
            let availability = Availability::default();
            let health = Health::new(cache, tasks.clone(), Arc::clone(&metrics), availability);
            Self {
                store,
                tasks,
                metrics,
                health,
            }
        }

        fn new() -> Self {
            Self::over(FaultyStore::new(Arc::new(MemoryStore::new())))
        }

        fn degraded(&self, condition: &str) -> bool {
            let text = self.metrics.render();
            text.contains(&format!("millpond_degraded{{condition=\"{condition}\"}} 1"))
        }
    }

    #[tokio::test]
    async fn a_store_that_fails_is_named_with_its_whole_cause() {
        let setup = Setup::new();
        assert_eq!(setup.health.check().await, BTreeMap::new());
        setup.store.fail(Operation::Check, 1, ErrorKind::NotFound);
        let failing = setup.health.check().await;
        let reason = "the store couldn't pass a faulty store/Check: entity not found";
        assert_eq!(failing["store"], reason);
        assert_eq!(failing.len(), 1);
        assert_eq!(
            setup.health.check().await,
            BTreeMap::new(),
            "a later check succeeds"
        );
    }

    #[tokio::test]
    async fn a_full_or_read_only_disk_is_degraded_and_no_failure() {
        for (kind, condition) in [
            (ErrorKind::StorageFull, "store_full"),
            (ErrorKind::ReadOnlyFilesystem, "store_read_only"),
        ] {
            let setup = Setup::new();
            setup.store.fail(Operation::Check, 1, kind);
            assert_eq!(setup.health.check().await, BTreeMap::new());
            assert!(setup.degraded(condition), "{}", setup.metrics.render());
            setup.health.check().await;
            assert!(!setup.degraded(condition));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_fails_and_is_checked_once() {
        let setup = Setup::new();
        let stalled = setup.store.stall(Operation::Check, 1);
        for _ in 0..3 {
            assert_eq!(setup.health.check().await["store"], "no answer within 5 s");
        }
        stalled.release();
        assert_eq!(setup.health.check().await, BTreeMap::new());
    }

    #[tokio::test]
    async fn a_task_that_is_down_is_named() {
        let setup = Setup::new();
        setup
            .tasks
            .spawn_required("deletion", async { panic!("on purpose") });
        setup.tasks.failed().await;
        assert_eq!(setup.health.check().await["task deletion"], "on purpose");
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_that_cannot_be_built_fails_until_it_is() {
        let store = FaultyStore::new(Arc::new(MemoryStore::new()));
        store.fail(Operation::Repositories, 1, ErrorKind::PermissionDenied);
        let setup = Setup::over(store);
        while setup.health.cache.health().is_ok() {
            tokio::task::yield_now().await;
        }
        let failing = setup.health.check().await;
        assert!(
            failing["index"].contains("permission denied"),
            "{failing:?}"
        );
        setup.health.cache.complete().await;
        assert_eq!(setup.health.check().await, BTreeMap::new());
    }
}
