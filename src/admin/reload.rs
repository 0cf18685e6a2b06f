//! Asking the running process to read its configuration again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

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
}

impl Default for Reloads {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        Self {
            sender,
            receiver: Mutex::new(receiver),
        }
    }
}

impl Reloads {
    /// Asks, and waits for the report.
    pub async fn request(&self) -> Result<ReloadReport, NotReloaded> {
        let (reply, report) = oneshot::channel();
        self.sender.try_send(reply).map_err(|_full| NotReloaded)?;
        let report = timeout(PATIENCE, report).await;
        report
            .map_err(|_elapsed| NotReloaded)?
            .map_err(|_dropped| NotReloaded)
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
