//! Several ranges of a blob in one request (RFC 9110, section 14).
//!
//! A server may answer such a request with all of the ranges, with fewer, or with the whole blob,
//! and may refuse it although it serves single ranges. Anything but all of the ranges is remembered
//! for a while: the upstream is then asked for single ranges.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::Upstream;
use super::body::{self, BlobChunks};
use super::content_range::ContentRange;
use super::error::{UpstreamError, Violation};
use super::multipart::{self, Parser};
use super::reply::UpstreamResponse;
use crate::oci::{ByteRange, Digest, RepoName};

/// Ranges in one request at most. Servers refuse too many of them (Apache httpd over 200).
pub const MAX_RANGES: usize = 100;
/// Bytes of the ranges in a Range header at most: servers limit the length of a header line.
pub const MAX_RANGE_HEADER: usize = 4096;

/// How long an upstream is asked for single ranges only.
const DECLINED_FOR: Duration = Duration::from_mins(15);

/// Whether an upstream is sent requests for several ranges.
#[derive(Debug, Default)]
pub(super) struct MultiRange {
    declined: Mutex<Option<Instant>>,
}

impl MultiRange {
    fn is_supported(&self) -> bool {
        let declined = *self.declined.lock();
        declined.is_none_or(|since| since.elapsed() >= DECLINED_FOR)
    }

    fn decline(&self, upstream: &str, reason: &str) {
        let before = self.declined.lock().replace(Instant::now());
        if before.is_none_or(|since| since.elapsed() >= DECLINED_FOR) {
            tracing::info!(
                upstream,
                reason,
                "requesting single ranges from the upstream"
            );
        }
    }
}

/// Requested ranges of a blob on their way, in the order in which the upstream sends them.
pub struct BlobRanges {
    /// Bytes with their offsets: all of them requested, none twice, none verified against the
    /// digest. Ranges may be missing although the stream has ended without an error.
    pub pieces: BoxStream<'static, Result<(u64, Bytes), UpstreamError>>,
}

impl fmt::Debug for BlobRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobRanges")
    }
}

impl Upstream {
    /// Whether several ranges may be requested at once. False for a while after the upstream has
    /// answered such a request with anything but all of its ranges.
    pub fn supports_multi_range(&self) -> bool {
        self.multi_range.is_supported()
    }

