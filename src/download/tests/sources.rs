//! Several repositories, each with a source of its own, in one download.

use super::*;

/// A repository's own HEAD, which is answered when the test says so.
fn asked(answer: &CancellationToken) -> impl Future<Output = Result<(), DownloadError>> + use<> {
    let answer = answer.clone();
    async move {
        answer.cancelled().await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_fails_the_clients_of_its_own_repository_only() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let lacking = Script::new([Opening::Fails(denied())]);
    let origin = Origin::new(&content).acts([]);
    let refused = ["a", "a"].map(|repo| bench.join(digest, repo, &lacking));
    let mut served = bench.join(digest, "b", &origin);
    assert_eq!(read_to_end(&mut served).await.unwrap(), content);
    for mut follower in refused {
        let error = follower.total().await.unwrap_err();
        assert!(is_denied(&error), "{error}");
    }
    bench.settled().await;
    assert!(bench.linked("b", digest).await && !bench.linked("a", digest).await);
}

#[tokio::test(start_paused = true)]
async fn each_client_gets_the_error_of_its_own_source() {
    let bench = Bench::new();
    let (_, digest) = content(100);
    let errors = [
        ("a", unavailable(500)),
        ("b", denied()),
        ("c", rate_limited()),
    ];
    let followers =
        errors.map(|(repo, error)| bench.join(digest, repo, &Script::new([Opening::Fails(error)])));
    let [mut first, mut second, mut third] = followers;
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
async fn the_next_source_continues_where_the_failed_one_broke() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    let breaks = Origin::new(&content).acts([Act::Cut(2 * MIB), Act::Fails(denied)]);
    let good = Origin::new(&content).acts([]);
    let mut one = bench.join(digest, "a", &breaks);
    let mut two = bench.join(digest, "b", &good);
    let (one, two) = tokio::join!(read_to_end(&mut one), read_to_end(&mut two));
    assert!(one.unwrap() == content && two.unwrap() == content);
    assert_eq!(good.asked(), [(2 * MIB, Some(3 * MIB))]);
    bench.stores(&digest, &content).await;
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
}

#[tokio::test(start_paused = true)]
async fn a_repository_gets_no_byte_before_it_is_proved() {
    let bench = Bench::new();
    let (content, digest) = content(1_000_000);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(500_000, gate.clone())]);
    let mut one = bench.join(digest, "a", &origin);
    read_range(&mut one, 0, 400_000).await.unwrap();
    let (answer, own) = (CancellationToken::new(), Origin::new(&content).acts([]));
    let joining = bench.try_join(digest, "b", &own, BlobRequest::WHOLE, asked(&answer));
    let mut joining = Box::pin(joining);
    assert!(joining.as_mut().now_or_never().is_none());
    // A second client of that repository asks itself.
    assert!(bench.follow(&digest, "b").is_none());
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
async fn a_repository_whose_proof_fails_gets_the_error_and_no_link() {
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

/// Waits until this source is asked, because the wrong bytes of the one before it were noticed.
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
async fn clients_with_right_bytes_of_a_lying_source_continue_and_others_fail() {
    let bench = Bench::new();
    let (content, digest) = content(1_000_000);
    let gate = CancellationToken::new();
    let liar = Origin::new(&lying(&content, &[600_000]));
    let liar = liar.acts([Act::Gate(700_000, gate.clone())]);
    let good = Origin::new(&content).acts([]);
    let mut right = bench.join(digest, "a", &liar);
    let mut wrong = bench.join(digest, "a", &liar);
    let mut fresh = bench.join(digest, "b", &good);
    reads(&mut right, &content, 0, 500_000).await;
    read_range(&mut wrong, 0, 650_000).await.unwrap();
    gate.cancel();
    found_out(&good).await;
    assert_eq!(read_to_end(&mut fresh).await.unwrap(), content);
    let rest = read_from(&mut right, 500_000, None).await.unwrap();
    assert_eq!(rest, content[500_000..]);
    fails_with!(
        wrong.read(650_000, None).await,
        DownloadError::Digest { .. }
    );
    bench.stores(&digest, &content).await;
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_far_range_of_a_lying_source_is_compared_before_it_continues() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(8);
    let gate = CancellationToken::new();
    let liar = Origin::new(&lying(&content, &[100]));
    let liar = liar.acts([Act::Usual, Act::Gate(5 * MIB, gate.clone())]);
    let good = Origin::new(&content).acts([]);
    // All of it comes: the lie is found out at the end.
    let mut far = bench.join_at(digest, "a", &liar, range(6 * MIB, 7 * MIB, true));
    reads(&mut far, &content, 6 * MIB, 6 * MIB + 1000).await;
    let mut other = bench.join(digest, "b", &good);
    gate.cancel();
    found_out(&good).await;
    assert_eq!(read_to_end(&mut other).await.unwrap(), content);
    reads(&mut far, &content, 6 * MIB + 1000, 7 * MIB).await;
    bench.stores(&digest, &content).await;
}

#[tokio::test(start_paused = true)]
async fn another_length_fails_clients_that_were_told_the_first_one() {
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
    fails_with!(read_to_end(&mut told).await, DownloadError::Length { .. });
}

#[tokio::test(start_paused = true)]
async fn a_partial_file_of_another_upstream_is_not_resumed() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    bench.fails(digest, &content, 2 * MIB).await;
    assert_eq!(bench.store.partials().await.unwrap().len(), 1);
    let here = Origin::new(&content).of("other.example").acts([]);
    bench.pulls(digest, &content, &here).await;
    assert_eq!(here.asked(), [(0, None)]);
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
    fails_with!(deceived, DownloadError::Digest { .. });
    assert_eq!(served.unwrap(), content);
    bench.settled().await;
    assert!(bench.linked("b", digest).await && !bench.linked("a", digest).await);
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
}
