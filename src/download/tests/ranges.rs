//! Ranges of blobs that aren't there: what is asked of the upstream for them.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_far_range_does_not_wait_for_the_bytes_before_it() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(MIB, gate.clone())]);
    let mut first = bench.join(digest, "a", &origin);
    assert_eq!(
        read_range(&mut first, 0, MIB).await.unwrap(),
        part(&content, 0, MIB)
    );
    let (start, end) = (30 * MIB, 31 * MIB);
    let mut far = bench.join_at(digest, "a", &origin, range(start, end, true));
    let read = read_range(&mut far, start, end).await.unwrap();
    assert_eq!(read, part(&content, start, end));
    assert!(first.read(MIB, None).now_or_never().is_none());
    gate.cancel();
    let whole = read_range(&mut first, 0, 40 * MIB).await.unwrap();
    assert!(whole == content);
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert_eq!(origin.sent(), 40 * MIB, "{:?}", origin.asked());
    assert_eq!(origin.asked().len(), 3, "{:?}", origin.asked());
}

#[tokio::test(start_paused = true)]
async fn a_blob_has_no_more_streams_than_it_may_and_who_waits_is_served_in_turn() {
    let mut few = settings();
    few.segments.per_blob = 2;
    few.segments.count = 1;
    let bench = Bench::with(few);
    let (content, digest) = mebibytes(100);
    let (one, two) = (CancellationToken::new(), CancellationToken::new());
    let gates = [Act::Gate(MIB, one.clone()), Act::Gate(MIB, two.clone())];
    let origin = Origin::new(&content).acts(gates);
    let mut first = bench.join(digest, "a", &origin);
    read_range(&mut first, 0, MIB).await.unwrap();
    let far = |start: u64| {
        let mut far = bench.join_at(digest, "a", &origin, range(start, start + 9 * MIB, true));
        async move { read_range(&mut far, start, start + 9 * MIB).await.unwrap() }
    };
    let mut second = Box::pin(far(30 * MIB));
    let mut third = Box::pin(far(60 * MIB));
    let all = async { tokio::join!(&mut second, &mut third) };
    let mut all = Box::pin(all);
    let waited = tokio::time::timeout(Duration::from_secs(20), &mut all).await;
    assert!(waited.is_err());
    assert_eq!(origin.asked().len(), 2, "{:?}", origin.asked());
    two.cancel();
    let (second, third) = all.await;
    assert!(second == part(&content, 30 * MIB, 39 * MIB));
    assert!(third == part(&content, 60 * MIB, 69 * MIB));
    one.cancel();
    assert!(read_to_end(&mut first).await.unwrap() == content);
    assert_eq!((origin.most(), origin.sent()), (2, 100 * MIB));
}

#[tokio::test(start_paused = true)]
async fn a_range_behind_the_end_is_told_the_length() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(3);
        let origin = Origin::new(&content).acts([]);
        let behind = range(5 * MIB, 6 * MIB, fill);
        let mut follower = bench.join_at(digest, "a", &origin, behind);
        assert_eq!(follower.total().await.unwrap(), Some(3 * MIB));
        drop(follower);
        bench.settled().await;
        assert_eq!(origin.sent(), if fill { 3 * MIB } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_reaches_behind_an_end_that_was_not_told_ends_there() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(3);
        let origin = Origin::new(&content).without_length().acts([]);
        let beyond = range(2 * MIB, 5 * MIB, fill);
        let mut follower = bench.join_at(digest, "a", &origin, beyond);
        let mut read = Vec::new();
        let mut at = 2 * MIB;
        while let Some(piece) = follower.read(at, Some(5 * MIB)).await.unwrap() {
            at += piece.len() as u64;
            read.extend_from_slice(&piece);
        }
        assert!(read == part(&content, 2 * MIB, 3 * MIB));
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_asked_for_is_fetched_until_that_is_enough() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let origin = Origin::new(&content).acts([]);
    let (start, end) = (20 * MIB, 21 * MIB);
    let mut keeps = bench.join_at(digest, "a", &origin, range(start, end, false));
    for _ in 0..2 {
        let mut again = bench.join_at(digest, "a", &origin, range(start, end, false));
        let read = read_range(&mut again, start, end).await.unwrap();
        assert_eq!(read, part(&content, start, end));
        assert_eq!(origin.asked(), [(start, Some(end))]);
    }
    // Another one, that overlaps.
    let read = read_range(&mut keeps, start - MIB, end + MIB)
        .await
        .unwrap();
    assert_eq!(read, part(&content, start - MIB, end + MIB));
    assert_eq!(origin.sent(), 3 * MIB);
    // 17 MiB more are half of it.
    read_range(&mut keeps, 0, 17 * MIB).await.unwrap();
    drop(keeps);
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert_eq!(origin.sent(), 40 * MIB);
}

