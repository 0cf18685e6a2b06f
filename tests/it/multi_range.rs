//! Far ranges of one client request where ranges pass through: what the upstream is asked for, and
//! what becomes of each kind of response.

use std::ops::Range;

use bytes::Bytes;

use crate::harness::{ALWAYS, Mirror, Registry, Reply, Seen, mirrored_with, put_blob};
use crate::ranges::{parts_at, several};

/// Bytes between two ranges, so many that they aren't fetched together.
const FAR: usize = 70_000;
/// Bytes of a blob that isn't so small that it is verified first.
const SIZE: usize = 31 * FAR;

async fn passing_through() -> (Registry, Mirror) {
    mirrored_with(&["proxy.ranges: passthrough"]).await
}

fn far(count: usize) -> Vec<usize> {
    (0..count).map(|n| 5000 + n * FAR).collect()
}

/// The ranges of a request for several.
fn multi_range(seen: &Seen, total: usize) -> Option<Vec<Range<u64>>> {
    seen.ranges(total).filter(|ranges| ranges.len() > 1)
}

fn multi_range_requests(up: &Registry) -> usize {
    let seen = up.seen("GET ");
    let is_multi = |seen: &&Seen| {
        seen.header("range")
            .is_some_and(|range| range.contains(','))
    };
    seen.iter().filter(is_multi).count()
}

/// An upstream whose response to requests for several ranges is made by `answer`.
async fn answering(
    answer: impl Fn(&Bytes, Vec<Range<u64>>) -> Reply + Send + Sync + 'static,
) -> (Registry, Mirror, Bytes, String) {
    let (up, m) = passing_through().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let content = blob.clone();
    up.on("GET ", ALWAYS, move |seen, usual| {
        match multi_range(seen, content.len()) {
            Some(ranges) => answer(&content, ranges),
            None => usual,
        }
    });
    (up, m, blob, path)
}

#[tokio::test]
async fn a_hundred_and_seventy_far_ranges_are_three_requests() {
    let (up, m) = passing_through().await;
    let (blob, path) = put_blob(&up, 1, 171 * FAR);
    parts_at(&m, &path, &blob, &far(170)).await;
    let seen = up.seen("GET ");
    assert!(seen.len() <= 3, "{} requests", seen.len());
    assert!(m.upstream_bytes() < 200_000, "{}", m.upstream_bytes());
    let length = |seen: &Seen| seen.header("range").map_or(0, str::len);
    assert!(seen.iter().map(length).max().unwrap() < 4200);
    // In another order: stored bytes aren't requested again.
    let (mut backwards, before) = (far(170), seen.len());
    backwards.reverse();
    parts_at(&m, &path, &blob, &backwards).await;
    assert_eq!(up.count("GET "), before);
}

#[tokio::test]
async fn an_upstream_that_sends_the_whole_blob_is_asked_for_single_ranges() {
    let (up, m, blob, path) = answering(|blob, _| Reply::ok(blob)).await;
    parts_at(&m, &path, &blob, &far(30)).await;
    assert_eq!(multi_range_requests(&up), 1);
    assert_eq!(up.count("GET "), 1 + 1 + 30);
    assert!(m.upstream_bytes() < 100_000, "{}", m.upstream_bytes());
    // That is remembered.
    let (other, path) = put_blob(&up, 2, SIZE);
    parts_at(&m, &path, &other, &far(10)).await;
    assert_eq!(multi_range_requests(&up), 1);
}

#[tokio::test]
async fn a_refusal_of_several_ranges_does_not_refuse_the_blob() {
    for status in [400, 403, 416, 431, 500] {
        let (up, m, blob, path) = answering(move |_, _| Reply::error(status)).await;
        parts_at(&m, &path, &blob, &far(8)).await;
        assert_eq!(multi_range_requests(&up), 1, "{status}");
    }
}

