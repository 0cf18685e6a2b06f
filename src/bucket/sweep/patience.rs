//! Requests of a sweep that fail.

use std::future::Future;
use std::time::Duration;

use tokio::time::sleep;

use crate::bucket::error::BucketError;

/// The pauses before a step is tried again.
const PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(1)];

/// Runs a step, and runs it again where the bucket fails or asks for fewer requests. One that refuses ends it
/// at once.
pub(super) async fn patiently<T, F>(step: impl Fn() -> F) -> Result<T, BucketError>
where
    F: Future<Output = Result<T, BucketError>>,
{
    for pause in PAUSES {
        match step().await {
            Err(BucketError::Failed(_) | BucketError::Late(_) | BucketError::Short { .. }) => {
                sleep(pause).await;
            }
            ended => return ended,
        }
    }
    step().await
}
