//! The one place where errors become a status and an error document.
//!
//! What a client is told names the thing it asked for and who failed; the log has the causes. An
//! upstream's refusals stay apart (401, 403, 404, 429, 5xx), so that a client's own fallback works.

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::cache_status;
use crate::download::DownloadError;
use crate::error_chain::on_one_line;
use crate::metrics::Kind;
use crate::mirror::MirrorError;
use crate::oci::{ErrorCode, ErrorDocument, RouteError};
use crate::upstream::UpstreamError;

/// When a client that was turned away may ask again.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// The same whether the upstream has just sent it or the store has it.
const SCHEMA1: &str = "the upstream has it as a Docker schema 1 manifest, which this mirror does not \
                       serve; push the image again as Docker schema 2 or OCI";

/// An answer that says no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub document: ErrorDocument,
    pub retry_after: Option<Duration>,
    /// Where the answer came from: nowhere, unless somebody was asked.
    pub cache_status: HeaderValue,
    /// What the log is told beyond the document; nothing where the client alone is at fault.
    pub log: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status,
            document: ErrorDocument::new(code, message),
            retry_after: None,
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
            ErrorCode::RangeInvalid,
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

    /// 400: two names of the host could mean two upstreams.
    pub(super) fn hosts() -> Self {
        let message = "the request has more than one Host header";
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
    }

    pub(super) fn route(error: &RouteError) -> Self {
        let (status, code) = match error {
            RouteError::NotFound => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
            RouteError::Write => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            RouteError::Name(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            RouteError::Reference(_) => (StatusCode::BAD_REQUEST, ErrorCode::TagInvalid),
            RouteError::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            RouteError::PageSize => (StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid),
            RouteError::Parameter(_) => (StatusCode::BAD_REQUEST, ErrorCode::Unsupported),
        };
        Self::new(status, code, error.to_string())
    }

    /// `what` is the thing asked for, in words; `kind` chooses the code for its absence.
    pub(super) fn mirror(error: &MirrorError, kind: Kind, what: &str) -> Self {
        let refusal = match error {
            MirrorError::UnknownUpstream(_) | MirrorError::Shadowed { .. } => {
                return Self::new(
                    StatusCode::NOT_FOUND,
                    ErrorCode::NameUnknown,
                    error.to_string(),
                );
            }
            MirrorError::Upstream(error) | MirrorError::Fetch(DownloadError::Upstream(error)) => {
                Self::upstream(error, kind, what)
            }
            MirrorError::WrongDigest { .. }
            | MirrorError::Fetch(
                DownloadError::Digest { .. }
                | DownloadError::Length { .. }
                | DownloadError::Changed { .. },
            ) => {
                let message = format!("{what}: the upstream's answer is wrong: {error}");
                Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, message)
            }
            MirrorError::Fetch(DownloadError::Stopping) => {
                let message = "the mirror is stopping; ask again";
                let stopping = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(stopping, ErrorCode::Unavailable, message)
            }
            MirrorError::Fetch(DownloadError::Busy) => {
                let message = format!("{what}: too many downloads wait; ask again");
                let busy = StatusCode::SERVICE_UNAVAILABLE;
                let refusal = Self::new(busy, ErrorCode::Unavailable, message);
                Self {
                    retry_after: Some(BUSY_RETRY),
                    ..refusal
                }
            }
            MirrorError::StoredSchema1 { .. } => Self::new(
                StatusCode::NOT_FOUND,
                unknown(kind),
                format!("{what}: {SCHEMA1}"),
            ),
            MirrorError::Store(_)
            | MirrorError::Lost
            | MirrorError::Fetch(
                DownloadError::Store(_)
                | DownloadError::Lost
                | DownloadError::Stuck
                | DownloadError::Present
                | DownloadError::Abandoned,
            ) => {
                let message = format!("{what}: the mirror failed; its log says why");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    ErrorCode::Unknown,
                    message,
                )
            }
        };
        Self {
            log: Some(on_one_line(error)),
            ..refusal
        }
    }

    fn upstream(error: &UpstreamError, kind: Kind, what: &str) -> Self {
        let refuse =
            |status, code, reason: &str| Self::new(status, code, format!("{what}: {reason}"));
        let unauthorized =
            |reason| refuse(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, reason);
        let denied = |reason| refuse(StatusCode::FORBIDDEN, ErrorCode::Denied, reason);
        let unavailable = |status, reason: &str| refuse(status, ErrorCode::Unavailable, reason);
        let refusal = match error {
            UpstreamError::NotFound { .. } => refuse(
                StatusCode::NOT_FOUND,
                unknown(kind),
                "the upstream has no such thing",
            ),
            // Without a challenge of our own: it would make clients send us credentials that we
            // can't pass on.
            UpstreamError::Unauthorized { .. } => unauthorized(
                "the upstream demands credentials that this mirror doesn't have, or there is no such repository",
            ),
            UpstreamError::CredentialsRefused { status: 403, .. } => {
                denied("the upstream refuses this mirror's credentials")
            }
            UpstreamError::CredentialsRefused { .. } => {
                unauthorized("the upstream refuses this mirror's credentials")
            }
            UpstreamError::Denied { .. } => denied("the upstream denies this mirror access"),
            UpstreamError::RateLimited { .. } => refuse(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorCode::TooManyRequests,
                "the upstream limits how often this mirror may ask",
            ),
            UpstreamError::Unavailable { status, .. } => unavailable(
                StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
                &format!("the upstream failed with status {status}"),
            ),
            UpstreamError::Unreachable { .. } => {
                unavailable(StatusCode::BAD_GATEWAY, "the upstream can't be reached")
            }
            UpstreamError::Timeout { .. } => unavailable(
                StatusCode::GATEWAY_TIMEOUT,
                "the upstream took too long to answer",
            ),
            UpstreamError::Broken { .. } => {
                unavailable(StatusCode::BAD_GATEWAY, "the upstream broke off its answer")
            }
            UpstreamError::Busy { .. } => unavailable(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests wait for the upstream; ask again",
            ),
            UpstreamError::Unexpected { .. }
            | UpstreamError::Protocol { .. }
            | UpstreamError::Schema1 { .. }
            | UpstreamError::Manifest { .. } => Self::unusable(error, kind, what),
            UpstreamError::Setup { .. } => refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                ErrorCode::Unknown,
                "the upstream is set up wrongly here",
            ),
        };
        Self {
            retry_after: error.retry_after(),
            ..refusal
        }
    }
}

impl Refusal {
    /// The upstream answered, but not with what can be passed on.
    fn unusable(error: &UpstreamError, kind: Kind, what: &str) -> Self {
        let (status, code, reason) = match error {
            UpstreamError::Schema1 { .. } => {
                (StatusCode::NOT_FOUND, unknown(kind), SCHEMA1.to_owned())
            }
            UpstreamError::Manifest { source, .. } => (
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                format!("the upstream's manifest can't be served: {source}"),
            ),
            _ => (
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                "the upstream's answer is not a registry's".to_owned(),
            ),
        };
        Self::new(status, code, format!("{what}: {reason}"))
    }
}

const fn unknown(kind: Kind) -> ErrorCode {
    match kind {
        Kind::Manifest | Kind::Referrers => ErrorCode::ManifestUnknown,
        Kind::Blob => ErrorCode::BlobUnknown,
        Kind::Base | Kind::Tags | Kind::Catalog | Kind::Token | Kind::Other => {
            ErrorCode::NameUnknown
        }
    }
}
