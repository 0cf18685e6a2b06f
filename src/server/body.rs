//! Bodies of answers: bytes in memory, or ranges of a blob.
//!
//! What the page cache has of a stored blob is queued at the connection, which sends it from the file
//! where it can ([`super::chunk`]). Everything else is read into memory, off the runtime's threads
//! when it isn't cached: a disk keeps no thread of the runtime waiting.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures_util::stream::{self, Stream};
use http_body::{Frame, SizeHint};

use super::access::Record;
use super::buffers::ResponseBuffers;
use super::chunk::{Chunk, FileQueue, MAX_PIECE};
use crate::cache::Integrity;
use crate::cache::{Piece, Reader, StoreError};
use crate::download::DownloadError;
use crate::mirror::{BlobContent, Recovery, Sent, Visit};

/// Bytes read from a stored blob at once: the buffer that a client costs, where files can't be sent.
const READ: usize = 128 * 1024;
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
}

impl BodyError {
    /// Whether it is the stored file that has failed, so that another source may do.
    fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_damage(),
            Self::Short { .. } | Self::Damaged => true,
            Self::Fetch(_) | Self::Unverified => false,
        }
    }
}

/// Where a body reads a blob's bytes, and how it continues when a stored file fails.
#[derive(Debug)]
pub(super) struct Source {
    pub body: BlobContent,
    pub recovery: Recovery,
}

/// The body of an answer.
pub struct Body {
    inner: Inner,
    /// Bytes still to come, where that is known.
    remaining: Option<u64>,
    record: Option<Record>,
    /// Most bytes of the next chunk, where that is limited.
    piece: Option<Arc<AtomicUsize>>,
    /// Held, not read: a client is being sent a layer.
    visit: Option<Visit>,
}

enum Inner {
    Bytes(Option<Bytes>),
    /// Not polled yet.
    Parts(Option<Box<BodyCursor>>),
    Stream(ChunkStream),
}

type ChunkStream = Pin<Box<dyn Stream<Item = Result<Chunk, BodyError>> + Send>>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

/// A part of a blob, with what is written before it (the head of a multipart part).
#[derive(Debug)]
pub(super) struct Part {
    pub head: Bytes,
    pub start: u64,
    /// None: up to the end, wherever that is.
    pub end: Option<u64>,
}

impl Body {
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes: Bytes = bytes.into();
        let remaining = Some(bytes.len() as u64);
        Self {
            inner: Inner::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty())),
            remaining,
            record: None,
            piece: None,
            visit: None,
        }
    }

    /// Parts of a blob, one after the other, and then `tail`; `length` bytes in all.
    pub(super) fn parts(
        source: Source,
        parts: Vec<Part>,
        tail: Bytes,
        length: Option<u64>,
    ) -> Self {
        let reading = BodyCursor {
            source: source.body,
            recovery: Some(source.recovery),
            parts: parts.into(),
            begun: 0,
            start: 0,
            current: None,
            tail: Some(tail),
            files: None,
            limit: Limit::None,
        };
        Self {
            inner: Inner::Parts(Some(Box::new(reading))),
            remaining: length,
            record: None,
            piece: None,
            visit: None,
        }
    }

    /// Counts as a client of an image until this body has been sent.
    pub(super) fn visited(&mut self, visit: Option<Visit>) {
        self.visit = visit;
    }

    /// Prepares the body for the HTTP/1 connection that its answer goes out on: `files` is where the
    /// connection can send ranges of files by itself.
    pub(super) fn send_on_http1(&mut self, buffers: &ResponseBuffers, files: Option<FileQueue>) {
        if let Inner::Parts(Some(reading)) = &mut self.inner {
            reading.files = files;
            reading.limit = Limit::Process(buffers.clone());
        }
    }

    /// Prepares the body for HTTP/2: whoever polls it says before, in what is returned, how many bytes
    /// the next chunk may have.
    pub(super) fn send_in_pieces(&mut self) -> Arc<AtomicUsize> {
        let piece = Arc::new(AtomicUsize::new(READ));
        if let Inner::Parts(Some(reading)) = &mut self.inner {
            reading.limit = Limit::Piece(Arc::clone(&piece));
        }
        self.piece = Some(Arc::clone(&piece));
        piece
    }

    /// Writes the access line, and counts, when this body has ended.
    pub(super) fn record_end(&mut self, record: Record) {
        self.record = Some(record);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            record.expected(self.remaining);
        }
    }
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let this = &mut *self;
        if let Inner::Parts(reading) = &mut this.inner
            && let Some(reading) = reading.take()
        {
            this.inner = Inner::Stream(reading.stream());
        }
        let next = match &mut this.inner {
            Inner::Bytes(bytes) => {
                let max = this.piece.as_deref().map_or(usize::MAX, limit);
                let next = match bytes {
                    Some(rest) if rest.len() > max => Some(rest.split_to(max)),
                    bytes => bytes.take(),
                };
                Poll::Ready(next.map(|bytes| Ok(Chunk::Memory(bytes))))
            }
            Inner::Parts(_) => Poll::Ready(None),
            Inner::Stream(stream) => stream.as_mut().poll_next(cx),
        };
        match &next {
            Poll::Ready(Some(Ok(chunk))) => {
                let sent = chunk.remaining() as u64;
                this.remaining = this
                    .remaining
                    .map(|remaining| remaining.saturating_sub(sent));
                this.record.iter_mut().for_each(|record| record.sent(sent));
            }
            Poll::Ready(Some(Err(error))) => {
                this.record
                    .iter_mut()
                    .for_each(|record| record.broke(error));
            }
            Poll::Ready(None) => this.record.iter_mut().for_each(Record::completed),
            Poll::Pending => {}
        }
        next.map(|next| next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.inner, Inner::Bytes(None))
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Where a body is in its parts.
struct BodyCursor {
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
}

/// What bounds the bytes of a chunk in memory.
enum Limit {
    None,
    /// What the whole process holds.
    Process(ResponseBuffers),
    /// Whoever polls the body.
    Piece(Arc<AtomicUsize>),
}

fn limit(piece: &AtomicUsize) -> usize {
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
    fn stream(self: Box<Self>) -> ChunkStream {
        Box::pin(stream::try_unfold(self, |mut reading| async move {
            Ok(reading.next().await?.map(|chunk| (chunk, reading)))
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
