//! How many bytes of blobs an upstream has sent in the current calendar month, and the operator's limit
//! of them.

use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::priority::Priority;
use crate::clock::Clock;

/// The percentage of the limit after which background work gets nothing.
const FOR_BACKGROUND: u64 = 90;
/// How often the calendar is consulted.
const LOOK: Duration = Duration::from_mins(1);

/// The bytes of one month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthlyUsage {
    /// In UTC: `2026-11`.
    pub month: String,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Usage {
    upstream: Box<str>,
    /// Bytes in a month; more than 0.
    pub limit: u64,
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    usage: MonthlyUsage,
    /// When the month was last compared with the calendar.
    looked_at: Instant,
}

impl Usage {
    pub(super) fn new(upstream: &str, limit: u64, clock: Clock) -> Self {
        let usage = MonthlyUsage {
            month: month(clock),
            bytes: 0,
        };
        Self {
            upstream: upstream.into(),
            limit,
            clock,
            inner: Mutex::new(Inner {
                usage,
                looked_at: clock.now(),
            }),
        }
    }

    pub(super) fn add(&self, bytes: u64) {
        let mut inner = self.inner.lock();
        inner.look(self.clock);
        let before = inner.usage.bytes;
        let after = before.saturating_add(bytes);
        inner.usage.bytes = after;
        drop(inner);
        let (upstream, limit) = (&*self.upstream, self.limit);
        for (percent, effect) in [
            (FOR_BACKGROUND, "nothing more is fetched ahead"),
            (100, "blobs that aren't cached are answered with 429"),
        ] {
            if passes(before, after, self.part(percent)) {
                tracing::warn!(
                    upstream,
                    limit,
                    percent,
                    "the monthly limit of bytes (`ratelimit.monthly`) is used up to this percentage: {effect}"
                );
            }
        }
    }

    /// Whether more may be asked for.
    pub(super) fn permits(&self, priority: Priority) -> bool {
        let percent = match priority {
            Priority::Client => 100,
            Priority::Background => FOR_BACKGROUND,
        };
        self.now().bytes < self.part(percent)
    }

    pub(super) fn now(&self) -> MonthlyUsage {
        let mut inner = self.inner.lock();
        inner.look(self.clock);
        inner.usage.clone()
    }

    /// Counts what was received before this client was made, if that was in this month.
    pub(super) fn restore(&self, earlier: &MonthlyUsage) {
        let mut inner = self.inner.lock();
        inner.look(self.clock);
        if earlier.month == inner.usage.month {
            inner.usage.bytes = inner.usage.bytes.saturating_add(earlier.bytes);
        }
    }

    /// At least one byte.
    fn part(&self, percent: u64) -> u64 {
        (self.limit / 100 * percent + self.limit % 100 * percent / 100).max(1)
    }
}

/// Whether a count has reached a threshold by growing.
const fn passes(before: u64, after: u64, threshold: u64) -> bool {
    before < threshold && threshold <= after
}

impl Inner {
    fn look(&mut self, clock: Clock) {
        let now = clock.now();
        if now.saturating_duration_since(self.looked_at) < LOOK {
            return;
        }
        self.looked_at = now;
        let month = month(clock);
        if month != self.usage.month {
            self.usage = MonthlyUsage { month, bytes: 0 };
        }
    }
}

fn month(clock: Clock) -> String {
    // `2026-11-29T02:45:28Z`
    let time = humantime::format_rfc3339_seconds(clock.wall()).to_string();
    time.chars().take(7).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const DAY: Duration = Duration::from_hours(24);

    fn november() -> Clock {
        // 2026-11-29
        Clock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_hours(498_864))
    }

    #[tokio::test(start_paused = true)]
    async fn a_month_has_its_limit_and_background_work_less() {
        let usage = Usage::new("u", 1000, november());
        let permits = || {
            (
                usage.permits(Priority::Client),
                usage.permits(Priority::Background),
            )
        };
        assert_eq!(permits(), (true, true));
        usage.add(899);
        assert_eq!(permits(), (true, true));
        usage.add(1);
        assert_eq!(permits(), (true, false));
        usage.add(100);
        assert_eq!(permits(), (false, false));
        assert_eq!(usage.now().month, "2026-11");
        tokio::time::advance(DAY).await;
        assert_eq!(permits(), (false, false), "the last day of November");
        tokio::time::advance(DAY).await;
        assert_eq!(permits(), (true, true), "December");
        let december = MonthlyUsage {
            month: "2026-12".to_owned(),
            bytes: 0,
        };
        assert_eq!(usage.now(), december);
    }

    #[test]
    fn a_threshold_is_passed_once_when_it_is_reached() {
        let steps = [(0, 899), (899, 900), (900, 901), (901, 1000)];
        let passed = steps.map(|(before, after)| passes(before, after, 900));
        assert_eq!(passed, [false, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_before_counts_in_the_same_month_only() {
        let usage = Usage::new("u", 1000, november());
        usage.add(1);
        for month in ["2026-10", "2025-11", "", "2026-11"] {
            let (month, bytes) = (month.to_owned(), 500);
            usage.restore(&MonthlyUsage { month, bytes });
        }
        assert_eq!(usage.now().bytes, 501);
        let huge = MonthlyUsage {
            bytes: u64::MAX,
            ..usage.now()
        };
        usage.restore(&huge);
        assert!(!usage.permits(Priority::Client));
    }
}
