//! The upstream streams of one download: opens them, reads them, and reports their events.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::Source;
use super::permits::Permit;
use super::plan::Span;
use crate::oci::ByteRange;
use crate::upstream::{BlobChunks, BlobRanges, BlobStream, UpstreamError};

/// One stream.
pub(super) struct Stream {
    /// The lane that it reads.
    pub(super) lane: u64,
    /// Offset in the blob of the body's next bytes.
    pub(super) offset: u64,
    /// Consecutive breaks without progress.
    pub(super) breaks: u32,
    /// Offset of the lane at the last break.
    pub(super) broke_at: u64,
    /// Permit of the request, then of the stream. None only while it is exchanged.
    permit: Option<Permit>,
}

impl Stream {
    const fn new(lane: u64, offset: u64, permit: Permit) -> Self {
        Self {
            lane,
            offset,
            breaks: 0,
            broke_at: offset,
            permit: Some(permit),
        }
    }

    /// The upstream has answered with a body: waits for the permit to read it.
    async fn wait_for_permit(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.permit = Some(permit.answered().await);
        }
    }
}

/// An event of a stream.
pub(super) enum Event {
    /// The upstream has answered. The body starts at byte 0 when it ignores ranges.
    Opened(Result<BlobStream, UpstreamError>),
    /// The upstream has answered a request for several ranges.
    OpenedRanges(BlobRanges),
    /// The upstream doesn't serve several ranges at once.
    NoRanges,
    Chunk(Bytes),
    /// Bytes at this offset, of several ranges.
    Piece(u64, Bytes),
    /// The stream has ended: cleanly, or with an error.
    Ended(Result<(), UpstreamError>),
}

/// What a stream reads.
pub(super) enum Body {
    One(BlobChunks),
    Several(BlobRanges),
}

impl Body {
    pub(super) const fn has_several_ranges(&self) -> bool {
        matches!(self, Self::Several(_))
    }

    async fn next(&mut self) -> Event {
        let next = match self {
            Self::One(body) => body.next().await.map(|next| next.map(Event::Chunk)),
            Self::Several(ranges) => {
                let next = ranges.next().await;
                next.map(|next| next.map(|(offset, bytes)| Event::Piece(offset, bytes)))
            }
        };
        next.map_or(Event::Ended(Ok(())), |next| {
            next.unwrap_or_else(|error| Event::Ended(Err(error)))
        })
    }
}

type Next = BoxFuture<'static, (Stream, Option<Body>, Event)>;

/// The streams of a download.
pub(super) struct Streams {
    source: Arc<dyn Source>,
    busy: FuturesUnordered<Next>,
    /// Streams that aren't read until the writer has room.
    resting: Vec<(Stream, Body)>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams")
            .field("busy", &self.busy.len())
            .field("resting", &self.resting.len())
            .finish_non_exhaustive()
    }
}

impl Streams {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            busy: FuturesUnordered::new(),
            resting: Vec::new(),
        }
    }

    pub(super) fn upstream(&self) -> &str {
        self.source.upstream()
    }

    /// Size of the blob in bytes by a manifest's descriptor, if one is known.
    pub(super) fn described_size(&self) -> Option<u64> {
        self.source.described_size()
    }

    pub(super) fn support_multi_range(&self) -> bool {
        self.source.supports_multi_range()
    }

    /// Closes all streams and uses another source of the same upstream.
    pub(super) fn change_source(&mut self, source: Arc<dyn Source>) {
        self.stop();
        self.source = source;
    }

    /// Opens a stream.
    pub(super) fn open(&mut self, lane: u64, span: Span, permit: Permit) {
        self.reopen(Stream::new(lane, span.start, permit), span, Duration::ZERO);
    }

    /// Opens a stream for several ranges of a blob of `total` bytes.
    pub(super) fn open_ranges(
        &mut self,
        lane: u64,
        ranges: Vec<ByteRange>,
        total: u64,
        permit: Permit,
    ) {
        let start = ranges.first().map_or(0, |range| range.start);
        let mut stream = Stream::new(lane, start, permit);
        let source = Arc::clone(&self.source);
        self.busy.push(Box::pin(async move {
            let event = match source.open_ranges(&ranges, total).await {
                Ok(Some(ranges)) => {
                    stream.wait_for_permit().await;
                    Event::OpenedRanges(ranges)
                }
                Ok(None) => Event::NoRanges,
                Err(error) => Event::Opened(Err(error)),
            };
            (stream, None, event)
        }));
    }

    /// Opens a stream again, after a pause.
    pub(super) fn reopen(&mut self, mut stream: Stream, span: Span, pause: Duration) {
        let source = Arc::clone(&self.source);
        stream.offset = span.start;
        self.busy.push(Box::pin(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let opened = source.open(span.start, span.end).await;
            if opened.is_ok() {
                stream.wait_for_permit().await;
            }
            (stream, None, Event::Opened(opened))
        }));
    }

    /// Reads on from a stream as soon as there is room.
    pub(super) fn read(&mut self, stream: Stream, body: Body) {
        self.resting.push((stream, body));
    }

    /// Waits for the next event of any stream; forever when there is none. Without `room` no further
    /// stream is read. Cancel safe.
    pub(super) async fn next(&mut self, room: bool) -> (Stream, Option<Body>, Event) {
        if room {
            for (mut stream, mut body) in self.resting.drain(..) {
                self.busy.push(Box::pin(async move {
                    let event = body.next().await;
                    if let Event::Chunk(chunk) = &event {
                        stream.offset += chunk.len() as u64;
                    }
                    (stream, Some(body), event)
                }));
            }
        }
        match self.busy.next().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Closes all streams.
    pub(super) fn stop(&mut self) {
        self.busy.clear();
        self.resting.clear();
    }
}
