//! Answers: the heads and bodies of what the mirror found.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};

use super::body::Body;
use super::cache_status::{self, CACHE_STATUS, Named, Origin};
use super::conditional::{Conditions, Verdict, tag_and_digest};
use super::cursor::{Part, Source};
use super::error::Refusal;
use crate::cache::ManifestMeta;
use crate::metrics::Outcome;
use crate::mirror::{BlobAnswer, ManifestAnswer, ManifestHit, ReadMode, Recovery};
use crate::oci::manifest::media_type;
use crate::oci::range::Resolved;
use crate::oci::{ByteRange, Classified, Digest, Requested};
use crate::telemetry::X_REQUEST_ID;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const API_VERSION_2: HeaderValue = HeaderValue::from_static("registry/2.0");
/// Browsers take an answer for what it says it is.
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
/// Header fields that most answers have, and those that configurations add: more make the map grow.
const FIELDS: usize = 12;
/// Content with a digest never changes: a year, the longest time that caches accept.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000");
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const PRIVATE: HeaderValue = HeaderValue::from_static("private");
/// For content with a digest, which never changes, in the client's own cache.
const PRIVATE_FOREVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000");

/// The head of a blob that is a hit. Copying it costs less than inserting each field: what differs in
/// a response is replaced, and the map needn't grow for that.
static BLOB_HEAD: LazyLock<HeaderMap> = LazyLock::new(|| {
    let mut headers = HeaderMap::with_capacity(FIELDS);
    insert_common(&mut headers);
    headers.insert(CACHE_STATUS, cache_status::HIT);
    headers.insert(CACHE_CONTROL, FOREVER);
    headers.insert(CONTENT_TYPE, OCTETS);
    headers.insert(ACCEPT_RANGES, BYTES);
    for of_the_blob in [CONTENT_DIGEST, ETAG, CONTENT_LENGTH] {
        headers.insert(of_the_blob, HeaderValue::from_static(""));
    }
    headers
});

/// The fields of every response.
fn insert_common(headers: &mut HeaderMap) {
    headers.insert(API_VERSION, API_VERSION_2);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    // To be replaced: one more field would make the copy of a prepared head grow.
    headers.insert(X_REQUEST_ID, HeaderValue::from_static(""));
}

/// An answer of status 200, empty.
fn empty() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.reserve(FIELDS);
    insert_common(headers);
    response
}

/// An answer of status 200, empty, with where it came from.
fn answer(origin: Origin) -> Response<Body> {
    let mut response = empty();
    origin.insert(response.headers_mut());
    response
}

/// An answer of the API's own, of status 200, empty.
pub(super) fn generated() -> Response<Body> {
    let mut response = empty();
    let headers = response.headers_mut();
    headers.insert(CACHE_STATUS, cache_status::GENERATED);
    response
}

/// Keeps caches in front of the mirror from giving a caller's response to another one (RFC 9111, section
/// 5.2.2.7). Some store responses to requests with credentials, too.
pub(super) fn keep_private(is_private: bool, response: &mut Response<Body>) {
    if !is_private {
        return;
    }
    let value = match response.headers().get(CACHE_CONTROL) {
        None => PRIVATE,
        Some(value) if *value == NO_STORE => NO_STORE,
        Some(_) => PRIVATE_FOREVER,
    };
    response.headers_mut().insert(CACHE_CONTROL, value);
}

fn insert_digest(headers: &mut HeaderMap, digest: &Digest) {
    let (tag, digest) = tag_and_digest(digest);
    headers.insert(CONTENT_DIGEST, digest);
    headers.insert(ETAG, tag);
}

fn json(mut response: Response<Body>, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, body.len().into());
    *response.body_mut() = Body::bytes(body);
    response
}

/// `GET /`, as the reference registry answers it.
pub(super) fn alive() -> Response<Body> {
    let mut response = empty();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_LENGTH, 0.into());
    response
}

/// `OPTIONS`. What a browser's preflight request asks for besides comes from the configured headers.
pub(super) fn options() -> Response<Body> {
    let mut response = empty();
    let headers = response.headers_mut();
    headers.insert(ALLOW, METHODS);
    headers.insert(CONTENT_LENGTH, 0.into());
    headers.insert(CACHE_STATUS, cache_status::GENERATED);
    response
}

/// `GET /v2/`
pub(super) fn base() -> Response<Body> {
    let mut response = json(empty(), b"{}".to_vec());
    let headers = response.headers_mut();
    headers.insert(CACHE_STATUS, cache_status::GENERATED);
    response
}

