//! Parts of blobs, warm and cold.

use bytes::Bytes;

use crate::harness::{
    ALWAYS, Answer, Gate, Mirror, Registry, Reply, digest, eventually, mirrored, mirrored_with,
    put_blob, put_image,
};

const SIZE: usize = 500_000;

async fn ask(m: &Mirror, path: &str, headers: &[(&str, &str)]) -> Answer {
    m.ask(&format!("GET {path}"), headers).await
}

/// A mirror that has a blob, and its path.
async fn warm() -> (Registry, Mirror, Bytes, String) {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    m.pull(&path, &blob).await;
    up.take();
    (up, m, blob, path)
}

#[tokio::test]
async fn one_range_of_a_stored_blob_and_of_one_that_is_not() {
    let (up, m, stored, stored_path) = warm().await;
    for (seed, (range, start, end)) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=200000-299999", 200_000, 300_000),
        ("bytes=499999-", SIZE - 1, SIZE),
        ("bytes=400000-99999999", 400_000, SIZE),
        ("bytes=-1000", SIZE - 1000, SIZE),
        ("bytes=-99999999", 0, SIZE),
    ]
    .into_iter()
    .enumerate()
    {
        let (cold, path) = put_blob(&up, 100 + seed as u64, SIZE);
        for (path, blob) in [(&stored_path, &stored), (&path, &cold)] {
            let answer = m.range(path, range).await;
            answer.expect(206, &blob[start..end]);
            let placed = format!("bytes {start}-{}/{SIZE}", end - 1);
            assert_eq!(answer.header("content-range"), placed);
            answer.has("content-length", end - start);
        }
        m.idle().await;
        assert_eq!(up.take(), [format!("GET {path}")]);
        assert!(m.is_stored(&cold).await);
    }
    assert_eq!(m.upstream_bytes(), 8 * SIZE as u64, "each byte once");
}

#[tokio::test]
async fn conditions() {
    let (up, m, blob, path) = warm().await;
    let digest = digest(&blob);
    let (quoted, weak) = (format!("\"{digest}\""), format!("W/\"{digest}\""));
    let (range, date) = (("range", "bytes=10-19"), "Wed, 21 Oct 2015 07:28:00 GMT");
    for (headers, status, expected) in [
        (vec![("if-none-match", &*quoted)], 304, &b""[..]),
        (vec![("if-none-match", "\"other\"")], 200, &blob),
        (vec![range, ("if-range", &quoted)], 206, &blob[10..20]),
        (vec![range, ("if-range", &weak)], 200, &blob),
        (vec![range, ("if-range", "\"other\"")], 200, &blob),
        (vec![range, ("if-range", date)], 200, &blob),
        (vec![range, ("if-match", &quoted)], 206, &blob[10..20]),
        (vec![("if-match", "*")], 200, &blob),
        (vec![("range", "bytes=a-1")], 200, &blob),
        (vec![("range", "bytes")], 200, &blob),
        (vec![("range", "lines=1-2")], 200, &blob),
        (vec![range, range], 200, &blob),
    ] {
        ask(&m, &path, &headers).await.expect(status, expected);
    }
    for header in ["\"other\"", &weak] {
        let answer = ask(&m, &path, &[range, ("if-match", header)]).await;
        answer.refused(412, "UNSUPPORTED");
        assert_eq!(answer.header("etag"), quoted);
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn if_match_holds_for_manifests_too() {
    let (up, m) = mirrored().await;
    let (image, _) = put_image(&up, 1);
    let path = "GET /v2/app/manifests/1";
    let etag = m.ask(path, &[]).await.header("etag").to_owned();
    m.ask(path, &[("if-match", &etag)])
        .await
        .expect(200, &image.manifest);
    for line in [path, "HEAD /v2/app/manifests/1"] {
        let answer = m.ask(line, &[("if-match", "\"sha256:0\"")]).await;
        assert_eq!(
            (answer.status, answer.header("etag")),
            (412, &*etag),
            "{line}"
        );
    }
}

#[tokio::test]
async fn requests_without_a_body_do_not_fetch_the_blob() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, SIZE);
    for (header, status) in [
        (("range", "bytes=500-0"), 416),
        (("if-match", "\"other\""), 412),
        (("if-none-match", "*"), 304),
    ] {
        let answer = ask(&m, &path, &[header]).await;
        assert_eq!(answer.status, status, "{header:?}");
    }
    m.idle().await;
    let head = format!("HEAD {path}");
    assert!(up.take().iter().all(|line| *line == head));
}

#[tokio::test]
async fn no_byte_of_the_blob_is_416() {
    let (_up, m, _, path) = warm().await;
    for range in [
        "bytes=500000-",
        "bytes=-0",
        "bytes=600000-700000,800000-",
        "bytes=500-0",
    ] {
        let answer = m.range(&path, range).await;
        answer.refused(416, "SIZE_INVALID");
        assert_eq!(answer.header("content-range"), format!("bytes */{SIZE}"));
    }
}

