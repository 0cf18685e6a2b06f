//! Joining, leaving, and the end of a download.

use super::*;

#[tokio::test(start_paused = true)]
async fn one_download_for_early_and_late_and_leaving_clients() {
    let bench = Bench::new();
    let (content, digest) = content(3_000_000);
    let (sender, opening) = streams(0, Some(3_000_000));
    let source = Script::new([opening]);
    let mut first = bench.join(digest, "a", &source);
    let leaver = bench.join(digest, "a", &source);
    assert_eq!(first.total().await.unwrap(), Some(3_000_000));
    send_all(&sender, &content.slice(..2_000_000), 100_000).await;
    assert!(first.read(1_999_999, None).await.unwrap().is_some());
    drop((leaver, first));
    let mut late = bench.join(digest, "b", &source);
    assert!(
        late.read(0, None).await.unwrap().is_some(),
        "a late client starts at once"
    );
    send_all(&sender, &content.slice(2_000_000..), 100_000).await;
    drop(sender);
    assert_eq!(read_to_end(&mut late).await.unwrap(), content);
    bench.settled().await;
    assert_eq!(source.asked(), [0]);
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
    assert!(!bench.linked("c", digest).await);
    assert!(!bench.is_running(&digest));
}

#[tokio::test(start_paused = true)]
async fn a_body_with_another_digest_never_ends_cleanly() {
    let wrong = Bytes::from(vec![0; 300]);
    for (total, is_stored) in [(Some(300), true), (None, true), (Some(300), false)] {
        let bench = Bench::new();
        let (_, digest) = content(300);
        if !is_stored {
            let kind = io::ErrorKind::ReadOnlyFilesystem;
            bench.store.fail(Operation::Stage, 1, kind);
        }
        let source = Script::new([sends(0, total, &wrong, 100)]);
        let mut follower = bench.join(digest, "a", &source);
        let read = read_to_end(&mut follower).await;
        fails_with!(read, DownloadError::Digest { expected, .. } if **expected == digest);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await, None);
        assert!(!bench.linked("a", digest).await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_whole_blob_waits_for_the_digest() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    let source = Script::new([opening]);
    let mut whole = bench.join(digest, "a", &source);
    let mut part = bench.join(digest, "a", &source);
    let stall = bench.store.stall(Operation::Write, 1);
    send_all(&sender, &content, 100_000).await;
    stall.reached().await;
    // Everything has come. The hash is behind, so it can't be known to be right.
    let first = whole.read(0, None).await.unwrap().unwrap();
    assert!(first.len() < 100_000 && content.starts_with(&first));
    let next = first.len() as u64;
    assert!(whole.read(next, None).now_or_never().is_none());
    // A client that has read only the end gets it.
    let end = part.read(99_000, None).await.unwrap().unwrap();
    assert_eq!(end, content.slice(99_000..));
    stall.release();
    let rest = whole.read(next, None).await.unwrap().unwrap();
    assert_eq!(rest, content.slice(first.len()..));
    assert!(whole.read(100_000, None).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_empty_blob() {
    let bench = Bench::new();
    let (content, digest) = content(0);
    let source = Script::new([sends(0, Some(0), &content, 1)]);
    bench.pulls(digest, &content, &source).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_fails_waiting_clients_and_later_ones_ask_again() {
    let bench = Bench::new();
    let (content, digest) = content(10);
    let next = sends(0, Some(10), &content, 10);
    let source = Script::new([Opening::Fails(denied()), next]);
    let mut followers = ["a", "a"].map(|repo| bench.join(digest, repo, &source));
    for follower in &mut followers {
        let error = follower.total().await.unwrap_err();
        assert!(is_denied(&error), "{error}");
    }
    bench.pulls(digest, &content, &source).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_task_is_an_error_and_not_an_end() {
    let bench = Bench::new();
    let (_, digest) = content(10);
    let mut follower = bench.join(digest, "a", &Script::new([Opening::Panics]));
    fails_with!(follower.read(0, None).await, DownloadError::Lost);
    assert!(!bench.is_running(&digest));
}

#[tokio::test]
async fn clients_that_join_during_the_commit_are_served() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let source = Script::new([sends(0, Some(100), &content, 100)]);
    let committing = bench.store.stall(Operation::Commit, 1);
    let linking = bench.store.stall(Operation::Link, 1);
    let mut first = bench.join(digest, "a", &source);
    // Clients don't wait for the disk.
    assert_eq!(read_to_end(&mut first).await.unwrap(), content);
    committing.reached().await;
    let mut second = bench.join(digest, "b", &source);
    assert_eq!(read_to_end(&mut second).await.unwrap(), content);
    committing.release();
    linking.reached().await;
    let proof = std::future::ready(Ok(()));
    let third = bench.try_join(digest, "c", &source, BlobRequest::WHOLE, proof);
    let third = third.await.unwrap();
    assert!(matches!(third, Joined::Committed), "{third:?}");
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    linking.release();
    bench.settled().await;
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
    assert_eq!(source.asked(), [0]);
}

/// What a client takes for damaged is missing for a download too, and replaced by it.
#[tokio::test(start_paused = true)]
async fn a_stored_file_of_another_size_is_replaced() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    for _ in 0..2 {
        let source = Script::new([sends(0, Some(100_000), &content, 100_000)]);
        bench.pulls(digest, &content, &source).await;
        let half = content.slice(..50_000);
        let damaged = crate::storage::put(&*bench.store, &digest, half);
        damaged.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_while_it_is_linked_is_downloaded_again() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(2);
    let origin = Origin::new(&content).acts([]);
    let linking = bench.store.stall(Operation::Link, 1);
    let mut first = bench.join(digest, "a", &origin);
    assert!(read_to_end(&mut first).await.unwrap() == content);
    linking.reached().await;
    assert!(bench.store.remove(&digest).await.unwrap());
    let refetch = BlobRequest {
        refetch: true,
        ..BlobRequest::WHOLE
    };
    let mut second = bench.join_at(digest, "a", &origin, refetch);
    assert!(read_to_end(&mut second).await.unwrap() == content);
    linking.release();
    bench.stores(&digest, &content).await;
}
