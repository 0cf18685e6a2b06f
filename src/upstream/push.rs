//! Writing to a registry (distribution-spec, "Pushing"): uploads of blobs, and manifests. Only copies use
//! it; a mirror never writes to its upstreams.
//!
//! The registry chooses the URL of an upload. One on its own origin is asked with credentials. Any other
//! is asked without, and only where a redirect might lead, too (`guard`, `redirect`).
//!
//! A body is sent once: the request before it (the start of the upload) has been challenged and
//! authorized, and its token is renewed when it is about to expire. Where a body breaks off, the caller asks
//! how much the registry has.

use std::ops::Range;

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use http::{Method, StatusCode};
use url::Url;

use super::Upstream;
use super::endpoint::Endpoint;
use super::error::{UpstreamError, Violation};
use super::redirect;
use super::reply::UpstreamResponse;
use super::transport::UpstreamRequest;
use super::upload_body::UploadBody;
use crate::metrics::Kind;
use crate::oci::{Digest, ManifestType, Reference, RepoName, digits};

const OCI_CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// An upload that a registry has begun. No `Debug`: the query of its URL may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct UploadSession {
    url: Url,
    /// Bytes of the smallest chunk that isn't the last one; 0 where the registry doesn't say.
    min_chunk: u64,
}

/// The answer to the start of an upload.
pub enum StartedUpload {
    /// The repository has the blob now.
    Mounted,
    Session(UploadSession),
}

/// The answer to a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushedManifest {
    /// The registry lists it among the referrers of its subject.
    pub is_listed: bool,
}

impl std::fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UploadSession")
    }
}

impl std::fmt::Debug for StartedUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mounted => "Mounted",
            Self::Session(_) => "Session",
        })
    }
}

impl UploadSession {
    /// Its URL. The query may be a secret.
    pub fn location(&self) -> &str {
        self.url.as_str()
    }

    pub fn min_chunk(&self) -> u64 {
        self.min_chunk
    }

    /// Continues where a response says.
    fn follow(&mut self, reply: &UpstreamResponse, plain_http: bool) -> Result<(), UpstreamError> {
        if reply.headers().contains_key(LOCATION) {
            self.url = location(reply, plain_http)?;
        }
        Ok(())
    }
}

/// The URL of an upload that a response names.
fn location(reply: &UpstreamResponse, plain_http: bool) -> Result<Url, UpstreamError> {
    let target = redirect::target(&reply.url, reply.headers(), plain_http);
    target.map_err(|error| reply.violates(error))
}

