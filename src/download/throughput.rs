//! The throughput of a stream.

use std::time::Duration;

use tokio::time::Instant;

/// Duration of one measurement.
const MEASURED: Duration = Duration::from_millis(100);
/// After this long without a byte the throughput counts as zero.
const SILENCE: Duration = Duration::from_secs(1);

/// Recent throughput in bytes per second.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// Start of the current measurement, and its bytes.
    open: Option<(Instant, u64)>,
    latest: Option<Instant>,
    rate: Option<f64>,
}

impl Throughput {
    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        self.latest = Some(now);
        let Some((since, measured)) = &mut self.open else {
            // The first bytes are already buffered: they were sent while the response head was read.
            self.open = Some((now, 0));
            return;
        };
        *measured += bytes;
        let elapsed = now.duration_since(*since);
        if elapsed >= MEASURED {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seen = *measured as f64 / elapsed.as_secs_f64();
            self.rate = Some(self.rate.map_or(seen, |before| before.midpoint(seen)));
            self.open = Some((now, 0));
        }
    }

    /// None before the first measurement. 0 when no bytes arrive any more.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let silent = self
            .latest
            .is_some_and(|latest| now.duration_since(latest) > SILENCE);
        if silent { Some(0.0) } else { self.rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_measured_and_forgotten() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Throughput::default();
        pace.add(1_000_000, at(0));
        pace.add(100, at(99));
        assert_eq!(pace.rate(at(99)), None);
        pace.add(100, at(200));
        assert_eq!(pace.rate(at(200)), Some(1000.0));
        pace.add(600, at(400));
        assert_eq!(pace.rate(at(400)), Some(2000.0));
        assert_eq!(pace.rate(at(1401)), Some(0.0));
    }
}
