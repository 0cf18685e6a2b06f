//! The checks in paused time.

use super::*;

use std::io::ErrorKind;
use std::time::Duration;

use crate::cache::{Cache, CacheSettings};
use crate::clock::Clock;
use crate::config::{HealthCheck, HealthConfig, HealthProbe};
use crate::storage::faulty::Operation;
use crate::storage::{FaultyStore, MemoryStore, Store};

struct Setup {
    store: Arc<FaultyStore>,
    availability: Availability,
    _tasks: Tasks,
    stop: CancellationToken,
}

const INTERVAL: Duration = Duration::from_secs(10);

fn timing(threshold: u32) -> HealthTiming {
    HealthTiming {
        interval: INTERVAL,
        timeout: Duration::from_secs(5),
        threshold: NonZeroU32::new(threshold).unwrap(),
    }
}

impl Setup {
    fn new(name: &str, probe: HealthProbe, timing: HealthTiming) -> Self {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let cache = Cache::start(
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::default(),
            Clock::system(),
            CacheSettings::unlimited(),
            &tasks,
            &stop,
        );
        let name = name.to_owned();
        let checks = vec![HealthCheck {
            name,
            probe,
            timing,
        }];
        let probes = Probes::new(&HealthConfig { checks }, &cache).unwrap();
        let availability = Availability::default();
        availability.start(probes, &tasks, &stop);
        Self {
            store,
            availability,
            _tasks: tasks,
            stop,
        }
    }

    fn store(threshold: u32) -> Self {
        Self::new(
            "storagedriver_inmemory",
            HealthProbe::Store,
            timing(threshold),
        )
    }

    /// The reason of the one check.
    fn reason(&self) -> Option<String> {
        let checks = self.availability.checks();
        assert_eq!(checks.len(), 1);
        checks.into_values().next().unwrap()
    }
}

/// Lets a try end.
async fn after(time: Duration) {
    tokio::time::sleep(time + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_check_fails_after_its_threshold_and_recovers_at_once() {
    let setup = Setup::store(3);
    assert_eq!(setup.reason(), None, "not tried yet");
    after(Duration::ZERO).await;
    assert_eq!(setup.reason(), None);
    for nth in 1..=3 {
        setup.store.fail(Operation::Check, nth, ErrorKind::NotFound);
    }
    for _ in 0..2 {
        after(INTERVAL).await;
        assert_eq!((setup.reason(), setup.availability.closed()), (None, None));
    }
    after(INTERVAL).await;
    let reason = setup.reason().unwrap();
    assert!(reason.ends_with("entity not found"), "{reason}");
    assert_eq!(setup.availability.closed(), Some(Closed::Unhealthy));
    setup.availability.stop();
    assert_eq!(setup.availability.closed(), Some(Closed::Unhealthy));
    after(INTERVAL).await;
    assert_eq!(setup.reason(), None);
    assert_eq!(setup.availability.closed(), Some(Closed::Stopping));
}

#[tokio::test(start_paused = true)]
async fn a_single_success_starts_the_count_again() {
    let setup = Setup::store(2);
    after(Duration::ZERO).await;
    for nth in [1, 3, 5] {
        setup.store.fail(Operation::Check, nth, ErrorKind::NotFound);
    }
    for _ in 0..6 {
        after(INTERVAL).await;
        assert_eq!(setup.reason(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_or_read_only_disk_serves_pulls() {
    for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
        let setup = Setup::store(1);
        setup.store.fail(Operation::Check, 1, kind);
        after(INTERVAL).await;
        assert_eq!(setup.reason(), None);
    }
}

/// A thread of the pool waits for the disk; a second one must not.
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_fails_and_is_tried_once() {
    let setup = Setup::store(1);
    let stalled = setup.store.stall(Operation::Check, 1);
    for _ in 0..4 {
        after(INTERVAL).await;
        assert_eq!(setup.reason().unwrap(), "no answer within 5s");
    }
    stalled.release();
    after(INTERVAL).await;
    assert_eq!(setup.reason(), None);
}

#[tokio::test(start_paused = true)]
async fn no_check_is_tried_after_the_stop() {
    let setup = Setup::store(1);
    after(Duration::ZERO).await;
    setup.stop.cancel();
    setup.store.fail(Operation::Check, 1, ErrorKind::NotFound);
    after(INTERVAL * 3).await;
    assert_eq!(setup.reason(), None);
}

#[test]
fn counts_of_several_checks_are_apart() {
    let availability = Availability::default();
    for name in ["a", "b"] {
        let streak = Streak::new(NonZeroU32::MIN);
        availability
            .inner
            .checks
            .lock()
            .insert(name.to_owned(), streak);
    }
    let fail = || Err("no".to_owned());
    availability.note("a", fail());
    availability.note("b", fail());
    availability.note("b", fail());
    availability.note("a", Ok(()));
    assert_eq!(availability.closed(), Some(Closed::Unhealthy));
    assert_eq!(availability.checks()["b"].as_deref(), Some("no"));
    assert_eq!(availability.checks()["a"], None);
    availability.note("b", Ok(()));
    assert_eq!(availability.closed(), None);
}

#[tokio::test]
async fn a_file_must_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("down");
    let probe = Arc::new(Probe::File(path.clone()));
    assert_eq!(Arc::clone(&probe).attempt().await, Ok(()));
    std::fs::write(&path, "").unwrap();
    let exists = Err("file exists".to_owned());
    assert_eq!(Arc::clone(&probe).attempt().await, exists);
    // A component of the path that is no directory: the file can't be looked at.
    let below = Arc::new(Probe::File(path.join("below")));
    let error = below.attempt().await.unwrap_err();
    assert!(error.contains("ot a directory"), "{error}");
}
