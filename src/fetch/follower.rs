//! A client's view of a running download: a reader behind the mark.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::progress::{Head, Step};
use super::{Download, FetchError};
use crate::metrics::InFlight;

/// Bytes read from the file at once: the one buffer that a client costs. 256 KiB would save a
/// little CPU and double the memory of many slow clients.
const READ: usize = 128 * 1024;

/// Reads one download, from any offset.
#[derive(Debug)]
pub struct Follower {
    download: Arc<Download>,
    /// Its name in the progress.
    id: u64,
    changed: watch::Receiver<()>,
    _counted: InFlight,
}

impl Follower {
    pub(super) fn new(download: Arc<Download>, id: u64, counted: InFlight) -> Self {
        let changed = download.progress.watch();
        Self {
            download,
            id,
            changed,
            _counted: counted,
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

    /// The next bytes from `offset` on: at least one, or none at the verified end of the blob.
    ///
    /// Cancel safe.
    pub async fn read(&mut self, offset: u64) -> Result<Option<Bytes>, FetchError> {
        loop {
            self.changed.borrow_and_update();
            match self.download.progress.step(self.id, offset)? {
                Step::Chunk(chunk) => return Ok(Some(chunk)),
                Step::Read { reader, limit } => {
                    let wanted = usize::try_from(limit - offset).unwrap_or(READ).min(READ);
                    let bytes = reader.read_at(offset, wanted).await?;
                    return if bytes.is_empty() {
                        Err(FetchError::Lost)
                    } else {
                        Ok(Some(bytes))
                    };
                }
                Step::End => return Ok(None),
                Step::Wait => self.wait().await?,
            }
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
        self.download.progress.leave(self.id);
    }
}
