//! Rates of the upstream: a token bucket, for one connection or for all of them.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces per second: often enough that the line looks steady.
const PIECES_PER_SECOND: u64 = 400;
/// How far behind its due time a sender may be and still catch up: a timer that fires late costs no
/// rate, and a receiver that stalls gains none.
const BURST: Duration = Duration::from_millis(10);

/// Bytes per second that may pass.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: u64,
    /// When the bytes that have passed so far were due; `None` before the first.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    /// `rate` in bytes per second; 0 for no limit.
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            due: Mutex::new(None),
        }
    }

    /// The most bytes to send before the next [`spend`](Self::spend); `None` without a limit.
    pub(crate) fn piece(&self) -> Option<u64> {
        (self.rate > 0).then(|| (self.rate / PIECES_PER_SECOND).max(1))
    }

    /// Takes note of bytes that have been sent, and sleeps until the next ones are due.
    pub(crate) fn spend(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.rate);
        let now = Instant::now();
        let next = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let next = due.map_or(now, |due| due.max(earliest)) + cost;
            *due = Some(next);
            next
        };
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
