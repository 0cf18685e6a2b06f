//! A client's view of a running download: a reader behind the marks of its streams.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::progress::{Head, Reading, Step};
use super::{Download, FetchError, Shared};
use crate::metrics::InFlight;

/// Bytes read from the file at once: the one buffer that a client costs. 256 KiB would save a
/// little CPU and double the memory of many slow clients.
const READ: usize = 128 * 1024;

/// Reads one download, from any offset.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    download: Arc<Download>,
    /// Its name in the progress.
    id: u64,
    /// Bytes that have been read from byte 0 on, without a gap.
    seen: u64,
    changed: watch::Receiver<()>,
    _counted: InFlight,
}

impl Follower {
    /// `id` is that of somebody who has entered the progress, and is counted among the clients.
    pub(super) fn new(shared: Arc<Shared>, download: Arc<Download>, id: u64) -> Self {
        let changed = download.progress.watch();
        Self {
            _counted: shared.metrics.follower(),
            shared,
            download,
            id,
            seen: 0,
            changed,
        }
    }

    /// Waits for the upstream's answer: the blob's length in bytes, or none where the upstream
    /// doesn't tell it.
    ///
    /// Cancel safe.
    pub async fn total(&mut self) -> Result<Option<u64>, FetchError> {
        loop {
            self.changed.borrow_and_update();
            if let Head::Open(total) = self.download.progress.head()? {
                return Ok(total);
            }
            self.wait().await?;
        }
    }

    /// Some bytes from `offset` on and before `end` (none: the end of the blob): at least one, or
    /// none at the end. Who reads everything from byte 0 on gets the end of the blob only when its
    /// digest has been found right.
    ///
    /// Cancel safe.
    pub async fn read(
        &mut self,
        offset: u64,
        end: Option<u64>,
    ) -> Result<Option<Bytes>, FetchError> {
        let reading = Reading {
            offset,
            end,
            whole: offset == self.seen,
        };
        loop {
            self.changed.borrow_and_update();
            let bytes = match self.download.progress.step(self.id, reading)? {
                Step::Chunk(chunk) => chunk,
                Step::Read { reader, limit } => {
                    let wanted = usize::try_from(limit - offset).unwrap_or(READ).min(READ);
                    let bytes = reader.read_at(offset, wanted).await?;
                    if bytes.is_empty() {
                        return Err(FetchError::Lost);
                    }
                    bytes
                }
                Step::End => return Ok(None),
                Step::Wait => {
                    self.wait().await?;
                    continue;
                }
            };
            let until = offset + bytes.len() as u64;
            self.download.progress.gave(offset, until);
            if reading.whole {
                self.seen = until;
            }
            return Ok(Some(bytes));
        }
    }

    async fn wait(&mut self) -> Result<(), FetchError> {
        self.changed
            .changed()
            .await
            .map_err(|_sender_gone| FetchError::Lost)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.leave(&self.download);
        self.download.progress.leave(self.id);
    }
}