#[tokio::test(start_paused = true)]
async fn somebody_who_wants_all_of_it_gets_all_of_it() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let origin = Origin::new(&content).acts([]);
    let mut lazy = bench.join_at(digest, "a", &origin, range(MIB, 2 * MIB, false));
    read_range(&mut lazy, MIB, 2 * MIB).await.unwrap();
    let mut whole = bench.join(digest, "a", &origin);
    assert!(read_to_end(&mut whole).await.unwrap() == content);
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert_eq!(origin.sent(), 40 * MIB);
}

/// Whoever reads all of a blob gets its end when the digest is right: then all of it has to come,
/// although nobody asks for what is missing of the end.
#[tokio::test(start_paused = true)]
async fn all_of_a_blob_as_a_range() {
    for (size, enough) in [(10, 50), (20_000, 50), (20_000, 100), (3_000_000, 100)] {
        let mut late = settings();
        late.fill_after = enough;
        let bench = Bench::with(late);
        let (content, digest) = content(size);
        let origin = Origin::new(&content).acts([]);
        let size = size as u64;
        // A part near the end that is there already.
        let (start, end) = (size - size.min(8_000) * 3 / 4, size - size.min(8_000) / 4);
        let mut lazy = bench.join_at(digest, "a", &origin, range(start, end, false));
        read_range(&mut lazy, start, end).await.unwrap();
        let mut all = bench.join_at(digest, "a", &origin, range(0, size, false));
        let read = read_range(&mut all, 0, size);
        let read = tokio::time::timeout(Duration::from_mins(1), read).await;
        assert!(read.expect("it hangs").unwrap() == content, "{size}");
        assert_eq!(origin.sent(), size);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_without_ranges_is_read_whole_for_a_range() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(10);
        let origin = Origin::new(&content).without_ranges().acts([]);
        let wanted = range(5 * MIB, 6 * MIB, fill);
        let mut follower = bench.join_at(digest, "a", &origin, wanted);
        let read = read_range(&mut follower, 5 * MIB, 6 * MIB).await.unwrap();
        assert_eq!(read, part(&content, 5 * MIB, 6 * MIB));
        drop(follower);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
        assert_eq!((origin.sent(), origin.asked().len()), (10 * MIB, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_blob_whose_length_is_not_told() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(4);
        let (first, part_of) = streams(3 * MIB, None);
        let (second, rest) = streams(0, None);
        let source = Script::new([part_of, rest]);
        let wanted = range(3 * MIB, 3 * MIB + 1000, fill);
        let mut follower = bench.join_at(digest, "a", &source, wanted);
        let end = if fill { 4 * MIB } else { 3 * MIB + 1000 };
        send_all(&first, &part(&content, 3 * MIB, end), 1000).await;
        drop(first);
        let read = read_range(&mut follower, 3 * MIB, 3 * MIB + 1000)
            .await
            .unwrap();
        assert_eq!(read, part(&content, 3 * MIB, 3 * MIB + 1000));
        let feed = async {
            send_all(&second, &content, 100_000).await;
            drop(second);
        };
        let (read, ()) = tokio::join!(read_to_end(&mut follower), feed);
        assert!(read.unwrap() == content);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_was_refused_once_is_asked_for_again() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(8);
    let source = Origin::new(&content).acts([Act::Fails(|| unexpected(416))]);
    let mut follower = bench.join_at(digest, "a", &source, range(5 * MIB, 6 * MIB, false));
    assert_eq!(follower.total().await.unwrap(), Some(8 * MIB));
    let read = read_range(&mut follower, 5 * MIB, 6 * MIB);
    let read = tokio::time::timeout(Duration::from_mins(10), read).await;
    assert_eq!(read.unwrap().unwrap(), part(&content, 5 * MIB, 6 * MIB));
    assert_eq!(
        source.asked()[..2],
        [(5 * MIB, Some(6 * MIB)), (0, Some(1))]
    );
}
