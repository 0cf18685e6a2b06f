//! The health checks that the operator configured (`health`), and whether the server may answer.
//!
//! Each check is a task: it tries its [`Probe`] at an interval and reports to [`Availability`]. The server
//! asks there before each request, which is one relaxed load; operators get the reasons. A check that
//! fails closes the registry API until it succeeds again, so nothing here may decide on its own what to
//! check.

mod probe;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

pub use probe::{HealthSetupError, Probes};

use crate::config::HealthTiming;
use crate::tasks::Tasks;
use probe::Probe;

/// Set in [`Inner::state`] while the server stops; failing checks are counted above it.
const STOPPING: usize = 1;
const ONE_FAILING: usize = 2;

/// The state of the checks, and whether the server stops. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Availability {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// [`STOPPING`], and [`ONE_FAILING`] for each check that fails.
    state: AtomicUsize,
    checks: Mutex<BTreeMap<String, Streak>>,
}

/// The tries of one check that have failed since one succeeded.
#[derive(Debug)]
struct Streak {
    threshold: NonZeroU32,
    failed: u32,
    reason: String,
}

/// A change of a check.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Fails,
    Recovers,
}

/// Why a request isn't answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// A configured check fails.
    Unhealthy,
    /// The server stops. Requests are still answered; who asks whether to send more is told not to.
    Stopping,
}

impl Availability {
    /// Whether something is wrong; a failing check before a stop. One relaxed load where nothing is.
    #[inline]
    pub fn closed(&self) -> Option<Closed> {
        match self.inner.state.load(Ordering::Relaxed) {
            0 => None,
            STOPPING => Some(Closed::Stopping),
            _ => Some(Closed::Unhealthy),
        }
    }

    /// From now on, the server isn't ready.
    pub fn stop(&self) {
        self.inner.state.fetch_or(STOPPING, Ordering::Relaxed);
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.inner.state.load(Ordering::Relaxed) & STOPPING != 0
    }

    /// The configured checks by name; those that fail with the reason.
    pub fn checks(&self) -> BTreeMap<String, Option<String>> {
        let checks = self.inner.checks.lock();
        let checks = checks.iter().map(|(name, streak)| {
            let reason = streak.fails().then(|| streak.reason.clone());
            (name.clone(), reason)
        });
        checks.collect()
    }

    /// Starts the checks; each is tried at once. `tasks` owns them, until `stop`.
    pub fn start(&self, probes: Probes, tasks: &Tasks, stop: &CancellationToken) {
        for (name, probe, timing) in probes.into_checks() {
            let streak = Streak::new(timing.threshold);
            self.inner.checks.lock().insert(name.clone(), streak);
            let (availability, probe) = (self.clone(), Arc::new(probe));
            tasks.spawn_restarted("health check", stop.clone(), move || {
                let (availability, name) = (availability.clone(), name.clone());
                check(availability, name, Arc::clone(&probe), timing)
            });
        }
    }

    fn note(&self, name: &str, tried: Result<(), String>) {
        let Some((change, reason)) = self.change(name, tried) else {
            return;
        };
        match change {
            Change::Fails => tracing::warn!(
                check = name,
                reason,
                "a health check fails: requests are answered with 503 until it succeeds"
            ),
            Change::Recovers => tracing::info!(check = name, "the health check succeeds again"),
        }
    }

    /// Counts a try. Returns the change that it makes, with the reason.
    fn change(&self, name: &str, tried: Result<(), String>) -> Option<(Change, String)> {
        let mut checks = self.inner.checks.lock();
        let streak = checks.get_mut(name)?;
        let change = streak.note(tried)?;
        let state = &self.inner.state;
        match change {
            Change::Fails => state.fetch_add(ONE_FAILING, Ordering::Relaxed),
            Change::Recovers => state.fetch_sub(ONE_FAILING, Ordering::Relaxed),
        };
        Some((change, streak.reason.clone()))
    }
}

impl Streak {
    const fn new(threshold: NonZeroU32) -> Self {
        Self {
            threshold,
            failed: 0,
            reason: String::new(),
        }
    }

    const fn fails(&self) -> bool {
        self.failed >= self.threshold.get()
    }

    fn note(&mut self, tried: Result<(), String>) -> Option<Change> {
        let failed = self.fails();
        match tried {
            Ok(()) => self.failed = 0,
            Err(reason) => {
                self.failed = self.failed.saturating_add(1);
                self.reason = reason;
            }
        }
        match (failed, self.fails()) {
            (false, true) => Some(Change::Fails),
            (true, false) => Some(Change::Recovers),
            _ => None,
        }
    }
}

/// Tries a probe again and again.
async fn check(availability: Availability, name: String, probe: Arc<Probe>, timing: HealthTiming) {
    let mut ticks = interval(timing.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut attempt = None;
    loop {
        ticks.tick().await;
        let running = attempt.get_or_insert_with(|| Box::pin(Arc::clone(&probe).attempt()));
        let tried = match timeout(timing.timeout, running.as_mut()).await {
            Ok(tried) => {
                attempt = None;
                tried
            }
            Err(_elapsed) => {
                // A thread that waits for a disk can't be stopped: the next try waits for it, too.
                if !probe.holds_a_thread() {
                    attempt = None;
                }
                let waited = humantime::format_duration(timing.timeout);
                Err(format!("no answer within {waited}"))
            }
        };
        availability.note(&name, tried);
    }
}
