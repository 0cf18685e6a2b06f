//! Several repositories, each with a source of its own, in one download.

use super::*;

/// A repository's own question, which is answered when the test says so.
fn asked(answer: &CancellationToken) -> impl Future<Output = Result<(), DownloadError>> + use<> {
    let answer = answer.clone();
    async move {
        answer.cancelled().await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_to_its_own_repository_and_to_nobody_else() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let lacking = Script::new([Opening::Fails(denied())]);
    let origin = Origin::new(&content).acts([]);
    let mut refused = bench.join(digest, "a", &lacking);
    let mut also_refused = bench.join(digest, "a", &lacking);
    let mut served = bench.join(digest, "b", &origin);
    assert_eq!(read_to_end(&mut served).await.unwrap(), content);
    for follower in [&mut refused, &mut also_refused] {
        let error = follower.total().await.unwrap_err();
        assert!(is_denied(&error), "{error}");
    }
    bench.settled().await;
    assert!(bench.linked("b", digest).await && !bench.linked("a", digest).await);
}

#[tokio::test(start_paused = true)]
async fn each_caller_is_told_the_error_of_its_own_source() {
    let bench = Bench::new();
    let (_, digest) = content(100);
    let mut first = bench.join(digest, "a", &Script::new([Opening::Fails(unavailable())]));
    let mut second = bench.join(digest, "b", &Script::new([Opening::Fails(denied())]));
    let mut third = bench.join(digest, "c", &Script::new([Opening::Fails(rate_limited())]));
    let error = first.total().await.unwrap_err();
    let own = matches!(failure(&error), Some(Failure::Unavailable { .. }));
    assert!(own, "{error}");
    let error = second.total().await.unwrap_err();
    assert!(is_denied(&error), "{error}");
    let error = third.total().await.unwrap_err();
    let own = matches!(failure(&error), Some(Failure::RateLimited { .. }));
    assert!(own, "{error}");
    assert!(!bench.is_running(&digest));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_breaks_for_good_is_followed_by_the_next_where_it_broke() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    let breaks = Origin::new(&content).acts([Act::Cut(2 * MIB), Act::Fails(denied)]);
    let good = Origin::new(&content).acts([]);
    let mut one = bench.join(digest, "a", &breaks);
    let mut two = bench.join(digest, "b", &good);
    let (one, two) = tokio::join!(read_to_end(&mut one), read_to_end(&mut two));
    assert_eq!(
        (one.unwrap(), two.unwrap()),
        (content.to_vec(), content.to_vec())
    );
    let asked: Vec<_> = good.asked().iter().map(|(start, _)| *start).collect();
    assert_eq!(asked, [2 * MIB]);
    bench.settled().await;
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_to_a_repository_before_it_is_proved() {
    let bench = Bench::new();
    let (content, digest) = content(1_000_000);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(500_000, gate.clone())]);
    let mut one = bench.join(digest, "a", &origin);
    read_range(&mut one, 0, 400_000).await.unwrap();
    let (answer, own) = (CancellationToken::new(), Origin::new(&content).acts([]));
    let mut joining =
        Box::pin(bench.try_join(digest, "b", &own, BlobRequest::WHOLE, asked(&answer)));
    assert!(joining.as_mut().now_or_never().is_none());
    // A second client of that repository asks itself.
    let repository = "b".parse().unwrap();
    let follows = bench
        .downloader
        .follow(UPSTREAM, &digest, &repository, BlobRequest::WHOLE);
    assert!(follows.is_none());
    answer.cancel();
    let Ok(Joined::Follower(mut two)) = joining.await else {
        panic!("not joined");
    };
    gate.cancel();
    assert_eq!(read_to_end(&mut two).await.unwrap(), content);
    assert!(own.asked().is_empty(), "one fetch for all");
    bench.settled().await;
    assert!(bench.linked("b", digest).await);
}

#[tokio::test(start_paused = true)]
async fn a_repository_whose_proof_fails_is_told_so_and_not_linked() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(0, gate.clone())]);
    let mut one = bench.join(digest, "a", &origin);
    let own = Script::new([]);
    let refused = std::future::ready(Err(denied().into()));
    let joined = bench.try_join(digest, "b", &own, BlobRequest::WHOLE, refused);
    let error = joined.await.unwrap_err();
    assert!(is_denied(&error), "{error}");
    gate.cancel();
    assert_eq!(read_to_end(&mut one).await.unwrap(), content);
    bench.settled().await;
    assert!(bench.linked("a", digest).await && !bench.linked("b", digest).await);
}

