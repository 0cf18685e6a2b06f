//! Responses to pushes (distribution-spec 1.1, "Push" and "Content Management").

use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION, RANGE};
use http::{Response, StatusCode};

use crate::metrics::Outcome;
use crate::oci::{Digest, Tag, UploadId};
use crate::server::answer::{self, CONTENT_DIGEST};
use crate::server::body::Body;
use crate::server::call::{Answered, Call};
use crate::server::error::Refusal;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// An upload session that goes on: where, and how many bytes it has received.
pub(super) struct Session<'a> {
    pub(super) location: &'a str,
    pub(super) upload: &'a UploadId,
    pub(super) received: u64,
}

impl Session<'_> {
    /// 202 or 204.
    pub(super) fn goes_on(&self, status: StatusCode) -> Answered {
        let mut response = empty(status);
        self.insert(&mut response);
        (response, Outcome::Hit)
    }

    /// 416: the bytes don't follow those received.
    pub(super) fn is_elsewhere(&self, refusal: &Refusal) -> Answered {
        let mut response = answer::refusal(refusal);
        self.insert(&mut response);
        (response, Outcome::Error)
    }

    fn insert(&self, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        headers.insert(LOCATION, answer::ascii(self.location));
        headers.insert(UPLOAD_ID, answer::ascii(&self.upload.to_string()));
        // Clients read `<first>-<last>`, without a unit; nothing received looks like one byte.
        let range = format!("0-{}", self.received.saturating_sub(1));
        headers.insert(RANGE, answer::ascii(&range));
    }
}

/// 201 for a blob or a manifest.
pub(super) fn created(location: &str, digest: &Digest) -> Answered {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, answer::ascii(location));
    headers.insert(CONTENT_DIGEST, answer::ascii(&digest.to_string()));
    (response, Outcome::Hit)
}

/// Says what a manifest is attached to, and which tags name it now.
pub(super) fn described(answered: Answered, subject: Option<&Digest>, tags: &[Tag]) -> Answered {
    let (mut response, outcome) = answered;
    let headers = response.headers_mut();
    if let Some(subject) = subject {
        headers.insert(SUBJECT, answer::ascii(&subject.to_string()));
    }
    for tag in tags {
        headers.append(TAG, answer::ascii(tag.as_str()));
    }
    (response, outcome)
}

/// An empty response.
pub(super) fn done(status: StatusCode) -> Answered {
    (empty(status), Outcome::Hit)
}

/// Tells a client that sent `ns` that it was heeded (distribution-spec, "Registry Proxying").
pub(super) fn in_namespace(answered: Answered, call: &Call<'_>) -> Answered {
    let (mut response, outcome) = answered;
    if let Some(Ok(ns)) = call.ns.map(HeaderValue::from_str) {
        response.headers_mut().insert(NAMESPACE, ns);
    }
    (response, outcome)
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = answer::generated();
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    }
    response
}
