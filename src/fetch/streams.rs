//! The upstream streams of one download: each opens its lane, reads it, and says what happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::Source;
use super::plan::Span;
use super::slots::Permit;
use crate::upstream::{BlobBody, BlobStream, UpstreamError};

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

/// What has happened on a stream.
pub(super) enum Event {
    /// The upstream has answered. The body begins at 0 when it doesn't know ranges.
    Opened(Result<BlobStream, UpstreamError>),
    Chunk(Bytes),
    /// The stream has ended: well, or as it says.
    Ended(Result<(), UpstreamError>),
}

type Next = BoxFuture<'static, (Stream, Option<BlobBody>, Event)>;

/// The streams of a download.
pub(super) struct Streams {
    source: Arc<dyn Source>,
    busy: FuturesUnordered<Next>,
    /// Those that wait until there is room for what they bring.
    resting: Vec<(Stream, BlobBody)>,
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

    /// Opens a stream.
    pub(super) fn open(&mut self, lane: u64, span: Span, permit: Permit) {
        let stream = Stream {
            lane,
            offset: span.start,
            breaks: 0,
            broke_at: span.start,
            permit: Some(permit),
        };
        self.reopen(stream, span, Duration::ZERO);
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
            if opened.is_ok()
                && let Some(permit) = stream.permit.take()
            {
                stream.permit = Some(permit.answered().await);
            }
            (stream, None, Event::Opened(opened))
        }));
    }

    /// Goes on reading a stream as soon as there is room.
    pub(super) fn read(&mut self, stream: Stream, body: BlobBody) {
        self.resting.push((stream, body));
    }

    /// The next event of any stream; forever when there is none. Without `room` no stream is read
    /// that isn't being read already. Cancel safe.
    pub(super) async fn next(&mut self, room: bool) -> (Stream, Option<BlobBody>, Event) {
        if room {
            for (mut stream, mut body) in self.resting.drain(..) {
                self.busy.push(Box::pin(async move {
                    let event = match body.next().await {
                        Some(Ok(chunk)) => {
                            stream.offset += chunk.len() as u64;
                            Event::Chunk(chunk)
                        }
                        Some(Err(error)) => Event::Ended(Err(error)),
                        None => Event::Ended(Ok(())),
                    };
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