    /// Several ranges of a blob of `total` bytes in one request. `ranges` ascend, don't overlap, lie
    /// within the blob, and are at most [`MAX_RANGES`] in at most [`MAX_RANGE_HEADER`] bytes.
    ///
    /// None when the upstream doesn't serve several ranges at once: it sends the whole blob, or
    /// refuses in a way that says nothing about single ranges. A response that isn't what it says it
    /// is, or that contradicts the request, is [`UpstreamError::Protocol`], as for a single range.
    pub async fn get_blob_ranges(
        &self,
        repo: &RepoName,
        digest: &Digest,
        ranges: &[ByteRange],
        total: u64,
    ) -> Result<Option<BlobRanges>, UpstreamError> {
        let ask = self.blob(Method::GET, repo, digest).download();
        let header = header(ranges)
            .ok_or_else(|| UpstreamError::protocol(&ask.url, Violation::Header("Range")))?;
        let ask = ask.with(RANGE, header);
        let reply = match self.ask(repo, &ask).await {
            Ok(reply) => reply,
            Err(error) if declines(&error) => {
                self.decline_ranges("it refuses a request for several");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let opened = parser(&reply, ranges, total);
        let opened =
            opened.inspect_err(|_violation| self.decline_ranges("its response is malformed"))?;
        let Some((parser, expected)) = opened else {
            // Hangs up: most of what would come isn't wanted.
            self.decline_ranges("it sends the whole blob, or one range around all of them");
            return Ok(None);
        };
        let url = reply.url.clone();
        let pieces = Pieces {
            url,
            upstream: Arc::clone(&self.transport.name),
            raw: body::stream(reply, expected, self.transport.timeouts),
            parser,
            multi_range: Arc::clone(&self.multi_range),
            has_content: false,
        };
        Ok(Some(BlobRanges {
            pieces: pieces.into_stream(),
        }))
    }

    fn decline_ranges(&self, reason: &str) {
        self.multi_range.decline(self.name(), reason);
    }
}

/// Whether an error may be the server's answer to several ranges, and not to the blob.
const fn declines(error: &UpstreamError) -> bool {
    match error {
        // 400, 416 and 431 among them; a filter in front of the registry denies.
        UpstreamError::Unexpected { .. }
        | UpstreamError::Denied { .. }
        | UpstreamError::Broken { .. } => true,
        UpstreamError::Unavailable { status, .. } => *status != 503,
        _ => false,
    }
}

fn header(ranges: &[ByteRange]) -> Option<HeaderValue> {
    let specs: Vec<_> = ranges
        .iter()
        .map(|range| format!("{}-{}", range.start, range.end.saturating_sub(1)))
        .collect();
    HeaderValue::try_from(format!("bytes={}", specs.join(","))).ok()
}

/// What reads the body of a response, and the bytes of that body where they are known. None when the
/// body is much more than the ranges.
fn parser(
    reply: &UpstreamResponse,
    ranges: &[ByteRange],
    total: u64,
) -> Result<Option<(Parser, Option<u64>)>, UpstreamError> {
    match reply.status() {
        StatusCode::OK => return Ok(None),
        StatusCode::PARTIAL_CONTENT => {}
        _ => return Err(reply.unexpected()),
    }
    reply.refuse_encoding()?;
    let length = reply.content_length()?;
    if let Some(boundary) = reply.text(&CONTENT_TYPE).and_then(multipart::boundary) {
        let boundary = boundary.map_err(|error| reply.violates(error))?;
        let parser = Parser::new(boundary.as_bytes(), ranges, total);
        return Ok(Some((parser, length)));
    }
    let range = reply.text(&CONTENT_RANGE).and_then(ContentRange::parse);
    let range = range.filter(|range| length.is_none_or(|length| length == range.len()));
    let range = range.ok_or_else(|| reply.violates(Violation::Range))?;
    match Parser::single(range, ranges, total) {
        Ok(parser) => Ok(Some((parser, Some(range.len())))),
        Err(_) if range.total == Some(total) && range.includes_one_of(ranges) => Ok(None),
        Err(violation) => Err(reply.violates(violation)),
    }
}

/// The body of a response with several ranges.
struct Pieces {
    url: Url,
    upstream: Arc<str>,
    raw: BlobChunks,
    parser: Parser,
    multi_range: Arc<MultiRange>,
    /// Whether some content has come.
    has_content: bool,
}

impl Pieces {
    fn into_stream(self) -> BoxStream<'static, Result<(u64, Bytes), UpstreamError>> {
        stream::try_unfold(self, |mut pieces| async move {
            let piece = pieces.next().await?;
            Ok(piece.map(|piece| (piece, pieces)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, UpstreamError> {
        loop {
            let piece = self.parser.next();
            if let Some(piece) = piece.map_err(|violation| self.violates(violation))? {
                self.has_content = true;
                return Ok(Some(piece));
            }
            if self.parser.is_done() {
                if !self.parser.is_complete() {
                    self.decline("it sends fewer than requested");
                }
                return Ok(None);
            }
            match self.raw.next().await {
                Some(Ok(input)) => self.parser.push(input),
                Some(Err(error)) => {
                    if !self.has_content {
                        self.decline("its response breaks off at once");
                    }
                    return Err(error);
                }
                None => {
                    let finished = self.parser.finish();
                    finished.map_err(|violation| self.violates(violation))?;
                }
            }
        }
    }

    fn violates(&self, violation: Violation) -> UpstreamError {
        self.decline("its response is malformed");
        UpstreamError::protocol(&self.url, violation)
    }

    fn decline(&self, reason: &str) {
        self.multi_range.decline(&self.upstream, reason);
    }
}
