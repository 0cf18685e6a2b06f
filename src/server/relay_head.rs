//! What replicas tell each other of a relayed request and of its answer: nothing about connections, nothing of
//! what identifies the client, and no marks.

use http::header::{
    ACCEPT, ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE, RETRY_AFTER,
};
use http::request::Parts;
use http::{Method, Uri};

/// The fields of a request that the writer is told. The length of the body is added where it is sent.
const REQUEST: [HeaderName; 7] = [
    ACCEPT,
    CONTENT_RANGE,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_RANGE,
    RANGE,
];

/// The fields of an answer that the client is told. `Location` and `Link` are made to lead to this replica.
const ANSWER: [HeaderName; 15] = [
    ACCEPT_RANGES,
    ALLOW,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    ETAG,
    RANGE,
    RETRY_AFTER,
    HeaderName::from_static("docker-content-digest"),
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("oci-tag"),
    HeaderName::from_static("warning"),
];

/// The head of a request to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelayHead {
    pub(super) method: Method,
    /// The path from `/v2/` on, with its query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
}

impl RelayHead {
    /// `prefix` is the path before `/v2/`.
    pub(super) fn of(head: &Parts, prefix: &str) -> Self {
        Self {
            method: head.method.clone(),
            target: target(&head.uri, prefix),
            headers: only(&head.headers, &REQUEST),
        }
    }

    /// A GET of a path from `/v2/` on.
    pub(super) fn get(target: String) -> Self {
        Self {
            method: Method::GET,
            target,
            headers: HeaderMap::new(),
        }
    }
}

/// The fields of an answer that a client is told.
pub(super) fn answer_fields(headers: &HeaderMap) -> HeaderMap {
    only(headers, &ANSWER)
}

fn target(uri: &Uri, prefix: &str) -> String {
    let whole = uri.path_and_query().map_or("", |whole| whole.as_str());
    whole.strip_prefix(prefix).unwrap_or(whole).to_owned()
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(names.len());
    for name in names {
        for value in headers.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn connections_and_clients_are_not_told_of() {
        let (head, ()) = Request::put("/x/v2/ci/app/manifests/1?ns=a%20b")
            .header("connection", "close, content-type")
            .header("transfer-encoding", "chunked")
            .header("expect", "100-continue")
            .header("authorization", "Basic YTpi")
            .header("cookie", "a=b")
            .header("host", "registry.example")
            .header("x-forwarded-for", "10.0.0.1")
            .header("millpond-peer", "1.2.3.4")
            .header("millpond-caller", "user=ann")
            .header("content-length", "7")
            .header("content-type", "application/json")
            .header("accept", "a/b")
            .header("accept", "c/d")
            .body(())
            .unwrap()
            .into_parts();
        let relayed = RelayHead::of(&head, "/x");
        assert_eq!(relayed.target, "/v2/ci/app/manifests/1?ns=a%20b");
        assert_eq!(relayed.method, Method::PUT);
        let names: Vec<_> = relayed.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept", "content-type"]);
        assert_eq!(relayed.headers.get_all(ACCEPT).iter().count(), 2);
    }

    #[test]
    fn answers_have_no_marks_and_no_challenge() {
        let mut headers = HeaderMap::new();
        for name in [
            "millpond-peer",
            "www-authenticate",
            "connection",
            "keep-alive",
            "transfer-encoding",
            "date",
            "x-request-id",
            "cache-status",
            "location",
            "set-cookie",
        ] {
            headers.insert(HeaderName::from_static(name), "x".parse().unwrap());
        }
        assert_eq!(answer_fields(&headers), HeaderMap::new());
        headers.insert("docker-upload-uuid", "x".parse().unwrap());
        headers.append("oci-tag", "a".parse().unwrap());
        headers.append("oci-tag", "b".parse().unwrap());
        assert_eq!(answer_fields(&headers).len(), 3);
    }
}
