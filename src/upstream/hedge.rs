//! How many requests are sent a second time, to another endpoint, because the first one is slow.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Requests for each hedge: 2 % more requests.
pub(super) const REQUESTS_PER_HEDGE: u32 = 50;
/// Hedges that may be saved up for a time when many requests are slow.
const MAX_SAVED: u32 = 10;
/// No request is hedged sooner: on a fast network, the 99th percentile is noise.
pub(super) const MIN_WAIT: Duration = Duration::from_millis(10);

/// Permits a hedge for every [`REQUESTS_PER_HEDGE`] requests.
#[derive(Debug, Default)]
pub(super) struct HedgeBudget {
    /// Requests that haven't been used for a hedge.
    requests: AtomicU32,
}

impl HedgeBudget {
    /// A request is sent.
    pub(super) fn earn(&self) {
        let earn = |requests: u32| Some((requests + 1).min(MAX_SAVED * REQUESTS_PER_HEDGE));
        let _before = self
            .requests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
    }

    /// Whether a hedge may be sent now, which is then used up.
    pub(super) fn take(&self) -> bool {
        let take = |requests: u32| requests.checked_sub(REQUESTS_PER_HEDGE);
        let taken = self
            .requests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_two_percent_of_the_requests_with_a_bounded_reserve() {
        let budget = HedgeBudget::default();
        let mut hedges = 0;
        for requests in 1..=1000 {
            budget.earn();
            hedges += u32::from(budget.take());
            assert!(hedges * 50 <= requests, "{hedges} of {requests}");
        }
        assert_eq!(hedges, 20);
        for _ in 0..10_000 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
    }
}
