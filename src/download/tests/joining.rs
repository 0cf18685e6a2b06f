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
async fn nobody_reads_the_end_of_a_blob_that_has_another_digest() {
    for total in [Some(300), None] {
        let bench = Bench::new();
        let (_, digest) = content(300);
        let (sender, opening) = streams(0, total);
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        send_all(&sender, &Bytes::from(vec![0; 300]), 100).await;
        drop(sender);
        let error = read_to_end(&mut follower).await.unwrap_err();
        assert!(
            matches!(&error, DownloadError::Digest { expected, .. } if **expected == digest),
            "{error}"
        );
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
    // Who has asked for no more than the end gets it.
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
    let (_, digest) = content(0);
    let (sender, opening) = streams(0, Some(0));
    drop(sender);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    assert_eq!(read_to_end(&mut follower).await.unwrap(), b"");
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), Bytes::new());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_to_all_who_wait_and_to_nobody_after() {
    let bench = Bench::new();
    let (content, digest) = content(10);
    let (sender, opening) = streams(0, Some(10));
    let source = Script::new([Opening::Fails(denied()), opening]);
    let (mut one, mut two) = (
        bench.join(digest, "a", &source),
        bench.join(digest, "a", &source),
    );
    for follower in [&mut one, &mut two] {
        let error = follower.total().await.unwrap_err();
        assert!(is_denied(&error), "{error}");
    }
    let mut next = bench.join(digest, "a", &source);
    send_all(&sender, &content, 10).await;
    drop(sender);
    assert_eq!(read_to_end(&mut next).await.unwrap(), content);
}

#[tokio::test(start_paused = true)]
async fn a_lost_task_is_an_error_and_not_an_end() {
    let bench = Bench::new();
    let (_, digest) = content(10);
    let mut follower = bench.join(digest, "a", &Script::new([Opening::Panics]));
    assert!(matches!(
        follower.read(0, None).await,
        Err(DownloadError::Lost)
    ));
    assert!(!bench.is_running(&digest));
}

#[tokio::test(start_paused = true)]
async fn stopping_breaks_what_is_still_running() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    let (sender, opening) = streams(0, Some(100_000));
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    send_all(&sender, &content.slice(..50), 50).await;
    assert!(follower.read(0, None).await.unwrap().is_some());
    bench.stop.cancel();
    assert!(matches!(
        follower.read(50, None).await,
        Err(DownloadError::Stopping)
    ));
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await, None);
}

#[tokio::test]
async fn who_comes_while_it_is_committed_misses_nothing() {
    let bench = Bench::new();
    let (content, digest) = content(100);
    let (sender, opening) = streams(0, Some(100));
    let source = Script::new([opening]);
    let committing = bench.store.stall(Operation::Commit, 1);
    let linking = bench.store.stall(Operation::Link, 1);
    let mut first = bench.join(digest, "a", &source);
    send_all(&sender, &content, 100).await;
    drop(sender);
    assert_eq!(
        read_to_end(&mut first).await.unwrap(),
        content,
        "clients don't wait for the disk"
    );
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
async fn a_stored_file_of_another_size_does_not_keep_the_blob_from_being_fetched() {
    let bench = Bench::new();
    let (content, digest) = content(100_000);
    for again in [false, true] {
        let (sender, opening) = streams(0, Some(100_000));
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        let sending = async {
            send_all(&sender, &content, 100_000).await;
            drop(sender);
        };
        let (read, ()) = tokio::join!(read_to_end(&mut follower), sending);
        assert_eq!(read.unwrap(), content, "again: {again}");
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
        crate::storage::put(&*bench.store, &digest, content.slice(..50_000))
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_goes_while_it_is_linked_is_fetched_again() {
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
    bench.settled().await;
    assert!(bench.stored(&digest).await.unwrap() == content);
}
