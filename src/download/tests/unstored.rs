//! Stores that fail: clients get their bytes, or a clear error.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_failed_commit_fails_no_client() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let full = io::ErrorKind::StorageFull;
    bench.store.fail(Operation::Commit, 1, full);
    let source = Script::new([sends(0, Some(100), &content, 30)]);
    passes(&bench, digest, &content, &source).await;
}

/// A client reads a whole blob, which isn't cached.
async fn passes<S: Source>(bench: &Bench, digest: Digest, content: &Bytes, source: &Arc<S>) {
    let mut follower = bench.join(digest, "a", source);
    assert!(read_to_end(&mut follower).await.unwrap() == *content);
    nothing_is_cached(bench, &digest).await;
}

/// Waits for all downloads to end: the store doesn't have the blob, nor a link to it, then.
async fn nothing_is_cached(bench: &Bench, digest: &Digest) {
    bench.settled().await;
    assert_eq!(bench.stored(digest).await, None);
    assert!(!bench.linked("a", *digest).await && !bench.is_running(digest));
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_cannot_be_written_is_passed_through() {
    for (operation, nth) in [
        (Operation::Stage, 1),
        (Operation::Write, 1),
        (Operation::Write, 3),
    ] {
        let bench = Bench::new();
        let (content, digest) = content(12_000_000);
        bench.fill_disk(operation, nth);
        let source = Script::new([sends(0, Some(12_000_000), &content, 100_000)]);
        let mut followers = ["a", "b"].map(|repo| bench.join(digest, repo, &source));
        let [one, two] = &mut followers;
        let (one, two) = tokio::join!(read_to_end(one), read_to_end(two));
        assert_eq!(one.unwrap(), content, "{operation:?}");
        assert_eq!(two.unwrap(), content, "{operation:?}");
        nothing_is_cached(&bench, &digest).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pass_through_continues_behind_a_resumed_partial_file() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(17);
    // More would be a loop: refused, it ends.
    let usual = std::iter::repeat_n(Act::Usual, 4);
    let refused = std::iter::repeat_n(Act::Fails(denied), 9);
    let origin = Origin::new(&content).acts(usual.chain(refused));
    let mut follower = bench.join_at(digest, "a", &origin, range(8 * MIB, 12 * MIB, false));
    read_range(&mut follower, 8 * MIB, 12 * MIB).await.unwrap();
    drop(follower);
    bench.settled().await;
    bench.fill_disk(Operation::Write, 1);
    passes(&bench, digest, &content, &origin).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_too_late_for_a_passed_through_blob_gets_a_download_of_its_own() {
    // Where writing fails, the first download has a stage, which it must give up.
    for operation in [Operation::Stage, Operation::Write] {
        let bench = Bench::new();
        let (content, digest) = content(100_000);
        let (first_sender, first) = streams(0, Some(100_000));
        let second = sends(0, Some(100_000), &content, 50_000);
        bench.fill_disk(operation, 1);
        let source = Script::new([first, second]);
        let mut early = bench.join(digest, "a", &source);
        send_all(&first_sender, &content.slice(..30_000), 30_000).await;
        assert!(early.read(0, None).await.unwrap().is_some());
        send_all(&first_sender, &content.slice(30_000..60_000), 30_000).await;
        assert!(early.read(30_000, None).await.unwrap().is_some());
        let passes = async {
            while bench.follow(&digest, "a").is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let passes = tokio::time::timeout(Duration::from_mins(1), passes).await;
        passes.expect("it is stored");
        let mut late = bench.join(digest, "a", &source);
        let whole = tokio::time::timeout(Duration::from_mins(1), read_to_end(&mut late));
        assert_eq!(whole.await.unwrap().unwrap(), content, "{operation:?}");
        send_all(&first_sender, &content.slice(60_000..), 40_000).await;
        drop(first_sender);
        let rest = read_from(&mut early, 60_000, None).await.unwrap();
        assert_eq!(rest, content.slice(60_000..));
        assert_eq!(source.asked(), [0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_passed_through_download_ends_with_its_last_client() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    bench
        .store
        .fail(Operation::Stage, 1, io::ErrorKind::StorageFull);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &content.slice(..500), 500).await;
    assert!(follower.read(0, None).await.unwrap().is_some());
    drop(follower);
    bench.settled().await;
    assert!(sender.is_closed());
}

/// Several streams are open when the disk fails. Every client gets the right bytes, at any offset.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_under_several_streams() {
    for nth in [1, 2, 5, 9, 20, 40, 80, 160] {
        let bench = Bench::with(of_segments(1));
        let (content, digest) = mebibytes(48);
        let origin = Origin::new(&content).slow(2 << 20).acts([]);
        let mut first = bench.join(digest, "a", &origin);
        let (start, end) = (30 * MIB, 32 * MIB);
        let mut far = bench.join_at(digest, "a", &origin, range(start, end, true));
        bench.fill_disk(Operation::Write, nth);
        let far = async {
            let read = read_range(&mut far, start, end).await;
            drop(far);
            read
        };
        let first = async {
            let read = read_to_end(&mut first).await;
            drop(first);
            read
        };
        let late = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let mut late = bench.join(digest, "b", &origin);
            read_to_end(&mut late).await
        };
        let all = async { tokio::join!(first, far, late) };
        let all = tokio::time::timeout(Duration::from_mins(10), all).await;
        let (first, far, late) = all.expect("a client hangs");
        assert!(first.unwrap() == content, "{nth}");
        assert!(far.unwrap() == part(&content, start, end), "{nth}");
        assert!(late.unwrap() == content, "{nth}");
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await, None);
        assert_eq!(bench.cache.usage().reserved, 0);
    }
}

/// The hash is far behind when the disk fails: new bytes wait until it has reached them.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_while_a_partial_file_is_hashed() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    bench.fails(digest, &content, 30 * MIB).await;
    bench.fill_disk(Operation::Write, 1);
    passes(&bench, digest, &content, &Origin::new(&content).acts([])).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_at_the_last_byte() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(40);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(39 * MIB, gate.clone())]);
    let mut first = bench.join(digest, "a", &origin);
    read_range(&mut first, 0, 39 * MIB).await.unwrap();
    bench.fill_disk(Operation::Write, 1);
    gate.cancel();
    assert!(read_to_end(&mut first).await.unwrap() == content);
    nothing_is_cached(&bench, &digest).await;
}

