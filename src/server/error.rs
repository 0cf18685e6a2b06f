//! The one place where errors become a status and an error document.
//!
//! The message for a client names what it requested, the upstream, which side failed and what to do next;
//! the log has the causes. An upstream's refusals stay apart (400, 401, 403, 404, 406, 429, 451, 5xx), so
//! that a client's own fallback works. `docs/errors.md` has the table and the reasons.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::cache_status;
use crate::error_chain::on_one_line;
use crate::health::Closed;
use crate::oci::{
    Action, Classified, ErrorCode, ErrorKind, Push, RepoName, error_document, error_document_of,
};

/// A response that says no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// JSON.
    pub document: Bytes,
    pub retry_after: Option<Duration>,
    /// The `WWW-Authenticate` field.
    pub challenge: Option<HeaderValue>,
    /// The `Cache-Status` field.
    pub cache_status: HeaderValue,
    /// The text for the log; none where only the client is at fault.
    pub log: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, code: ErrorCode, message: impl AsRef<str>) -> Self {
        Self {
            status,
            document: error_document(code, message.as_ref()).into(),
            retry_after: None,
            challenge: None,
            cache_status: cache_status::REFUSED,
            log: None,
        }
    }

    /// 416.
    pub(super) fn range(total: Option<u64>) -> Self {
        let message = match total {
            Some(total) => format!("the range has no byte of the content, which has {total}"),
            None => "the range has no byte of the content".to_owned(),
        };
        Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::SizeInvalid,
            message,
        )
    }

    /// 412.
    pub(super) fn precondition() -> Self {
        let message = "If-Match names other content than this digest's";
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            ErrorCode::Unsupported,
            message,
        )
    }

    /// 503, as the reference registry answers while one of its health checks fails.
    pub(super) fn closed(closed: Closed) -> Self {
        let message = match closed {
            Closed::Unhealthy => {
                "a health check fails; /debug/health of the operators' listener names it"
            }
            Closed::Stopping => "the server is stopping",
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            message,
        )
    }

    /// Of a request that has no action.
    pub(super) fn of(error: &dyn Classified) -> Self {
        Self::mapped(error, ErrorCode::NameUnknown, error.reason())
    }

    /// Of an action that failed. `upstream`: the name of the upstream that it needed, for the client.
    pub(super) fn of_action(
        error: &dyn Classified,
        action: &Action,
        upstream: Option<&str>,
    ) -> Self {
        let from = upstream.map_or_else(String::new, |name| format!(" from {name}"));
        let message = format!("{}{from}: {}", describe(action), error.reason());
        Self::mapped(error, missing(action), message)
    }

    /// `missing` is the code where the requested thing doesn't exist.
    fn mapped(error: &dyn Classified, missing: ErrorCode, message: impl AsRef<str>) -> Self {
        let kind = error.kind();
        let (status, code) = status_and_code(kind, missing);
        let message = message.as_ref();
        let document = match error.missing_parts() {
            [] => error_document(code, message),
            parts => error_document_of(code, message, parts),
        };
        Self {
            document: document.into(),
            retry_after: error.retry_after(),
            log: is_logged(kind).then(|| on_one_line(error)),
            ..Self::new(status, code, message)
        }
    }
}

fn status_and_code(kind: ErrorKind, missing: ErrorCode) -> (StatusCode, ErrorCode) {
    match kind {
        ErrorKind::NoSuchPath => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
        ErrorKind::ReadOnly => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        ErrorKind::NameInvalid | ErrorKind::TagInvalid => {
            (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid)
        }
        ErrorKind::DigestInvalid => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        ErrorKind::PageSizeInvalid | ErrorKind::BadRequest => {
            (StatusCode::BAD_REQUEST, ErrorCode::Unsupported)
        }
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::Unsupported),
        ErrorKind::UriTooLong => (StatusCode::URI_TOO_LONG, ErrorCode::Unsupported),
        ErrorKind::UploadUnknown => (StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown),
        ErrorKind::UploadInvalid => (StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid),
        ErrorKind::UploadRange => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::BlobUploadInvalid,
        ),
        ErrorKind::UploadBusy => (StatusCode::CONFLICT, ErrorCode::BlobUploadInvalid),
        ErrorKind::SizeInvalid => (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid),
        ErrorKind::ManifestInvalid => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
        ErrorKind::PartsMissing => (StatusCode::BAD_REQUEST, ErrorCode::ManifestBlobUnknown),
        ErrorKind::Immutable => (StatusCode::CONFLICT, ErrorCode::Denied),
        ErrorKind::Full => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Denied),
        ErrorKind::NameUnknown => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, missing),
        ErrorKind::Unauthorized => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        ErrorKind::Denied | ErrorKind::OverLimit => (StatusCode::FORBIDDEN, ErrorCode::Denied),
        ErrorKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests),
        ErrorKind::Rejected(451) => (StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, ErrorCode::Denied),
        ErrorKind::Rejected(status) => (same(status), ErrorCode::Unsupported),
        ErrorKind::UpstreamFailed(status) => (same(status), ErrorCode::Unavailable),
        ErrorKind::Unreachable => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
        ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
        ErrorKind::WrongAnswer => (StatusCode::BAD_GATEWAY, ErrorCode::Unknown),
        ErrorKind::Misdirected => (StatusCode::MISDIRECTED_REQUEST, ErrorCode::Unavailable),
        ErrorKind::Busy => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
    }
}

