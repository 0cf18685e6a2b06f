//! A client's view of a running download: a reader behind the marks of its streams.

use std::sync::Arc;

use tokio::sync::watch;

use super::progress::{Announcement, ReadPosition, Step};
use super::{Download, DownloadError, Inner};
use crate::metrics::InFlight;
use crate::oci::RangeSet;
use crate::storage::Piece;

/// Reads one download, from any offset.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Inner>,
    pub(super) download: Arc<Download>,
    /// Its name in the progress.
    id: u64,
    /// The repository that it reads for, as a member of the download.
    pub(super) member: u64,
    /// Bytes that have been read from byte 0 on, without a gap.
    seen: u64,
    /// What was given last; not all of it need have been taken.
    given: (u64, u64),
    changed: watch::Receiver<()>,
    _counted: InFlight,
}

impl Follower {
    /// `id` is that of somebody who has entered the progress, and is counted among the clients.
    pub(super) fn new(shared: Arc<Inner>, download: Arc<Download>, id: u64, member: u64) -> Self {
        let changed = download.progress.watch();
        Self {
            _counted: shared.metrics.follower(),
            shared,
            download,
            id,
            member,
            seen: 0,
            given: (0, 0),
            changed,
        }
    }

    /// Waits for the upstream's answer: the blob's length in bytes, or none where the upstream
    /// doesn't tell it.
    ///
    /// Cancel safe.
    pub async fn total(&mut self) -> Result<Option<u64>, DownloadError> {
        loop {
            self.changed.borrow_and_update();
            if let Announcement::Open(total) = self.download.progress.head(self.id)? {
                return Ok(total);
            }
            self.wait().await?;
        }
    }

    /// Whether what comes is written to the store; only once the upstream has answered.
    pub fn is_stored(&self) -> bool {
        self.download.progress.is_stored()
    }

    /// Announces all ranges that are going to be read. Where only these are fetched, they are then
    /// fetched at the same time, and not each when its turn comes.
    pub fn announce(&self, ranges: RangeSet) {
        self.download.progress.announce(self.id, ranges);
    }

    /// Waits until all of the blob is there and has its digest.
    ///
    /// Cancel safe.
    pub async fn verified(&mut self) -> Result<(), DownloadError> {
        loop {
            self.changed.borrow_and_update();
            if let Some(ended) = self.download.progress.ended(self.member) {
                return ended.map(|_size| ());
            }
            self.wait().await?;
        }
    }

    /// Whether all of the blob is there and has its digest.
    pub fn is_verified(&self) -> bool {
        matches!(self.download.progress.ended(self.member), Some(Ok(_)))
    }

    /// The client has been given all bytes before `offset` from elsewhere, so that the end is held
    /// back from it as from whoever reads everything here.
    pub fn has_read_to(&mut self, offset: u64) {
        self.seen = offset;
        self.given = (offset, offset);
    }

    /// Some bytes from `offset` on and before `end` (none: the end of the blob): at least one, or
    /// none at the end. Who reads everything from byte 0 on gets the end of the blob only when its
    /// digest has been found right. With `from_file` bytes that the file has are preferred there,
    /// to those in memory.
    ///
    /// Cancel safe.
    pub async fn piece(
        &mut self,
        offset: u64,
        end: Option<u64>,
        from_file: bool,
    ) -> Result<Option<Piece>, DownloadError> {
        if self.given.0 == self.seen && self.given.0 <= offset && offset <= self.given.1 {
            self.seen = offset;
        }
        let reading = ReadPosition {
            offset,
            end,
            whole: offset == self.seen,
            from_file,
        };
        loop {
            self.changed.borrow_and_update();
            let piece = match self.download.progress.step(self.id, reading)? {
                Step::Give(piece) => piece,
                Step::End => return Ok(None),
                Step::Wait => {
                    self.wait().await?;
                    continue;
                }
            };
            let until = match &piece {
                Piece::Bytes(bytes) => offset + bytes.len() as u64,
                Piece::File { end, .. } => *end,
            };
            self.given = (offset, until);
            return Ok(Some(piece));
        }
    }

    /// A piece as bytes, at most 128 KiB of a file's.
    #[cfg(test)]
    pub(super) async fn read(
        &mut self,
        offset: u64,
        end: Option<u64>,
    ) -> Result<Option<bytes::Bytes>, DownloadError> {
        match self.piece(offset, end, false).await? {
            Some(Piece::File { reader, start, end }) => {
                let length = usize::try_from(end - start).unwrap().min(128 * 1024);
                Ok(Some(reader.read_at(start, length).await.unwrap()))
            }
            Some(Piece::Bytes(bytes)) => Ok(Some(bytes)),
            None => Ok(None),
        }
    }

    async fn wait(&mut self) -> Result<(), DownloadError> {
        self.changed
            .changed()
            .await
            .map_err(|_sender_gone| DownloadError::Lost)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.leave(&self.download, self.member);
        self.download.progress.leave(self.id);
    }
}
