//! Reading a blob for a body: its parts in order, from files, from a download, and from the upstream when
//! a file fails.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf as _, Bytes};
use futures_util::stream::{self, Stream};

use super::buffers::ResponseBuffers;
use super::chunk::{Chunk, FileQueue, MAX_PIECE};
use crate::access::Watch;
use crate::cache::{Integrity, Piece, Reader, StoreError};
use crate::download::DownloadError;
use crate::metrics::InFlight;
use crate::mirror::{BlobContent, Recovery, Sent};
use crate::upstream::UpstreamError;

/// Bytes read from a stored blob at once: the buffer that a client costs, where files can't be sent.
pub(super) const READ: usize = 128 * 1024;
/// Ranges shorter than this, in bytes, are read: one copy costs less than one more system call.
const SHORT: u64 = 16 * 1024;

/// Why a body broke off. hyper then ends the connection, so that the client knows.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the stored blob can't be read: {0}")]
    Store(#[from] StoreError),
    #[error("the download failed: {0}")]
    Fetch(#[from] DownloadError),
    #[error("the blob ends at {at}, before its announced length")]
    Short { at: u64 },
    #[error("the stored blob is damaged")]
    Damaged,
    #[error("the stored blob couldn't be verified")]
    Unverified,
    #[error("an operator has denied the blob")]
    Denied,
    #[error("the replica that writes hosted repositories broke off: {0}")]
    Relay(#[from] UpstreamError),
}

impl BodyError {
    /// Whether it is the stored file that has failed, so that another source may do.
    fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_damage(),
            Self::Short { .. } | Self::Damaged => true,
            Self::Fetch(_) | Self::Unverified | Self::Denied | Self::Relay(_) => false,
        }
    }
}

/// Where a body reads a blob's bytes, and how it continues when a stored file fails.
#[derive(Debug)]
pub(super) struct Source {
    pub body: BlobContent,
    /// None where the file is all that there is.
    pub recovery: Option<Recovery>,
}

/// A part of a blob, with what is written before it (the head of a multipart part).
#[derive(Debug)]
pub(super) struct Part {
    pub head: Bytes,
    pub start: u64,
    /// None: up to the end, wherever that is.
    pub end: Option<u64>,
}

pub(super) type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, BodyError>> + Send>>;

/// Where a body is in its parts.
pub(super) struct BodyCursor {
    source: BlobContent,
    /// Used once at most.
    recovery: Option<Recovery>,
    parts: VecDeque<Part>,
    /// Parts that have begun.
    begun: usize,
    /// Where the current part begins.
    start: u64,
    current: Option<(u64, Option<u64>)>,
    tail: Option<Bytes>,
    /// Where ranges of files can be queued.
    files: Option<FileQueue>,
    limit: Limit,
    /// Says when an operator denies the blob.
    watch: Option<Watch>,
    /// Held, not read: the body is being sent.
    counted: Option<InFlight>,
}

/// What bounds the bytes of a chunk in memory.
enum Limit {
    None,
    /// What the whole process holds.
    Process(ResponseBuffers),
    /// Whoever polls the body.
    Piece(Arc<AtomicUsize>),
}

pub(super) fn limit(piece: &AtomicUsize) -> usize {
    piece.load(Ordering::Relaxed).max(1)
}

impl Limit {
    /// Most bytes to read from a file into memory.
    fn read(&self) -> usize {
        match self {
            Self::None => READ,
            Self::Process(buffers) => buffers.piece(READ),
            Self::Piece(piece) => limit(piece).min(READ),
        }
    }

    /// At most `max` of the bytes that a download has in memory, which all its readers share.
    fn part(&self, bytes: &Bytes, max: usize) -> Bytes {
        let max = max.min(bytes.len());
        let Self::Piece(piece) = self else {
            return bytes.slice(..max);
        };
        let max = max.min(limit(piece));
        // A small part would keep all the bytes in memory for as long as it waits to be sent.
        if max < bytes.len() / 2 {
            bytes
                .get(..max)
                .map_or_else(Bytes::new, Bytes::copy_from_slice)
        } else {
            bytes.slice(..max)
        }
    }

    /// Counts bytes that were read for this body alone.
    fn count(&self, bytes: Bytes) -> Bytes {
        match self {
            Self::Process(buffers) if bytes.len() as u64 >= SHORT => buffers.count(bytes),
            // HTTP/2 counts what it is given.
            _ => bytes,
        }
    }
}

impl BodyCursor {
    /// Parts of a blob, one after the other, and then `tail`.
    pub(super) fn new(source: Source, parts: Vec<Part>, tail: Bytes) -> Self {
        Self {
            source: source.body,
            recovery: source.recovery,
            parts: parts.into(),
            begun: 0,
            start: 0,
            current: None,
            tail: Some(tail),
            files: None,
            limit: Limit::None,
            watch: None,
            counted: None,
        }
    }

