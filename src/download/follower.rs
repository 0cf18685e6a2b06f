//! A client's reader of a running download.

use std::sync::Arc;

use tokio::sync::watch;

use super::progress::{Announcement, ReadPosition, Step};
use super::{Download, DownloadError, Inner};
use crate::cache::Piece;
use crate::metrics::InFlight;
use crate::oci::RangeSet;

/// What comes of a download that a client has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The upstream has answered. The blob's size in bytes, if the upstream has announced it.
    Size(Option<u64>),
    /// The download has ended without a result, for a reason that says nothing about the blob, such as
    /// that another one has committed it. The cache is to be asked again.
    Superseded,
}

/// Reads one download, from any offset.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Inner>,
    pub(super) download: Arc<Download>,
    /// Id of this follower in the download's progress.
    id: u64,
    /// Member id of the repository that it reads for.
    pub(super) member: u64,
    /// Bytes read contiguously from byte 0.
    seen: u64,
    /// The range that was returned last. The caller may have used only a part of it.
    given: (u64, u64),
    changed: watch::Receiver<()>,
    _counted: InFlight,
}

impl Follower {
    /// `id` has been returned by `Progress::enter`; the caller has counted the client in the registry.
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

    /// Waits for the upstream's response head.
    ///
    /// Cancel safe.
    pub async fn opened(&mut self) -> Result<Opened, DownloadError> {
        loop {
            self.changed.borrow_and_update();
            match self.download.progress.head(self.id)? {
                Announcement::Open(total) => return Ok(Opened::Size(total)),
                Announcement::Superseded => return Ok(Opened::Superseded),
                Announcement::Wait => self.wait().await?,
            }
        }
    }

    /// The size that the upstream has announced.
    #[cfg(test)]
    pub(super) async fn total(&mut self) -> Result<Option<u64>, DownloadError> {
        match self.opened().await? {
            Opened::Size(size) => Ok(size),
            Opened::Superseded => Err(DownloadError::Lost),
        }
    }

    /// Whether the blob is written to the store. Valid once the upstream has answered.
    pub fn is_stored(&self) -> bool {
        self.download.progress.is_stored()
    }

    /// Announces all ranges that the client will read. When only requested ranges are fetched, the
    /// announced ones are fetched concurrently instead of one after the other.
    pub fn announce(&self, ranges: RangeSet) {
        self.download.progress.announce(self.id, ranges);
    }

    /// Waits until the whole blob has arrived and its digest is verified.
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

    /// Whether the whole blob has arrived and its digest is verified.
    pub fn is_verified(&self) -> bool {
        matches!(self.download.progress.ended(self.member), Some(Ok(_)))
    }

    /// Records that the client has received all bytes before `offset` from another reader, so that
    /// the end of the body is withheld from it until the digest is verified.
    pub fn has_read_to(&mut self, offset: u64) {
        self.seen = offset;
        self.given = (offset, offset);
    }

    /// Returns at least one byte from `offset` on and before `end` (none: the end of the blob), or
    /// none at the end. A caller that reads everything from byte 0 gets the last bytes only once the
    /// digest is verified. With `from_file`, a range of the file is preferred to bytes in memory.
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

    /// A piece as bytes: at most 128 KiB when it is in the file.
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
