//! Reading bodies: small ones whole, within a bound of size and time; blobs as a stream that ends
//! well only when it is complete. Every wait has an end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, timeout};

use super::error::{Message, Phase, UpstreamError, Violation};
use super::reply::UpstreamResponse;
use crate::config::Timeouts;
use crate::oci::error::{MAX_ERROR_BODY, first_error};

/// How long a body is read that nothing depends on: the text of an error, the remains of a
/// redirect. Reading it to its end keeps the connection usable.
const COURTESY: Duration = Duration::from_secs(2);

/// How long the bytes of a blob are counted before its speed is judged.
const SPEED_WINDOW: Duration = Duration::from_mins(1);

/// The body of a blob, in order.
pub type BlobChunks = BoxStream<'static, Result<Bytes, UpstreamError>>;

/// All of a body of at most `limit` bytes, which must be there within `within`.
pub(super) async fn read(
    mut reply: UpstreamResponse,
    limit: u64,
    within: Duration,
) -> Result<Bytes, UpstreamError> {
    let announced = reply.content_length()?;
    if announced.is_some_and(|length| length > limit) {
        return Err(reply.violates(Violation::TooLarge { limit }));
    }
    let body = match timeout(within, collect(&mut reply, limit)).await {
        Ok(body) => body?,
        Err(_elapsed) => return Err(reply.timed_out(Phase::Body, within)),
    };
    // The HTTP library checks this too; the cache's correctness shouldn't hang on that alone.
    if announced.is_some_and(|length| length != body.len() as u64) {
        return Err(reply.broken(body.len() as u64, None));
    }
    Ok(body)
}

async fn collect(reply: &mut UpstreamResponse, limit: u64) -> Result<Bytes, UpstreamError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = reply.chunk(body.len() as u64).await? {
        if (body.len() as u64).saturating_add(chunk.len() as u64) > limit {
            return Err(reply.violates(Violation::TooLarge { limit }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The reason in an error's body, if there is one. Never fails: the status is what counts.
pub(super) async fn message(reply: &mut UpstreamResponse) -> Message {
    let Ok(Ok(body)) = timeout(COURTESY, collect(reply, MAX_ERROR_BODY)).await else {
        return Message::default();
    };
    first_error(&body).map_or_else(Message::default, |(code, message)| {
        Message::of(&format!("{code}: {message}"))
    })
}

/// Reads what is left of a small body, so that its connection can be used again.
pub(super) async fn drain(reply: &mut UpstreamResponse) {
    // A body that is too large, torn or slow costs its connection and nothing else.
    drop(timeout(COURTESY, collect(reply, MAX_ERROR_BODY)).await);
}

/// The body as a stream. It fails with `Timeout` when the next piece takes longer than the stall
/// timeout or too few bytes arrive in a minute, and with `Broken` when it ends before `expected`
/// bytes.
pub(super) fn stream(
    reply: UpstreamResponse,
    expected: Option<u64>,
    timeouts: Timeouts,
) -> BlobChunks {
    let guarded = Guarded {
        reply,
        expected,
        received: 0,
        stall: timeouts.stall,
        speed: Speed::new(timeouts.min_speed),
    };
    stream::try_unfold(guarded, |mut guarded| async move {
        let chunk = guarded.next().await?;
        Ok(chunk.map(|chunk| (chunk, guarded)))
    })
    .boxed()
}

struct Guarded {
    reply: UpstreamResponse,
    /// Bytes that the whole body has, if the header said so.
    expected: Option<u64>,
    received: u64,
    stall: Duration,
    speed: Speed,
}

impl Guarded {
    async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let started = Instant::now();
        let waited = timeout(self.stall, self.reply.chunk(self.received)).await;
        let chunk = match waited {
            Ok(chunk) => chunk?,
            Err(_elapsed) => return Err(self.reply.timed_out(Phase::Stall, self.stall)),
        };
        let Some(chunk) = chunk else {
            return match self.expected {
                Some(expected) if expected != self.received => {
                    Err(self.reply.broken(self.received, None))
                }
                _ => Ok(None),
            };
        };
        self.received = self.received.saturating_add(chunk.len() as u64);
        if let Some(limit) = self.expected
            && self.received > limit
        {
            return Err(self.reply.violates(Violation::TooLarge { limit }));
        }
        let is_last = self.expected == Some(self.received);
        if self.speed.is_too_low(started.elapsed(), chunk.len()) && !is_last {
            return Err(self.reply.timed_out(Phase::Speed, SPEED_WINDOW));
        }
        Ok(Some(chunk))
    }
}

/// The bytes of a body against the time that was spent waiting for them. Time in which nobody
/// reads doesn't count.
#[derive(Debug)]
struct Speed {
    /// Bytes a second.
    min: u64,
    waited: Duration,
    bytes: u64,
}

impl Speed {
    const fn new(min: u64) -> Self {
        Self {
            min,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Counts a piece. Whether the minute that it completes brought too few bytes.
    fn is_too_low(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.waited < SPEED_WINDOW {
            return false;
        }
        let seconds = std::mem::take(&mut self.waited).as_secs();
        let bytes = std::mem::take(&mut self.bytes);
        bytes < self.min.saturating_mul(seconds)
    }
}