    /// Breaks off once the blob is denied.
    pub(super) fn watched(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Counts among the bodies that are being sent, until this one has been.
    pub(super) fn counted(&mut self, counted: InFlight) {
        self.counted = Some(counted);
    }

    pub(super) fn send_on_http1(&mut self, buffers: ResponseBuffers, files: Option<FileQueue>) {
        self.files = files;
        self.limit = Limit::Process(buffers);
    }

    pub(super) fn send_in_pieces(&mut self, piece: Arc<AtomicUsize>) {
        self.limit = Limit::Piece(piece);
    }

    pub(super) fn stream(self: Box<Self>) -> ChunkStream {
        Box::pin(stream::try_unfold(self, |mut reading| async move {
            let chunk = reading.next().await?;
            // After the wait: the blob may have been denied meanwhile.
            if reading.watch.as_mut().is_some_and(Watch::is_denied) {
                return Err(BodyError::Denied);
            }
            Ok(chunk.map(|chunk| (chunk, reading)))
        }))
    }

    async fn next(&mut self) -> Result<Option<Chunk>, BodyError> {
        loop {
            if let Some((offset, end)) = self.current {
                if end.is_none_or(|end| offset < end)
                    && let Some(chunk) = self.read(offset, end).await?
                {
                    self.current = Some((offset + chunk.remaining() as u64, end));
                    return Ok(Some(chunk));
                }
                self.current = None;
            } else if let Some(Part { head, start, end }) = self.parts.pop_front() {
                self.begun += 1;
                self.start = start;
                self.current = Some((start, end));
                if !head.is_empty() {
                    return Ok(Some(Chunk::Memory(head)));
                }
            } else {
                let tail = self.tail.take().filter(|tail| !tail.is_empty());
                return Ok(tail.map(Chunk::Memory));
            }
        }
    }

    /// Some bytes at `offset`; none at the end of a blob whose length was not known.
    async fn read(&mut self, offset: u64, end: Option<u64>) -> Result<Option<Chunk>, BodyError> {
        match self.read_source(offset, end).await {
            Err(error) if error.is_damage() => {
                // Boxed: it is rare, and would enlarge every body.
                Box::pin(self.recover(offset, end, error)).await?;
                self.read_source(offset, end).await
            }
            read => read,
        }
    }

    /// Replaces a stored file that has failed, or returns the error.
    async fn recover(
        &mut self,
        at: u64,
        end: Option<u64>,
        error: BodyError,
    ) -> Result<(), BodyError> {
        let BlobContent::Stored(failed) = &self.source else {
            return Err(error);
        };
        // What was sent of an unverified blob has to be compared, which is done for one part.
        let provable = failed.is_verified() || self.begun == 1;
        let Some(recovery) = self.recovery.take().filter(|_| provable) else {
            failed.content().reader.suspect();
            return Err(error);
        };
        let sent = Sent {
            start: self.start,
            at,
            end: end.unwrap_or(failed.size()),
        };
        match recovery.recover(failed, sent).await {
            Ok(source) => {
                self.source = source;
                Ok(())
            }
            Err(reason) => {
                recovery.failed(&reason);
                Err(error)
            }
        }
    }

    /// How far an unverified blob may be sent: its end is withheld from whoever reads all of it,
    /// until it is verified. A verified one may be sent up to its end.
    async fn verified_end(&mut self, offset: u64, end: Option<u64>) -> Result<u64, BodyError> {
        let BlobContent::Stored(stored) = &mut self.source else {
            return Ok(u64::MAX);
        };
        let whole = self.start == 0 && end.is_none_or(|end| end >= stored.size());
        let sendable = stored.sendable_end(offset, whole).await;
        sendable.map_err(|integrity| match integrity {
            Integrity::Damaged => BodyError::Damaged,
            Integrity::Right | Integrity::Unknown => BodyError::Unverified,
        })
    }

    async fn read_source(
        &mut self,
        offset: u64,
        end: Option<u64>,
    ) -> Result<Option<Chunk>, BodyError> {
        let until = match &self.source {
            BlobContent::Stored(stored) if stored.is_verified() => stored.size(),
            BlobContent::Stored(_) => Box::pin(self.verified_end(offset, end)).await?,
            BlobContent::Fetching(_) => u64::MAX,
        };
        let piece = match &mut self.source {
            BlobContent::Stored(stored) => Some(Piece::File {
                reader: stored.content().reader.clone(),
                start: offset,
                end: until,
            }),
            BlobContent::Fetching(follower) => {
                let from_file = self.files.is_some();
                follower.piece(offset, end, from_file).await?
            }
        };
        let limit = end.map_or(u64::MAX, |end| end - offset);
        let chunk = match piece {
            None => None,
            Some(Piece::Bytes(bytes)) => {
                let max = usize::try_from(limit).unwrap_or(usize::MAX);
                Some(Chunk::Memory(self.limit.part(&bytes, max)))
            }
            Some(Piece::File { reader, start, end }) => {
                let wanted = end.saturating_sub(start).min(limit);
                self.read_file(reader, start, wanted).await?
            }
        };
        if chunk.is_none() && end.is_some() {
            Err(BodyError::Short { at: offset })
        } else {
            Ok(chunk)
        }
    }

    /// The first of `wanted` bytes of a file: from the file, or in memory. None where it has ended.
    async fn read_file(
        &self,
        reader: Reader,
        start: u64,
        wanted: u64,
    ) -> Result<Option<Chunk>, BodyError> {
        let wanted_here = usize::try_from(wanted).unwrap_or(usize::MAX);
        if wanted >= SHORT
            && let Some(files) = &self.files
        {
            let cached = reader.cached(start, wanted_here.min(MAX_PIECE));
            if let Some(chunk) = files.push(reader.clone(), start, cached) {
                return Ok(Some(chunk));
            }
        }
        let bytes = reader
            .read_at(start, wanted_here.min(self.limit.read()))
            .await?;
        Ok(Some(bytes)
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| Chunk::Memory(self.limit.count(bytes))))
    }
}
