//! Reading bodies: small ones whole, within a bound of size and time; blobs as a stream that ends
//! well only when it is complete. Every wait has an end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, timeout};

use super::error::{self, Failure, Message, Phase, UpstreamError, Violation};
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
        Err(_elapsed) => return Err(timed_out(&reply, Phase::Body, within)),
    };
    // The HTTP library checks this too; the cache's correctness shouldn't hang on that alone.
    if announced.is_some_and(|length| length != body.len() as u64) {
        return Err(incomplete(&reply, body.len() as u64));
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
        return None;
    };
    let (code, message) = first_error(&body)?;
    error::message(&format!("{code}: {message}"))
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
        timeouts,
        received: 0,
        waited: Duration::ZERO,
        counted: 0,
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
    timeouts: Timeouts,
    /// Bytes.
    received: u64,
    /// The time that was spent waiting for bytes since the speed was last judged. Time in which nobody
    /// reads doesn't count.
    waited: Duration,
    /// The bytes that arrived in that time.
    counted: u64,
}

impl Guarded {
    async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let started = Instant::now();
        let stall = self.timeouts.stall;
        let chunk = match timeout(stall, self.reply.chunk(self.received)).await {
            Ok(chunk) => chunk?,
            Err(_elapsed) => return Err(timed_out(&self.reply, Phase::Stall, stall)),
        };
        let Some(chunk) = chunk else {
            return match self.expected {
                Some(expected) if expected != self.received => {
                    Err(incomplete(&self.reply, self.received))
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
        if self.is_too_slow(started.elapsed(), chunk.len()) && !is_last {
            return Err(timed_out(&self.reply, Phase::Speed, SPEED_WINDOW));
        }
        Ok(Some(chunk))
    }

    /// Counts a piece. Whether the minute that it completes brought too few bytes.
    fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.counted = self.counted.saturating_add(bytes as u64);
        if self.waited < SPEED_WINDOW {
            return false;
        }
        let seconds = std::mem::take(&mut self.waited).as_secs();
        let bytes = std::mem::take(&mut self.counted);
        bytes < self.timeouts.min_speed.saturating_mul(seconds)
    }
}

fn timed_out(reply: &UpstreamResponse, phase: Phase, after: Duration) -> UpstreamError {
    reply.fails(Failure::Timeout { phase, after })
}

/// A body that ended well for the library, but too early.
fn incomplete(reply: &UpstreamResponse, received: u64) -> UpstreamError {
    let source = None;
    reply.fails(Failure::Broken { received, source })
}
