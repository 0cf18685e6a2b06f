//! Bodies of answers: bytes in memory, ranges of a blob, or what another replica answers.
//!
//! What the page cache has of a stored blob is queued at the connection, which sends it from the file
//! where it can ([`super::chunk`]). Everything else is read into memory, off the runtime's threads
//! when it isn't cached: a disk keeps no thread of the runtime waiting.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, TryStreamExt as _};
use http_body::{Frame, SizeHint};

use super::access::Record;
use super::buffers::ResponseBuffers;
use super::chunk::{Chunk, FileQueue};
use super::cursor::{BodyCursor, BodyError, ChunkStream, Part, READ, Source, limit};
use super::relayed_body::RelayedBody;
use crate::access::Watch;
use crate::metrics::InFlight;
use crate::mirror::Visit;
use crate::upstream::RelayChunks;

/// The body of an answer.
pub struct Body {
    inner: Inner,
    /// Bytes still to come, where that is known.
    remaining: Option<u64>,
    /// In a box: responses are moved often.
    record: Option<Box<Record>>,
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
    Relayed(Box<RelayedBody>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
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

    /// Chunks as they come, for operators.
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Self {
        let chunks = chunks.map_ok(Chunk::Memory);
        Self {
            inner: Inner::Stream(Box::pin(chunks)),
            remaining: None,
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
        let reading = BodyCursor::new(source, parts, tail);
        Self {
            inner: Inner::Parts(Some(Box::new(reading))),
            remaining: length,
            record: None,
            piece: None,
            visit: None,
        }
    }

    /// What another replica answers, of this length, if it is known. Breaks off once the content is denied.
    pub(super) fn relayed(chunks: RelayChunks, length: Option<u64>, watch: Option<Watch>) -> Self {
        Self {
            inner: Inner::Relayed(Box::new(RelayedBody::new(chunks, watch))),
            remaining: length,
            record: None,
            piece: None,
            visit: None,
        }
    }

    /// Breaks off once the content is denied.
    pub(super) fn watched(&mut self, watch: Watch) {
        if let Inner::Parts(Some(reading)) = &mut self.inner {
            reading.watched(watch);
        }
    }

    /// Holds, until this body has been sent, what counts it: among the clients of an image, and among the bodies
    /// of blobs that are being sent.
    pub(super) fn hold(&mut self, visit: Option<Visit>, counted: Option<InFlight>) {
        self.visit = visit;
        if let Some(counted) = counted
            && let Inner::Parts(Some(reading)) = &mut self.inner
        {
            reading.counted(counted);
        }
    }

    /// Prepares the body for the HTTP/1 connection that its answer goes out on: `files` is where the
    /// connection can send ranges of files by itself.
    pub(super) fn send_on_http1(&mut self, buffers: &ResponseBuffers, files: Option<FileQueue>) {
        if let Inner::Parts(Some(reading)) = &mut self.inner {
            reading.send_on_http1(buffers.clone(), files);
        }
    }

    /// Prepares the body for HTTP/2: whoever polls it says before, in what is returned, how many bytes
    /// the next chunk may have.
    pub(super) fn send_in_pieces(&mut self) -> Arc<AtomicUsize> {
        let piece = Arc::new(AtomicUsize::new(READ));
        if let Inner::Parts(Some(reading)) = &mut self.inner {
            reading.send_in_pieces(Arc::clone(&piece));
        }
        self.piece = Some(Arc::clone(&piece));
        piece
    }

    /// Writes the access line, and counts, when this body has ended.
    pub(super) fn record_end(&mut self, record: Box<Record>) {
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
            // What the body reads may be logged, and may be fetched from an upstream.
            Inner::Stream(stream) => match &this.record {
                Some(record) => record.context().enter(|| stream.as_mut().poll_next(cx)),
                None => stream.as_mut().poll_next(cx),
            },
            Inner::Relayed(relayed) => {
                let max = this.piece.as_deref().map_or(usize::MAX, limit);
                let next = match &this.record {
                    Some(record) => record.context().enter(|| relayed.poll_next(cx, max)),
                    None => relayed.poll_next(cx, max),
                };
                next.map(|next| next.map(|bytes| bytes.map(Chunk::Memory)))
            }
        };
        match &next {
            Poll::Ready(Some(Ok(chunk))) => {
                let sent = chunk.remaining() as u64;
                this.remaining = this
                    .remaining
                    .map(|remaining| remaining.saturating_sub(sent));
                if let Some(record) = &mut this.record {
                    record.sent(sent);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(record) = &mut this.record {
                    record.broke(error);
                }
            }
            Poll::Ready(None) => {
                if let Some(record) = &mut this.record {
                    record.completed();
                }
            }
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