/// An upstream's status.
fn same(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
}

/// Whether the upstream or the mirror is at fault.
const fn is_logged(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::NoSuchPath
        | ErrorKind::ReadOnly
        | ErrorKind::NameInvalid
        | ErrorKind::TagInvalid
        | ErrorKind::DigestInvalid
        | ErrorKind::PageSizeInvalid
        | ErrorKind::BadRequest
        | ErrorKind::TooLarge
        | ErrorKind::UriTooLong
        | ErrorKind::UploadUnknown
        | ErrorKind::UploadInvalid
        | ErrorKind::UploadRange
        | ErrorKind::UploadBusy
        | ErrorKind::SizeInvalid
        | ErrorKind::ManifestInvalid
        | ErrorKind::PartsMissing
        | ErrorKind::Immutable
        | ErrorKind::NameUnknown
        | ErrorKind::Misdirected => false,
        ErrorKind::NotFound
        | ErrorKind::Unauthorized
        | ErrorKind::Denied
        | ErrorKind::RateLimited
        | ErrorKind::Rejected(_)
        | ErrorKind::UpstreamFailed(_)
        | ErrorKind::Unreachable
        | ErrorKind::Timeout
        | ErrorKind::WrongAnswer
        | ErrorKind::Busy
        | ErrorKind::OverLimit
        | ErrorKind::Full
        | ErrorKind::Internal => true,
    }
}

/// The code where what an action asks for doesn't exist.
const fn missing(action: &Action) -> ErrorCode {
    match action {
        Action::Manifest { .. } | Action::Referrers { .. } => ErrorCode::ManifestUnknown,
        Action::Blob { .. } => ErrorCode::BlobUnknown,
        Action::Push { push, .. } => match **push {
            Push::PutManifest { .. } | Push::DeleteManifest(_) => ErrorCode::ManifestUnknown,
            Push::DeleteBlob(_) | Push::Blob { .. } | Push::Mount { .. } => ErrorCode::BlobUnknown,
            Push::Start { .. } => ErrorCode::NameUnknown,
            Push::NoSession
            | Push::Status(_)
            | Push::Append(_)
            | Push::Finish { .. }
            | Push::Cancel(_) => ErrorCode::BlobUploadUnknown,
        },
        Action::Root
        | Action::Options
        | Action::Base
        | Action::Token { .. }
        | Action::Catalog(_)
        | Action::Tags { .. } => ErrorCode::NameUnknown,
    }
}

/// What an action asks for, in words.
fn describe(action: &Action) -> String {
    match action {
        Action::Root | Action::Options | Action::Base => "the registry".to_owned(),
        Action::Token { .. } => "a token".to_owned(),
        Action::Catalog(_) => "the catalog".to_owned(),
        Action::Tags { name, .. } => format!("tags of {name}"),
        Action::Manifest { name, reference } => format!("manifest {reference} of {name}"),
        Action::Blob { name, digest } => format!("blob {digest} of {name}"),
        Action::Referrers { name, digest, .. } => format!("referrers of {digest} in {name}"),
        Action::Push { name, push } => describe_push(name, push),
    }
}

fn describe_push(name: &RepoName, push: &Push) -> String {
    match push {
        Push::PutManifest { reference, .. } | Push::DeleteManifest(reference) => {
            format!("manifest {reference} of {name}")
        }
        Push::Blob { digest }
        | Push::Mount { digest, .. }
        | Push::DeleteBlob(digest)
        | Push::Finish { digest, .. } => format!("blob {digest} of {name}"),
        Push::Start { .. }
        | Push::NoSession
        | Push::Status(_)
        | Push::Append(_)
        | Push::Cancel(_) => format!("upload into {name}"),
    }
}
