//! What clients are told of an upstream that fails: the kind, the message, and when to try again.
//!
//! A message says what happened and what to do next. It reaches everybody who pulls, so it holds no
//! address, no URL and no text of the upstream's: the log has those. `docs/errors.md` has the whole table,
//! which a test compares with the server.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use super::error::{Failure, UpstreamError, Violation};
use crate::oci::manifest::SCHEMA1_REFUSED;
use crate::oci::{Classified, ErrorKind};

/// What clients are told of content that an upstream doesn't have.
pub const NOT_FOUND: &str = "the upstream has no such thing; check the reference";

/// The `Retry-After` for clients when too many requests wait for an upstream.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Why nothing was sent.
const OFFLINE: &str = "this mirror is offline and doesn't have it: it asks no upstream; its operator has to \
                       import it (`millpond import`)";
/// The `Retry-After` where the operator's limit for a month is reached: clients needn't ask more often.
const MONTH_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The message about an answer that contradicts itself, the request or the specification.
pub fn wrong_answer(how: &dyn Display) -> Cow<'static, str> {
    let next = "try again, or ask the mirror's operator, whose log says more";
    format!("the upstream's answer is wrong: {how}; {next}").into()
}

impl Classified for UpstreamError {
    fn kind(&self) -> ErrorKind {
        match self.failure {
            // A client asks another registry then, if it has one.
            Failure::NotFound(_) | Failure::Schema1 | Failure::Offline => ErrorKind::NotFound,
            Failure::Denied(_) | Failure::CredentialsRefused { status: 403, .. } => {
                ErrorKind::Denied
            }
            // Without a challenge of our own: it would make clients send us credentials that we
            // can't pass on.
            Failure::Unauthorized(_) | Failure::CredentialsRefused { .. } => {
                ErrorKind::Unauthorized
            }
            Failure::RateLimited { .. } | Failure::MonthUsedUp => ErrorKind::RateLimited,
            Failure::Rejected { status, .. } => ErrorKind::Rejected(status),
            Failure::Unavailable { status, .. } => ErrorKind::UpstreamFailed(status),
            // The mirror can't ask the upstream for now.
            Failure::Unreachable(_) | Failure::Broken { .. } | Failure::NoCredentials(_) => {
                ErrorKind::Unreachable
            }
            Failure::Timeout { .. } => ErrorKind::Timeout,
            Failure::Busy => ErrorKind::Busy,
            Failure::Unexpected(_) | Failure::Protocol(_) | Failure::Manifest(_) => {
                ErrorKind::WrongAnswer
            }
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match &self.failure {
            Failure::NotFound(_) => NOT_FOUND,
            Failure::Unauthorized(_) => {
                "the upstream demands other credentials than it was given, or there is no such \
                 repository; check the reference, or ask the mirror's operator for access to it"
            }
            Failure::CredentialsRefused { .. } => {
                "the upstream refuses this mirror's credentials; ask the mirror's operator to correct them"
            }
            Failure::NoCredentials(_) => {
                "this mirror can't get its credentials for the upstream; ask its operator, whose log \
                 says why"
            }
            Failure::Denied(_) => {
                "the upstream denies access; check the reference, or ask the mirror's operator for \
                 access to it"
            }
            Failure::RateLimited { .. } => {
                "the upstream limits how often this mirror may ask; try again later"
            }
            Failure::MonthUsedUp => {
                "this mirror has received as much from the upstream in this month as its operator \
                 permits; ask the operator for more, or wait for the next month"
            }
            Failure::Offline => OFFLINE,
            Failure::Rejected { status: 406, .. } => {
                "the upstream has it in no format that the client accepts (status 406); try a newer client"
            }
            Failure::Rejected { status: 451, .. } => {
                "the upstream doesn't serve it for legal reasons (status 451); ask its publisher"
            }
            Failure::Rejected { status, .. } => {
                return format!(
                    "the upstream rejects the request with status {status}; check the reference"
                )
                .into();
            }
            Failure::Unavailable { status, .. } => {
                return format!("the upstream failed with status {status}; try again later").into();
            }
            Failure::Unreachable(_) => {
                "the upstream can't be reached; try again later, or ask the mirror's operator, whose \
                 log says why"
            }
            Failure::Timeout { .. } => "the upstream took too long to answer; try again later",
            Failure::Broken { .. } => "the upstream broke off its answer; try again later",
            Failure::Busy => "too many requests wait for the upstream; try again later",
            Failure::Unexpected(_) => return wrong_answer(&self.failure),
            Failure::Protocol(
                Violation::Redirect(_) | Violation::Realm(_) | Violation::Internal(_),
            ) => {
                "the upstream refers to a place that this mirror doesn't ask; ask the mirror's \
                 operator, whose log names it"
            }
            Failure::Protocol(violation) => return wrong_answer(violation),
            Failure::Schema1 => SCHEMA1_REFUSED,
            Failure::Manifest(source) => return wrong_answer(source),
        }
        .into()
    }

    /// The `Retry-After` of the upstream, if it sent one; at most
    /// [`MAX_RETRY_AFTER`](super::retry::MAX_RETRY_AFTER).
    fn retry_after(&self) -> Option<Duration> {
        match self.failure {
            Failure::RateLimited { retry_after } | Failure::Unavailable { retry_after, .. } => {
                retry_after
            }
            Failure::Busy => Some(BUSY_RETRY_AFTER),
            Failure::MonthUsedUp => Some(MONTH_RETRY_AFTER),
            _ => None,
        }
    }
}
