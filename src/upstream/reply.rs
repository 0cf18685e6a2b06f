//! An answer between its header and its body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::content_range::ContentRange;
use super::error::{Failure, Source, UpstreamError, Violation};
use super::gate::Permit;
use crate::metrics::{Counter, Kind, UpstreamMetrics};
use crate::telemetry::Span;

/// An answer whose body hasn't been read.
pub(super) struct UpstreamResponse {
    pub url: Url,
    /// It comes from the origin that was asked, not from where a redirect led.
    pub own: bool,
    pub kind: Kind,
    /// It answers a request that writes.
    pub is_write: bool,
    pub metrics: Arc<UpstreamMetrics>,
    /// When the request was sent, until the body has ended.
    pub started: Option<Instant>,
    /// Counts the bytes of the body.
    pub received: Counter,
    pub response: Response,
    /// The replica that answered, if it isn't the upstream.
    pub peer: Option<SocketAddr>,
    /// A metadata request counts until its body has been read.
    pub permit: Option<Permit>,
    /// Those of the body and of the whole exchange, which end with this.
    pub _spans: Option<(Span, Span)>,
}

impl UpstreamResponse {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Success, or a challenge that may be answered.
    pub(super) fn is_answer(&self) -> bool {
        self.status().is_success() || (self.is_challenge() && self.kind != Kind::Token)
    }

    pub(super) fn is_challenge(&self) -> bool {
        self.own && self.status() == StatusCode::UNAUTHORIZED
    }

    /// A header as text.
    pub(super) fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// `Content-Length` in bytes. The library's own figure is 0 for every HEAD.
    pub(super) fn content_length(&self) -> Result<Option<u64>, UpstreamError> {
        self.parsed(&CONTENT_LENGTH, "Content-Length", crate::oci::digits)
    }

    /// A header's value, if it is there; malformed, it is an error and not an absence.
    pub(super) fn parsed<T>(
        &self,
        name: &HeaderName,
        shown: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, UpstreamError> {
        let Some(value) = self.headers().get(name) else {
            return Ok(None);
        };
        let parsed = value.to_str().ok().and_then(parse);
        let parsed = parsed.map(Some);
        parsed.ok_or_else(|| self.violates(Violation::Header(shown)))
    }

    /// The `Content-Range` of a 206, which its `Content-Length` doesn't contradict.
    pub(super) fn content_range(&self) -> Result<ContentRange, UpstreamError> {
        let length = self.content_length()?;
        let range = self.text(&CONTENT_RANGE).and_then(ContentRange::parse);
        range
            .filter(|range| length.is_none_or(|length| length == range.len()))
            .ok_or_else(|| self.violates(Violation::Range))
    }

    /// Refuses what isn't a plain 200 of the content itself.
    pub(super) fn require_whole(&self) -> Result<(), UpstreamError> {
        if self.status() != StatusCode::OK {
            return Err(self.unexpected());
        }
        self.refuse_encoding()
    }

    /// Refuses a body that was compressed in transit: its digest would be another's.
    pub(super) fn refuse_encoding(&self) -> Result<(), UpstreamError> {
        let mut encodings = self.headers().get_all(CONTENT_ENCODING).iter();
        if encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Ok(());
        }
        Err(self.violates(Violation::Encoding))
    }

    /// The next piece of the body, counted. `received` is how much came before it.
    pub(super) async fn chunk(&mut self, received: u64) -> Result<Option<Bytes>, UpstreamError> {
        let chunk = self.response.chunk().await;
        let chunk = chunk.map_err(|error| {
            let source = Some(shared(error));
            self.fails(Failure::Broken { received, source })
        })?;
        if let Some(chunk) = &chunk {
            self.received.inc_by(chunk.len() as u64);
            self.metrics.source.received(chunk.len());
        }
        // What is left of the length, where that is known.
        let is_end = chunk.is_none() || self.response.content_length() == Some(0);
        if let Some(started) = self.started.take_if(|_| is_end) {
            self.metrics.ended(started.elapsed());
        }
        Ok(chunk)
    }

    pub(super) fn fails(&self, failure: Failure) -> UpstreamError {
        let error = UpstreamError::new(&self.url, failure);
        self.metrics.failed(error.class());
        error
    }

    pub(super) fn violates(&self, violation: impl Into<Violation>) -> UpstreamError {
        self.fails(Failure::Protocol(violation.into()))
    }

    pub(super) fn unexpected(&self) -> UpstreamError {
        self.fails(Failure::Unexpected(self.status().as_u16()))
    }
}

/// The library's error without the URL, whose query may be a secret.
pub(super) fn shared(error: reqwest::Error) -> Source {
    Arc::new(error.without_url())
}