/// Waits until this source is asked, because the one before it was found out.
async fn found_out(next: &Origin) {
    while next.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A blob, and the same with another byte at each of these offsets.
fn lying(content: &Bytes, at: &[usize]) -> Bytes {
    let mut bytes = content.to_vec();
    for at in at {
        bytes[*at] ^= 0xFF;
    }
    bytes.into()
}

#[tokio::test(start_paused = true)]
async fn who_has_right_bytes_of_a_lying_source_goes_on_and_who_has_wrong_ones_does_not() {
    let bench = Bench::new();
    let (content, digest) = content(1_000_000);
    let gate = CancellationToken::new();
    let liar = Origin::new(&lying(&content, &[600_000]));
    let liar = liar.acts([Act::Gate(700_000, gate.clone())]);
    let good = Origin::new(&content).acts([]);
    let mut right = bench.join(digest, "a", &liar);
    let mut wrong = bench.join(digest, "a", &liar);
    let mut fresh = bench.join(digest, "b", &good);
    assert_eq!(
        read_range(&mut right, 0, 500_000).await.unwrap(),
        content[..500_000]
    );
    read_range(&mut wrong, 0, 650_000).await.unwrap();
    gate.cancel();
    found_out(&good).await;
    assert_eq!(read_to_end(&mut fresh).await.unwrap(), content);
    let mut rest = Vec::new();
    while let Some(bytes) = right.read(500_000 + rest.len() as u64, None).await.unwrap() {
        rest.extend_from_slice(&bytes);
    }
    assert_eq!(rest, content[500_000..]);
    let error = wrong.read(650_000, None).await.unwrap_err();
    assert!(matches!(error, DownloadError::Digest { .. }), "{error}");
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_far_range_of_a_lying_source_is_compared_before_it_goes_on() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(8);
    let gate = CancellationToken::new();
    let liar = Origin::new(&lying(&content, &[100]));
    let liar = liar.acts([Act::Usual, Act::Gate(5 * MIB, gate.clone())]);
    let good = Origin::new(&content).acts([]);
    // All of it comes: the lie is found out at the end.
    let mut far = bench.join_at(digest, "a", &liar, range(6 * MIB, 7 * MIB, true));
    let read = read_range(&mut far, 6 * MIB, 6 * MIB + 1000).await.unwrap();
    assert_eq!(read, part(&content, 6 * MIB, 6 * MIB + 1000));
    let mut other = bench.join(digest, "b", &good);
    gate.cancel();
    found_out(&good).await;
    assert_eq!(read_to_end(&mut other).await.unwrap(), content);
    let read = read_range(&mut far, 6 * MIB + 1000, 7 * MIB).await.unwrap();
    assert_eq!(read, part(&content, 6 * MIB + 1000, 7 * MIB));
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
}

#[tokio::test(start_paused = true)]
async fn another_length_ends_who_was_told_the_first_one() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let longer = [&content[..], b"more"].concat().into();
    let gate = CancellationToken::new();
    let liar = Origin::new(&longer).acts([Act::Gate(50_000, gate.clone())]);
    let good = Origin::new(&content).acts([]);
    let mut told = bench.join(digest, "a", &liar);
    let mut untold = bench.join(digest, "b", &good);
    assert_eq!(told.total().await.unwrap(), Some(100_004));
    gate.cancel();
    found_out(&good).await;
    assert_eq!(read_to_end(&mut untold).await.unwrap(), content);
    let error = read_to_end(&mut told).await.unwrap_err();
    assert!(matches!(error, DownloadError::Length { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_another_upstream_left_is_not_resumed() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    let there = Origin::new(&content).acts([Act::Cut(2 * MIB), Act::Fails(denied)]);
    read_to_end(&mut bench.join(digest, "a", &there))
        .await
        .unwrap_err();
    bench.settled().await;
    assert_eq!(bench.store.partials().await.unwrap().len(), 1);
    let here = Origin::new(&content).of("other.example").acts([]);
    let mut follower = bench.join(digest, "b", &here);
    assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    assert_eq!(here.asked(), [(0, None)]);
    bench.settled().await;
    assert!(bench.store.partials().await.unwrap().is_empty());
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn downloads_of_two_upstreams_share_nothing_until_one_is_committed() {
    let bench = Bench::new();
    let (content, digest) = content(300_000);
    let liar = Origin::new(&lying(&content, &[5])).acts([]);
    let good = Origin::new(&content).of("other.example").acts([]);
    let mut deceived = bench.join(digest, "a", &liar);
    let mut served = bench.join(digest, "b", &good);
    let (deceived, served) = tokio::join!(read_to_end(&mut deceived), read_to_end(&mut served));
    assert!(matches!(
        deceived.unwrap_err(),
        DownloadError::Digest { .. }
    ));
    assert_eq!(served.unwrap(), content);
    bench.settled().await;
    assert!(bench.linked("b", digest).await && !bench.linked("a", digest).await);
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
}
