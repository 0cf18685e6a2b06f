//! The body of an upload: a part of a blob, as a stream of known length. Notices when the registry takes
//! nothing more.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{BoxStream, Stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::error::Phase;
use crate::config::Timeouts;

/// How long a registry may take to answer once it has the whole body: some hash or move the blob first.
const ANSWER: Duration = Duration::from_mins(5);

/// The bytes of an upload. An error breaks the request off; its cause stays with the stream's maker.
pub type UploadChunks = BoxStream<'static, Result<Bytes, Aborted>>;

/// The stream has no more bytes although the body isn't complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upload was broken off on this side")]
pub struct Aborted;

/// A part of a blob.
pub struct UploadBody {
    length: u64,
    chunks: UploadChunks,
}

impl fmt::Debug for UploadBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UploadBody").field(&self.length).finish()
    }
}

impl UploadBody {
    /// `length` is in bytes, and exactly what `chunks` yields.
    pub fn new(length: u64, chunks: UploadChunks) -> Self {
        Self { length, chunks }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The body for the HTTP library, and what knows how far that has come.
    pub(super) fn watched(self) -> (reqwest::Body, Pace) {
        watched(self.chunks)
    }
}

/// Chunks as the body for the HTTP library, and what knows how far that has come.
pub(super) fn watched(chunks: UploadChunks) -> (reqwest::Body, Pace) {
    let pace = Pace::new(Awaited::Bytes);
    let watched = Watched {
        chunks,
        pace: pace.clone(),
    };
    (reqwest::Body::wrap_stream(watched), pace)
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The stream, which has limits of its own.
    Bytes,
    /// The registry, which doesn't take the last chunk.
    Room,
    /// The registry's answer to the whole body.
    Answer,
}

/// What a request waits for, and since when.
#[derive(Clone)]
pub(super) struct Pace(Arc<Mutex<(Awaited, Instant)>>);

impl Pace {
    /// From now on, this is waited for.
    pub(super) fn new(awaited: Awaited) -> Self {
        Self(Arc::new(Mutex::new((awaited, Instant::now()))))
    }

    /// What is waited for, and since when.
    pub(super) fn now(&self) -> (Awaited, Instant) {
        *self.0.lock()
    }

    fn set(&self, awaited: Awaited) {
        *self.0.lock() = (awaited, Instant::now());
    }

    /// When the registry has taken too long, and what for.
    fn limit(&self, timeouts: Timeouts) -> (Instant, Option<(Phase, Duration)>) {
        let (awaited, since) = self.now();
        match awaited {
            Awaited::Bytes => (Instant::now() + timeouts.stall, None),
            Awaited::Room => (since + timeouts.stall, Some((Phase::Send, timeouts.stall))),
            Awaited::Answer => (since + ANSWER, Some((Phase::Header, ANSWER))),
        }
    }

    /// Waits for the end of a request as long as the registry takes bytes.
    pub(super) async fn keep<T>(
        &self,
        sending: impl Future<Output = T>,
        timeouts: Timeouts,
    ) -> Result<T, (Phase, Duration)> {
        let mut sending = std::pin::pin!(sending);
        loop {
            let (at, _) = self.limit(timeouts);
            match select(sending.as_mut(), std::pin::pin!(sleep_until(at))).await {
                Either::Left((sent, _)) => return Ok(sent),
                Either::Right(_) => match self.limit(timeouts) {
                    (at, Some(late)) if at <= Instant::now() => return Err(late),
                    _ => {}
                },
            }
        }
    }
}

struct Watched {
    chunks: UploadChunks,
    pace: Pace,
}

impl Stream for Watched {
    type Item = Result<Bytes, Aborted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.chunks.as_mut().poll_next(cx);
        self.pace.set(match &polled {
            Poll::Pending => Awaited::Bytes,
            Poll::Ready(Some(_)) => Awaited::Room,
            Poll::Ready(None) => Awaited::Answer,
        });
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};

    fn body(chunks: UploadChunks) -> (Watched, Pace) {
        let pace = Pace::new(Awaited::Bytes);
        let watched = Watched {
            chunks,
            pace: pace.clone(),
        };
        (watched, pace)
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_that_the_registry_takes_counts() {
        let timeouts = Timeouts::default();
        let never = || std::future::pending::<()>();
        // A source that is silent is its own reader's concern.
        let (mut watched, pace) = body(stream::pending().boxed());
        assert!(futures_util::poll!(watched.next()).is_pending());
        let patient = tokio::time::timeout(Duration::from_hours(1), pace.keep(never(), timeouts));
        assert!(patient.await.is_err());
        // A registry that doesn't take the next chunk.
        let (mut watched, pace) = body(stream::repeat(Ok(Bytes::from_static(b"x"))).boxed());
        watched.next().await;
        let late = pace.keep(never(), timeouts).await;
        assert_eq!(late, Err((Phase::Send, timeouts.stall)));
        // One that has the whole body, and works on it.
        let (mut watched, pace) = body(stream::empty().boxed());
        assert!(watched.next().await.is_none());
        assert_eq!(
            pace.keep(never(), timeouts).await,
            Err((Phase::Header, ANSWER))
        );
        let sent = pace.keep(std::future::ready(7), timeouts).await;
        assert_eq!(sent, Ok(7));
    }
}
