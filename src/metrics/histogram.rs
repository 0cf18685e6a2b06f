//! Histograms of durations: atomic buckets without a lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The upper bounds of the buckets, in microseconds: from a warm request to a large download.
const BOUNDS: [u32; 18] = [
    100,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Counts of durations up to each bound, and of longer ones. Adding one changes two atomics.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Buckets {
    pub(super) fn observe(&self, duration: Duration) {
        // 584 years at most.
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let is_within = |bound: &u32| nanoseconds <= u64::from(*bound) * 1000;
        let bucket = BOUNDS.iter().position(is_within).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl Buckets {
    /// Makes these count what others have counted, who never count less than before.
    fn raise_to(&self, totals: &Totals) {
        for (count, total) in self.counts.iter().zip(totals.counts) {
            count.fetch_max(total, Ordering::Relaxed);
        }
        self.nanoseconds
            .fetch_max(totals.nanoseconds, Ordering::Relaxed);
    }
}

/// What one or several [`Buckets`] have counted.
#[derive(Debug, Default)]
pub(super) struct Totals {
    counts: [u64; BOUNDS.len() + 1],
    nanoseconds: u64,
}

impl Totals {
    pub(super) fn add(&mut self, buckets: &Buckets) {
        for (total, count) in self.counts.iter_mut().zip(&buckets.counts) {
            *total += count.load(Ordering::Relaxed);
        }
        let nanoseconds = buckets.nanoseconds.load(Ordering::Relaxed);
        self.nanoseconds = self.nanoseconds.wrapping_add(nanoseconds);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| f64::from(*bound) / 1e6);
        let bounds = bounds.chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.counts).collect();
        let sum = Duration::from_nanos(self.nanoseconds).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, self.count(), &buckets, None)
    }
}

/// A histogram of durations. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Histogram(Arc<Buckets>);

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration);
    }
}

impl Histogram {
    pub(super) fn raise_to(&self, totals: &Totals) {
        self.0.raise_to(totals);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut totals = Totals::default();
        totals.add(&self.0);
        totals.encode(&mut encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn a_duration_counts_in_the_buckets_that_it_is_within() {
        let histogram = Histogram::default();
        for microseconds in [0, 100, 101, 2_500, 300_000_001] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let mut registry = Registry::default();
        registry.register("wait_seconds", "Waiting", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "wait_seconds_sum 300.002702",
            "wait_seconds_count 5",
            "wait_seconds_bucket{le=\"0.0001\"} 2",
            "wait_seconds_bucket{le=\"0.001\"} 3",
            "wait_seconds_bucket{le=\"0.0025\"} 4",
            "wait_seconds_bucket{le=\"300.0\"} 4",
            "wait_seconds_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
