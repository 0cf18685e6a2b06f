//! Whether requests for several ranges are worth sending.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long an upstream is asked for single ranges only.
const DECLINED_FOR: Duration = Duration::from_mins(15);

/// Whether an upstream is sent requests for several ranges.
#[derive(Debug)]
pub(super) struct MultiRange {
    upstream: Box<str>,
    declined: Mutex<Option<Instant>>,
}

impl MultiRange {
    pub(super) fn new(upstream: &str) -> Self {
        Self {
            upstream: upstream.into(),
            declined: Mutex::default(),
        }
    }

    pub(super) fn is_supported(&self) -> bool {
        is_over(*self.declined.lock())
    }

    pub(super) fn decline(&self, reason: &str) {
        if is_over(self.declined.lock().replace(Instant::now())) {
            let upstream = &*self.upstream;
            tracing::info!(
                upstream,
                reason,
                "requesting single ranges from the upstream"
            );
        }
    }
}

fn is_over(declined: Option<Instant>) -> bool {
    declined.is_none_or(|since| since.elapsed() >= DECLINED_FOR)
}
