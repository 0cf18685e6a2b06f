//! A client's reader of a running download.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::position::Opened;
use super::progress::{ReadPosition, Step, end_of};
use super::{BlobRequest, Download, DownloadError, Inner};
use crate::cache::Piece;
use crate::metrics::InFlight;
use crate::oci::RangeSet;
use crate::telemetry::{self, Span, SpanKind, Waiting};

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
            _counted: shared.options.metrics.follower(),
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
            if let Some(opened) = self.download.progress.head(self.id)? {
                return Ok(opened);
            }
            self.wait().await?;
        }
    }

    /// The replica that sends the blob, if one does.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.download.source.read().peer()
    }

    /// Whether another replica asks for what this one asks a replica for.
    pub(super) fn is_circular(&self, wanted: BlobRequest) -> bool {
        wanted.from_peer && self.download.source.read().reads_from_peer()
    }

    /// A span of the current request for its wait for the download, which may be another request's.
    pub fn span_of_wait(&self) -> Option<Span> {
        let mut span = telemetry::span("wait for a download", SpanKind::Internal)?;
        if let Some(link) = self.download.span.get() {
            span.link_to(*link);
        }
        Some(span)
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
        let _waiting = Waiting::begin();
        self.download.progress.result(self.member).await?;
        Ok(())
    }

    /// Whether the whole blob has arrived and its digest is verified.
    pub fn is_verified(&self) -> bool {
        matches!(self.download.progress.ended(self.member), Some(Ok(_)))
    }

    /// Waits until the download has ended altogether: a blob that it stores is committed and linked then.
    ///
    /// Cancel safe.
    pub async fn concluded(&mut self) {
        loop {
            self.changed.borrow_and_update();
            if self.download.progress.is_concluded() || self.wait().await.is_err() {
                return;
            }
        }
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
            match self.download.progress.step(self.id, reading)? {
                Step::Give(piece) => {
                    self.given = (offset, end_of(&piece, offset));
                    return Ok(Some(piece));
                }
                Step::End => return Ok(None),
                Step::Wait => self.wait().await?,
            }
        }
    }

    async fn wait(&mut self) -> Result<(), DownloadError> {
        let _waiting = Waiting::begin();
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
