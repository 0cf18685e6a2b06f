//! Upstreams that break off, and the partial files of failed downloads.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_resumed_where_it_broke() {
    for begins in [600, 0] {
        let bench = Bench::new();
        let (content, digest) = content(1000);
        let rest = part(&content, begins, 1000);
        let source = Script::new([
            breaks(0, Some(1000), &content.slice(..600), 60),
            Opening::Fails(broken()),
            sends(begins, Some(1000), &rest, 70),
        ]);
        bench.pulls(digest, &content, &source).await;
        assert_eq!(source.asked(), [0, 600, 600]);
    }
}

#[tokio::test(start_paused = true)]
async fn resuming_ends_when_there_is_no_progress() {
    let bench = Bench::new();
    let (_, digest) = content(1000);
    let fails = std::iter::repeat_with(|| Opening::Fails(broken())).take(5);
    let first = breaks(0, Some(1000), &Bytes::new(), 1);
    let source = Script::new(std::iter::once(first).chain(fails));
    let mut follower = bench.join(digest, "a", &source);
    let error = read_to_end(&mut follower).await.unwrap_err();
    let is_broken = matches!(failure(&error), Some(Failure::Broken { .. }));
    assert!(is_broken, "{error}");
    assert_eq!(source.asked().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn sizes_that_contradict_each_other_are_an_error() {
    let (content, digest) = content(1000);
    let whole = |announced| vec![sends(0, Some(announced), &content, 1000)];
    let broken_off = breaks(0, Some(1000), &content.slice(..500), 500);
    let resumed = sends(500, Some(900), &Bytes::new(), 1);
    for (openings, (told, got)) in [
        (whole(999), (999, 1000)),
        (whole(1001), (1001, 1000)),
        (vec![broken_off, resumed], (1000, 900)),
    ] {
        let bench = Bench::new();
        let mut follower = bench.join(digest, "a", &Script::new(openings));
        let read = read_to_end(&mut follower).await;
        fails_with!(
            read,
            DownloadError::Length { announced, sent, .. } if (*announced, *sent) == (told, got)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_tells_a_size_that_was_not_announced() {
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
async fn only_the_rest_is_requested_after_any_transient_error() {
    let errors: [(fn() -> UpstreamError, u64); 4] = [
        (broken, 0),
        (stalled, 0),
        (|| unavailable(500), 0),
        (rate_limited, 7),
    ];
    for (error, at_least) in errors {
        let bench = Bench::new();
        let (content, digest) = mebibytes(3);
        let origin = Origin::new(&content).acts([Act::Cut(MIB), Act::Fails(error)]);
        let started = tokio::time::Instant::now();
        bench.pulls(digest, &content, &origin).await;
        assert_eq!(origin.asked(), [(0, None), (MIB, None), (MIB, None)]);
        assert_eq!(origin.sent(), 3 * MIB);
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(at_least) && waited < Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_upstream_ends_a_download_of_several_streams() {
    let bench = Bench::with(of_segments(1));
    let (content, digest) = mebibytes(64);
    let gate = CancellationToken::new();
    let acts = [Act::Gate(MIB, gate.clone()), Act::Gate(MIB, gate.clone())];
    let origin = Origin::new(&content).acts(acts);
    let mut first = bench.join(digest, "a", &origin);
    let mut far = bench.join_at(digest, "a", &origin, range(40 * MIB, 41 * MIB, true));
    reads(&mut first, &content, 0, MIB).await;
    read_range(&mut far, 40 * MIB, 41 * MIB).await.unwrap();
    assert!(origin.asked().len() >= 2);
    origin.always(Act::Fails(broken));
    let before = origin.asked().len();
    gate.cancel();
    origin.break_off();
    let read = read_range(&mut first, MIB, 64 * MIB).await;
    fails_with!(read, DownloadError::Upstream(_));
    assert!(origin.asked().len() - before < 30, "{:?}", origin.asked());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_starts_again_must_repeat_its_bytes() {
    for changed in [None, Some(0), Some(999_999)] {
        let bench = Bench::new();
        let (content, digest) = content(2_000_000);
        let (first, broken_off) = streams(0, Some(2_000_000));
        let mut other = content.to_vec();
        if let Some(at) = changed {
            other[at] ^= 1;
        }
        let again = sends(0, Some(2_000_000), &other.into(), 100_000);
        let mut follower = bench.join(digest, "a", &Script::new([broken_off, again]));
        send_all(&first, &content.slice(..1_000_000), 100_000).await;
        assert!(follower.read(999_999, None).await.unwrap().is_some());
        first.send(Err(broken())).await.unwrap();
        let read = read_to_end(&mut follower).await;
        if changed.is_some() {
            fails_with!(read, DownloadError::Changed { .. });
        } else {
            assert_eq!(read.unwrap(), content);
        }
        bench.settled().await;
        assert_eq!(bench.stored(&digest).await.is_some(), changed.is_none());
    }
}

/// Asserts that no partial file and no reserved space is left.
async fn nothing_is_left(bench: &Bench) {
    assert!(bench.store.partials().await.unwrap().is_empty());
    assert_eq!(bench.cache.usage().reserved, 0);
}

/// A download that fails after this many bytes, and leaves them.
async fn failed_at(bench: &Bench, content: &Bytes, digest: Digest, at: u64) {
    bench.fails(digest, content, at).await;
    let partials = bench.store.partials().await.unwrap();
    let [(_, partial, _)] = &partials[..] else {
        panic!("{partials:?}");
    };
    assert_eq!(partial.ranges.len(), at);
}

#[tokio::test(start_paused = true)]
async fn the_partial_file_of_a_failed_download_is_resumed() {
    for restart in [false, true] {
        let mut bench = Bench::new();
        let (content, digest) = mebibytes(5);
        failed_at(&bench, &content, digest, 3 * MIB).await;
        let reserved = bench.cache.usage().reserved;
        assert_eq!(reserved, 3 * MIB, "bytes on disk stay reserved");
        if restart {
            bench = bench.restarted(settings()).await;
        }
        let origin = Origin::new(&content).acts([]);
        bench.pulls(digest, &content, &origin).await;
        assert_eq!(origin.asked(), [(3 * MIB, None)]);
        assert_eq!(origin.sent(), 2 * MIB);
        nothing_is_left(&bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_bytes_of_a_partial_file_are_found_by_the_hash() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    failed_at(&bench, &content, digest, 3 * MIB).await;
    let resumed = bench.store.resume(&digest, UPSTREAM).await.unwrap();
    let (mut stage, partial) = resumed.unwrap();
    let damage = move || {
        let rotten = Bytes::from_static(b"rotten");
        stage.write_at(MIB, &[rotten]).unwrap();
        stage.checkpoint(partial.total, false).unwrap();
        stage.leave();
    };
    tokio::task::spawn_blocking(damage).await.unwrap();
    // The download starts again. A client that has received rotten bytes fails; others don't notice.
    let origin = Origin::new(&content).acts([]);
    let mut early = bench.join(digest, "a", &origin);
    read_range(&mut early, 0, 2 * MIB).await.unwrap();
    let mut late = bench.join_at(digest, "a", &origin, range(4 * MIB, 5 * MIB, true));
    reads(&mut late, &content, 4 * MIB, 5 * MIB).await;
    fails_with!(read_to_end(&mut early).await, DownloadError::Digest { .. });
    drop((early, late));
    bench.stores(&digest, &content).await;
    assert!(bench.store.partials().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_partial_file_of_another_size_is_discarded() {
    // The next requested byte is in the blob, or behind its end.
    for (length, left) in [(5, 3), (4, 3), (2, 3)] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(length);
        let (other, _) = mebibytes(6);
        failed_at(&bench, &other, digest, left * MIB).await;
        let origin = Origin::new(&content).acts([]);
        let mut follower = bench.join(digest, "a", &origin);
        assert_eq!(follower.total().await.unwrap(), Some(length * MIB));
        assert!(read_to_end(&mut follower).await.unwrap() == content);
        bench.stores(&digest, &content).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_that_brought_nothing_leaves_nothing() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    bench.fails(digest, &content, 0).await;
    nothing_is_left(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_download_is_resumed_by_the_next_process() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(5);
    let origin = Origin::new(&content).acts([Act::Gate(2 * MIB, CancellationToken::new())]);
    let mut follower = bench.join(digest, "a", &origin);
    read_range(&mut follower, 0, 2 * MIB).await.unwrap();
    bench.stop.cancel();
    let next = follower.read(2 * MIB, None).await;
    fails_with!(next, DownloadError::Stopping);
    drop(follower);
    bench.settled().await;
    assert_eq!(bench.stored(&digest).await, None);
    let bench = bench.restarted(settings()).await;
    let origin = Origin::new(&content).acts([]);
    bench.pulls(digest, &content, &origin).await;
    assert_eq!(origin.sent(), 3 * MIB);
}

/// A bench whose store is a directory.
async fn on_disk(root: &std::path::Path) -> Bench {
    let store = crate::storage::FsStore::open(root).await.unwrap();
    Bench::over(Arc::new(store), settings(), None)
}

/// The file in the spool with this ending.
fn spooled(root: &std::path::Path, ending: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(root.join("millpond/spool")).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    let found = paths.find(|path| path.to_str().unwrap().ends_with(ending));
    found.unwrap()
}

#[test]
fn a_crash_leaves_checkpointed_bytes() {
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
        // As if the process were killed: nothing is dropped.
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
        bench.pulls(digest, &content, &origin).await;
        assert!(origin.sent() <= 6 * MIB, "{}", origin.sent());
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
    bench.pulls(digest, &content, &origin).await;
    let asked = origin.asked();
    assert_eq!(asked[0].0, 4 * MIB, "{asked:?}");
    assert!(origin.sent() >= 6 * MIB && origin.sent() < 8 * MIB);
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
async fn a_body_of_unknown_length_that_breaks_behind_its_last_byte_is_complete() {
    let bench = Bench::new();
    let (content, digest) = mebibytes(3);
    let cut = Act::Cut(3 * MIB);
    let origin = Origin::new(&content).without_length().acts([cut]);
    bench.pulls(digest, &content, &origin).await;
    assert_eq!(origin.asked(), [(0, None), (3 * MIB, None)]);
}
