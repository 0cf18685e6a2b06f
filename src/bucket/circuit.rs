//! Whether the bucket is asked: after a failure it is left alone for a while, so that pulls don't wait for
//! it again and again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::BucketError;
use crate::error_chain::on_one_line;

/// How long a bucket that has failed isn't read.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(super) struct Circuit(Mutex<Option<Instant>>);

impl Circuit {
    /// The error of a request that isn't sent.
    pub(super) fn permit(&self) -> Result<(), BucketError> {
        let until = *self.0.lock();
        match until {
            Some(until) if Instant::now() < until => Err(BucketError::LeftAlone),
            _ => Ok(()),
        }
    }

    /// Whether it has failed and hasn't answered since.
    pub(super) fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Notes how a request has ended.
    pub(super) fn note<T>(&self, result: &Result<T, BucketError>) {
        let error = match result {
            Ok(_) => {
                if self.0.lock().take().is_some() {
                    tracing::info!("the bucket answers again");
                }
                return;
            }
            Err(BucketError::LeftAlone) => return,
            Err(error) => error,
        };
        let until = Instant::now() + LEFT_ALONE_FOR;
        if self.0.lock().replace(until).is_none() {
            tracing::warn!(error = %on_one_line(error), "the bucket failed; pulls are served from the upstream until it answers again");
        }
    }
}
