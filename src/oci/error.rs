//! The error document of the specification: `{"errors":[{"code","message"}]}`
//! (distribution-spec 1.1, "Error Codes"; Docker adds `TOOMANYREQUESTS`'s siblings).

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The longest error body of an upstream that is parsed, in bytes.
pub const MAX_ERROR_BODY: u64 = 64 * 1024;

/// The codes that millpond answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    Unavailable,
    Unknown,
}

/// What an error means to a client. The server gives each kind a status and a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The API has nothing at the path.
    NoSuchPath,
    /// The method writes or removes what can't be written or removed.
    ReadOnly,
    NameInvalid,
    TagInvalid,
    DigestInvalid,
    PageSizeInvalid,
    /// Some other part of the request is malformed.
    BadRequest,
    /// The request's body has too many bytes.
    TooLarge,
    /// The request's target has too many parameters.
    UriTooLong,
    /// There is no such upload session.
    UploadUnknown,
    /// A request about an upload is malformed.
    UploadInvalid,
    /// The bytes don't follow those that the upload session has.
    UploadRange,
    /// Another request writes to the upload session.
    UploadBusy,
    /// A length that the request states contradicts another one, or the body.
    SizeInvalid,
    ManifestInvalid,
    /// The repository lacks what a manifest refers to.
    PartsMissing,
    /// The tag can't be changed.
    Immutable,
    /// More than the operator permits: a quota, a limit.
    OverLimit,
    /// The disk has no room.
    Full,
    /// There is no such repository.
    NameUnknown,
    /// The repository has no such manifest, blob or list.
    NotFound,
    /// The upstream wants credentials.
    Unauthorized,
    /// The upstream denies access.
    Denied,
    /// The upstream limits the rate of requests.
    RateLimited,
    /// The upstream rejects the request with this status: 400, 406 or 451.
    Rejected(u16),
    /// The upstream answered with this status, a 5xx.
    UpstreamFailed(u16),
    /// The connection to the upstream failed.
    Unreachable,
    /// The upstream didn't answer in time.
    Timeout,
    /// The upstream's answer can't be passed on.
    WrongAnswer,
    /// The request of another replica, which has to ask elsewhere.
    Misdirected,
    /// Too much work waits, or the process is about to stop.
    Busy,
    /// The mirror itself failed.
    Internal,
}

/// An error that a client can be told of.
pub trait Classified: std::error::Error {
    fn kind(&self) -> ErrorKind;

    /// The message for the client: no internal address, and no secret.
    fn reason(&self) -> Cow<'static, str>;

    /// When the client may try again, if that is known.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// What the repository lacks of a manifest's parts.
    fn missing_parts(&self) -> &[Digest] {
        &[]
    }
}

/// An error of a document.
#[derive(Serialize)]
struct Entry<'a> {
    code: ErrorCode,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Detail<'a>>,
}

#[derive(Serialize)]
struct Detail<'a> {
    digest: &'a Digest,
}

/// An error document with one error, as JSON.
pub fn error_document(code: ErrorCode, message: &str) -> Vec<u8> {
    document(&[Entry {
        code,
        message,
        detail: None,
    }])
}

/// An error document with one error for each digest, which is its detail.
pub fn error_document_of(code: ErrorCode, message: &str, digests: &[Digest]) -> Vec<u8> {
    let entry = |digest| Entry {
        code,
        message,
        detail: Some(Detail { digest }),
    };
    document(&digests.iter().map(entry).collect::<Vec<_>>())
}

fn document(errors: &[Entry<'_>]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Document<'a> {
        errors: &'a [Entry<'a>],
    }
    // Words and texts can't fail to be written.
    serde_json::to_vec(&Document { errors }).unwrap_or_default()
}

/// The first error of a document that an upstream sent: its code, and its message when it has one.
pub fn first_error(body: &[u8]) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(body).ok()?;
    let first = document.errors.into_iter().next()?;
    Some((first.code, first.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_specified_form() {
        for (code, name) in [
            (ErrorCode::TooManyRequests, "TOOMANYREQUESTS"),
            (ErrorCode::BlobUnknown, "BLOB_UNKNOWN"),
        ] {
            let text = String::from_utf8(error_document(code, "slow down")).unwrap();
            let expected = r#"{"errors":[{"code":"$","message":"slow down"}]}"#;
            assert_eq!(text, expected.replace('$', name));
        }
    }

    #[test]
    fn each_missing_part_is_an_error_of_its_own() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let code = ErrorCode::ManifestBlobUnknown;
        let text = String::from_utf8(error_document_of(code, "gone", &[digest])).unwrap();
        let expected = format!(
            r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","message":"gone","detail":{{"digest":"{digest}"}}}}]}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn only_the_first_error_of_a_document_is_read() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no","detail":[1]},{"code":"X"}]}"#;
        assert_eq!(first_error(body), Some(("DENIED".into(), "no".into())));
        for body in ["<html>", "", r#"{"errors":[]}"#, r#"{"errors":null}"#] {
            assert_eq!(first_error(body.as_bytes()), None);
        }
    }
}