impl Upstream {
    /// Begins an upload into a repository; or mounts the blob from another repository of the registry, if
    /// that is possible.
    pub async fn start_upload(
        &self,
        repo: &RepoName,
        mount: Option<(&Digest, &RepoName)>,
    ) -> Result<StartedUpload, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let mut url = endpoint.url(repo, "blobs", "uploads");
        // Only a URL that can't be a base has no segments, and none of those is configured.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push("");
        }
        if let Some((digest, from)) = mount {
            let mut query = url.query_pairs_mut();
            query.append_pair("mount", &digest.to_string());
            query.append_pair("from", from.as_str());
        }
        let ask = UpstreamRequest::new(Kind::Blob, Method::POST, url).empty();
        let reply = endpoint.ask(repo, &ask).await?;
        match reply.status() {
            StatusCode::CREATED if mount.is_some() => Ok(StartedUpload::Mounted),
            StatusCode::ACCEPTED => {
                let min_chunk = reply.text(&OCI_CHUNK_MIN_LENGTH).and_then(digits);
                Ok(StartedUpload::Session(UploadSession {
                    url: location(&reply, self.config.plain_http)?,
                    min_chunk: min_chunk.unwrap_or(0),
                }))
            }
            _ => Err(reply.unexpected()),
        }
    }

    /// The session at a URL that [`UploadSession::location`] gave, perhaps to an earlier process; None for
    /// a URL that isn't the registry's own.
    pub fn known_session(&self, location: &str) -> Option<UploadSession> {
        let url = Url::parse(location).ok()?;
        redirect::same_origin(&self.config.url, &url).then_some(UploadSession { url, min_chunk: 0 })
    }

    /// How many bytes of an upload the registry has. An error where it doesn't know the upload any more.
    pub async fn upload_offset(
        &self,
        repo: &RepoName,
        session: &mut UploadSession,
    ) -> Result<u64, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let ask = UpstreamRequest::new(Kind::Blob, Method::GET, session.url.clone());
        let reply = endpoint.ask_session(repo, &ask).await?;
        if reply.status() != StatusCode::NO_CONTENT {
            return Err(reply.unexpected());
        }
        session.follow(&reply, self.config.plain_http)?;
        received(reply.headers()).ok_or_else(|| reply.violates(Violation::Header("Range")))
    }

    /// Sends bytes of an upload, which begin at the offset where the registry stands. With a `range`, as a
    /// chunk that says so. Returns how many bytes the registry has, if it says so.
    pub async fn append(
        &self,
        repo: &RepoName,
        session: &mut UploadSession,
        range: Option<Range<u64>>,
        body: UploadBody,
    ) -> Result<Option<u64>, UpstreamError> {
        let mut ask = UpstreamRequest::new(Kind::Blob, Method::PATCH, session.url.clone());
        if let Some(range) = range {
            let written = format!("{}-{}", range.start, range.end.saturating_sub(1));
            if let Ok(written) = HeaderValue::try_from(written) {
                ask = ask.with(CONTENT_RANGE, written);
            }
        }
        let ask = ask.upload(body);
        let reply = self.endpoints.first.ask_session(repo, &ask).await?;
        // 202 by the specification; some registries send 201 or 204.
        session.follow(&reply, self.config.plain_http)?;
        Ok(received(reply.headers()))
    }

    /// Ends an upload: the registry has all of the blob, or gets it whole (or the rest of it) as `body`.
    pub async fn finish_upload(
        &self,
        repo: &RepoName,
        session: &UploadSession,
        digest: &Digest,
        body: Option<UploadBody>,
    ) -> Result<(), UpstreamError> {
        let mut url = session.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let ask = UpstreamRequest::new(Kind::Blob, Method::PUT, url);
        let ask = match body {
            Some(body) => ask.upload(body),
            None => ask.empty(),
        };
        let reply = self.endpoints.first.ask_session(repo, &ask).await?;
        created(&reply)
    }

    /// Writes a manifest under a tag or its digest.
    pub async fn put_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        media_type: ManifestType,
        bytes: Bytes,
    ) -> Result<PushedManifest, UpstreamError> {
        let endpoint = &self.endpoints.first;
        let url = endpoint.url(repo, "manifests", &reference.to_string());
        let kind = HeaderValue::from_static(media_type.as_str());
        let ask = UpstreamRequest::new(Kind::Manifest, Method::PUT, url).with_body(bytes, kind);
        let reply = endpoint.ask(repo, &ask).await?;
        created(&reply)?;
        let is_listed = reply.headers().contains_key(OCI_SUBJECT);
        Ok(PushedManifest { is_listed })
    }
}

impl Endpoint {
    /// Asks at the URL of an upload. A body that can be sent only once goes out with what the requests
    /// before it were authorized with.
    async fn ask_session(
        &self,
        repo: &RepoName,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let is_own = redirect::same_origin(&self.config.url, &ask.url);
        if is_own && !ask.is_upload() {
            return self.ask(repo, ask).await;
        }
        let authorization = if is_own {
            self.known_authorization(repo).await?
        } else {
            None
        };
        let limits = self.auth.limits(repo);
        let reply = self.exchange(limits, ask, authorization.as_ref()).await?;
        if reply.is_challenge() {
            return Err(self.transport.refusal(reply).await);
        }
        Ok(reply)
    }
}

impl UpstreamRequest {
    /// Without a body, and says so.
    fn empty(self) -> Self {
        self.with(CONTENT_LENGTH, HeaderValue::from(0))
    }
}

fn created(reply: &UpstreamResponse) -> Result<(), UpstreamError> {
    // 201 by the specification; some registries send 202 or 204.
    if reply.status().is_success() {
        Ok(())
    } else {
        Err(reply.unexpected())
    }
}

/// The bytes that a registry says it has: `Range: 0-99`, or `bytes=0-99`, are 100. An empty upload is `0-0`
/// as a rule, or `0--1`.
fn received(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?.trim();
    let last = range
        .strip_prefix("bytes=")
        .unwrap_or(range)
        .strip_prefix("0-")?;
    match last {
        "-1" | "0" => Some(0),
        last => digits::<u64>(last)?.checked_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_that_a_registry_has() {
        for (range, bytes) in [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            (" 0-0 ", Some(0)),
            ("0--1", Some(0)),
            ("5-9", None),
            ("0-", None),
            ("0-18446744073709551615", None),
            ("0-9x", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_str(range).unwrap())]);
            assert_eq!(received(&headers), bytes, "{range}");
        }
        assert_eq!(received(&HeaderMap::new()), None);
    }
}
