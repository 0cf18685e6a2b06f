//! Blobs (distribution-spec, "Pulling blobs"). Their digest is verified by who writes them down:
//! what is checked here is that a body is as long as it said it would be.

use std::fmt;
use std::sync::Arc;

use http::{Method, StatusCode};

use super::Upstream;
use super::body::{self, BlobChunks};
use super::endpoint::Endpoint;
use super::endpoints::Purpose;
use super::error::{Failure, UpstreamError, Violation};
use super::peers::OwnerKey;
use super::reply::UpstreamResponse;
use super::route::{BlobRoute, throttled, watched};
use super::transport::UpstreamRequest;
use crate::metrics::Kind;
use crate::oci::{Digest, RepoName};

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
    /// Succeeds when the repository has the blob: with its size in bytes, which an upstream may leave
    /// out. Where HEAD isn't possible, one byte is asked for.
    pub async fn head_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let ask = |endpoint| Endpoint::head_blob(endpoint, repo, digest);
        let ahead = self.ahead(OwnerKey::Content(digest));
        if self.asks_peers()
            && let Some(size) = Box::pin(self.ask_peers(&ahead, &ask)).await?
        {
            return Ok(size);
        }
        self.endpoints.ask(Purpose::Metadata, ask).await
    }

    /// A blob from `offset` (bytes) on, up to `end` (exclusive, more than `offset`) or its own end.
    /// `route` is the download's.
    ///
    /// The upstream may ignore ranges: the stream then is the whole blob from 0 on. One that sends
    /// less than asked is told as broken off at the end of that, so that the reader resumes; one
    /// that sends more breaks the protocol. An `offset` at or behind the blob's end is
    /// [`Failure::Unexpected`] with status 416.
    pub async fn get_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
        end: Option<u64>,
        route: &Arc<BlobRoute>,
    ) -> Result<BlobStream, UpstreamError> {
        let span = (offset, end);
        if let Some(stream) = self.peer_blob(repo, digest, span, route).await? {
            return Ok(stream);
        }
        let priority = route.priority();
        let ask = |endpoint| Endpoint::get_blob(endpoint, repo, digest, span, route);
        let (endpoints, purpose) = (&self.endpoints, Purpose::Blob(route));
        let limiter = &endpoints.first.transport.limiter;
        if !limiter.permits_blob(priority) {
            return Err(self.month_is_used_up());
        }
        if !endpoints.are_several() {
            let mut stream = endpoints.ask(purpose, ask).await?;
            stream.body = throttled(limiter, stream.body, route);
            return Ok(stream);
        }
        let (mut stream, attempt) = Box::pin(endpoints.ask_in_turn(purpose, &ask)).await?;
        stream.body = watched(
            stream.body,
            attempt,
            Arc::clone(route),
            endpoints.all().count(),
        );
        stream.body = throttled(limiter, stream.body, route);
        Ok(stream)
    }

    /// The same from another replica. None: the next source is to be asked, now and from then on.
    pub async fn peer_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        span: (u64, Option<u64>),
        route: &Arc<BlobRoute>,
    ) -> Result<Option<BlobStream>, UpstreamError> {
        if !self.asks_peers() {
            return Ok(None);
        }
        let ask = |endpoint| Endpoint::get_blob(endpoint, repo, digest, span, route);
        let ahead = self.ahead(OwnerKey::Content(digest));
        Box::pin(self.blob_from_peers(&ahead, route, &ask)).await
    }

    /// The error of a blob that isn't asked for, because of the operator's limit.
    pub(super) fn month_is_used_up(&self) -> UpstreamError {
        let error = UpstreamError::new(&self.config.url, Failure::MonthUsedUp);
        self.endpoints.first.transport.failed(error)
    }

    /// Tells that the bytes of a download weren't those of its digest. True where the rest comes from
    /// other endpoints than before, so that another attempt may succeed.
    pub fn distrust(&self, route: &BlobRoute) -> bool {
        route.distrust_peers() || (self.endpoints.are_several() && route.distrust())
    }
}

impl Endpoint {
    async fn head_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let repo = &*self.named(repo);
        let ask = self.blob(Method::HEAD, repo, digest);
        let reply = match self.ask(repo, &ask).await {
            // 403 here is a content network's: its signature covers the method, and the registry
            // signed for GET.
            Err(error) if matches!(error.failure, Failure::Unexpected(403 | 405 | 501)) => {
                return self.probe_blob(repo, digest).await;
            }
            reply => reply?,
        };
        reply.require_whole()?;
        reply.content_length()
    }

    async fn probe_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let ask = self.blob(Method::GET, repo, digest);
        let ask = ask.with_ranges([(0, Some(1))])?;
        let reply = self.ask(repo, &ask).await?;
        // Of more than the one byte, nothing is read: only the size counts here.
        Ok(self.stream(reply, Some((0, None)))?.total)
    }

    async fn get_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        (offset, end): (u64, Option<u64>),
        route: &BlobRoute,
    ) -> Result<BlobStream, UpstreamError> {
        let repo = &*self.named(repo);
        let mut ask = self
            .blob(Method::GET, repo, digest)
            .download(route.priority());
        let asked = (offset > 0 || end.is_some()).then_some((offset, end));
        if asked.is_some() {
            ask = ask.with_ranges(asked)?;
        }
        let reply = self.ask(repo, &ask).await?;
        let address = reply.peer;
        let stream = self.stream(reply, asked)?;
        match &self.peer {
            Some(peer) => peer.accept(stream, route, (&ask.url, address)),
            None => Ok(stream),
        }
    }

    /// `asked` is the start and the end (exclusive) of the range that was asked for, if one was.
    fn stream(
        &self,
        reply: UpstreamResponse,
        asked: Option<(u64, Option<u64>)>,
    ) -> Result<BlobStream, UpstreamError> {
        reply.refuse_encoding()?;
        let (offset, end, total) = match (reply.status(), asked) {
            (StatusCode::OK, _) => {
                let length = reply.content_length()?;
                (0, length, length)
            }
            (StatusCode::PARTIAL_CONTENT, Some((offset, end))) => {
                let range = reply.content_range()?;
                if range.first != offset || end.is_some_and(|end| range.last >= end) {
                    return Err(reply.violates(Violation::Range));
                }
                // Of a range that is shorter than asked, the rest is missing; that the blob itself
                // ends there can only be when its size isn't told.
                let end = match range.total {
                    Some(total) => end.map_or(total, |end| end.min(total)),
                    None => range.last.saturating_add(1),
                };
                (offset, Some(end), range.total)
            }
            _ => return Err(reply.unexpected()),
        };
        let expected = end.map(|end| end.saturating_sub(offset));
        Ok(BlobStream {
            offset,
            end,
            total,
            body: body::stream(reply, expected, self.transport.timeouts),
        })
    }

    pub(super) fn blob(&self, method: Method, repo: &RepoName, digest: &Digest) -> UpstreamRequest {
        let url = self.url(repo, "blobs", &digest.to_string());
        UpstreamRequest::new(Kind::Blob, method, url)
    }
}
