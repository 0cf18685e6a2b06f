//! Upstreams that break off, and what a download that failed has left.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    for honours_range in [true, false] {
        let bench = Bench::new();
        let (content, digest) = content(1000);
        let (first, broken_off) = streams(0, Some(1000));
        let begins = if honours_range { 600 } else { 0 };
        let (second, resumed) = streams(begins, Some(1000));
        let source = Script::new([broken_off, Opening::Fails(broken()), resumed]);
        let mut follower = bench.join(digest, "a", &source);
        send_all(&first, &content.slice(..600), 60).await;
        first.send(Err(broken())).await.unwrap();
        send_all(
            &second,
            &content.slice(usize::try_from(begins).unwrap()..),
            70,
        )
        .await;
        drop((first, second));
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
        assert_eq!(source.asked(), [0, 600, 600]);
    }
}

#[tokio::test(start_paused = true)]
async fn resuming_ends_when_there_is_no_progress() {
    let bench = Bench::new();
    let (_, digest) = content(1000);
    let (sender, opening) = streams(0, Some(1000));
    let fails = std::iter::repeat_with(|| Opening::Fails(broken())).take(5);
    let source = Script::new(std::iter::once(opening).chain(fails));
    let mut follower = bench.join(digest, "a", &source);
    sender.send(Err(broken())).await.unwrap();
    let error = read_to_end(&mut follower).await.unwrap_err();
    let is_broken = matches!(failure(&error), Some(Failure::Broken { .. }));
    assert!(is_broken, "{error}");
    assert_eq!(source.asked().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn another_length_when_resuming_is_another_blob() {
    let bench = Bench::new();
    let (content, digest) = content(1000);
    let (first, broken_off) = streams(0, Some(1000));
    let (_second, resumed) = streams(500, Some(900));
    let mut follower = bench.join(digest, "a", &Script::new([broken_off, resumed]));
    send_all(&first, &content.slice(..500), 500).await;
    first.send(Err(broken())).await.unwrap();
    let error = read_to_end(&mut follower).await.unwrap_err();
    assert!(
        matches!(
            error,
            DownloadError::Length {
                announced: 1000,
                sent: 900,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn more_or_fewer_bytes_than_announced_are_an_error() {
    for sent in [299, 301] {
        let bench = Bench::new();
        let (content, digest) = content(sent);
        let (sender, opening) = streams(0, Some(300));
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        send_all(&sender, &content, sent).await;
        drop(sender);
        let error = read_to_end(&mut follower).await.unwrap_err();
        assert!(
            matches!(error, DownloadError::Length { announced: 300, .. }),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_tell_the_length() {
    let bench = Bench::new();
    let (content, digest) = content(500);
    let (sender, opening) = streams(0, None);
    let mut follower = bench.join(digest, "a", &Script::new([opening]));
    assert_eq!(follower.total().await.unwrap(), None);
    send_all(&sender, &content, 90).await;
    drop(sender);
    assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    assert_eq!(follower.total().await.unwrap(), Some(500));
}

#[tokio::test(start_paused = true)]
async fn whatever_breaks_a_stream_it_goes_on_with_the_rest() {
    let cuts: [(fn() -> UpstreamError, u64); 4] = [
        (broken, 0),
        (stalled, 0),
        (unavailable, 0),
        (rate_limited, 7),
    ];
    for (error, at_least) in cuts {
        let bench = Bench::new();
        let (content, digest) = mebibytes(3);
        let origin = Origin::new(&content).acts([Act::Cut(MIB), Act::Fails(error)]);
        let started = tokio::time::Instant::now();
        let mut follower = bench.join(digest, "a", &origin);
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
        assert_eq!(origin.asked(), [(0, None), (MIB, None), (MIB, None)]);
        assert_eq!(origin.sent(), 3 * MIB);
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(at_least) && waited < Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_gone_ends_a_download_of_several_streams() {
    let bench = Bench::with(of_segments(1));
    let (content, digest) = mebibytes(64);
    let gate = CancellationToken::new();
    let acts = [Act::Gate(MIB, gate.clone()), Act::Gate(MIB, gate.clone())];
    let origin = Origin::new(&content).acts(acts);
    let mut first = bench.join(digest, "a", &origin);
    let mut far = bench.join_at(digest, "a", &origin, range(40 * MIB, 41 * MIB, true));
    let at = usize::try_from(MIB).unwrap();
    assert_eq!(
        read_range(&mut first, 0, MIB).await.unwrap(),
        content.slice(..at)
    );
    read_range(&mut far, 40 * MIB, 41 * MIB).await.unwrap();
    assert!(origin.asked().len() >= 2);
    origin.always(Act::Fails(broken));
    // Whoever reads on finds nobody there.
    let origin_asked = origin.asked().len();
    gate.cancel();
    origin.break_off();
    let error = read_range(&mut first, MIB, 64 * MIB).await.unwrap_err();
    assert!(matches!(error, DownloadError::Upstream(_)), "{error}");
    assert!(
        origin.asked().len() - origin_asked < 30,
        "{:?}",
        origin.asked()
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_starts_again_must_send_the_same() {
    for changed in [None, Some(0), Some(999_999)] {
        let bench = Bench::new();
        let (content, digest) = content(2_000_000);
        let (first, broken_off) = streams(0, Some(2_000_000));
        let (second, again) = streams(0, Some(2_000_000));
        let source = Script::new([broken_off, again]);
        let mut follower = bench.join(digest, "a", &source);
        send_all(&first, &content.slice(..1_000_000), 100_000).await;
        assert!(follower.read(999_999, None).await.unwrap().is_some());
        first.send(Err(broken())).await.unwrap();
        let mut other = content.to_vec();
        if let Some(at) = changed {
            other[at] ^= 1;
        }
        send_all(&second, &other.into(), 100_000).await;
        drop(second);
        let read = read_to_end(&mut follower).await;
        match (changed, read) {
            (None, read) => assert_eq!(read.unwrap(), content),
            (Some(_), Err(DownloadError::Changed { .. })) => {}
            (Some(at), read) => {
                panic!("byte {at} was another one: {:?}", read.map(|all| all.len()))
            }
        }
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.is_some(), changed.is_none());
    }
}

/// A download that has failed after so many bytes.
async fn failed_at(bench: &Bench, content: &Bytes, digest: Digest, at: u64) {
    let origin = Origin::new(content).acts([Act::Cut(at), Act::Fails(denied)]);
    let mut follower = bench.join(digest, "a", &origin);
    read_to_end(&mut follower).await.unwrap_err();
    drop(follower);
    bench.settled().await;
    let kept = bench.store.partials().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].1.ranges.len(), at);
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_download_left_is_taken_up() {
    for restart in [false, true] {
        let mut bench = Bench::new();
        let (content, digest) = mebibytes(5);
        failed_at(&bench, &content, digest, 3 * MIB).await;
        assert_eq!(
            bench.cache.usage().reserved,
            3 * MIB,
            "what is on disk stays reserved"
        );
        if restart {
            bench = bench.restarted(settings()).await;
        }
        let origin = Origin::new(&content).acts([]);
        let mut follower = bench.join(digest, "a", &origin);
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
        assert_eq!(origin.asked(), [(3 * MIB, None)]);
        assert_eq!(origin.sent(), 2 * MIB);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
        assert!(bench.store.partials().await.unwrap().is_empty());
        assert_eq!(bench.cache.usage().reserved, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_left_is_hashed_and_not_believed() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    failed_at(&bench, &content, digest, 3 * MIB).await;
    let (mut stage, partial) = bench
        .store
        .resume(&digest, UPSTREAM)
        .await
        .unwrap()
        .unwrap();
    tokio::task::spawn_blocking(move || {
        stage
            .write_at(MIB, &[Bytes::from_static(b"rotten")])
            .unwrap();
        stage.checkpoint(partial.total, false).unwrap();
        stage.leave();
    })
    .await
    .unwrap();
    // It begins anew. Who was given rotten bytes gets no more; others don't notice.
    let origin = Origin::new(&content).acts([]);
    let mut early = bench.join(digest, "a", &origin);
    read_range(&mut early, 0, 2 * MIB).await.unwrap();
    let mut late = bench.join_at(digest, "a", &origin, range(4 * MIB, 5 * MIB, true));
    assert_eq!(
        read_range(&mut late, 4 * MIB, 5 * MIB).await.unwrap(),
        part(&content, 4 * MIB, 5 * MIB)
    );
    let error = read_to_end(&mut early).await.unwrap_err();
    assert!(matches!(error, DownloadError::Digest { .. }), "{error}");
    drop((early, late));
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await.unwrap(), content);
    assert!(bench.store.partials().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_left_of_another_length_is_thrown_away() {
    // What is asked for lies in the blob as it is, or behind its end.
    for (length, left) in [(5, 3), (4, 3), (2, 3)] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(length);
        let (other, _) = mebibytes(6);
        failed_at(&bench, &other, digest, left * MIB).await;
        let origin = Origin::new(&content).acts([]);
        let mut follower = bench.join(digest, "a", &origin);
        assert_eq!(follower.total().await.unwrap(), Some(length * MIB));
        assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.unwrap(), content);
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_that_brought_nothing_keeps_no_place() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    let origin = Origin::new(&content).acts([Act::Cut(0), Act::Fails(denied)]);
    let mut follower = bench.join(digest, "a", &origin);
    read_to_end(&mut follower).await.unwrap_err();
    drop(follower);
    bench.settled().await;
    assert!(bench.store.partials().await.unwrap().is_empty());
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn stopping_in_the_middle_leaves_what_is_there() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    let origin = Origin::new(&content).acts([Act::Gate(2 * MIB, CancellationToken::new())]);
    let mut follower = bench.join(digest, "a", &origin);
    read_range(&mut follower, 0, 2 * MIB).await.unwrap();
    bench.stop.cancel();
    let error = follower.read(2 * MIB, None).await.unwrap_err();
    assert!(matches!(error, DownloadError::Stopping));
    drop(follower);
    let bench = bench.restarted(settings()).await;
    let origin = Origin::new(&content).acts([]);
    let mut follower = bench.join(digest, "a", &origin);
    assert_eq!(read_to_end(&mut follower).await.unwrap(), content);
    assert_eq!(origin.sent(), 3 * MIB);
}

/// A bench whose store is a directory.
async fn on_disk(root: &std::path::Path) -> Bench {
    let store = crate::storage::FsStore::open(root).await.unwrap();
    Bench::over(
        Arc::new(store),
        settings(),
        cache::CacheSettings::unlimited(),
    )
}

/// The file in the spool with this ending.
fn spooled(root: &std::path::Path, ending: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(root.join("millpond/spool")).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    let found = paths.find(|path| path.to_str().unwrap().ends_with(ending));
    found.unwrap()
}

#[test]
fn a_crash_leaves_what_was_checkpointed() {
    let directory = tempfile::tempdir().unwrap();
    let (content, digest) = mebibytes(20);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    };
    let first = runtime();
    first.block_on(async {
        let bench = on_disk(directory.path()).await;
        let origin = Origin::new(&content).slow(4 << 20).acts([]);
        let mut follower = bench.join(digest, "a", &origin);
        read_range(&mut follower, 0, 15 * MIB).await.unwrap();
        // As if the process were gone: nobody ends anything.
        std::mem::forget(follower);
        std::mem::forget(bench);
    });
    std::mem::forget(first);
    // The lock of the directory went with the process.
    let copy = tempfile::tempdir().unwrap();
    copy_all(directory.path(), copy.path());
    runtime().block_on(async {
        let bench = on_disk(copy.path()).await;
        let origin = Origin::new(&content).acts([]);
        let mut follower = bench.join(digest, "a", &origin);
        assert!(read_to_end(&mut follower).await.unwrap() == content);
        assert!(origin.sent() <= 6 * MIB, "{}", origin.sent());
        bench.settled().await;
        assert!(bench.stored(&digest).await.unwrap() == content);
    });
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_of_a_partial_reaches_no_client() {
    use std::os::unix::fs::FileExt as _;
    let directory = tempfile::tempdir().unwrap();
    let bench = on_disk(directory.path()).await;
    let (content, digest) = mebibytes(20);
    failed_at(&bench, &content, digest, 18 * MIB).await;
    // One byte of the second of five blocks.
    let staged = spooled(directory.path(), ".part");
    let file = std::fs::File::options().write(true).open(staged).unwrap();
    file.write_all_at(b"!", 5 * MIB).unwrap();
    let origin = Origin::new(&content).acts([]);
    let mut follower = bench.join(digest, "a", &origin);
    assert!(read_to_end(&mut follower).await.unwrap() == content);
    bench.settled().await;
    let asked = origin.asked();
    assert_eq!(asked[0].0, 4 * MIB, "{asked:?}");
    assert!(origin.sent() >= 6 * MIB && origin.sent() < 8 * MIB);
    assert!(bench.stored(&digest).await.unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_stop_makes_its_checkpoints_durable_and_a_failure_does_not() {
    let (content, digest) = mebibytes(5);
    for stops in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let bench = on_disk(directory.path()).await;
        if stops {
            let gate = Act::Gate(2 * MIB, CancellationToken::new());
            let origin = Origin::new(&content).acts([gate]);
            let mut follower = bench.join(digest, "a", &origin);
            read_range(&mut follower, 0, 2 * MIB).await.unwrap();
            bench.stop.cancel();
            bench.settled().await;
        } else {
            failed_at(&bench, &content, digest, 2 * MIB).await;
        }
        let checkpoint = spooled(directory.path(), ".checkpoint");
        let text = std::fs::read_to_string(checkpoint).unwrap();
        let synced = format!(r#""synced":{stops}"#);
        assert!(text.contains(&synced), "{text}");
    }
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_of_unknown_length_that_broke_off_behind_its_last_byte_is_whole() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    let cut = Act::Cut(3 * MIB);
    let origin = Origin::new(&content).without_length().acts([cut]);
    let mut follower = bench.join(digest, "a", &origin);
    assert!(read_to_end(&mut follower).await.unwrap() == content);
    drop(follower);
    bench.settled().await;
    assert_eq!(origin.asked(), [(0, None), (3 * MIB, None)]);
    assert!(bench.stored(&digest).await.unwrap() == content);
}
