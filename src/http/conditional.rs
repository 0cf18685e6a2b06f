//! Conditional requests (RFC 9110, section 13): content named by digest has a strong entity tag,
//! which is the digest itself.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE};

use crate::oci::{Digest, Requested};

/// The entity tag of content with this digest.
pub(super) fn etag(digest: &Digest) -> HeaderValue {
    tag_and_digest(digest).0
}

/// The entity tag, and the digest that is in it: two values in one piece of memory.
pub(super) fn tag_and_digest(digest: &Digest) -> (HeaderValue, HeaderValue) {
    let hex = digest.hex();
    let tag: Bytes = ["\"", digest.algorithm().as_str(), ":", &hex, "\""]
        .concat()
        .into();
    let bare = tag.slice(1..tag.len() - 1);
    // Digits, letters and a colon can be in a header.
    let value = |text: Bytes| HeaderValue::from_maybe_shared(text);
    let empty = HeaderValue::from_static("");
    (
        value(tag).unwrap_or(empty.clone()),
        value(bare).unwrap_or(empty),
    )
}

/// Whether the client has this content already: any tag of `If-None-Match` matches, weakly, or `*`.
pub(super) fn not_modified(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(IF_NONE_MATCH) {
        return false;
    }
    let digest = digest.to_string();
    let lines = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|tag| {
            let opaque = tag.strip_prefix("W/").unwrap_or(tag);
            // Docker's clients were seen to send the digest without quotes.
            tag == "*" || opaque.trim_matches('"') == digest
        })
}

/// The ranges to answer with, if any: `If-Range` must name this very content (a date can't).
pub(super) fn requested_ranges(headers: &HeaderMap, digest: &Digest) -> Option<Requested> {
    let mut lines = headers.get_all(RANGE).iter();
    let range = lines.next()?.to_str().ok()?;
    if lines.next().is_some() {
        return None;
    }
    if let Some(condition) = headers.get(IF_RANGE)
        && condition != etag(digest)
    {
        return None;
    }
    Requested::parse(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn if_none_match() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (value, expected) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), true),
            (digest.to_string(), true),
            (format!("\"x\", \"{digest}\""), true),
            ("*".to_owned(), true),
            ("\"x\"".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(
                not_modified(&headers(&[("if-none-match", &value)]), &digest),
                expected,
                "{value}"
            );
        }
        assert!(!not_modified(&HeaderMap::new(), &digest));
    }

    #[test]
    fn if_range() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let quoted = format!("\"{digest}\"");
        let weak = format!("W/{quoted}");
        let ranged = |condition: Option<&str>| {
            let mut headers = headers(&[("range", "bytes=0-1")]);
            if let Some(condition) = condition {
                headers.insert(IF_RANGE, HeaderValue::from_str(condition).unwrap());
            }
            requested_ranges(&headers, &digest).is_some()
        };
        assert!(ranged(None));
        assert!(ranged(Some(&quoted)));
        assert!(!ranged(Some(&weak)));
        assert!(!ranged(Some("\"other\"")));
        assert!(!ranged(Some("Wed, 21 Oct 2015 07:28:00 GMT")));
    }
}
