//! Downloads without clients.

use super::*;
use crate::config::OnAbandon;

/// A download of `size` MiB from an upstream of 1 MiB a second, whose only client leaves after `at` MiB.
/// Returns when it has ended.
async fn abandoned(bench: &Bench, size: u64, at: u64) -> (Bytes, Digest, Arc<Origin>) {
    let (content, digest) = mebibytes(size);
    let origin = Origin::new(&content).slow(1 << 20).acts([]);
    let mut follower = bench.join(digest, "a", &origin);
    read_range(&mut follower, 0, at * MIB).await.unwrap();
    drop(follower);
    bench.settled().await;
    assert_eq!(origin.open_streams(), 0);
    (content, digest, origin)
}

fn on(on_abandon: OnAbandon) -> DownloadSettings {
    let segments = Segments {
        min_size: u64::MAX,
        ..settings().segments
    };
    DownloadSettings {
        segments,
        on_abandon,
        ..settings()
    }
}

#[tokio::test(start_paused = true)]
async fn abandoned_downloads_are_finished_or_paused_as_configured() {
    for (on_abandon, size, at, finished) in [
        (OnAbandon::Finish, 20, 1, true),
        (OnAbandon::Pause, 20, 1, false),
        (OnAbandon::Pause, 20, 18, true),
        (OnAbandon::Auto, 20, 1, true),
        (OnAbandon::Auto, 257, 2, false),
        (OnAbandon::Auto, 257, 130, true),
    ] {
        let bench = Bench::with(on(on_abandon));
        let (content, digest, origin) = abandoned(&bench, size, at).await;
        let case = format!("{on_abandon:?} {size} {at}");
        assert_eq!(bench.stored(&digest).await.is_some(), finished, "{case}");
        if finished {
            assert_eq!(origin.sent(), size * MIB, "{case}");
            continue;
        }
        // The grace is five seconds, at a MiB a second.
        let sent = origin.sent();
        assert!((4 + at..7 + at).contains(&(sent / MIB)), "{case}: {sent}");
        assert!(!bench.is_running(&digest));
        bench.pulls(digest, &content, &origin).await;
        assert_eq!(origin.sent(), size * MIB, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_joins_within_the_grace_period_continues_the_download() {
    let bench = Bench::with(on(OnAbandon::Pause));
    let (content, digest) = mebibytes(20);
    let origin = Origin::new(&content).slow(1 << 20).acts([]);
    for at in [1, 3, 5] {
        let mut follower = bench.join(digest, "a", &origin);
        read_range(&mut follower, 0, at * MIB).await.unwrap();
        drop(follower);
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    bench.pulls(digest, &content, &origin).await;
    assert_eq!(origin.asked().len(), 1);
}

#[tokio::test]
async fn a_client_that_joins_during_a_pause_is_served() {
    tokio::time::pause();
    let bench = Bench::with(on(OnAbandon::Pause));
    let (content, digest) = mebibytes(3);
    let gate = CancellationToken::new();
    let origin = Origin::new(&content).acts([Act::Gate(MIB, gate.clone())]);
    let mut follower = bench.join(digest, "a", &origin);
    read_range(&mut follower, 0, MIB).await.unwrap();
    let keeping = bench.store.stall(Operation::Checkpoint, 1);
    drop(follower);
    keeping.reached().await;
    let mut next = bench.join(digest, "b", &origin);
    keeping.release();
    assert!(read_to_end(&mut next).await.unwrap() == content);
    assert_eq!(origin.sent(), 3 * MIB);
    bench.settled().await;
    assert!(bench.linked("a", digest).await && bench.linked("b", digest).await);
}

/// The stop comes while the checkpoint of a pause is being written.
#[tokio::test]
async fn a_stop_during_a_checkpoint_ends_the_download_and_leaves_the_partial() {
    tokio::time::pause();
    let bench = Bench::with(on(OnAbandon::Pause));
    let (content, digest) = mebibytes(3);
    let gate = Act::Gate(2 * MIB, CancellationToken::new());
    let origin = Origin::new(&content).acts([gate]);
    let mut follower = bench.join(digest, "a", &origin);
    read_range(&mut follower, 0, 2 * MIB).await.unwrap();
    let checkpoint = bench.store.stall(Operation::Checkpoint, 1);
    drop(follower);
    checkpoint.reached().await;
    bench.stop.cancel();
    checkpoint.release();
    let settled = tokio::time::timeout(Duration::from_mins(1), bench.settled());
    settled.await.unwrap();
    assert_eq!(bench.store.partials().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_checkpoint_releases_the_space() {
    let bench = Bench::with(on(OnAbandon::Pause));
    bench.fill_disk(Operation::Checkpoint, 1);
    let (_, digest, origin) = abandoned(&bench, 20, 1).await;
    assert!(origin.sent() < 20 * MIB && !bench.is_running(&digest));
    assert_eq!(bench.cache.usage().reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_range_is_resumed() {
    for restart in [false, true] {
        let mut bench = Bench::with(on(OnAbandon::Finish));
        let (content, digest) = mebibytes(40);
        let origin = Origin::new(&content).acts([]);
        for (start, end, sent) in [(20, 22, 2 * MIB), (20, 22, 2 * MIB + 1), (21, 23, 3 * MIB)] {
            let wanted = range(start * MIB, end * MIB, false);
            let mut lazy = bench.join_at(digest, "a", &origin, wanted);
            assert_eq!(lazy.total().await.unwrap(), Some(40 * MIB));
            reads(&mut lazy, &content, start * MIB, end * MIB).await;
            drop(lazy);
            bench.settled().await;
            // When nothing is missing, one byte proves that the upstream has the blob.
            assert_eq!(origin.sent(), sent, "{:?}", origin.asked());
            if restart {
                bench = bench.restarted(on(OnAbandon::Finish)).await;
            }
        }
        bench.pulls(digest, &content, &origin).await;
        assert_eq!(origin.sent(), 40 * MIB);
    }
}

#[tokio::test(start_paused = true)]
async fn space_is_reserved_in_steps_as_bytes_arrive() {
    for total in [Some(200 * MIB), None] {
        let bench = Bench::new();
        let (content, digest) = mebibytes(200);
        let (sender, opening) = streams(0, total);
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        assert_eq!(follower.total().await.unwrap(), total);
        let reserved = || bench.cache.usage().reserved;
        assert_eq!(reserved(), 0, "nothing has arrived");
        // The next step is reserved when half of the last one is left.
        for (from, to, steps) in [(0, 1, 1), (1, 31, 1), (31, 33, 2), (33, 95, 2), (95, 97, 3)] {
            send_all(&sender, &part(&content, from * MIB, to * MIB), 1 << 20).await;
            reads(&mut follower, &content, from * MIB, to * MIB).await;
            tokio::task::yield_now().await;
            assert_eq!(reserved(), steps * 64 * MIB, "{to}");
        }
        send_all(&sender, &content.slice(97 << 20..), 1 << 20).await;
        drop(sender);
        assert!(read_range(&mut follower, 97 * MIB, 200 * MIB).await.is_ok());
        bench.settled().await;
        assert_eq!(reserved(), 0);
        assert!(bench.stored(&digest).await.unwrap() == content);
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_body_of_unknown_length_ends() {
    let chunk = Bytes::from(vec![7; 1 << 20]);
    for (on_abandon, most) in [(OnAbandon::Pause, 80), (OnAbandon::Finish, 330)] {
        let bench = Bench::with(on(on_abandon));
        let (_, digest) = content(100);
        let (sender, opening) = streams(0, None);
        let mut follower = bench.join(digest, "a", &Script::new([opening]));
        sender.send(Ok(chunk.clone())).await.unwrap();
        read_range(&mut follower, 0, MIB).await.unwrap();
        drop(follower);
        let mut sent = 1;
        // Ten MiB a second: the grace is five seconds.
        while sender.send(Ok(chunk.clone())).await.is_ok() {
            sent += 1;
            assert!(sent <= most, "{on_abandon:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(on_abandon == OnAbandon::Pause || sent >= 256);
        bench.settled().await;
        assert_eq!(bench.cache.usage().reserved, 0);
        assert!(!bench.is_running(&digest));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_request_ends_without_clients() {
    let bench = Bench::with(on(OnAbandon::Finish));
    let (_, digest) = content(100);
    let started = tokio::time::Instant::now();
    drop(bench.join(digest, "a", &Script::new([Opening::Hangs])));
    bench.settled().await;
    assert!(started.elapsed() < Duration::from_secs(6));
}
