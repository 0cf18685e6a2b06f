//! Several ranges of a blob in one request (RFC 9110, section 14).
//!
//! A server may answer such a request with all of the ranges, with fewer, or with the whole blob,
//! and may refuse it although it serves single ranges. Anything but all of the ranges is remembered
//! for a while: the upstream is then asked for single ranges.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use url::Url;

use super::Upstream;
use super::body::{self, BlobChunks};
use super::endpoint::Endpoint;
use super::endpoints::Purpose;
use super::error::{Failure, UpstreamError, Violation};
use super::multi_range::MultiRange;
use super::multipart::{self, MultipartError, Parser};
use super::priority::Priority;
use super::reply::UpstreamResponse;
use super::route::{BlobRoute, throttled, watched};
use crate::oci::{ByteRange, Digest, RepoName};

/// Ranges in one request at most. Servers refuse too many of them (Apache httpd over 200).
pub const MAX_RANGES: usize = 100;
/// Bytes of the ranges in a Range header at most: servers limit the length of a header line.
pub const MAX_RANGE_HEADER: usize = 4096;

const MALFORMED: &str = "its response is malformed";

/// Requested ranges of a blob on their way, in the order in which the upstream sends them: bytes with
/// their offsets, all of them requested, none twice, none verified against the digest. Ranges may be
/// missing although the stream has ended without an error.
pub type BlobRanges = BoxStream<'static, Result<(u64, Bytes), UpstreamError>>;

impl Upstream {
    /// Whether several ranges may be requested at once. False for a while after the upstream, or one of
    /// its endpoints, has answered such a request with anything but all of its ranges.
    pub fn supports_multi_range(&self) -> bool {
        let mut endpoints = self.endpoints.all();
        endpoints.all(|endpoint| endpoint.multi_range.is_supported())
    }

    /// Several ranges of a blob of `total` bytes in one request. `ranges` ascend, don't overlap, lie
    /// within the blob, and are at most [`MAX_RANGES`] in at most [`MAX_RANGE_HEADER`] bytes. `route` is
    /// the download's.
    ///
    /// None when the upstream doesn't serve several ranges at once: it sends the whole blob, or
    /// refuses in a way that says nothing about single ranges. A response that isn't what it says it
    /// is, or that contradicts the request, is [`Failure::Protocol`], as for a single range.
    pub async fn get_blob_ranges(
        &self,
        repo: &RepoName,
        digest: &Digest,
        ranges: &[ByteRange],
        total: u64,
        route: &Arc<BlobRoute>,
    ) -> Result<Option<BlobRanges>, UpstreamError> {
        let priority = route.priority();
        let ask =
            |endpoint| Endpoint::get_blob_ranges(endpoint, repo, digest, (ranges, total), priority);
        let (endpoints, purpose) = (&self.endpoints, Purpose::Blob(route));
        let limiter = &endpoints.first.transport.limiter;
        if !limiter.permits_blob(priority) {
            return Err(self.month_is_used_up());
        }
        if !endpoints.are_several() {
            let pieces = endpoints.ask(purpose, ask).await?;
            return Ok(pieces.map(|pieces| throttled(limiter, pieces, route)));
        }
        let (pieces, mut attempt) = Box::pin(endpoints.ask_in_turn(purpose, &ask)).await?;
        let Some(pieces) = pieces else {
            attempt.succeeded();
            return Ok(None);
        };
        let count = endpoints.all().count();
        let pieces = watched(pieces, attempt, Arc::clone(route), count);
        Ok(Some(throttled(limiter, pieces, route)))
    }
}

impl Endpoint {
    async fn get_blob_ranges(
        &self,
        repo: &RepoName,
        digest: &Digest,
        (ranges, total): (&[ByteRange], u64),
        priority: Priority,
    ) -> Result<Option<BlobRanges>, UpstreamError> {
        let repo = &*self.named(repo);
        let ask = self.blob(Method::GET, repo, digest).download(priority);
        let ask = ask.with_ranges(ranges.iter().map(|range| (range.start, Some(range.end))))?;
        let reply = match self.ask(repo, &ask).await {
            Ok(reply) => reply,
            Err(error) if declines(&error) => {
                self.multi_range.decline("it refuses a request for several");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let opened = parser(&reply, ranges, total);
        let opened = opened.inspect_err(|_violation| self.multi_range.decline(MALFORMED))?;
        let Some((parser, expected)) = opened else {
            // Hangs up: most of what would come isn't wanted.
            let reason = "it sends the whole blob, or one range around all of them";
            self.multi_range.decline(reason);
            return Ok(None);
        };
        let pieces = Pieces {
            url: reply.url.clone(),
            raw: body::stream(reply, expected, self.transport.timeouts),
            parser,
            multi_range: Arc::clone(&self.multi_range),
            has_content: false,
        };
        let pieces = stream::try_unfold(pieces, |mut pieces| async move {
            let piece = pieces.next().await?;
            Ok(piece.map(|piece| (piece, pieces)))
        });
        Ok(Some(pieces.boxed()))
    }
}

/// Whether an error may be the server's answer to several ranges, and not to the blob.
const fn declines(error: &UpstreamError) -> bool {
    match error.failure {
        // 400, 416 and 431 among them; a filter in front of the registry denies.
        Failure::Rejected { .. }
        | Failure::Unexpected(_)
        | Failure::Denied(_)
        | Failure::Broken { .. } => true,
        Failure::Unavailable { status, .. } => status != 503,
        _ => false,
    }
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
    if let Some(boundary) = reply.text(&CONTENT_TYPE).and_then(multipart::boundary) {
        let boundary = boundary.map_err(|error| reply.violates(error))?;
        let parser = Parser::new(boundary.as_bytes(), ranges, total);
        return Ok(Some((parser, reply.content_length()?)));
    }
    let range = reply.content_range()?;
    match Parser::single(range, ranges, total) {
        Some(parser) => Ok(Some((parser, Some(range.len())))),
        None if range.total == Some(total) && range.includes_one_of(ranges) => Ok(None),
        None => Err(reply.violates(Violation::Range)),
    }
}

/// The body of a response with several ranges.
struct Pieces {
    url: Url,
    raw: BlobChunks,
    parser: Parser,
    multi_range: Arc<MultiRange>,
    /// Whether some content has come.
    has_content: bool,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, UpstreamError> {
        loop {
            let piece = self.parser.next();
            if let Some(piece) = piece.map_err(|error| self.violates(error))? {
                self.has_content = true;
                return Ok(Some(piece));
            }
            if self.parser.is_done() {
                if !self.parser.is_complete() {
                    self.multi_range.decline("it sends fewer than requested");
                }
                return Ok(None);
            }
            match self.raw.next().await {
                Some(Ok(input)) => self.parser.push(input),
                Some(Err(error)) => {
                    if !self.has_content {
                        self.multi_range.decline("its response breaks off at once");
                    }
                    return Err(error);
                }
                None => {
                    let finished = self.parser.finish();
                    finished.map_err(|error| self.violates(error))?;
                }
            }
        }
    }

    fn violates(&self, error: MultipartError) -> UpstreamError {
        self.multi_range.decline(MALFORMED);
        UpstreamError::protocol(&self.url, error)
    }
}
