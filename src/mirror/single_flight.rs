//! Runs a job once for all callers that wait for its result.

use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::MirrorError;
use crate::telemetry::{self, Link, Waiting};

/// Jobs in flight. A job is a task of its own. When its last waiter leaves, it ends if it still
/// waits for the upstream; what the upstream has answered is stored.
#[derive(Debug)]
pub(super) struct SingleFlight<K: Eq + Hash, V> {
    running: Arc<DashMap<K, Flight<V>>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Flight<V> {
    landing: Landing<V>,
    /// The span of the job.
    span: Option<Link>,
    /// Changed under the lock of the map's entry.
    waiters: usize,
    interest: Interest,
}

type Landing<V> = Shared<oneshot::Receiver<V>>;

/// Whether anybody still waits for a job.
#[derive(Debug, Clone, Default)]
pub(super) struct Interest {
    gone: CancellationToken,
}

impl Interest {
    /// What the upstream answers, unless all waiters leave first.
    pub(super) async fn answer<T, E>(
        &self,
        asking: impl Future<Output = Result<T, E>>,
    ) -> Result<T, MirrorError>
    where
        MirrorError: From<E>,
    {
        match self.gone.run_until_cancelled(asking).await {
            Some(answer) => Ok(answer?),
            None => Err(MirrorError::Lost),
        }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self {
            running: Arc::new(DashMap::new()),
            tasks,
        }
    }

    /// Whether a job of `key` is running.
    pub(super) fn is_running(&self, key: &K) -> bool {
        self.running.contains_key(key)
    }

    /// Joins the job of `key`, which is `job` unless one is running.
    pub(super) fn join<F>(&self, key: K, job: impl FnOnce(Interest) -> F) -> Waiter<K, V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (landing, span) = match self.running.entry(key.clone()) {
            Entry::Occupied(mut entry) => {
                let flight = entry.get_mut();
                flight.waiters += 1;
                (flight.landing.clone(), flight.span)
            }
            Entry::Vacant(entry) => {
                let (sender, receiver) = oneshot::channel();
                let landing = receiver.shared();
                let interest = Interest::default();
                let job = AssertUnwindSafe(job(interest.clone()));
                let (running, own, key) = (Arc::clone(&self.running), landing.clone(), key.clone());
                let (task, span) = telemetry::caused("shared request", async move {
                    let value = job.catch_unwind().await;
                    // Forgotten before anyone hears: a later request must not be given this result.
                    running.remove_if(&key, |_, flight| flight.landing.ptr_eq(&own));
                    if let Ok(value) = value {
                        // Nobody may be waiting any more.
                        drop(sender.send(value));
                    }
                });
                entry.insert(Flight {
                    landing: landing.clone(),
                    span,
                    waiters: 1,
                    interest,
                });
                self.tasks.spawn(task);
                (landing, span)
            }
        };
        Waiter {
            running: Arc::clone(&self.running),
            key,
            landing,
            is_counted: true,
            _waiting: Waiting::for_task("wait for a shared request", span),
        }
    }
}

/// Waits for a job's result. Dropped, it leaves the job.
pub(super) struct Waiter<K: Eq + Hash, V> {
    running: Arc<DashMap<K, Flight<V>>>,
    key: K,
    landing: Landing<V>,
    is_counted: bool,
    _waiting: Waiting,
}

impl<K: Eq + Hash, V> Waiter<K, V> {
    /// Leaves, but lets the job go on to its end.
    pub(super) fn leave_running(mut self) {
        // It stays counted among those that wait, for good.
        self.is_counted = false;
    }
}

impl<K: Eq + Hash + Unpin, V: Clone> Future for Waiter<K, V> {
    type Output = Result<V, MirrorError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let landed = ready!(self.landing.poll_unpin(context));
        Poll::Ready(landed.map_err(|_task_gone| MirrorError::Lost))
    }
}

impl<K: Eq + Hash, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let abandoned = self.running.remove_if_mut(&self.key, |_, flight| {
            // Another one, where this one has landed.
            if !flight.landing.ptr_eq(&self.landing) {
                return false;
            }
            flight.waiters = flight.waiters.saturating_sub(1);
            flight.waiters == 0
        });
        if let Some((_, flight)) = abandoned {
            flight.interest.gone.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn one_run_for_all_who_wait_and_a_new_one_after() {
        let flights = Arc::new(SingleFlight::<u8, usize>::new(TaskTracker::new()));
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let job = |_: Interest| {
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
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (0, 0));
        gate.add_permits(1);
        assert_eq!(flights.join(1, job).await.unwrap(), 1);
        assert!(flights.running.is_empty());
    }

    /// A job that asks an upstream which never answers.
    async fn silent(interest: Interest) -> bool {
        let asking = std::future::pending::<Result<(), MirrorError>>();
        interest.answer(asking).await.is_ok()
    }

    #[tokio::test]
    async fn a_job_without_an_answer_ends_with_its_last_waiter() {
        let tasks = TaskTracker::new();
        let flights = SingleFlight::<u8, bool>::new(tasks.clone());
        let (first, second) = (flights.join(1, silent), flights.join(1, silent));
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!((tasks.len(), flights.running.len()), (1, 1));
        drop(second);
        // Whoever comes now begins anew.
        let third = flights.join(1, silent);
        assert_eq!(tasks.len(), 2);
        drop(third);
        tasks.close();
        tasks.wait().await;
        assert!(flights.running.is_empty());
    }

    #[tokio::test]
    async fn a_job_with_an_answer_goes_on_when_everybody_has_left() {
        let tasks = TaskTracker::new();
        let flights = SingleFlight::<u8, ()>::new(tasks.clone());
        let (answered, stored) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (at, done) = (Arc::clone(&answered), Arc::clone(&stored));
        let waiter = flights.join(1, |interest| async move {
            let answer = interest.answer(async { Ok::<_, MirrorError>(()) });
            answer.await.unwrap();
            at.acquire().await.unwrap().forget();
            done.add_permits(1);
        });
        tokio::task::yield_now().await;
        drop(waiter);
        answered.add_permits(1);
        stored.acquire().await.unwrap().forget();
    }

    #[tokio::test]
    async fn a_job_that_is_left_running_goes_on() {
        let tasks = TaskTracker::new();
        let flights = SingleFlight::<u8, bool>::new(tasks.clone());
        flights.join(1, silent).leave_running();
        drop(flights.join(1, silent));
        tokio::task::yield_now().await;
        assert_eq!((tasks.len(), flights.running.len()), (1, 1));
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_for_its_waiters_and_no_end() {
        let flights = SingleFlight::<u8, u8>::new(TaskTracker::new());
        let panics = |_| async { panic!("on purpose") };
        assert!(matches!(
            flights.join(1, panics).await,
            Err(MirrorError::Lost)
        ));
        assert_eq!(flights.join(1, |_| async { 7 }).await.unwrap(), 7);
    }
}
