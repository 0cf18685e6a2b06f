use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const BOUNDARY: &str = "THIS_STRING'SEPARATES";

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange { start, end }
}

/// The byte of the blob at an offset.
fn byte(at: u64) -> u8 {
    u8::try_from(at % 251).unwrap()
}

fn content(range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(byte).collect()
}

fn part(range: ByteRange, total: u64) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
        range.content_range(total)
    );
    [head.as_bytes(), &content(range), b"\r\n"].concat()
}

fn body(parts: &[ByteRange], total: u64) -> Vec<u8> {
    let mut body: Vec<u8> = parts.iter().flat_map(|range| part(*range, total)).collect();
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    body
}

/// Parses a body that comes in pieces which end at these places.
fn parse(
    mut parser: Parser,
    body: &[u8],
    cuts: &[usize],
) -> (Vec<(u64, Bytes)>, Result<bool, MultipartError>) {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
    cuts.push(body.len());
    cuts.sort_unstable();
    let (mut pieces, mut from) = (Vec::new(), 0);
    for cut in cuts {
        parser.push(Bytes::copy_from_slice(&body[from..cut]));
        from = cut;
        loop {
            match parser.next() {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(error) => return (pieces, Err(error)),
            }
        }
    }
    let finished = parser.finish();
    (pieces, finished.map(|()| parser.is_complete()))
}

fn parse_whole(
    body: impl AsRef<[u8]>,
    ranges: &[ByteRange],
) -> (Vec<(u64, Bytes)>, Result<bool, MultipartError>) {
    let parser = Parser::new(BOUNDARY.as_bytes(), ranges, 1000);
    parse(parser, body.as_ref(), &[])
}

/// The bytes of each offset; panics when one came twice or isn't the blob's.
fn bytes_of(pieces: &[(u64, Bytes)]) -> Vec<u64> {
    let mut came = Vec::new();
    for (offset, piece) in pieces {
        for (at, byte_of) in (*offset..).zip(piece) {
            assert_eq!(*byte_of, byte(at), "at {at}");
            came.push(at);
        }
    }
    came
}

#[test]
fn bodies_as_servers_send_them_are_parsed() {
    let ranges = [range(10, 14), range(500, 502)];
    let head = |n: usize| format!("Content-Range: {}", ranges[n].content_range(1000));
    let (one, two) = (content(ranges[0]), content(ranges[1]));
    let text = |parts: &[&[u8]]| parts.concat();
    let go = text(&[
        format!("--{BOUNDARY}\r\n{}\r\nContent-Type: x/y\r\n\r\n", head(0)).as_bytes(),
        &one,
        format!("\r\n--{BOUNDARY}\r\n{}\r\n\r\n", head(1)).as_bytes(),
        &two,
        format!("\r\n--{BOUNDARY}--\r\n").as_bytes(),
    ]);
    // nginx and Apache begin with a line break.
    let nginx = text(&[b"\r\n", &go]);
    // A preamble, blanks behind the boundary, another case, no line break at the end, no total.
    let odd = text(&[
        format!("Preamble\n--{BOUNDARY} \t\r\nCONTENT-RANGE:bytes 10-13/*\r\n\r\n").as_bytes(),
        &one,
        format!("\r\n--{BOUNDARY}\r\nX:\r\n{}\r\n\r\n", head(1)).as_bytes(),
        &two,
        format!("\r\n--{BOUNDARY}--").as_bytes(),
    ]);
    let epilogue = text(&[&go, b"epilogue, ignored"]);
    for body in [go, nginx, odd, epilogue] {
        let (pieces, end) = parse_whole(&body, &ranges);
        assert_eq!(end, Ok(true), "{}", String::from_utf8_lossy(&body));
        assert_eq!(bytes_of(&pieces), [10, 11, 12, 13, 500, 501]);
    }
}

#[test]
fn parts_may_be_reordered_joined_or_missing() {
    let ranges = [range(0, 2), range(10, 12), range(20, 22)];
    for (parts, came, complete) in [
        (vec![ranges[2], ranges[0], ranges[1]], 6, true),
        (vec![ranges[1]], 2, false),
        // The bytes between them were not requested.
        (vec![range(0, 22)], 6, true),
        (vec![ranges[0], range(10, 22)], 6, true),
    ] {
        let (pieces, end) = parse_whole(body(&parts, 1000), &ranges);
        assert_eq!(
            (bytes_of(&pieces).len(), end),
            (came, Ok(complete)),
            "{parts:?}"
        );
        let requested = |at: &u64| ranges.iter().any(|r| (r.start..r.end).contains(at));
        assert!(bytes_of(&pieces).iter().all(requested), "{parts:?}");
    }
}

