//! Segmented downloads of large blobs, and the bounds of their streams.

use tokio::time::Instant;

use super::super::plan::{Demand, Plan, Span};
use super::super::streams::{Body, Event, Streams as UpstreamStreams};
use super::*;
use crate::oci::RangeSet;

/// Bytes that streams had sent behind the end of their segments when these were shortened.
const CUT: u64 = 256 * 1024;

/// An upstream of 2 MiB a second and stream.
fn slow(content: &Bytes) -> Origin {
    Origin::new(content).slow(2 * MIB)
}

#[tokio::test(start_paused = true)]
async fn a_slow_large_blob_comes_in_several_streams() {
    let (content, digest) = mebibytes(64);
    let mut times = Vec::new();
    for count in [1, 4] {
        let mut some = of_segments(1);
        some.segments.count = count;
        let bench = Bench::with(some);
        let origin = slow(&content).acts([]);
        let started = Instant::now();
        let mut follower = bench.join(digest, "a", &origin);
        assert!(follower.read(0, None).await.unwrap().is_some());
        let first = started.elapsed();
        assert!(read_to_end(&mut follower).await.unwrap() == content);
        times.push((first, started.elapsed()));
        assert_eq!(origin.most(), count);
        assert!(origin.sent() < 64 * MIB + CUT, "{}", origin.sent());
        bench.stores(&digest, &content).await;
    }
    let [(first_of_one, one), (first_of_four, four)] = times[..] else {
        panic!("two runs");
    };
    assert_eq!(first_of_one, first_of_four);
    assert!(one > four * 3, "{one:?} {four:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_without_ranges_or_that_refuses_a_second_stream_gets_one() {
    let (content, digest) = mebibytes(32);
    let refuses = |error| slow(&content).acts([Act::Usual, Act::Fails(error)]);
    for (origin, most, sent) in [
        (refuses(rate_limited), 1, 32 * MIB + CUT),
        (refuses(|| unexpected(400)), 1, 32 * MIB + CUT),
        (refuses(|| unavailable(503)), 1, 32 * MIB + CUT),
        // The second one is open until its head has told.
        (slow(&content).without_ranges().acts([]), 2, u64::MAX),
    ] {
        let bench = Bench::with(of_segments(1));
        bench.pulls(digest, &content, &origin).await;
        assert!(origin.most() <= most, "{}", origin.most());
        assert!(origin.sent() < sent, "{}", origin.sent());
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_continue_where_they_broke() {
    let bench = Bench::with(of_segments(1));
    let (content, digest) = mebibytes(64);
    let origin = slow(&content).acts(std::iter::repeat_n(Act::Cut(2 * MIB), 20));
    bench.pulls(digest, &content, &origin).await;
    assert_eq!(origin.sent(), 64 * MIB);
    assert!(origin.most() > 1);
}

#[tokio::test(start_paused = true)]
async fn further_streams_leave_permits_to_other_downloads() {
    let mut some = of_segments(1);
    some.streams.per_upstream = 2;
    let bench = Bench::with(some);
    let (content, digest) = mebibytes(64);
    let origin = slow(&content).acts([]);
    let mut first = bench.join(digest, "a", &origin);
    assert!(first.read(20 * MIB, None).await.unwrap().is_some());
    assert_eq!(origin.open_streams(), 2);
    let (other, of_other) = super::content(100_000);
    let mut waits = bench.join(of_other, "a", &Origin::new(&other).acts([]));
    let (read, whole) = tokio::join!(read_to_end(&mut waits), read_to_end(&mut first));
    assert_eq!(read.unwrap(), other);
    assert!(whole.unwrap() == content);
    assert!(origin.sent() < 64 * MIB + CUT, "{}", origin.sent());
    assert_eq!(origin.most(), 2);
}

/// A download without clients takes half of an upstream's streams at most, with all its segments.
#[tokio::test(start_paused = true)]
async fn downloads_without_clients_leave_streams_to_clients() {
    let mut some = of_segments(1);
    some.streams.per_upstream = 4;
    let bench = Bench::with(some);
    let (content, digest) = mebibytes(64);
    let origin = slow(&content).acts([]);
    let (repository, source) = (party("a"), Arc::clone(&origin) as _);
    let ahead = bench.downloader.fetch_ahead(digest, &repository, source);
    ahead.await.unwrap();
    assert_eq!(origin.most(), 2);
    assert!(origin.sent() < 64 * MIB + CUT, "{}", origin.sent());
    bench.stores(&digest, &content).await;
}

/// Whether a stream gets another one beside it after half a second, when each of its chunks takes the
/// task so long.
async fn gets_help(origin: Origin, work: Duration) -> bool {
    let permits = Permits::new(settings().streams, Arc::new(Metrics::new()));
    let opening = permits.open(UPSTREAM, Client::UNKNOWN, Urgency::new(true));
    let permit = opening.await.unwrap();
    let mut streams = UpstreamStreams::new(origin.acts([]));
    let mut plan = Plan::new(of_segments(1).segments, true);
    plan.opened(Some(64 * MIB));
    let all = Span {
        start: 0,
        end: None,
    };
    let id = plan.open(all);
    plan.answered(id);
    streams.open(id, all, permit);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        match streams.next(true).await {
            (stream, Event::Opened(Ok(answer))) => streams.read(stream, Body::One(answer.body)),
            (stream, Event::Chunk(body, _, chunk)) => {
                tokio::time::sleep(work).await;
                plan.advance(id, chunk.len() as u64, stream.waited, Instant::now());
                streams.read(stream, body);
            }
            _ => panic!("the stream breaks off"),
        }
    }
    let mut have = RangeSet::new();
    have.insert(0, plan.segments[0].at);
    plan.next(&have, &Demand::default(), Instant::now())
        .is_some()
}

#[tokio::test(start_paused = true)]
async fn only_a_stream_that_the_upstream_limits_gets_help() {
    let (content, _) = mebibytes(64);
    let origin = || Origin::new(&content);
    // About 6 MiB a second, whatever limits it.
    for (origin, work, helped) in [
        (origin().slow(6 * MIB), 0, true),
        (origin().slow(8 * MIB), 2, true),
        (origin(), 10, false),
    ] {
        let help = gets_help(origin, Duration::from_millis(work)).await;
        assert_eq!(help, helped, "{work} ms");
    }
}

/// The writer takes 100 ms for what arrives meanwhile, at most 4 MiB.
#[tokio::test(start_paused = true)]
async fn a_blob_that_is_written_slowly_comes_in_one_stream() {
    let bench = Bench::with(of_segments(1));
    let (content, digest) = mebibytes(64);
    let origin = Origin::new(&content).acts([]);
    let mut follower = bench.join(digest, "a", &origin);
    let disk = async {
        loop {
            let stall = bench.store.stall(Operation::Write, 1);
            stall.reached().await;
            tokio::time::advance(Duration::from_millis(100)).await;
            stall.release();
        }
    };
    tokio::select! {
        read = read_to_end(&mut follower) => assert!(read.unwrap() == content),
        () = disk => {}
    }
    assert_eq!(origin.asked(), [(0, None)]);
}
