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
    /// 412: the client requires other content.
    Failed,
}

/// The conditions and the range of a request, parsed once.
#[derive(Debug, Default)]
pub(super) struct Conditions<'a> {
    if_match: Option<Vec<EntityTag<'a>>>,
    if_none_match: Option<Vec<EntityTag<'a>>>,
    range: Option<Requested>,
    if_range: Option<&'a HeaderValue>,
}

/// An entity tag that a client lists.
#[derive(Debug)]
struct EntityTag<'a> {
    opaque: &'a str,
    weak: bool,
}

impl<'a> Conditions<'a> {
    /// Conditions on dates have no effect: content that is named by its digest has none. More than
    /// one Range line is no range.
    pub(super) fn parse(headers: &'a HeaderMap) -> Self {
        let mut ranges = headers.get_all(RANGE).iter();
        let range = ranges.next().filter(|_| ranges.next().is_none());
        let range = range.and_then(|range| Requested::parse(range.to_str().ok()?));
        Self {
            if_match: entity_tags(headers, IF_MATCH),
            if_none_match: entity_tags(headers, IF_NONE_MATCH),
            if_range: range.as_ref().and_then(|_| headers.get(IF_RANGE)),
            range,
        }
    }

    /// Evaluates `If-Match`, then `If-None-Match` (RFC 9110, section 13.2.2), for content with this
    /// digest. Weak tags count only where the header is compared weakly.
    pub(super) fn evaluate(&self, digest: &Digest) -> Verdict {
        if self.if_match.is_none() && self.if_none_match.is_none() {
            return Verdict::Proceed;
        }
        let digest = digest.to_string();
        // Docker's clients were seen to send the digest without quotes.
        let names =
            |tag: &EntityTag<'_>| tag.opaque == "*" || tag.opaque.trim_matches('"') == digest;
        let mut matched = self.if_match.iter().flatten();
        if self.if_match.is_some() && !matched.any(|tag| !tag.weak && names(tag)) {
            Verdict::Failed
        } else if self.if_none_match.iter().flatten().any(names) {
            Verdict::NotModified
        } else {
            Verdict::Proceed
        }
    }

    /// Whether the request has conditions on the content.
    pub(super) fn has_any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some() || self.if_range.is_some()
    }

    /// The ranges to answer with, if any: `If-Range` must name this very content (a date can't).
    pub(super) fn ranges(&self, digest: &Digest) -> Option<&Requested> {
        let permitted = self.if_range.is_none_or(|tag| tag == etag(digest));
        self.range.as_ref().filter(|_| permitted)
    }
}

/// The entity tags that a header lists; none without the header.
fn entity_tags(headers: &HeaderMap, name: HeaderName) -> Option<Vec<EntityTag<'_>>> {
    headers.contains_key(&name).then(|| {
        let lines = headers.get_all(name).iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        let tags = lines.flat_map(|line| line.split(',')).map(str::trim);
        tags.map(|tag| match tag.strip_prefix("W/") {
            Some(opaque) => EntityTag { opaque, weak: true },
            None => EntityTag {
                opaque: tag,
                weak: false,
            },
        })
        .collect()
    })
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
            let verdict = |name| Conditions::parse(&headers(&[(name, &value)])).evaluate(&digest);
            assert_eq!(verdict("if-match"), matched, "{value}");
            assert_eq!(verdict("if-none-match"), none_matched, "{value}");
        }
        let evaluate = |headers: &HeaderMap| Conditions::parse(headers).evaluate(&digest);
        assert_eq!(evaluate(&HeaderMap::new()), Proceed);
        let quoted = format!("\"{digest}\"");
        let both = headers(&[("if-match", &quoted), ("if-none-match", &quoted)]);
        assert_eq!(evaluate(&both), NotModified);
        let both = headers(&[("if-match", "\"x\""), ("if-none-match", &quoted)]);
        assert_eq!(evaluate(&both), Failed, "If-Match comes first");
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
            Conditions::parse(&headers).ranges(&digest).is_some()
        };
        assert!(ranged(None));
        assert!(ranged(Some(&quoted)));
        assert!(!ranged(Some(&weak)));
        assert!(!ranged(Some("\"other\"")));
        assert!(!ranged(Some("Wed, 21 Oct 2015 07:28:00 GMT")));
    }
}