#[test]
fn a_response_that_contradicts_the_request_is_refused() {
    let ranges = [range(0, 2), range(10, 12), range(20, 22)];
    for parts in [
        vec![ranges[0], ranges[0]],
        vec![ranges[1], range(0, 22)],
        vec![range(1, 2)],
        vec![range(10, 13)],
        vec![range(10, 11)],
        vec![range(5, 7)],
        vec![range(30, 32)],
    ] {
        let (_, end) = parse_whole(body(&parts, 1000), &ranges);
        assert_eq!(end, Err(MultipartError::Range), "{parts:?}");
    }
    // Another length of the blob.
    let (pieces, end) = parse_whole(body(&ranges, 999), &ranges);
    assert_eq!((pieces.len(), end), (0, Err(MultipartError::Range)));
    // Too many bytes that were not requested.
    let far = [range(0, 2), range(3 * MAX_GAPS, 3 * MAX_GAPS + 2)];
    let parser = Parser::new(BOUNDARY.as_bytes(), &far, 10 * MAX_GAPS);
    let head = part(range(0, far[1].end), 10 * MAX_GAPS);
    let (pieces, end) = parse(parser, &head[..200], &[]);
    assert_eq!((pieces.len(), end), (0, Err(MultipartError::Range)));
}

#[test]
fn malformed_bodies_are_refused() {
    use MultipartError as E;
    let ranges = [range(0, 2), range(10, 12)];
    let good = String::from_utf8(body(&ranges, 1000)).unwrap();
    let closing = format!("--{BOUNDARY}--\r\n");
    for (body, expected) in [
        (String::new(), E::Unterminated),
        ("x".repeat(MAX_TEXT + 1), E::Preamble),
        ("x\r\n".repeat(MAX_TEXT), E::Preamble),
        (closing.clone(), E::Empty),
        (good.replace(&closing, ""), E::Unterminated),
        (good.replace("--\r\n", ""), E::Unterminated),
        (good.replace("--\r\n", "-"), E::Delimiter),
        (good.replace(&closing, "--other--\r\n"), E::Delimiter),
        // More content than the part says, and less.
        (
            good.replacen("\u{0}\u{1}", "\u{0}\u{1}\u{2}", 1),
            E::Delimiter,
        ),
        (good.replacen("\u{0}\u{1}", "\u{0}", 1), E::Delimiter),
        (good.replace("Content-Range: ", "X-Range: "), E::Head),
        (good.replace("Content-Range: ", "Content-Range "), E::Head),
        (good.replace("Content-Range: ", " Content-Range: "), E::Head),
        (good.replace("Content-Type: ", "X\r\n Y: "), E::Head),
        (good.replace("octet-stream\r\n", "octet-stream\n"), E::Head),
        (good.replace("octet-stream", &"x".repeat(MAX_TEXT)), E::Head),
    ] {
        let (_, end) = parse_whole(&body, &ranges);
        assert_eq!(end, Err(expected), "{body:.300}");
    }
    for (from, to) in [
        ("bytes 10-11/1000", "bytes 10-11/"),
        ("bytes 10-11/1000", "bytes */1000"),
        (
            "bytes 10-11/1000",
            "bytes 10-11/1000\r\nContent-Range: bytes 10-11/1000",
        ),
    ] {
        let (_, end) = parse_whole(good.replace(from, to), &ranges);
        assert_eq!(end, Err(MultipartError::Range), "{to}");
    }
}

#[test]
fn only_valid_boundaries_are_read() {
    let (long, longer) = ("x".repeat(70), "x".repeat(71));
    for (value, expected) in [
        ("a", Some("a")),
        ("\"a b:c\"", Some("a b:c")),
        (&long, Some(&*long)),
        (&longer, None),
        ("", None),
        ("\"a \"", None),
        ("a\"b", None),
        ("ä", None),
    ] {
        let expected = Some(expected.ok_or(MultipartError::Boundary));
        for before in [
            "multipart/byteranges; boundary=",
            "Multipart/ByteRanges ;x=y; BOUNDARY=",
        ] {
            let header = format!("{before}{value}");
            assert_eq!(boundary(&header), expected, "{header}");
        }
    }
    let missing = boundary("multipart/byteranges");
    assert_eq!(missing, Some(Err(MultipartError::Boundary)));
    for other in ["multipart/mixed; boundary=a", "application/octet-stream"] {
        assert_eq!(boundary(other), None, "{other}");
    }
}

