//! The upstream streams of one download: each opens its lane, reads it, and says what happened.

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
    /// Where in the blob the next bytes of the body are.
    pub(super) offset: u64,
    /// How often in a row it broke off without bringing much.
    pub(super) breaks: u32,
    /// Where the lane was when it last broke off.
    pub(super) broke_at: u64,
    /// The right to be a request, and then a stream; none only while it is exchanged.
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

    /// The upstream has answered with a body: waits for the right to read it.
    async fn wait_for_permit(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.permit = Some(permit.answered().await);
        }
    }
}

/// What has happened on a stream.
pub(super) enum Event {
    /// The upstream has answered. The body begins at 0 when it doesn't know ranges.
    Opened(Result<BlobStream, UpstreamError>),
    /// The upstream has answered a request for several ranges.
    OpenedRanges(BlobRanges),
    /// The upstream doesn't serve several ranges at once.
    NoRanges,
    Chunk(Bytes),
    /// Bytes at this offset, of several ranges.
    Piece(u64, Bytes),
    /// The stream has ended: well, or as it says.
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
                let next = ranges.pieces.next().await;
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
    /// Those that wait until there is room for what they bring.
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

    /// The blob's size by a manifest, if one is known.
    pub(super) fn described_size(&self) -> Option<u64> {
        self.source.described_size()
    }

    pub(super) fn support_multi_range(&self) -> bool {
        self.source.supports_multi_range()
    }

    /// Hangs up, and asks another source from now on. It is of the same upstream.
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

    /// Goes on reading a stream as soon as there is room.
    pub(super) fn read(&mut self, stream: Stream, body: Body) {
        self.resting.push((stream, body));
    }

    /// The next event of any stream; forever when there is none. Without `room` no stream is read
    /// that isn't being read already. Cancel safe.
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

    /// Hangs up on all of them.
    pub(super) fn stop(&mut self) {
        self.busy.clear();
        self.resting.clear();
    }
}
