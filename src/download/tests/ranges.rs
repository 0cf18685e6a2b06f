//! Ranges of blobs that aren't stored: which requests they cause.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_far_range_does_not_wait_for_the_bytes_before_it() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(MIB, gate.clone())]);
    let mut first = bench.join(digest, "a", &origin);
    reads(&mut first, &content, 0, MIB).await;
    let (start, end) = (30 * MIB, 31 * MIB);
    let mut far = bench.join_at(digest, "a", &origin, range(start, end, true));
    reads(&mut far, &content, start, end).await;
    assert!(first.read(MIB, None).now_or_never().is_none());
    gate.cancel();
    reads(&mut first, &content, 0, 40 * MIB).await;
    bench.stores(&digest, &content).await;
    assert_eq!(origin.sent(), 40 * MIB, "{:?}", origin.asked());
    assert_eq!(origin.asked().len(), 3, "{:?}", origin.asked());
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_blob_are_bounded_and_waiting_clients_are_served_in_turn() {
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
async fn a_range_behind_the_end_learns_the_length() {
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
async fn a_range_beyond_an_unknown_end_ends_there() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(3);
        let origin = Origin::new(&content).without_length().acts([]);
        let beyond = range(2 * MIB, 5 * MIB, fill);
        let mut follower = bench.join_at(digest, "a", &origin, beyond);
        let read = read_from(&mut follower, 2 * MIB, Some(5 * MIB))
            .await
            .unwrap();
        assert!(read == part(&content, 2 * MIB, 3 * MIB));
    }
}

#[tokio::test(start_paused = true)]
async fn only_requested_ranges_are_fetched_until_they_are_enough() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let origin = Origin::new(&content).acts([]);
    let (start, end) = (20 * MIB, 21 * MIB);
    let mut keeps = bench.join_at(digest, "a", &origin, range(start, end, false));
    for _ in 0..2 {
        let mut again = bench.join_at(digest, "a", &origin, range(start, end, false));
        reads(&mut again, &content, start, end).await;
        assert_eq!(origin.asked(), [(start, Some(end))]);
    }
    // Another one, that overlaps.
    reads(&mut keeps, &content, start - MIB, end + MIB).await;
    assert_eq!(origin.sent(), 3 * MIB);
    // 17 MiB more are half of it.
    read_range(&mut keeps, 0, 17 * MIB).await.unwrap();
    drop(keeps);
    bench.stores(&digest, &content).await;
    assert_eq!(origin.sent(), 40 * MIB);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_the_whole_blob_turns_ranges_into_a_full_download() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let origin = Origin::new(&content).acts([]);
    let mut lazy = bench.join_at(digest, "a", &origin, range(MIB, 2 * MIB, false));
    read_range(&mut lazy, MIB, 2 * MIB).await.unwrap();
    let mut whole = bench.join(digest, "a", &origin);
    assert!(read_to_end(&mut whole).await.unwrap() == content);
    bench.stores(&digest, &content).await;
    assert_eq!(origin.sent(), 40 * MIB);
}

/// A client that reads all of a blob gets its end once the digest is verified: all of it has to be
/// downloaded, although no client requests the bytes that are missing at the end.
#[tokio::test(start_paused = true)]
async fn a_range_of_the_whole_blob_reaches_its_end() {
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
        bench.stores(&digest, &content).await;
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
        reads(&mut follower, &content, 5 * MIB, 6 * MIB).await;
        drop(follower);
        bench.stores(&digest, &content).await;
        assert_eq!((origin.sent(), origin.asked().len()), (10 * MIB, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_blob_of_unknown_length() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(4);
        let (first, part_of) = streams(3 * MIB, None);
        let whole = sends(0, None, &content, 100_000);
        let source = Script::new([part_of, whole]);
        let wanted = range(3 * MIB, 3 * MIB + 1000, fill);
        let mut follower = bench.join_at(digest, "a", &source, wanted);
        let end = if fill { 4 * MIB } else { 3 * MIB + 1000 };
        send_all(&first, &part(&content, 3 * MIB, end), 1000).await;
        drop(first);
        reads(&mut follower, &content, 3 * MIB, 3 * MIB + 1000).await;
        assert!(read_to_end(&mut follower).await.unwrap() == content);
        bench.stores(&digest, &content).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_was_refused_once_is_requested_again() {
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