/// A token, which no cache may keep.
pub(super) fn token(document: Vec<u8>) -> Response<Body> {
    let mut response = json(empty(), document);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(CACHE_STATUS, cache_status::GENERATED);
    response
}

/// A list, as JSON, with the address of the next page.
pub(super) fn list(
    value: &serde_json::Value,
    next: Option<&str>,
    origin: Origin,
) -> Response<Body> {
    let mut response = json(answer(origin), value.to_string().into_bytes());
    link_next(&mut response, next);
    response
}

/// Says where the next page is, if there is one.
pub(super) fn link_next(response: &mut Response<Body>, next: Option<&str>) {
    if let Some(Ok(link)) =
        next.map(|next| HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")))
    {
        response.headers_mut().insert(LINK, link);
    }
}

pub(super) fn referrers(index: Bytes, filtered: bool, origin: Origin) -> Response<Body> {
    let mut response = json(answer(origin), index);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(media_type::OCI_INDEX),
    );
    if filtered {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    response
}

/// The response to a request that fails with this error.
pub fn refused(error: &dyn Classified) -> Response<Body> {
    let mut response = refusal(&Refusal::of(error));
    // Commands have no id.
    response.headers_mut().remove(X_REQUEST_ID);
    response
}

pub(super) fn refusal(refusal: &Refusal) -> Response<Body> {
    let mut response = json(empty(), refusal.document.clone());
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(CACHE_STATUS, refusal.cache_status.clone());
    if let Some(challenge) = &refusal.challenge {
        headers.insert(WWW_AUTHENTICATE, challenge.clone());
    }
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, METHODS);
    }
    if let Some(retry_after) = refusal.retry_after {
        // Rounded up: a client that comes a moment too early is refused once more.
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A manifest, or its head. Manifests are small: what isn't whole in memory is a head.
pub(super) fn manifest(
    conditions: &Conditions<'_>,
    named: Named,
    found: &ManifestAnswer,
) -> Response<Body> {
    let ManifestMeta { digest, size, .. } = *found.found.known();
    let origin = Origin {
        outcome: found.outcome,
        named,
        exchange: found.exchange,
    };
    match conditions.evaluate(&digest) {
        Verdict::Proceed => {}
        Verdict::NotModified => {
            let mut response = answer(origin);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            insert_digest(response.headers_mut(), &digest);
            return response;
        }
        Verdict::Failed => return precondition_failed(&digest, origin),
    }
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = match &found.found {
        ManifestHit::Head(known) => manifest_head(known),
        ManifestHit::Whole(whole) => {
            let prepared = whole.headers(manifest_head);
            prepared.clone()
        }
    };
    if found.outcome != Outcome::Hit {
        origin.insert(response.headers_mut());
    }
    let Some(content) = found.content() else {
        return response;
    };
    let ranges = conditions
        .ranges(&digest)
        .map(|ranges| ranges.resolve(size));
    // containerd sends `bytes=0-` for manifests, too. Several ranges of a manifest are answered with all of it.
    match ranges {
        Some(Resolved::One(range)) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let headers = response.headers_mut();
            headers.insert(CONTENT_LENGTH, range.len().into());
            headers.insert(CONTENT_RANGE, ascii(&range.content_range(size)));
            *response.body_mut() = Body::bytes(slice(&content, range));
            response
        }
        Some(Resolved::Unsatisfiable) => unsatisfiable(Some(size), origin),
        Some(Resolved::Many(_) | Resolved::Whole) | None => {
            *response.body_mut() = Body::bytes(content);
            response
        }
    }
}

/// 412
pub(super) fn precondition_failed(digest: &Digest, origin: Origin) -> Response<Body> {
    let mut response = refusal(&Refusal::precondition());
    insert_digest(response.headers_mut(), digest);
    origin.insert(response.headers_mut());
    response
}

/// The head of most answers with a manifest: what differs in others is replaced there.
fn manifest_head(known: &ManifestMeta) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(FIELDS);
    insert_common(&mut headers);
    insert_digest(&mut headers, &known.digest);
    headers.insert(CACHE_STATUS, cache_status::HIT);
    let kind = HeaderValue::from_static(known.media_type.as_str());
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(ACCEPT_RANGES, BYTES);
    headers.insert(CONTENT_LENGTH, known.size.into());
    headers
}

/// Says how old an answer is, if that is known: in seconds, rounded up (RFC 9111, section 5.1).
pub(super) fn age(age: Option<Duration>, response: &mut Response<Body>) {
    if let Some(age) = age {
        let seconds = age.as_secs() + u64::from(age.subsec_nanos() > 0);
        response.headers_mut().insert(AGE, seconds.into());
    }
}

