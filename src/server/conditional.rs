//! Conditional requests (RFC 9110, section 13): content named by digest has a strong entity tag,
//! which is the digest itself.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};

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

/// What a request's conditions say of the content that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be answered as if there were no condition.
    Proceed,
    /// 304: the client has it already.
    NotModified,
    /// 412: the client wants something else.
    Failed,
}

/// Evaluates `If-Match`, then `If-None-Match` (RFC 9110, section 13.2.2). The conditions on dates have
/// no effect: content named by its digest has none.
pub(super) fn evaluate(headers: &HeaderMap, digest: &Digest) -> Verdict {
    if headers.contains_key(IF_MATCH) && !lists(headers, IF_MATCH, digest, false) {
        Verdict::Failed
    } else if headers.contains_key(IF_NONE_MATCH) && lists(headers, IF_NONE_MATCH, digest, true) {
        Verdict::NotModified
    } else {
        Verdict::Proceed
    }
}

/// Whether a header lists the content's entity tag, or is `*`. Weak tags count only where the header
/// is compared weakly.
fn lists(headers: &HeaderMap, name: HeaderName, digest: &Digest, weakly: bool) -> bool {
    let digest = digest.to_string();
    let lines = headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|tag| {
            let opaque = match tag.strip_prefix("W/") {
                Some(_) if !weakly => return false,
                Some(opaque) => opaque,
                None => tag,
            };
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
    fn if_match_and_if_none_match() {
        use Verdict::{Failed, NotModified, Proceed};
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (value, matched, none_matched) in [
            (format!("\"{digest}\""), Proceed, NotModified),
            (format!("W/\"{digest}\""), Failed, NotModified),
            (digest.to_string(), Proceed, NotModified),
            (format!("\"x\", \"{digest}\""), Proceed, NotModified),
            ("*".to_owned(), Proceed, NotModified),
            ("\"x\"".to_owned(), Failed, Proceed),
            (String::new(), Failed, Proceed),
        ] {
            let verdict = |name| evaluate(&headers(&[(name, &value)]), &digest);
            assert_eq!(verdict("if-match"), matched, "{value}");
            assert_eq!(verdict("if-none-match"), none_matched, "{value}");
        }
        assert_eq!(evaluate(&HeaderMap::new(), &digest), Proceed);
        let quoted = format!("\"{digest}\"");
        let both = headers(&[("if-match", &quoted), ("if-none-match", &quoted)]);
        assert_eq!(evaluate(&both, &digest), NotModified);
        let both = headers(&[("if-match", "\"x\""), ("if-none-match", &quoted)]);
        assert_eq!(evaluate(&both, &digest), Failed, "If-Match comes first");
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
