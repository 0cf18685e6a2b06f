//! The plan: its rules, and that segments never overlap and the blob is completed, whatever happens.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::MIB;
use super::world::{Step, World, step};
use crate::config::Segments;
use crate::download::plan::{Demand, MIN_SEGMENT, MissingBytes, NEAR, Plan, Span};
use crate::oci::RangeSet;

/// Steps after which a download of the sizes here must have ended.
const MANY: usize = 20_000;

fn segments() -> impl Strategy<Value = Segments> {
    (0..100_u64, 1..6_usize, 0..8_usize).prop_map(|(min, count, more)| Segments {
        min_size: min * MIB,
        count,
        per_blob: count + more,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_the_download_ends(
        total in 1..300 * MIB,
        segments in segments(),
        fill in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..200),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(total, segments, fill);
        for step in steps {
            world.open();
            world.step(step);
        }
        // From here on nothing happens but that bytes come.
        let mut chance = fastrand::Rng::with_seed(seed);
        for _ in 0..MANY {
            world.open();
            if world.plan.segments.is_empty() {
                break;
            }
            let kib = chance.u64(200..4_000);
            world.step(Step::Chunk(chance.usize(..), kib, chance.u64(1..100)));
        }
        prop_assert!(world.plan.segments.is_empty() && world.clients.is_empty());
        prop_assert_eq!(world.came, world.have.len(), "a byte came twice");
        if world.plan.fill {
            prop_assert_eq!(world.have.len(), total);
        }
        let mut announced = world.announced.ranges().iter();
        prop_assert!(announced.all(|range| world.have.contains(range.start, range.end)));
    }

    #[test]
    fn an_upstream_without_ranges_gets_one_stream_from_the_start(
        total in 1..100 * MIB, segments in segments(), first in 0..100 * MIB, breaks in 0..4_u64,
    ) {
        let mut world = World::new(total, segments, true);
        let id = world.plan.open(Span { start: first % total, end: None });
        world.plan.without_ranges(id);
        for part in 0..=breaks {
            let segment = &world.plan.segments[0];
            prop_assert_eq!((segment.at, segment.end.unwrap_or(total)), (0, total));
            let id = segment.id;
            let bytes = total * (part + 1) / (breaks + 1);
            world.have.insert(0, bytes);
            world.plan.advance(id, bytes, Duration::ZERO, world.now);
            prop_assert_eq!(world.plan.next(&world.have, &Demand::default(), world.now), None);
            world.plan.close(id);
            let next = world.plan.next(&world.have, &Demand::default(), world.now);
            let more = (bytes < total).then_some(Span { start: 0, end: None });
            prop_assert_eq!(next, more);
            more.map(|span| world.plan.open(span));
        }
    }
}

/// A plan and its inputs.
struct Case {
    plan: Plan,
    have: RangeSet,
    demand: Demand,
    now: Instant,
}

impl Case {
    /// For a blob of `total` MiB. `limits`: the sizes of segmented blobs in MiB, their streams, and those
    /// of all blobs.
    fn new(total: u64, fill: bool, limits: (u64, usize, usize)) -> Self {
        let (min_size, count, per_blob) = limits;
        let limits = Segments {
            min_size: min_size * MIB,
            count,
            per_blob,
        };
        let mut plan = Plan::new(limits, fill);
        plan.opened(Some(total * MIB));
        Self {
            plan,
            have: RangeSet::new(),
            demand: Demand::default(),
            now: Instant::now(),
        }
    }

    /// One stream has run at `rate` MiB a second for a second.
    fn running(total: u64, rate: u64, min_size: u64) -> Self {
        let mut case = Self::new(total, true, (min_size, 3, 4));
        let id = case.open(0, None);
        case.plan.answered(id);
        case.advance(id, 0, 0);
        for _ in 0..5 {
            case.advance(id, rate * MIB / 5, 200);
        }
        let at = case.plan.segments[0].at;
        case.have.insert(0, at);
        case
    }

    /// A stream brings the ranges at 1, 3, 5 and 7 MiB, of 1000 bytes each.
    fn several() -> (Self, u64) {
        let mut case = Self::new(50, false, (1000, 1, 2));
        for at in [1, 3, 5, 7] {
            case.announce(at * MIB, 1000);
        }
        assert_eq!(case.next(), Some((MIB, Some(MIB + 1000))));
        let id = case.open(MIB, Some(MIB + 1000));
        let further = case.plan.extend(id, &case.have, &case.demand);
        let starts: Vec<_> = further.iter().map(|range| range.start / MIB).collect();
        assert_eq!(starts, [3, 5, 7]);
        (case, id)
    }

    fn next(&mut self) -> Option<(u64, Option<u64>)> {
        let next = self.plan.next(&self.have, &self.demand, self.now);
        next.map(|span| (span.start, span.end))
    }

    fn open(&mut self, start: u64, end: Option<u64>) -> u64 {
        self.plan.open(Span { start, end })
    }

    fn advance(&mut self, id: u64, bytes: u64, millis: u64) {
        let waited = Duration::from_millis(millis);
        self.now += waited;
        self.plan.advance(id, bytes, waited, self.now);
    }

    fn announce(&mut self, start: u64, length: u64) {
        self.demand.announced.insert(start, start + length);
    }

    /// A client waits for this range, and no other one waits.
    fn wait(&mut self, at: u64, end: Option<u64>) {
        self.demand.wants = vec![MissingBytes { at, end }];
    }

    fn place(&self, id: u64) -> (u64, Option<u64>) {
        let segment = self.plan.segment(id).unwrap();
        (segment.at, segment.end)
    }

    fn has_further(&self, id: u64) -> bool {
        !self.plan.segment(id).unwrap().further.is_empty()
    }
}

#[test]
fn only_a_slow_large_blob_gets_further_streams() {
    for (total, rate, min_size, helped) in [
        (100, 10, 64, true),
        // Too small.
        (63, 10, 64, false),
        // Over in less than a second.
        (100, 60, 64, false),
        // So fast that the stream isn't the bottleneck.
        (900, 130, 64, false),
        // The rest is over in less than a second.
        (15, 8, 1, false),
        (17, 8, 1, true),
    ] {
        let mut case = Case::running(total, rate, min_size);
        let next = case.next();
        assert_eq!(next.is_some(), helped, "{total} MiB at {rate} MiB/s");
        assert!(case.plan.look_again(&case.demand).is_some() == (total >= min_size));
    }
}

#[test]
fn a_segment_is_split_evenly_or_at_the_window() {
    // 3 s at 10 MiB/s are 30 MiB; half of what is left is 45 MiB.
    let mut case = Case::running(100, 10, 64);
    let (start, end) = case.next().unwrap();
    let close = |at: u64, mib: u64| at.abs_diff(mib * MIB) < 1024;
    assert!(
        close(start, 40) && close(end.unwrap(), 70),
        "{start}..{end:?}"
    );
    assert_eq!(case.plan.segments[0].end, Some(start));
    // What is cut off and not taken waits for the next one.
    let id = case.open(start, end);
    assert_eq!(case.next(), None, "it may be refused");
    case.plan.answered(id);
    let third = (end.unwrap(), Some(100 * MIB));
    assert_eq!(case.next(), Some(third));
    case.open(third.0, third.1);
    assert_eq!(case.next(), None, "three are the most");

    let (start, _) = Case::running(60, 20, 1).next().unwrap();
    let third = (20 * MIB + 40 * MIB / 3).abs_diff(start) < 1024;
    assert!(third, "three end together: {start}");
}

#[test]
fn only_clients_far_ahead_of_a_stream_get_one() {
    // 10 MiB/s: a quarter of a second is 2.5 MiB.
    for (rate, ahead, far) in [
        (0, NEAR, false),
        (0, NEAR + 1, true),
        (10, 5 * MIB / 2 - 1024, false),
        (10, 5 * MIB / 2 + 1024, true),
    ] {
        let mut case = Case::running(50, rate, 1000);
        let at = case.plan.segments[0].at + ahead;
        case.wait(at, Some(at + 10));
        let next = case.next();
        let start = next.map(|(start, _)| start);
        assert_eq!(start, far.then_some(at), "{rate} {ahead}");
        let cut = case.plan.segments[0].end == Some(at);
        assert_eq!(cut, far, "the stream ends where the other begins");
        let whole = |(_, end): (u64, Option<u64>)| end.unwrap() >= at + MIN_SEGMENT;
        assert!(next.is_none_or(whole), "the whole blob is wanted");
    }
    // When only ranges are wanted, no more than the range.
    let mut case = Case::running(50, 0, 1000);
    case.plan.fill = false;
    case.wait(30 * MIB, Some(30 * MIB + 10));
    assert_eq!(case.next(), Some((30 * MIB, Some(30 * MIB + 10))));
    // Behind the end there is nothing to wait for.
    case.wait(50 * MIB, Some(50 * MIB + 10));
    assert_eq!(case.next(), None);
}

#[test]
fn a_blob_that_is_not_stored_comes_in_order() {
    let mut case = Case::running(50, 10, 1);
    case.plan.segments.clear();
    case.plan.in_order();
    case.wait(40 * MIB, None);
    let rest = (case.have.end_of(0), None);
    assert_eq!(case.next(), Some(rest));
    case.open(rest.0, rest.1);
    assert_eq!(case.next(), None);
    case.have.insert(0, 50 * MIB);
    case.plan.segments.clear();
    assert_eq!(case.next(), None);
}

#[test]
fn announced_ranges_are_fetched_at_once_and_neighbours_together() {
    let mut case = Case::new(50, false, (1000, 4, 3));
    for start in [MIB, MIB + 10_000, 2 * MIB, 3 * MIB, 4 * MIB] {
        case.announce(start, 1000);
    }
    case.wait(3 * MIB, Some(3 * MIB + 1000));
    for (start, length) in [(3 * MIB, 1000), (4 * MIB, 1000), (MIB, 11_000)] {
        let end = Some(start + length);
        assert_eq!(case.next(), Some((start, end)));
        case.open(start, end);
    }
    assert_eq!(case.next(), None, "no more at a time");
    // Neither bytes that a stream brings nor those that have arrived are requested again.
    case.plan.close(0);
    case.have.insert(3 * MIB, 3 * MIB + 1000);
    case.have.insert(2 * MIB + 400, 2 * MIB + 500);
    let first = Some((2 * MIB, Some(2 * MIB + 400)));
    assert_eq!(case.next(), first);
    case.plan.fill = true;
    assert_ne!(case.next(), first);
}

#[test]
fn a_stream_brings_several_ranges_in_any_order() {
    let (mut case, id) = Case::several();
    assert_eq!(case.next(), None);
    assert!(!case.plan.seek(id, 2 * MIB) && !case.plan.seek(id, 3 * MIB + 1000));
    assert_eq!(case.place(id), (MIB, Some(MIB + 1000)));
    // A range that it leaves unfinished is still expected.
    for start in [5 * MIB, MIB, 7 * MIB, 3 * MIB] {
        assert!(case.plan.seek(id, start));
        assert_eq!(case.place(id), (start, Some(start + 1000)));
        assert_eq!(case.next(), None);
        case.advance(id, 1000, 0);
        case.have.insert(start, start + 1000);
        assert!(!case.plan.seek(id, start));
    }
    assert!(!case.has_further(id));
    case.plan.close(id);
    assert_eq!(case.next(), None);
    case.have = RangeSet::new();
    assert!(case.next().is_some());
}

#[test]
fn a_further_range_that_comes_too_late_gets_a_stream_of_its_own() {
    let (mut case, id) = Case::several();
    case.wait(7 * MIB, Some(7 * MIB + 1000));
    assert_eq!(case.next(), None, "it comes soon");
    // A large range before it, which comes slowly.
    case.announce(10 * MIB, 4 * MIB);
    case.plan.close(id);
    let id = case.open(10 * MIB, Some(14 * MIB));
    let late = (20 * MIB, Some(20 * MIB + 1000));
    case.announce(20 * MIB, 1000);
    case.plan.extend(id, &case.have, &case.demand);
    case.demand.announced = RangeSet::new();
    case.wait(late.0, late.1);
    assert_eq!(case.next(), None, "the throughput isn't known");
    for millis in [0, 200, 200] {
        case.advance(id, 100_000, millis);
    }
    case.advance(id, 0, 200);
    assert_eq!(case.next(), Some(late));
    assert!(!case.has_further(id) && !case.plan.seek(id, late.0));
}

#[test]
fn a_broken_stream_keeps_one_range() {
    let (mut case, id) = Case::several();
    case.advance(id, 400, 0);
    assert_eq!(case.plan.keep_one_range(id), Some(MIB + 400));
    assert_eq!(case.place(id).1, Some(MIB + 1000));
    case.have.insert(MIB, MIB + 400);
    assert_eq!(case.next().unwrap().0, 3 * MIB);
    // Between two ranges it continues with the next one.
    let (mut case, id) = Case::several();
    case.advance(id, 1000, 0);
    assert_eq!(case.plan.keep_one_range(id), Some(3 * MIB));
    assert!(!case.has_further(id));
}

#[test]
fn only_announced_ranges_are_fetched_along() {
    let (mut case, first) = Case::several();
    case.plan.close(first);
    let far = case.open(20 * MIB, Some(20 * MIB + 1000));
    assert!(case.plan.extend(far, &case.have, &case.demand).is_empty());
    case.plan.close(far);
    case.plan.fill = true;
    let (start, end) = case.next().unwrap();
    let id = case.open(start, end);
    assert!(case.plan.extend(id, &case.have, &case.demand).is_empty());
}