fn slice(content: &Bytes, range: ByteRange) -> Bytes {
    let at = |offset: u64| {
        usize::try_from(offset)
            .unwrap_or(content.len())
            .min(content.len())
    };
    content.slice(at(range.start)..at(range.end))
}

/// 304
pub(super) fn blob_not_modified(digest: &Digest, origin: Origin) -> Response<Body> {
    let mut response = answer(origin);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    insert_digest(headers, digest);
    headers.insert(CACHE_CONTROL, FOREVER);
    response
}

/// 307: the client gets a blob at another address, which no cache may give to others.
pub(super) fn redirect(digest: &Digest, location: HeaderValue) -> Response<Body> {
    let mut response = empty();
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CONTENT_DIGEST, tag_and_digest(digest).1);
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(CONTENT_LENGTH, 0.into());
    headers.insert(CACHE_STATUS, cache_status::REDIRECTED);
    response
}

/// A blob, parts of it, or its head.
pub(super) fn blob(
    digest: &Digest,
    want: ReadMode,
    ranges: Option<&Requested>,
    found: BlobAnswer,
    origin: Origin,
    recovery: Option<Recovery>,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.clone_from(&BLOB_HEAD);
    insert_digest(headers, digest);
    match found.size {
        Some(size) => headers.insert(CONTENT_LENGTH, size.into()),
        None => headers.remove(CONTENT_LENGTH),
    };
    if origin.outcome != Outcome::Hit {
        origin.insert(headers);
    }
    let Some(body) = found.body.filter(|_| want == ReadMode::Content) else {
        return response;
    };
    let verified = body.is_verified();
    let source = Source { body, recovery };
    // Ranges count from the length: where the upstream doesn't tell it, the whole is sent.
    let resolved = found
        .size
        .zip(ranges)
        .map(|(size, ranges)| (ranges.resolve(size), size));
    if !verified && matches!(resolved, Some((Resolved::One(_) | Resolved::Many(_), _))) {
        // Its end isn't withheld until the digest is right: no cache shall keep it.
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    }
    match resolved {
        Some((Resolved::One(range), size)) => one_range(response, source, range, size),
        Some((Resolved::Many(ranges), size)) => {
            many_ranges(response, source, &ranges, size, digest)
        }
        Some((Resolved::Unsatisfiable, size)) => unsatisfiable(Some(size), origin),
        Some((Resolved::Whole, _)) | None => {
            let whole = Part {
                head: Bytes::new(),
                start: 0,
                end: found.size,
            };
            *response.body_mut() = Body::parts(source, vec![whole], Bytes::new(), found.size);
            response
        }
    }
}

fn one_range(
    mut response: Response<Body>,
    source: Source,
    range: ByteRange,
    size: u64,
) -> Response<Body> {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, range.len().into());
    headers.insert(CONTENT_RANGE, ascii(&range.content_range(size)));
    let part = Part {
        head: Bytes::new(),
        start: range.start,
        end: Some(range.end),
    };
    *response.body_mut() = Body::parts(source, vec![part], Bytes::new(), Some(range.len()));
    response
}

/// `multipart/byteranges` (RFC 9110, section 14.6). Its length is known exactly.
fn many_ranges(
    mut response: Response<Body>,
    source: Source,
    ranges: &[ByteRange],
    size: u64,
    digest: &Digest,
) -> Response<Body> {
    // The digest of the content can't be inside the content, so the boundary needs no randomness.
    let boundary = digest.hex();
    let mut length = 0;
    let mut parts = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let mut head = BytesMut::new();
        head.put_slice(if index == 0 { b"--" } else { b"\r\n--" });
        head.put_slice(boundary.as_bytes());
        let fields = format!(
            "\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
            range.content_range(size)
        );
        head.put_slice(fields.as_bytes());
        length += head.len() as u64 + range.len();
        parts.push(Part {
            head: head.freeze(),
            start: range.start,
            end: Some(range.end),
        });
    }
    let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    length += tail.len() as u64;
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(
        CONTENT_TYPE,
        ascii(&format!("multipart/byteranges; boundary={boundary}")),
    );
    *response.body_mut() = Body::parts(source, parts, tail, Some(length));
    response
}

/// 416. Nothing is said of a length that isn't known.
pub(super) fn unsatisfiable(size: Option<u64>, origin: Origin) -> Response<Body> {
    let mut response = refusal(&Refusal::range(size));
    let headers = response.headers_mut();
    origin.insert(headers);
    if let Some(size) = size {
        headers.insert(CONTENT_RANGE, ascii(&format!("bytes */{size}")));
    }
    response
}

/// A header value of our own making: digits, digests and fixed words.
pub(super) fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