#[tokio::test]
async fn fewer_ranges_another_order_and_joined_ranges_are_taken() {
    type Answering = fn(&Bytes, Vec<Range<u64>>) -> Reply;
    let answers: [(&str, Answering, usize); 6] = [
        (
            "only the first",
            |blob, ranges| Reply::range(blob, ranges[0].clone()),
            9,
        ),
        (
            "only the last",
            |blob, ranges| Reply::range(blob, ranges[9].clone()),
            9,
        ),
        (
            "half of them",
            |blob, ranges| Reply::ranges(blob, &ranges[..5]),
            5,
        ),
        (
            "backwards",
            |blob, mut ranges| {
                ranges.reverse();
                Reply::ranges(blob, &ranges)
            },
            0,
        ),
        (
            "joined",
            |blob, ranges| {
                let joined = ranges[0].start..ranges[9].end;
                Reply::ranges(blob, &[joined])
            },
            0,
        ),
        (
            "chunked",
            |blob, ranges| Reply::ranges(blob, &ranges).chunked(),
            0,
        ),
    ];
    for (what, answer, single) in answers {
        let (up, m, blob, path) = answering(answer).await;
        parts_at(&m, &path, &blob, &far(10)).await;
        assert_eq!(up.count("GET "), 2 + single, "{what}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_costs_the_ranges_that_have_not_come() {
    for bytes in [0, 30, 500, 1500, 4000, 9000] {
        let (_up, m, blob, path) =
            answering(move |blob, ranges| Reply::ranges(blob, &ranges).cut(bytes)).await;
        parts_at(&m, &path, &blob, &far(10)).await;
    }
}

#[tokio::test]
async fn a_response_that_lies_ends_like_a_lying_single_range() {
    type Lie = fn(&Bytes, Vec<Range<u64>>) -> Reply;
    let lies: [(&str, Lie); 8] = [
        ("another single range", |blob, ranges| {
            Reply::range(blob, ranges[0].start + 1..ranges[0].end)
        }),
        ("the same part twice", |blob, ranges| {
            Reply::ranges(blob, &[ranges[0].clone(), ranges[0].clone()])
        }),
        ("a part that wasn't requested", |blob, ranges| {
            let other = ranges[0].end + 10..ranges[0].end + 20;
            Reply::ranges(blob, &[other])
        }),
        ("a shorter blob", |blob, ranges| {
            Reply::ranges(&blob[..blob.len() - 1], &ranges)
        }),
        ("no parts", |blob, _| Reply::ranges(blob, &[])),
        ("a longer part", |blob, ranges| {
            let mut reply = Reply::ranges(blob, &ranges);
            let first = Reply::ranges(blob, &ranges[..1]).body.len() - "\r\n--scripted--\r\n".len();
            let body = [&reply.body[..first], b"x", &reply.body[first..]].concat();
            reply.body = body.into();
            reply
        }),
        ("an endless preamble", |_, _| {
            Reply::new(206, vec![b'x'; 1_000_000])
                .with("Content-Type", "multipart/byteranges; boundary=scripted")
        }),
        ("no boundary", |_, _| {
            Reply::new(206, "--x").with("Content-Type", "multipart/byteranges")
        }),
    ];
    for (what, lie) in lies {
        let (_up, m, blob, path) = answering(lie).await;
        let answer = several(&m, &path, &far(10)).await;
        assert!(answer.broken, "{what}: {}", answer.status);
        m.idle().await;
        // The next request asks for single ranges.
        parts_at(&m, &path, &blob, &far(10)).await;
    }
}

#[tokio::test]
async fn a_single_range_that_lies_breaks_the_response_off() {
    let (up, m, blob, path) = answering(|_, _| Reply::error(400)).await;
    up.behave();
    up.on("GET ", ALWAYS, move |seen, usual| {
        match (multi_range(seen, SIZE), seen.header("range")) {
            (Some(_), _) => Reply::error(400),
            (None, Some("bytes=0-0")) => usual,
            (None, _) => Reply::range(&blob, 1..1001),
        }
    });
    let answer = several(&m, &path, &far(2)).await;
    assert!(answer.broken, "{}", answer.status);
}

#[tokio::test]
async fn ranges_come_right_whatever_comes_between() {
    // The blob is wanted whole while several ranges are on their way.
    let (up, m) = passing_through().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let whole = async {
        up.wait(2, "GET ").await;
        m.serves(&path, &blob).await;
    };
    let ranges = far(30);
    tokio::join!(parts_at(&m, &path, &blob, &ranges), whole);
    m.idle().await;
    assert!(m.is_stored(&blob).await);
}
