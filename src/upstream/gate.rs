//! Bounds the metadata requests of one upstream: manifests, tokens, lists, and whether a blob is
//! there. Downloads of blobs have bounds of their own (`proxy.streams`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Requests at the same time, from their start to the end of the response's body.
pub(super) const MAX_REQUESTS: usize = 64;
/// Requests that wait for one of those to end.
pub(super) const MAX_WAITING: usize = 1024;

/// Held by a request as long as it counts.
pub(super) type Permit = OwnedSemaphorePermit;

#[derive(Debug)]
pub(super) struct Gate {
    permits: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_REQUESTS)),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// Waits in line for at most `patience`. None when that has passed or the line is full.
    pub(super) async fn enter(&self, patience: Duration) -> Option<Permit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = self.waiting.try_acquire().ok()?;
        // The semaphore is never closed.
        timeout(patience, permits.acquire_owned()).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use futures_util::poll;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn running_and_waiting_requests_are_bounded() {
        let gate = Gate::new();
        let mut inside = join_all((0..MAX_REQUESTS).map(|_| gate.enter(PATIENCE))).await;
        assert!(inside.iter().all(Option::is_some));
        let mut line: Vec<_> = (0..MAX_WAITING)
            .map(|_| Box::pin(gate.enter(PATIENCE)))
            .collect();
        for place in &mut line {
            assert!(poll!(place).is_pending());
        }
        assert!(gate.enter(PATIENCE).await.is_none(), "the line is full");
        // A waiter that leaves frees its place; waiters are served in order.
        drop(line.pop());
        let mut last = Box::pin(gate.enter(PATIENCE));
        assert!(poll!(&mut last).is_pending());
        inside.pop();
        assert!(line.remove(0).await.is_some());
        assert!(poll!(&mut last).is_pending());
        // No wait is endless.
        assert!(last.await.is_none());
        drop(line);
        assert_eq!(gate.waiting.available_permits(), MAX_WAITING);
        assert!(gate.enter(PATIENCE).await.is_some());
    }
}
