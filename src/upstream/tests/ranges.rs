use super::*;
use crate::oci::ByteRange;

const BLOB: &[u8] = b"0123456789";
const RANGES: [ByteRange; 2] = [
    ByteRange { start: 1, end: 3 },
    ByteRange { start: 7, end: 8 },
];
const PARTS: &str = "--x\r\nContent-Range: bytes 1-2/10\r\n\r\n12\r\n\
    --x\r\nContent-Range: bytes 7-7/10\r\n\r\n7\r\n--x--\r\n";

async fn get(upstream: &Upstream) -> Result<Option<BlobRanges>, UpstreamError> {
    let digest = digest_of(BLOB);
    upstream
        .get_blob_ranges(&repo(), &digest, &RANGES, 10, &Arc::default())
        .await
}

fn multipart(body: impl AsRef<[u8]>) -> Reply {
    Reply::new(206, body).with("Content-Type", "multipart/byteranges; boundary=x")
}

#[tokio::test]
async fn several_ranges_are_one_request() {
    let server = replying(multipart(PARTS)).await;
    let upstream = client(&server);
    let (came, end) = read(get(&upstream).await.unwrap().unwrap()).await;
    end.unwrap();
    let joined: Vec<_> = came.iter().map(|(at, piece)| (*at, &piece[..])).collect();
    assert_eq!(joined, [(1, &b"12"[..]), (7, b"7")]);
    assert_eq!(server.seen("")[0].header("range"), Some("bytes=1-2,7-7"));
    assert!(upstream.supports_multi_range());
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_for_several_ranges_is_remembered_for_a_while() {
    let _frozen = freeze();
    let partial = |range| Reply::new(206, BLOB).with("Content-Range", range);
    for reply in [
        Reply::ok(BLOB),
        partial("bytes 0-9/10"),
        Reply::new(400, ""),
        Reply::new(416, ""),
        Reply::new(500, ""),
    ] {
        let server = replying(reply).await;
        let upstream = client(&server);
        assert!(get(&upstream).await.unwrap().is_none());
        assert!(!upstream.supports_multi_range());
        tokio::time::advance(Duration::from_mins(14)).await;
        assert!(!upstream.supports_multi_range());
        tokio::time::advance(Duration::from_mins(2)).await;
        assert!(upstream.supports_multi_range());
    }
}

#[tokio::test]
async fn errors_that_single_ranges_would_have_too_stay_errors() {
    for (status, class) in [(404, "not_found"), (429, "rate_limited")] {
        let server = replying(Reply::new(status, "")).await;
        let upstream = client(&server);
        let error = get(&upstream).await.err().unwrap();
        assert_eq!(error.class(), class);
        assert!(upstream.supports_multi_range());
    }
}

#[tokio::test]
async fn a_malformed_response_is_an_error_and_remembered() {
    let unbounded = Reply::new(206, "12").with("Content-Type", "multipart/byteranges");
    for (reply, pieces_before) in [
        (multipart(PARTS.replace("7-7", "6-6")), 1),
        (multipart(PARTS.replace("--x--", "--y--")), 2),
        (multipart(PARTS.replace("--x--\r\n", "")), 2),
        (multipart("x".repeat(100_000)), 0),
        (Reply::new(206, BLOB), 0),
        (unbounded, 0),
    ] {
        let server = replying(reply).await;
        let upstream = client(&server);
        let (came, error) = match get(&upstream).await {
            Ok(ranges) => read(ranges.unwrap()).await,
            Err(error) => (Vec::new(), Err(error)),
        };
        let error = error.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
        assert_eq!(came.len(), pieces_before, "{error}");
        assert!(!upstream.supports_multi_range());
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_stalls_times_out() {
    let _frozen = freeze();
    for sent in [0, 10, 60, PARTS.len() - 1] {
        let reply = Reply::new(206, &PARTS.as_bytes()[..sent]).announcing(PARTS.len() + 10);
        let reply = reply.with("Content-Type", "multipart/byteranges; boundary=x");
        let server = replying(reply.then_stall()).await;
        let upstream = client(&server);
        let ranges = passing(get(&upstream)).await.unwrap().unwrap();
        let (_, end) = passing(read(ranges)).await;
        time::assert_timeout(&end.unwrap_err(), Phase::Stall);
    }
}
