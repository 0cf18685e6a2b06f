//! One run of the same small job for everybody who waits for it.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::MirrorError;

/// Jobs in flight. A job is a task of its own: a waiter that leaves doesn't end it, and what it
/// has learnt is kept.
pub(super) struct Flights<K, V> {
    running: Arc<DashMap<K, (u64, Landing<V>)>>,
    next_id: AtomicU64,
    tasks: TaskTracker,
}

type Landing<V> = Shared<oneshot::Receiver<V>>;

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self {
            running: Arc::new(DashMap::new()),
            next_id: AtomicU64::new(0),
            tasks,
        }
    }

    /// Waits for the job of `key`, which is `job` unless one is running. Cancel safe.
    pub(super) async fn run<F>(&self, key: K, job: impl FnOnce() -> F) -> Result<V, MirrorError>
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.join(key, job)
            .await
            .map_err(|_task_gone| MirrorError::Lost)
    }

    fn join<F>(&self, key: K, job: impl FnOnce() -> F) -> Landing<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        match self.running.entry(key) {
            Entry::Occupied(entry) => entry.get().1.clone(),
            Entry::Vacant(entry) => {
                let (sender, receiver) = oneshot::channel();
                let landing = receiver.shared();
                let id = self.next_id.fetch_add(1, Ordering::Relaxed);
                let guard = Guard {
                    running: Arc::clone(&self.running),
                    key: entry.key().clone(),
                    id,
                };
                entry.insert((id, landing.clone()));
                let job = job();
                self.tasks.spawn(async move {
                    let value = job.await;
                    // Forgotten before anyone hears: a later request must not be given this result.
                    drop(guard);
                    // Nobody may be waiting any more.
                    drop(sender.send(value));
                });
                landing
            }
        }
    }
}

/// Forgets the job, also when its task panics.
struct Guard<K: Eq + Hash, V> {
    running: Arc<DashMap<K, (u64, Landing<V>)>>,
    key: K,
    id: u64,
}

impl<K: Eq + Hash, V> Drop for Guard<K, V> {
    fn drop(&mut self) {
        self.running
            .remove_if(&self.key, |_, (id, _)| *id == self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn one_run_for_all_who_wait_and_a_new_one_after() {
        let flights = Arc::new(Flights::<u8, usize>::new(TaskTracker::new()));
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let job = || {
            let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
            async move {
                gate.acquire().await.unwrap().forget();
                runs.fetch_add(1, Ordering::SeqCst)
            }
        };
        let (first, second) = (flights.join(1, job), flights.join(1, job));
        let leaver = flights.join(1, job);
        drop(leaver);
        gate.add_permits(1);
        assert_eq!((first.await, second.await), (Ok(0), Ok(0)));
        gate.add_permits(1);
        assert_eq!(flights.run(1, job).await.unwrap(), 1);
        assert!(flights.running.is_empty());
    }

    #[tokio::test]
    async fn a_job_goes_on_when_everybody_has_left() {
        let tasks = TaskTracker::new();
        let flights = Flights::<u8, ()>::new(tasks.clone());
        let done = Arc::new(Semaphore::new(0));
        let signal = Arc::clone(&done);
        drop(flights.join(1, || async move { signal.add_permits(1) }));
        done.acquire().await.unwrap().forget();
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_for_its_waiters_and_no_end() {
        let flights = Flights::<u8, u8>::new(TaskTracker::new());
        let panics = || async { panic!("on purpose") };
        assert!(matches!(
            flights.run(1, panics).await,
            Err(MirrorError::Lost)
        ));
        assert_eq!(flights.run(1, || async { 7 }).await.unwrap(), 7);
    }
}
