//! Asking the running process to read its configuration again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Difference;

/// Requests that wait, at most.
const MAX_WAITING: usize = 8;
/// How long a request may wait for its report.
const PATIENCE: Duration = Duration::from_mins(2);

/// What came of reading the configuration again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Why nothing was changed. Empty if everything that can was.
    pub problems: Vec<String>,
    /// What has another value from now on.
    pub applied: Vec<Difference>,
    /// What keeps its old value until a restart.
    pub restart: Vec<Difference>,
    /// What the operator should know besides.
    pub warnings: Vec<String>,
}

/// No report.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process doesn't read its configuration now: it is stopping, or busy with other requests"
)]
pub struct NotReloaded;

/// Where requests to read the configuration again are made, and where they arrive.
#[derive(Debug)]
pub struct Reloads {
    sender: mpsc::Sender<oneshot::Sender<ReloadReport>>,
    receiver: Mutex<mpsc::Receiver<oneshot::Sender<ReloadReport>>>,
    /// Nobody takes requests any more.
    closed: CancellationToken,
}

impl Default for Reloads {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        Self {
            sender,
            receiver: Mutex::new(receiver),
            closed: CancellationToken::new(),
        }
    }
}

impl Reloads {
    /// Asks, and waits for the report.
    pub async fn request(&self) -> Result<ReloadReport, NotReloaded> {
        let (reply, report) = oneshot::channel();
        self.sender.try_send(reply).map_err(|_full| NotReloaded)?;
        let report = self.closed.run_until_cancelled(timeout(PATIENCE, report));
        report
            .await
            .ok_or(NotReloaded)?
            .map_err(|_elapsed| NotReloaded)?
            .map_err(|_dropped| NotReloaded)
    }

    /// Refuses all requests from now on, those that wait as well: a stop doesn't wait for them.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// The next request: where its report is sent. Cancel safe.
    pub async fn next(&self) -> oneshot::Sender<ReloadReport> {
        match self.receiver.lock().await.recv().await {
            Some(reply) => reply,
            // There is always the sender of this one.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn requests_are_refused_at_once_after_the_end() {
        let (reloads, began) = (Reloads::default(), Instant::now());
        let (waiting, ()) = tokio::join!(reloads.request(), async { reloads.close() });
        assert!(waiting.is_err());
        assert!(reloads.request().await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
