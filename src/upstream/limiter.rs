//! The operator's limits of an upstream: requests per second, bytes of blobs per second and per month.
//!
//! Each limit is a bucket that fills at its rate. A request for a client takes what it needs at once,
//! also what isn't there yet, and waits until it is: so clients are served in the order in which they
//! came, and no queue is needed. Background work takes something only while the bucket is at least half
//! full, which it isn't while clients wait.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::priority::Priority;
use super::usage::Usage;
use crate::clock::Clock;
use crate::config;

/// How often background work looks whether clients have left something.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// The size of the bucket of bytes: what its rate brings in this time.
const BYTES_BURST: Duration = Duration::from_secs(1);

/// The limits of one upstream, over all of its endpoints and accounts.
#[derive(Debug)]
pub(super) struct Limiter {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    pub usage: Option<Usage>,
}

/// A bucket, as the time at which it is full again (the generic cell rate algorithm).
#[derive(Debug)]
struct Bucket {
    /// Units that flow in per second.
    rate: u64,
    /// The time in which an empty bucket fills.
    size: Duration,
    full_at: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(config: &config::Upstream, clock: Clock) -> Self {
        let limits = config.rate_limit;
        let bucket = |rate: u64, size| (rate > 0).then(|| Bucket::new(rate, size));
        let rate = limits.requests as u64;
        let size = Bucket::time(rate.max(1), limits.burst as u64);
        Self {
            requests: bucket(rate, size),
            bytes: bucket(limits.bandwidth, BYTES_BURST),
            usage: (limits.monthly > 0).then(|| Usage::new(&config.name, limits.monthly, clock)),
        }
    }

    /// Waits for the turn of a request, for at most `patience`. False when it would have to wait longer.
    /// Cancel safe.
    pub(super) async fn request(&self, priority: Priority, patience: Duration) -> bool {
        let Some(bucket) = &self.requests else {
            return true;
        };
        let deadline = Instant::now() + patience;
        match priority {
            Priority::Client => bucket.take_in_turn(deadline).await,
            Priority::Background => {
                while !bucket.take_if_half_full(1) {
                    if Instant::now() >= deadline {
                        return false;
                    }
                    sleep(LOOK).await;
                }
                true
            }
        }
    }

    /// Whether there is something left for background work.
    pub(super) fn has_spare(&self) -> bool {
        let requests = self.requests.as_ref();
        requests.is_none_or(Bucket::is_half_full) && self.permits_blob(Priority::Background)
    }

    /// Whether a blob may be asked for in this month.
    pub(super) fn permits_blob(&self, priority: Priority) -> bool {
        let usage = self.usage.as_ref();
        usage.is_none_or(|usage| usage.permits(priority))
    }

    /// Whether the bytes of blobs are counted or limited.
    pub(super) fn limits_bytes(&self) -> bool {
        self.bytes.is_some() || self.usage.is_some()
    }

    /// Counts bytes that have arrived, and waits until they may be passed on. Their reader may become a
    /// client, or background work, meanwhile.
    pub(super) async fn pass(&self, bytes: u64, priority: impl Fn() -> Priority + Send + Sync) {
        if let Some(usage) = &self.usage {
            usage.add(bytes);
        }
        if let Some(bucket) = &self.bytes {
            bucket.pass(bytes, priority).await;
        }
    }
}

impl Bucket {
    fn new(rate: u64, size: Duration) -> Self {
        Self {
            rate,
            size,
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// The time in which `units` flow in at a rate (more than 0).
    fn time(rate: u64, units: u64) -> Duration {
        let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes units that may not be there yet. The time at which they are, if that is before the deadline;
    /// else nothing is taken.
    fn take(&self, units: u64, deadline: Option<Instant>) -> Option<Instant> {
        let now = Instant::now();
        let mut full_at = self.full_at.lock();
        let next = (*full_at).max(now) + Self::time(self.rate, units);
        let due = next.checked_sub(self.size).unwrap_or(now);
        if deadline.is_some_and(|deadline| due > deadline) {
            return None;
        }
        *full_at = next;
        Some(due)
    }

    /// Takes one unit, and waits for it.
    async fn take_in_turn(&self, deadline: Instant) -> bool {
        let Some(due) = self.take(1, Some(deadline)) else {
            return false;
        };
        let mut unused = Unused(Some(self));
        sleep_until(due).await;
        unused.0 = None;
        true
    }

    fn is_half_full(&self) -> bool {
        let missing = self
            .full_at
            .lock()
            .saturating_duration_since(Instant::now());
        missing <= self.size / 2
    }

    fn take_if_half_full(&self, units: u64) -> bool {
        let now = Instant::now();
        let mut full_at = self.full_at.lock();
        let is_half_full = full_at.saturating_duration_since(now) <= self.size / 2;
        if is_half_full {
            *full_at = (*full_at).max(now) + Self::time(self.rate, units);
        }
        is_half_full
    }

    /// Waits until bytes that have arrived may be passed on.
    async fn pass(&self, bytes: u64, priority: impl Fn() -> Priority) {
        while priority() == Priority::Background {
            if self.take_if_half_full(bytes) {
                return;
            }
            sleep(LOOK).await;
        }
        if let Some(due) = self.take(bytes, None) {
            sleep_until(due).await;
        }
    }
}

/// A unit that is put back if its request is cancelled while it waits.
struct Unused<'a>(Option<&'a Bucket>);

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        if let Some(bucket) = self.0 {
            let mut full_at = bucket.full_at.lock();
            let before = full_at.checked_sub(Bucket::time(bucket.rate, 1));
            *full_at = before.unwrap_or(*full_at);
        }
    }
}
