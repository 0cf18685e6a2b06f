//! How long content stays in the bucket, and what keeps it there.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Bucket;
use super::error::BucketError;
use super::sweep::{IsHosted, Retention, Sweep};
use crate::oci::Digest;

/// How long before its TTL is over an object is written again that something new relies on.
const RENEWED_BEFORE: Duration = Duration::from_hours(4 * 24);

/// What a replica needs to know to look after the bucket.
#[derive(Clone)]
pub struct Keeping {
    pub retention: Retention,
    /// This replica, as a component of keys: see [`replica_key`](super::replica_key) and
    /// [`random_replica`](super::random_replica).
    pub replica: String,
    /// Whether this replica is the one that sweeps at the moment. It does no harm if several are.
    pub is_sweeper: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether clients push into a repository: its content is never removed.
    pub is_hosted: Arc<IsHosted>,
}

impl fmt::Debug for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            retention, replica, ..
        } = self;
        write!(f, "Keeping({replica}, {retention:?})")
    }
}

impl Bucket {
    /// Records uses once an hour, and sweeps the bucket once a day. Never ends.
    pub async fn keep(self: Arc<Self>, keeping: Keeping) {
        let sweep = Sweep {
            objects: self.objects.clone(),
            retention: keeping.retention,
            replica: keeping.replica.clone(),
            is_hosted: Arc::clone(&keeping.is_hosted),
            metrics: Arc::clone(&self.metrics),
        };
        let recording = self.uses.keep(&self.objects, &self.cache, &keeping.replica);
        // Both are large, and one waits most of the time.
        tokio::join!(
            Box::pin(recording),
            Box::pin(sweep.keep(&*keeping.is_sweeper))
        );
    }

    /// Content was used that may not be cached here: a client was sent to the bucket for it.
    pub fn note_use(&self, digest: &Digest) {
        self.uses.note(digest);
    }

    /// Records the uses since the last hour. For the end of the process, after the last request.
    pub async fn record_uses(&self, replica: &str) -> Result<(), BucketError> {
        self.uses.record(&self.objects, &self.cache, replica).await
    }
}

/// Whether a new link may rely on an object as it is: the sweep doesn't mark it for its age within four days.
/// Otherwise it has to be written again first. `modified` and `now` are the bucket's.
pub(super) fn is_relied_on_safely(
    modified: SystemTime,
    now: SystemTime,
    ttl: Option<Duration>,
) -> bool {
    let age = now.duration_since(modified).unwrap_or_default();
    ttl.is_none_or(|ttl| age < ttl.saturating_sub(RENEWED_BEFORE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_relied_on_until_four_days_before_its_end() {
        let (modified, day) = (SystemTime::UNIX_EPOCH, Duration::from_hours(24));
        let is_safe = |age: Duration, ttl| is_relied_on_safely(modified, modified + age, ttl);
        let second = Duration::from_secs(1);
        assert!(is_safe((day * 26).saturating_sub(second), Some(day * 30)));
        assert!(!is_safe(day * 26, Some(day * 30)));
        assert!(!is_safe(Duration::ZERO, Some(day)));
        assert!(is_safe(day * 9_999, None));
        assert!(is_relied_on_safely(
            modified + day,
            modified,
            Some(day * 30)
        ));
    }
}
