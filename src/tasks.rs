//! The tasks that run for as long as the process: a panic in one of them is never silent.
//!
//! A task whose state may be inconsistent after a panic is [required](Tasks::spawn_required): its
//! panic ends the process with an error. A task that starts from nothing each time is
//! [restarted](Tasks::spawn_restarted) after a pause. [`Tasks::failing`] says which of them are down, and
//! [`Tasks::long_polls`] whether tasks keep others waiting.

use crate::error_chain::on_one_line;
use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a task that has panicked stays down before it is started again.
pub const RESTART_PAUSE: Duration = Duration::from_mins(1);

/// Longer than this, a task should not hold a thread of the runtime: others wait meanwhile.
pub const LONG_POLL: Duration = Duration::from_millis(1);

/// A task that has panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task {task} panicked: {reason}")]
pub struct Panicked {
    pub task: &'static str,
    pub reason: String,
}

/// Spawns tasks and knows which are down. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panics: Arc<Panics>,
    polls: Arc<Polls>,
}

/// How long tasks have held their threads.
#[derive(Debug, Default)]
struct Polls {
    /// Microseconds of the longest poll.
    longest: AtomicU64,
    /// Polls of more than [`LONG_POLL`].
    long: AtomicU64,
}

pin_project_lite::pin_project! {
    /// A task whose polls are timed.
    struct Timed<F> {
        #[pin]
        future: F,
        polls: Arc<Polls>,
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let began = Instant::now();
        let polled = this.future.poll(cx);
        this.polls.note(began.elapsed());
        polled
    }
}

impl Polls {
    fn note(&self, took: Duration) {
        if took > LONG_POLL {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.longest.fetch_max(micros, Ordering::Relaxed);
            self.long.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Panics {
    state: Mutex<TasksState>,
    /// Cancelled by the first panic of a required task.
    fatal: CancellationToken,
}

#[derive(Debug, Default)]
struct TasksState {
    /// Reasons of the tasks that are down.
    down: BTreeMap<&'static str, String>,
    fatal: Option<Panicked>,
    count: u64,
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tasks that `tracker` owns, known to the same record of panics.
    #[must_use]
    pub fn tracked_by(&self, tracker: &TaskTracker) -> Self {
        Self {
            tracker: tracker.clone(),
            panics: Arc::clone(&self.panics),
            polls: Arc::clone(&self.polls),
        }
    }

    /// Runs a task that may panic without harm to others.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.timed(future));
    }

    fn timed<F>(&self, future: F) -> Timed<F> {
        Timed {
            future,
            polls: Arc::clone(&self.polls),
        }
    }

    /// The longest time for which a task has held its thread, if that was more than [`LONG_POLL`], and
    /// how often tasks did. Time in which the system gave the thread no processor counts.
    pub fn long_polls(&self) -> (Duration, u64) {
        let longest = self.polls.longest.load(Ordering::Relaxed);
        (
            Duration::from_micros(longest),
            self.polls.long.load(Ordering::Relaxed),
        )
    }

    /// The owner of the tasks.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Runs a task whose panic ends the process: [`failed`](Self::failed) returns.
    pub fn spawn_required(
        &self,
        task: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let panics = Arc::clone(&self.panics);
        self.spawn(async move {
            if let Err(payload) = AssertUnwindSafe(future).catch_unwind().await {
                panics.record(task, &*payload, true);
            }
        });
    }

    /// Runs a task that starts again, with a new future, a pause after it has panicked.
    pub fn spawn_restarted<F>(
        &self,
        task: &'static str,
        stop: CancellationToken,
        mut start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let panics = Arc::clone(&self.panics);
        let restarted = self.timed(async move {
            while let Err(payload) = AssertUnwindSafe(start()).catch_unwind().await {
                panics.record(task, &*payload, false);
                tokio::time::sleep(RESTART_PAUSE).await;
                panics.state.lock().down.remove(task);
                tracing::info!(task, "started again after a panic");
            }
        });
        self.tracker
            .spawn(stop.run_until_cancelled_owned(restarted));
    }

    /// Waits until a required task has panicked, and says which.
    pub async fn failed(&self) -> Panicked {
        self.panics.fatal.cancelled().await;
        let fatal = self.panics.state.lock().fatal.clone();
        fatal.unwrap_or_else(|| Panicked {
            task: "unknown",
            reason: String::new(),
        })
    }

    /// The tasks that are down because they have panicked.
    pub fn failing(&self) -> Vec<Panicked> {
        let state = self.panics.state.lock();
        let down = state.down.iter().map(|(task, reason)| Panicked {
            task,
            reason: reason.clone(),
        });
        down.collect()
    }

    /// How many times a task has panicked.
    pub fn panics(&self) -> u64 {
        self.panics.state.lock().count
    }
}

impl Panics {
    fn record(&self, task: &'static str, payload: &(dyn Any + Send), is_fatal: bool) {
        let reason = reason(payload).to_owned();
        let panicked = Panicked { task, reason };
        tracing::error!(error = %on_one_line(&panicked), "a task is down");
        let mut state = self.state.lock();
        state.count += 1;
        state.down.insert(task, panicked.reason.clone());
        if is_fatal {
            state.fatal.get_or_insert(panicked);
            drop(state);
            self.fatal.cancel();
        }
    }
}

/// What a panic says.
fn reason(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn the_panic_of_a_required_task_is_reported() {
        let tasks = Tasks::new();
        tasks.spawn_required("fine", async {});
        tasks.spawn_required("broken", async { panic!("on {}", "purpose") });
        let panicked = Panicked {
            task: "broken",
            reason: "on purpose".to_owned(),
        };
        assert_eq!(tasks.failed().await, panicked);
        assert_eq!(tasks.failing(), [panicked]);
        assert_eq!(tasks.panics(), 1);
    }

    #[tokio::test]
    async fn a_task_that_holds_its_thread_is_noticed() {
        let tasks = Tasks::new();
        assert_eq!(tasks.long_polls(), (Duration::ZERO, 0));
        let held = LONG_POLL * 5;
        tasks.spawn(async move {
            let began = Instant::now();
            while began.elapsed() < held {
                std::hint::spin_loop();
            }
        });
        tasks.tracker.close();
        tasks.tracker.wait().await;
        let (longest, count) = tasks.long_polls();
        assert!(longest >= held && count == 1, "{longest:?}, {count}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_task_is_down_until_it_starts_again() {
        let tasks = Tasks::new();
        let (starts, stop) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let counted = Arc::clone(&starts);
        let started = Arc::new(tokio::sync::Notify::new());
        let again = Arc::clone(&started);
        tasks.spawn_restarted("flaky", stop.clone(), move || {
            let (start, again) = (counted.fetch_add(1, Ordering::SeqCst), Arc::clone(&again));
            async move {
                again.notify_one();
                assert!(start > 0, "the first time");
                std::future::pending::<()>().await;
            }
        });
        started.notified().await;
        tokio::task::yield_now().await;
        assert_eq!(tasks.failing().len(), 1);
        started.notified().await;
        assert_eq!(tasks.failing(), []);
        assert_eq!((starts.load(Ordering::SeqCst), tasks.panics()), (2, 1));
        assert!(!tasks.panics.fatal.is_cancelled());
        stop.cancel();
        tasks.tracker.close();
        tasks.tracker.wait().await;
    }
}
