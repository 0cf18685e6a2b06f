//! The error document of the specification: `{"errors":[{"code","message","detail"}]}`
//! (distribution-spec 1.1, "Error Codes"; Docker adds `TOOMANYREQUESTS`'s siblings).

use serde::{Deserialize, Serialize};

/// Longest error body of an upstream that is looked into, in bytes.
pub const MAX_ERROR_BODY: u64 = 64 * 1024;

/// The codes that millpond answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    BlobUnknown,
    DigestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    TagInvalid,
    PaginationNumberInvalid,
    RangeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    Unavailable,
    Unknown,
}

/// One error document with one error.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorDocument {
    errors: [ErrorEntry; 1],
}

#[derive(Debug, Clone, Serialize)]
struct ErrorEntry {
    code: ErrorCode,
    message: String,
}

impl ErrorDocument {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            errors: [ErrorEntry {
                code,
                message: message.into(),
            }],
        }
    }

    /// The document as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
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
    document
        .errors
        .into_iter()
        .next()
        .map(|entry| (entry.code, entry.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_specified_form() {
        let document = ErrorDocument::new(ErrorCode::TooManyRequests, "slow down");
        let text = String::from_utf8(document.to_bytes()).unwrap();
        assert_eq!(
            text,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#
        );
        let plain = ErrorDocument::new(ErrorCode::BlobUnknown, "gone").to_bytes();
        assert_eq!(
            plain,
            br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}"#
        );
    }

    #[test]
    fn an_upstreams_error_is_read_or_ignored() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no","detail":[1]},{"code":"X"}]}"#;
        assert_eq!(first_error(body), Some(("DENIED".into(), "no".into())));
        for body in [
            &b"<html>"[..],
            b"",
            br#"{"errors":[]}"#,
            br#"{"errors":null}"#,
        ] {
            assert_eq!(first_error(body), None);
        }
    }
}
