//! Hashing and parsing off the runtime's threads.
//!
//! Documents that take less than a millisecond are handled where they are. Larger ones go to the
//! blocking pool, a few at a time: a parsed document takes several times its size in memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::oci::manifest::QUICK;

/// Large documents handled at a time. A document is at most 4 MiB, so they and what is parsed of them
/// take well under 256 MiB.
const MAX_LARGE: usize = 4;

/// The work panicked, or the process is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work on a document ended without a result")]
pub struct WorkLost;

/// Bounds how many large documents are handled at a time.
#[derive(Debug)]
pub struct Workers(Arc<Semaphore>);

/// Leave to handle one document. A large one must not be read into memory before this is there.
#[derive(Debug)]
pub struct Leave(Option<OwnedSemaphorePermit>);

impl Default for Workers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LARGE)))
    }
}

impl Workers {
    /// Waits until a document of this size, in bytes, may be handled. Cancel safe.
    pub async fn admit(&self, size: u64) -> Result<Leave, WorkLost> {
        if size <= QUICK as u64 {
            return Ok(Leave(None));
        }
        let permit = Arc::clone(&self.0).acquire_owned().await;
        permit
            .map(|permit| Leave(Some(permit)))
            .map_err(|_never_closed| WorkLost)
    }
}

impl Leave {
    /// Does the work. When the caller goes away, the work still counts until it ends.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkLost> {
        let Some(permit) = self.0 else {
            return Ok(work());
        };
        let work = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_panicked| WorkLost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[tokio::test]
    async fn small_work_runs_in_place_and_large_work_on_the_pool_a_few_at_a_time() {
        let workers = Workers::default();
        let here = thread::current().id();
        let small = workers.admit(QUICK as u64).await.unwrap();
        let ran_on = small.run(|| thread::current().id()).await.unwrap();
        assert_eq!(ran_on, here);

        let large = QUICK as u64 + 1;
        let (release, gate) = mpsc::channel::<()>();
        let first = workers.admit(large).await.unwrap();
        let mut first = Box::pin(first.run(move || {
            gate.recv().unwrap();
            thread::current().id()
        }));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut others = Vec::new();
        for _ in 1..MAX_LARGE {
            others.push(workers.admit(large).await.unwrap());
        }
        let mut next = Box::pin(workers.admit(large));
        assert!(futures_util::poll!(&mut next).is_pending());
        release.send(()).unwrap();
        assert_ne!(first.await.unwrap(), here);
        next.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_returns_its_permit() {
        let workers = Workers::default();
        for _ in 0..2 * MAX_LARGE {
            let leave = workers.admit(u64::MAX).await.unwrap();
            let result = leave.run(|| panic!("on purpose")).await;
            assert!(matches!(result, Err::<(), _>(WorkLost)));
        }
    }
}
