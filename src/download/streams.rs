//! The upstream streams of one download: opens them, reads them, and reports their events.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::Source;
use super::permits::Permit;
use super::plan::Span;
use crate::oci::ByteRange;
use crate::upstream::{BlobChunks, BlobRanges, BlobStream, UpstreamError};

/// One stream.
pub(super) struct Stream {
    /// The segment that it reads.
    pub(super) segment: u64,
    /// Offset that the request has asked for.
    pub(super) offset: u64,
    /// Consecutive breaks without progress.
    pub(super) breaks: u32,
    /// Position in the segment at the last break.
    pub(super) broke_at: u64,
    /// How long the last chunk had to be waited for.
    pub(super) waited: Duration,
    permit: Permit,
}

impl Stream {
    const fn new(segment: u64, offset: u64, permit: Permit) -> Self {
        Self {
            segment,
            offset,
            breaks: 0,
            broke_at: offset,
            waited: Duration::ZERO,
            permit,
        }
    }
}

/// An event of a stream.
pub(super) enum Event {
    /// The upstream has answered. The body starts at byte 0 when it ignores ranges.
    Opened(Result<BlobStream, UpstreamError>),
    /// The upstream has answered a request for several ranges.
    OpenedRanges(BlobRanges),
    /// Bytes, of a body with several ranges with their offset.
    Chunk(Body, Option<u64>, Bytes),
    /// A body with several ranges has ended, or the upstream doesn't serve several at once. Ranges
    /// that are missing have to be requested again.
    RangesEnded,
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

    async fn next(mut self) -> Event {
        let next = match &mut self {
            Self::One(body) => body
                .next()
                .await
                .map(|next| next.map(|bytes| (None, bytes))),
            Self::Several(ranges) => {
                let next = ranges.next().await;
                next.map(|next| next.map(|(offset, bytes)| (Some(offset), bytes)))
            }
        };
        match next {
            Some(Ok((offset, bytes))) => Event::Chunk(self, offset, bytes),
            Some(Err(error)) => Event::Ended(Err(error)),
            None if self.has_several_ranges() => Event::RangesEnded,
            None => Event::Ended(Ok(())),
        }
    }
}

/// The streams of a download.
pub(super) struct Streams {
    pub(super) source: Arc<dyn Source>,
    busy: FuturesUnordered<BoxFuture<'static, (Stream, Event)>>,
    /// Streams that aren't read until the writer has room.
    resting: Vec<(Stream, Body)>,
}

impl Streams {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            busy: FuturesUnordered::new(),
            resting: Vec::new(),
        }
    }

    /// Opens a stream.
    pub(super) fn open(&mut self, segment: u64, span: Span, permit: Permit) {
        self.reopen(
            Stream::new(segment, span.start, permit),
            span,
            Duration::ZERO,
        );
    }

    /// Opens a stream for several ranges of a blob of `total` bytes.
    pub(super) fn open_ranges(
        &mut self,
        segment: u64,
        ranges: Vec<ByteRange>,
        total: u64,
        permit: Permit,
    ) {
        let start = ranges.first().map_or(0, |range| range.start);
        let mut stream = Stream::new(segment, start, permit);
        let source = Arc::clone(&self.source);
        self.busy.push(Box::pin(async move {
            let event = match source.open_ranges(&ranges, total).await {
                Ok(Some(ranges)) => {
                    stream.permit = stream.permit.answered().await;
                    Event::OpenedRanges(ranges)
                }
                Ok(None) => Event::RangesEnded,
                Err(error) => Event::Opened(Err(error)),
            };
            (stream, event)
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
                stream.permit = stream.permit.answered().await;
            }
            (stream, Event::Opened(opened))
        }));
    }

    /// Reads on from a stream as soon as there is room.
    pub(super) fn read(&mut self, stream: Stream, body: Body) {
        self.resting.push((stream, body));
    }

    /// Waits for the next event of any stream; forever when there is none. Without `room` no further
    /// stream is read. Cancel safe.
    pub(super) async fn next(&mut self, room: bool) -> (Stream, Event) {
        if room {
            for (mut stream, body) in self.resting.drain(..) {
                self.busy.push(Box::pin(async move {
                    let event;
                    (event, stream.waited) = timed(body.next()).await;
                    (stream, event)
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

/// The next event and how long it had to be waited for. Not counted is the time in which the other
/// tasks of this thread, among them that of the connection, have their turn: on a busy machine they
/// delay bytes that the upstream has sent.
async fn timed(next: impl Future<Output = Event>) -> (Event, Duration) {
    let mut next = std::pin::pin!(next);
    tokio::select! {
        biased;
        event = &mut next => return (event, Duration::ZERO),
        () = tokio::task::yield_now() => {}
    }
    let since = Instant::now();
    let event = next.await;
    (event, since.elapsed())
}
