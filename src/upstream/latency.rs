//! How long an endpoint takes to answer questions about manifests.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The newest answers, of which the 99th percentile is taken.
const SAMPLES: usize = 256;
/// With fewer of them, there is no 99th percentile.
pub(super) const MIN_SAMPLES: usize = 50;
/// A new answer's weight in the average.
const WEIGHT: f64 = 0.2;
/// An average that is older counts as unknown, for one request: that measures it again.
pub(super) const MAX_AGE: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Latency(Mutex<Measured>);

#[derive(Debug, Default)]
struct Measured {
    /// A ring.
    samples: Vec<Duration>,
    next: usize,
    average: Option<Duration>,
    /// When it was measured, or when a request was chosen to measure it.
    at: Option<Instant>,
}

impl Latency {
    pub(super) fn record(&self, elapsed: Duration, now: Instant) {
        let mut measured = self.0.lock();
        let next = measured.next;
        match measured.samples.get_mut(next) {
            Some(oldest) => *oldest = elapsed,
            None => measured.samples.push(elapsed),
        }
        measured.next = (next + 1) % SAMPLES;
        let average = measured.average.unwrap_or(elapsed);
        measured.average = Some(average.mul_f64(1.0 - WEIGHT) + elapsed.mul_f64(WEIGHT));
        measured.at = Some(now);
    }

    /// Moving average.
    pub(super) fn average(&self) -> Option<Duration> {
        self.0.lock().average
    }

    /// The average; zero if it isn't known or too old, so that the endpoint is asked.
    pub(super) fn expected(&self, now: Instant) -> Duration {
        let measured = self.0.lock();
        let is_recent = measured
            .at
            .is_some_and(|at| now.duration_since(at) < MAX_AGE);
        measured.average.filter(|_| is_recent).unwrap_or_default()
    }

    /// A request has been sent that measures it: others don't have to.
    pub(super) fn measuring(&self, now: Instant) {
        let mut measured = self.0.lock();
        if measured.average.is_some() {
            measured.at = Some(now);
        }
    }

    /// The time within which 99 % of the newest questions were answered, once there are enough.
    pub(super) fn p99(&self) -> Option<Duration> {
        let mut samples = self.0.lock().samples.clone();
        if samples.len() < MIN_SAMPLES {
            return None;
        }
        // Of 100 samples, the second largest.
        let rank = samples.len() - 1 - samples.len() / 100;
        let (_, p99, _) = samples.select_nth_unstable(rank);
        Some(*p99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn the_99th_percentile_is_of_the_newest_answers() {
        let latency = Latency::default();
        let now = Instant::now();
        for n in 1..MIN_SAMPLES {
            latency.record(MS, now);
            assert_eq!(latency.p99(), None, "{n}");
        }
        for n in 1..=100 {
            latency.record(MS * n, now);
        }
        // The 2 slowest of 149 are slower than 99 %.
        assert_eq!(latency.p99(), Some(99 * MS));
        for _ in 0..SAMPLES {
            latency.record(5 * MS, now);
        }
        assert_eq!(latency.p99(), Some(5 * MS));
        assert_eq!(latency.0.lock().samples.len(), SAMPLES);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_average_is_measured_again_by_one_request() {
        let latency = Latency::default();
        assert_eq!(latency.expected(Instant::now()), Duration::ZERO);
        latency.record(10 * MS, Instant::now());
        latency.record(20 * MS, Instant::now());
        assert_eq!(latency.expected(Instant::now()), 12 * MS);
        tokio::time::advance(MAX_AGE).await;
        assert_eq!(latency.expected(Instant::now()), Duration::ZERO);
        latency.measuring(Instant::now());
        assert_eq!(latency.expected(Instant::now()), 12 * MS);
    }
}
