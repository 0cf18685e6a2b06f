//! The throughput of a stream.

use std::time::Duration;

use tokio::time::Instant;

/// Duration of one measurement.
const MEASURED: Duration = Duration::from_millis(100);
/// After this long without a byte the throughput counts as zero.
const SILENCE: Duration = Duration::from_secs(1);
/// A stream that is waited for during less than this share of the time has its bytes ready when they
/// are asked for.
const WAITED: f64 = 0.5;

/// Recent throughput in bytes per second, and what limits it.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// Start of the current measurement, its bytes, and how long they were waited for.
    open: Option<(Instant, u64, Duration)>,
    latest: Option<Instant>,
    rate: Option<f64>,
    /// Share of the last measurement in which the stream was waited for.
    waited: Option<f64>,
}

impl Throughput {
    pub(super) fn add(&mut self, bytes: u64, waited: Duration, now: Instant) {
        self.latest = Some(now);
        let Some((since, measured, waiting)) = &mut self.open else {
            // The first bytes are already buffered: they were sent while the response head was read.
            self.open = Some((now, 0, Duration::ZERO));
            return;
        };
        *measured += bytes;
        *waiting += waited;
        let elapsed = now.duration_since(*since);
        if elapsed >= MEASURED {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seen = *measured as f64 / elapsed.as_secs_f64();
            self.rate = Some(self.rate.map_or(seen, |before| before.midpoint(seen)));
            self.waited = Some(waiting.div_duration_f64(elapsed));
            self.open = Some((now, 0, Duration::ZERO));
        }
    }

    /// None before the first measurement. 0 when no bytes arrive any more.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let silent = self
            .latest
            .is_some_and(|latest| now.duration_since(latest) > SILENCE);
        if silent { Some(0.0) } else { self.rate }
    }

    /// Whether the upstream sends the bytes before they are asked for: this machine limits the
    /// throughput. False before the first measurement.
    pub(super) fn is_ready(&self) -> bool {
        self.waited.is_some_and(|share| share < WAITED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_averaged_and_zero_after_silence() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut throughput = Throughput::default();
        for (bytes, waited, now, rate, ready) in [
            (1_000_000, 500, 0, None, false),
            (100, 20, 99, None, false),
            (100, 20, 200, Some(1000.0), true),
            (600, 100, 400, Some(2000.0), false),
        ] {
            throughput.add(bytes, Duration::from_millis(waited), at(now));
            assert_eq!(
                (throughput.rate(at(now)), throughput.is_ready()),
                (rate, ready),
                "{now}"
            );
        }
        assert_eq!(throughput.rate(at(1401)), Some(0.0));
    }
}