#[tokio::test(start_paused = true)]
async fn a_blob_of_unknown_length_that_does_not_fit_is_passed_through() {
    let bench = Bench::over(Arc::new(MemoryStore::new()), settings(), Some(100 * MIB));
    bench.cache.complete().await;
    let (content, digest) = mebibytes(80);
    let source = Script::new([sends(0, None, &content, 500_000)]);
    passes(&bench, digest, &content, &source).await;
}

#[tokio::test(start_paused = true)]
async fn a_far_range_of_a_blob_that_cannot_be_stored() {
    for fill in [true, false] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(20);
        let kind = io::ErrorKind::ReadOnlyFilesystem;
        bench.store.fail_from(Operation::Stage, 1, kind);
        let origin = Origin::new(&content).acts([]);
        let wanted = range(15 * MIB, 16 * MIB, fill);
        let mut follower = bench.join_at(digest, "a", &origin, wanted);
        reads(&mut follower, &content, 15 * MIB, 16 * MIB).await;
        drop(follower);
        nothing_is_cached(&bench, &digest).await;
    }
}

/// All clients have read all bytes, more than may wait for them, when the disk fails: none of them
/// moves before more bytes arrive.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_behind_clients_that_have_read_everything() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(12);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(5 * MIB, gate.clone())]);
    let mut follower = bench.join(digest, "a", &origin);
    let writing = bench.store.stall(Operation::Write, 2);
    let kind = io::ErrorKind::StorageFull;
    bench.store.fail(Operation::Write, 2, kind);
    // As much as waits for the writer.
    read_range(&mut follower, 0, 4 * MIB).await.unwrap();
    writing.reached().await;
    assert!(follower.read(5 * MIB, None).now_or_never().is_none());
    gate.cancel();
    writing.release();
    let rest = read_range(&mut follower, 4 * MIB, 12 * MIB);
    let rest = tokio::time::timeout(Duration::from_mins(1), rest).await;
    assert!(rest.expect("it hangs").unwrap() == part(&content, 4 * MIB, 12 * MIB));
}

#[tokio::test(start_paused = true)]
async fn a_failed_link_leaves_those_of_other_repositories() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let full = io::ErrorKind::StorageFull;
    bench.store.fail(Operation::Link, 2, full);
    let source = Script::new([sends(0, Some(100), &content, 30)]);
    let followers = ["a", "b", "c"].map(|repo| bench.join(digest, repo, &source));
    for mut follower in followers {
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    }
    bench.settled().await;
    let linked = ["a", "b", "c"].map(|repo| bench.linked(repo, digest));
    let linked = futures_util::future::join_all(linked).await;
    assert_eq!(linked, [true, false, true]);
}