/// Takes a `multipart/byteranges` body apart: start, total and content of each part.
fn parts(answer: &Answer) -> Vec<(usize, usize, Vec<u8>)> {
    let kind = answer.header("content-type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    answer.has("content-length", answer.body.len());
    let mut rest = &answer.body[..];
    let mut parts = Vec::new();
    let mut delimiter = format!("--{boundary}");
    loop {
        rest = rest.strip_prefix(delimiter.as_bytes()).unwrap();
        if rest == b"--\r\n" {
            return parts;
        }
        let head_end = rest
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = std::str::from_utf8(&rest[..head_end]).unwrap();
        assert!(head.contains("\r\nContent-Type: application/octet-stream"));
        let (_, placed) = head.split_once("\r\nContent-Range: bytes ").unwrap();
        let (span, total) = placed.split_once('/').unwrap();
        let (first, last) = span.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let content = &rest[head_end + 4..][..=last - first];
        parts.push((first, total.parse().unwrap(), content.to_vec()));
        rest = &rest[head_end + 4 + content.len()..];
        delimiter = format!("\r\n--{boundary}");
    }
}

#[tokio::test]
async fn seventy_ranges_warm_and_cold() {
    let (up, m, stored, stored_path) = warm().await;
    let (cold, cold_path) = put_blob(&up, 2, SIZE);
    let starts: Vec<usize> = (0..70).rev().map(|n| n * 7000 + n).collect();
    parts_at(&m, &stored_path, &stored, &starts).await;
    parts_at(&m, &cold_path, &cold, &starts).await;
    m.idle().await;
    assert_eq!(up.count(""), 1);
}

#[tokio::test]
async fn a_flood_of_overlapping_ranges_gets_the_whole_once() {
    let (_up, m, blob, path) = warm().await;
    for range in [
        format!("bytes={}", ["0-"; 200].join(",")),
        "bytes=0-300000,200000-".to_owned(),
        format!("bytes={}", ["0-0"; 300].join(",")),
    ] {
        m.range(&path, &range).await.expect(200, &blob);
    }
}

#[tokio::test]
async fn ranges_that_clients_reset_do_no_harm() {
    let (up, m, _, _) = warm().await;
    let (blob, path) = put_blob(&up, 3, 8_000_000);
    for start in [0, 2_000_000, 4_000_000, 6_000_000] {
        let range = format!("bytes={start}-");
        let line = format!("GET {path}");
        let mut response = m.request(&line, &[("range", &range)]).send().await.unwrap();
        let first = response.chunk().await.unwrap().unwrap();
        assert!(blob[start..].starts_with(&first));
    }
    m.serves(&path, &blob).await;
    assert_eq!(up.take().len(), 1);
}

/// Asks for 1000 bytes at each of these places.
pub(crate) async fn several(m: &Mirror, path: &str, starts: &[usize]) -> Answer {
    let specs = starts.iter().map(|at| format!("{at}-{}", at + 999));
    let range = format!("bytes={}", specs.collect::<Vec<_>>().join(","));
    m.range(path, &range).await
}

/// Asks for them and compares them.
pub(crate) async fn parts_at(m: &Mirror, path: &str, blob: &[u8], starts: &[usize]) {
    let answer = several(m, path, starts).await;
    assert_eq!((answer.status, answer.broken), (206, false));
    let expected = starts
        .iter()
        .map(|&at| (at, blob.len(), blob[at..at + 1000].to_vec()));
    assert!(parts(&answer) == expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn many_ranges_that_pass_through_are_fetched_side_by_side() {
    let (up, m) = mirrored_with(&["proxy.ranges: passthrough"]).await;
    let (blob, path) = put_blob(&up, 1, 4_000_000);
    let gate = Gate::default();
    let (closed, whole) = (gate.clone(), blob.clone());
    up.on("GET ", ALWAYS, move |seen, usual| {
        match seen.header("range") {
            // The first request asks for the length.
            Some("bytes=0-0") => usual,
            // The second one finds that the upstream serves single ranges only.
            Some(several) if several.contains(',') => Reply::new(200, whole.clone()),
            _ => usual.held(&closed),
        }
    });
    let starts: Vec<usize> = (0..30).map(|n| 50_000 + n * 100_000).collect();
    let side_by_side = async {
        eventually("sixteen requests", || up.count("GET ") == 18).await;
        gate.open();
    };
    tokio::join!(parts_at(&m, &path, &blob, &starts), side_by_side);
    assert_eq!(up.count("GET "), 32);
    assert!(m.upstream_bytes() < 50_000, "{}", m.upstream_bytes());
}

/// podman's partial pulls send so many.
#[tokio::test]
async fn a_hundred_and_seventy_ranges_close_together_are_few_requests() {
    let (up, m) = mirrored_with(&["proxy.ranges: passthrough"]).await;
    let (blob, path) = put_blob(&up, 1, 4_000_000);
    let far = (0..2).flat_map(|group| (0..84).map(move |n| group * 2_000_000 + n * 5_000));
    let starts: Vec<usize> = far.collect();
    parts_at(&m, &path, &blob, &starts).await;
    let seen = up.seen("GET ");
    assert!(seen.len() <= 4, "{seen:?}");
    assert!(m.upstream_bytes() < 900_000, "{}", m.upstream_bytes());
}