#[test]
fn a_single_range_has_to_be_a_requested_one() {
    let ranges = [range(0, 2), range(10, 12)];
    let placed = |first, last, total| ContentRange { first, last, total };
    for (place, fits) in [
        (placed(0, 1, Some(1000)), true),
        (placed(10, 11, None), true),
        (placed(0, 11, Some(1000)), true),
        (placed(0, 1, Some(999)), false),
        (placed(0, 0, Some(1000)), false),
        (placed(0, 999, Some(1000)), false),
    ] {
        let parser = Parser::single(place, &ranges, 1000);
        assert_eq!(parser.is_some(), fits, "{place:?}");
        let Some(parser) = parser else { continue };
        let sent = content(range(place.first, place.last + 1));
        let (pieces, end) = parse(parser, &sent, &[1]);
        assert_eq!(end, Ok(place.len() > 2));
        assert_eq!(bytes_of(&pieces).first(), Some(&place.first));
    }
}

/// Ranges with gaps between them, in ascending order.
fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
    proptest::collection::vec((1..50_u64, 1..50_u64), 1..8).prop_map(|steps| {
        let mut at = 0;
        let next = |(gap, length): (u64, u64)| {
            let start = at + gap;
            at = start + length;
            range(start, at)
        };
        steps.into_iter().map(next).collect()
    })
}

#[derive(Debug, Clone)]
enum Mutation {
    /// So many bytes from here on become others.
    Replace(usize, usize, Vec<u8>),
    /// So many bytes from here on come twice.
    Repeat(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        (any::<usize>(), 0..40_usize, bytes)
            .prop_map(|(at, length, bytes)| Mutation::Replace(at, length, bytes)),
        (any::<usize>(), 1..200_usize).prop_map(|(at, length)| Mutation::Repeat(at, length)),
    ]
}

fn mutate(body: &mut Vec<u8>, mutation: Mutation) {
    let size = body.len();
    let span = |at: usize, length: usize| {
        let start = at % (size + 1);
        start..size.min(start + length)
    };
    let (replaced, bytes) = match mutation {
        Mutation::Replace(at, length, bytes) => (span(at, length), bytes),
        Mutation::Repeat(at, length) => (span(at, 0), body[span(at, length)].to_vec()),
    };
    drop(body.splice(replaced, bytes));
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_bytes(
        ranges in ranges(),
        order in any::<u64>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..30),
    ) {
        let total = ranges.last().unwrap().end + 7;
        let mut parts = ranges.clone();
        fastrand::Rng::with_seed(order).shuffle(&mut parts);
        let parser = Parser::new(BOUNDARY.as_bytes(), &ranges, total);
        let (pieces, end) = parse(parser, &body(&parts, total), &cuts);
        prop_assert_eq!(end, Ok(true));
        let expected: Vec<u64> = parts.iter().flat_map(|part| part.start..part.end).collect();
        prop_assert_eq!(bytes_of(&pieces), expected);
    }

    #[test]
    fn no_body_yields_anything_but_requested_bytes_once(
        ranges in ranges(),
        mutations in proptest::collection::vec(mutation(), 1..5),
        cuts in proptest::collection::vec(any::<usize>(), 0..30),
    ) {
        let total = ranges.last().unwrap().end + 7;
        let mut body = body(&ranges, total);
        for mutation in mutations {
            mutate(&mut body, mutation);
        }
        let parser = Parser::new(BOUNDARY.as_bytes(), &ranges, total);
        let (pieces, _) = parse(parser, &body, &cuts);
        let mut came = vec![false; usize::try_from(total).unwrap()];
        for (offset, piece) in pieces {
            prop_assert!(!piece.is_empty());
            let end = offset + piece.len() as u64;
            let within = |range: &ByteRange| range.start <= offset && end <= range.end;
            prop_assert!(ranges.iter().any(within), "{}..{}", offset, end);
            for at in offset..end {
                let first = !std::mem::replace(&mut came[usize::try_from(at).unwrap()], true);
                prop_assert!(first, "{} came twice", at);
            }
        }
    }
}
