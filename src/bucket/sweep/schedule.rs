//! When the bucket is swept: once a day, by the replica that owns the key `sweeper`.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Report, Sweep};
use crate::bucket::error::BucketError;
use crate::error_chain::on_one_line;

/// Written at the end of each sweep: its time says when that was.
pub(super) const LAST: &str = "millpond/sweep/last";

/// How long after a sweep the next one begins, by whichever replica.
const EVERY: Duration = Duration::from_hours(23);
/// How often a replica looks whether it is time, in seconds.
const LOOKS: std::ops::Range<u64> = 3_000..4_200;
/// How long a replica leaves the bucket alone when its sweep has failed.
const AFTER_FAILURE: Duration = Duration::from_hours(24);
/// How long a sweep may take.
const LONGEST: Duration = Duration::from_hours(20);

impl Sweep {
    /// Sweeps the bucket once a day, while this replica is the one that does. Never ends.
    pub(in crate::bucket) async fn keep(&self, is_sweeper: &(dyn Fn() -> bool + Send + Sync)) {
        let mut again: Option<Instant> = None;
        loop {
            sleep(Duration::from_secs(fastrand::u64(LOOKS))).await;
            let rests = again.is_some_and(|again| Instant::now() < again);
            if rests || !is_sweeper() {
                continue;
            }
            let swept = timeout(LONGEST, self.sweep_if_due()).await;
            let swept = swept.unwrap_or(Err(BucketError::Late(LONGEST)));
            if let Err(error) = swept {
                tracing::warn!(error = %on_one_line(&error), "the bucket can't be swept; it is tried again tomorrow");
                again = Some(Instant::now() + AFTER_FAILURE);
            }
        }
    }

    /// Sweeps, unless somebody has today.
    pub(in crate::bucket) async fn sweep_if_due(&self) -> Result<Option<Report>, BucketError> {
        if let Some(last) = self.objects.head(LAST).await? {
            let age = self.objects.now().duration_since(last.modified);
            // A sweep of the future is none: the bucket's clock was wrong.
            if age.is_ok_and(|age| age < EVERY) {
                return Ok(None);
            }
        }
        let report = Box::pin(self.run()).await?;
        let text = format!("{report}\n");
        self.objects.put(LAST, vec![text.into()]).await?;
        Ok(Some(report))
    }
}
