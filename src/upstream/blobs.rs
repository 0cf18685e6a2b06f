//! Blobs (distribution-spec, "Pulling blobs"). Their digest is verified by who writes them down:
//! what is checked here is that a body is as long as it said it would be.

use std::fmt;

use http::header::{CONTENT_RANGE, HeaderValue, RANGE};
use http::{Method, StatusCode};

use super::Upstream;
use super::body::{self, BlobChunks};
use super::content_range::ContentRange;
use super::error::{UpstreamError, Violation};
use super::reply::UpstreamResponse;
use super::transport::UpstreamRequest;
use crate::metrics::Kind;
use crate::oci::{Digest, RepoName};

/// What is known of a blob that the repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHead {
    /// Bytes. An upstream may leave it out.
    pub size: Option<u64>,
}

/// A blob on its way.
pub struct BlobStream {
    /// Where in the blob the body starts: what was asked for, or 0 when the upstream doesn't know
    /// ranges.
    pub offset: u64,
    /// Where in the blob the body ends, exclusive, and the only place where it ends without an
    /// error: what was asked for, at most `total`. None when the upstream announced no length.
    pub end: Option<u64>,
    /// Bytes of the whole blob, if the upstream said so.
    pub total: Option<u64>,
    /// The bytes from `offset` to `end`, as they come. Nothing of it is verified against the
    /// digest.
    pub body: BlobChunks,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("offset", &self.offset)
            .field("end", &self.end)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Whether the repository has the blob. Where HEAD isn't possible, one byte is asked for.
    pub async fn head_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<BlobHead, UpstreamError> {
        let ask = self.blob(Method::HEAD, repo, digest);
        let reply = match self.ask(repo, &ask).await {
            // 403 here is a content network's: its signature covers the method, and the registry
            // signed for GET.
            Err(error) if matches!(error.unexpected_status(), Some(403 | 405 | 501)) => {
                return self.probe_blob(repo, digest).await;
            }
            reply => reply?,
        };
        if reply.status() != StatusCode::OK {
            return Err(reply.unexpected());
        }
        reply.refuse_encoding()?;
        let size = reply.content_length()?;
        Ok(BlobHead { size })
    }

    async fn probe_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<BlobHead, UpstreamError> {
        let ask = self.blob(Method::GET, repo, digest);
        let ask = ask.with(RANGE, HeaderValue::from_static("bytes=0-0"));
        let reply = self.ask(repo, &ask).await?;
        // Of more than the one byte, nothing is read: only the size counts here.
        let first = Asked {
            offset: 0,
            end: None,
        };
        let size = placement(&reply, Some(first))?.total;
        Ok(BlobHead { size })
    }

    /// A blob from `offset` (bytes) on, up to `end` (exclusive, more than `offset`) or its own end.
    ///
    /// The upstream may ignore ranges: the stream then is the whole blob from 0 on. One that sends
    /// less than asked is told as broken off at the end of that, so that the reader resumes; one
    /// that sends more breaks the protocol. An `offset` at or behind the blob's end is
    /// [`UpstreamError::Unexpected`] with status 416.
    pub async fn get_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
        end: Option<u64>,
    ) -> Result<BlobStream, UpstreamError> {
        let mut ask = self.blob(Method::GET, repo, digest).download();
        let asked = (offset > 0 || end.is_some()).then_some(Asked { offset, end });
        if let Some(asked) = asked {
            let range = asked.header();
            let range = range
                .ok_or_else(|| UpstreamError::protocol(&ask.url, Violation::Header("Range")))?;
            ask = ask.with(RANGE, range);
        }
        let reply = self.ask(repo, &ask).await?;
        let Placement { offset, end, total } = placement(&reply, asked)?;
        let expected = end.map(|end| end.saturating_sub(offset));
        Ok(BlobStream {
            offset,
            end,
            total,
            body: body::stream(reply, expected, self.transport.timeouts),
        })
    }

    pub(super) fn blob(&self, method: Method, repo: &RepoName, digest: &Digest) -> UpstreamRequest {
        let url = self.endpoint(repo, "blobs", &digest.to_string());
        UpstreamRequest::new(Kind::Blob, method, url)
    }
}

/// The bytes that are asked for: up to `end` (exclusive), or to the blob's end.
#[derive(Debug, Clone, Copy)]
struct Asked {
    offset: u64,
    end: Option<u64>,
}

impl Asked {
    /// `Range` (RFC 9110, section 14.2); none of no bytes at all.
    fn header(self) -> Option<HeaderValue> {
        let Self { offset, end } = self;
        let range = match end {
            None => format!("bytes={offset}-"),
            Some(end) if end > offset => format!("bytes={offset}-{}", end - 1),
            Some(_) => return None,
        };
        HeaderValue::try_from(range).ok()
    }

    /// Where the body of a partial answer has to end. Of a range that is shorter than asked, the
    /// rest is missing; that the blob itself ends there can only be when its size isn't told.
    fn end_of(self, range: &ContentRange) -> u64 {
        match range.total {
            Some(total) => self.end.map_or(total, |end| end.min(total)),
            None => range.last.saturating_add(1),
        }
    }

    fn is_answered_by(self, range: &ContentRange) -> bool {
        range.first == self.offset && self.end.is_none_or(|end| range.last < end)
    }
}

/// Where a body lies in its blob.
struct Placement {
    offset: u64,
    end: Option<u64>,
    total: Option<u64>,
}

/// `asked` is the range that was asked for, if one was.
fn placement(reply: &UpstreamResponse, asked: Option<Asked>) -> Result<Placement, UpstreamError> {
    reply.refuse_encoding()?;
    let length = reply.content_length()?;
    match (reply.status(), asked) {
        (StatusCode::OK, _) => Ok(Placement {
            offset: 0,
            end: length,
            total: length,
        }),
        (StatusCode::PARTIAL_CONTENT, Some(asked)) => {
            let range = reply.text(&CONTENT_RANGE).and_then(ContentRange::parse);
            let range = range.filter(|range| {
                asked.is_answered_by(range) && length.is_none_or(|length| length == range.len())
            });
            let range = range.ok_or_else(|| reply.violates(Violation::Range))?;
            Ok(Placement {
                offset: asked.offset,
                end: Some(asked.end_of(&range)),
                total: range.total,
            })
        }
        _ => Err(reply.unexpected()),
    }
}
