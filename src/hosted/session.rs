//! One upload: who writes to it, and how much it has received.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::HostedError;
use super::content::{Account, Content};
use crate::cache::Charge;
use crate::oci::{RepoName, UploadId};

/// How long a request waits for an earlier one to end before it is told that another one writes. The
/// end of a broken connection comes with its last bytes.
const HANDOVER: Duration = Duration::from_millis(500);
/// A request without a byte for this long is cut off by one that continues at the right byte.
const SILENT: Duration = Duration::from_secs(5);
/// A request without a byte for this long has delivered what its connection had.
const SETTLED: Duration = Duration::from_millis(250);
/// The longest that a question for the bytes received waits for a request that still brings some.
const STATUS_TIME: Duration = Duration::from_secs(3);

/// An upload that is open.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) repo: RepoName,
    pub(super) id: UploadId,
    /// The position of its space.
    pub(super) space: usize,
    turns: Arc<Semaphore>,
    state: Mutex<State>,
    changed: Notify,
    /// Locked for a step on the blocking pool, by whoever has the turn, and otherwise while nothing is
    /// with the pool.
    pub(super) content: Mutex<Content>,
    pub(super) account: Mutex<Account>,
}

#[derive(Debug)]
struct State {
    /// Bytes that are in the file.
    received: u64,
    /// When a byte came last.
    arrived: Instant,
    /// The same or when something was asked, by the wall clock.
    used: SystemTime,
    /// Ends the request that writes.
    writer: Option<CancellationToken>,
    /// The request has ended, and the pool writes what it brought; or the content is being made a blob.
    closing: bool,
    ended: bool,
}

/// The right to write to an upload, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) session: Arc<Session>,
    /// Cancelled when another request takes over.
    pub(super) cut: CancellationToken,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.session.state.lock();
            state.writer = None;
            state.closing = false;
        }
        self.session.content.lock().close();
        drop(self.permit.take());
        self.session.changed.notify_waiters();
    }
}

impl Session {
    pub(super) fn new(
        (repo, id, space): (RepoName, UploadId, usize),
        (content, charge): (Content, Charge),
        (received, used): (u64, SystemTime),
    ) -> Arc<Self> {
        let state = State {
            received,
            arrived: Instant::now(),
            used,
            writer: None,
            closing: false,
            ended: false,
        };
        Arc::new(Self {
            repo,
            id,
            space,
            turns: Arc::new(Semaphore::new(1)),
            state: Mutex::new(state),
            changed: Notify::new(),
            content: Mutex::new(content),
            account: Mutex::new(Account {
                charge: Some(charge),
                reservation: None,
            }),
        })
    }

    /// Bytes that are in the file.
    pub(super) fn received(&self) -> u64 {
        self.state.lock().received
    }

    pub(super) fn note_use(&self, now: SystemTime) {
        self.state.lock().used = now;
    }

    /// A request has brought bytes.
    pub(super) fn note_arrival(&self, now: SystemTime) {
        let mut state = self.state.lock();
        state.arrived = Instant::now();
        state.used = now;
    }

    /// The file has so many bytes.
    pub(super) fn set_received(&self, bytes: u64) {
        self.state.lock().received = bytes;
        self.changed.notify_waiters();
    }

    /// The upload has become a blob, or was removed.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_waiters();
    }

    /// Whether nothing was asked of it since then, and nobody writes.
    pub(super) fn is_unused_since(&self, then: SystemTime) -> bool {
        let state = self.state.lock();
        state.used < then && state.writer.is_none()
    }

    /// The request that has the turn reads nothing more from its connection.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
    }

    /// Waits for the turn to write. A request that another one writes beside
    /// is refused, unless it begins behind what was received (`start`) while the other one is silent: then
    /// that one is cut off.
    pub(super) async fn turn(self: &Arc<Self>, start: Option<u64>) -> Result<Turn, HostedError> {
        let until = Instant::now() + HANDOVER;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(turn) = self.try_turn()? {
                return Ok(turn);
            }
            if self.must_wait(start) {
                changed.await;
            } else if tokio::time::timeout_at(until, changed).await.is_err() {
                return Err(HostedError::UploadBusy);
            }
        }
    }

    /// Takes the turn, unless somebody has it.
    fn try_turn(self: &Arc<Self>) -> Result<Option<Turn>, HostedError> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().ok();
        let mut state = self.state.lock();
        if state.ended {
            return Err(HostedError::UnknownUpload);
        }
        let Some(permit) = permit else {
            return Ok(None);
        };
        let cut = CancellationToken::new();
        state.writer = Some(cut.clone());
        state.closing = false;
        state.arrived = Instant::now();
        Ok(Some(Turn {
            session: Arc::clone(self),
            cut,
            permit: Some(permit),
        }))
    }

    /// Whether the request that writes ends by itself; cuts it off where that is right.
    fn must_wait(&self, start: Option<u64>) -> bool {
        let state = self.state.lock();
        let Some(writer) = &state.writer else {
            return true;
        };
        if start == Some(state.received) && state.arrived.elapsed() >= SILENT && !state.closing {
            writer.cancel();
        }
        state.closing || writer.is_cancelled()
    }

    /// Waits for the turn to remove the upload, whoever writes.
    pub(super) async fn last_turn(self: &Arc<Self>) -> Result<Turn, HostedError> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(turn) = self.try_turn()? {
                return Ok(turn);
            }
            if let Some(writer) = &self.state.lock().writer {
                writer.cancel();
            }
            changed.await;
        }
    }

    /// The bytes received, once a request that writes has delivered what came of its connection.
    pub(super) async fn status(&self) -> Result<u64, HostedError> {
        let until = Instant::now() + STATUS_TIME;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let settled = {
                let state = self.state.lock();
                if state.ended {
                    return Err(HostedError::UnknownUpload);
                }
                let (now, settled) = (Instant::now(), state.arrived + SETTLED);
                let is_settled = settled <= now && !state.closing;
                if state.writer.is_none() || is_settled || now >= until {
                    return Ok(state.received);
                }
                if state.closing {
                    until
                } else {
                    settled.min(until)
                }
            };
            drop(tokio::time::timeout_at(settled, changed).await);
        }
    }
}
