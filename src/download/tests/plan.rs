//! The plan: its rules, and that whatever comes the lanes stay apart and the blob gets whole.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::MIB;
use super::world::{Step, World, step};
use crate::config::Segments;
use crate::download::plan::{Demand, MIN_LANE, MissingBytes, NEAR, Plan, Span};
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
    fn every_byte_comes_once_and_the_end_comes(
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
            if world.plan.lanes().is_empty() {
                break;
            }
            let kib = chance.u64(200..4_000);
            world.step(Step::Chunk(chance.usize(..), kib, chance.u64(1..100)));
        }
        prop_assert!(world.plan.lanes().is_empty() && world.clients.is_empty());
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
            let lane = &world.plan.lanes()[0];
            prop_assert_eq!((lane.at, lane.end.unwrap_or(total)), (0, total));
            let id = lane.id;
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

/// A plan for a blob of so many MiB, one lane of which has run at so many MiB a second for a second.
fn registry(total: u64, rate: u64, min_size: u64) -> (Plan, RangeSet, Instant) {
    let segments = Segments {
        min_size: min_size * MIB,
        count: 3,
        per_blob: 4,
    };
    let mut plan = Plan::new(segments, true);
    let mut now = Instant::now();
    plan.opened(Some(total * MIB));
    let id = plan.open(Span {
        start: 0,
        end: None,
    });
    plan.answered(id);
    plan.advance(id, 0, Duration::ZERO, now);
    for _ in 0..5 {
        let waited = Duration::from_millis(200);
        now += waited;
        plan.advance(id, rate * MIB / 5, waited, now);
    }
    let mut have = RangeSet::new();
    have.insert(0, plan.lanes()[0].at);
    (plan, have, now)
}

#[test]
fn a_slow_large_blob_gets_help_and_others_do_not() {
    for (total, rate, min_size, helped) in [
        (100, 10, 64, true),
        // Too small.
        (63, 10, 64, false),
        // Over in less than a second.
        (100, 60, 64, false),
        // So fast that it isn't the stream that is slow.
        (900, 130, 64, false),
        // What is left is over in less than a second.
        (15, 8, 1, false),
        (17, 8, 1, true),
    ] {
        let (mut plan, have, now) = registry(total, rate, min_size);
        let next = plan.next(&have, &Demand::default(), now);
        assert_eq!(next.is_some(), helped, "{total} MiB at {rate} MiB/s");
        assert!(plan.look_again(&Demand::default()).is_some() == (total >= min_size));
    }
}

#[test]
fn a_lane_is_split_evenly_or_at_the_window() {
    // 3 s at 10 MiB/s are 30 MiB; half of what is left is 45 MiB.
    let (mut plan, have, now) = registry(100, 10, 64);
    let next = plan.next(&have, &Demand::default(), now).unwrap();
    let close = |at: u64, mib: u64| at.abs_diff(mib * MIB) < 1024;
    assert!(
        close(next.start, 40) && close(next.end.unwrap(), 70),
        "{next:?}"
    );
    assert_eq!(plan.lanes()[0].end, Some(next.start));
    // What is cut off and not taken waits for the next one.
    let id = plan.open(next);
    assert_eq!(
        plan.next(&have, &Demand::default(), now),
        None,
        "it may be refused"
    );
    plan.answered(id);
    let third = plan.next(&have, &Demand::default(), now).unwrap();
    assert_eq!(
        (third.start, third.end),
        (next.end.unwrap(), Some(100 * MIB))
    );
    plan.open(third);
    assert_eq!(
        plan.next(&have, &Demand::default(), now),
        None,
        "three are the most"
    );

    let (mut plan, have, now) = registry(60, 20, 1);
    let next = plan.next(&have, &Demand::default(), now).unwrap();
    let third = (20 * MIB + 40 * MIB / 3).abs_diff(next.start) < 1024;
    assert!(third, "three come to the end together: {next:?}");
}

#[test]
fn who_waits_near_a_stream_waits_for_it_and_who_waits_far_gets_one() {
    let want = |at: u64| Demand {
        wants: vec![MissingBytes {
            at,
            end: Some(at + 10),
        }],
        floor: at,
        announced: RangeSet::new(),
    };
    // 10 MiB/s: a quarter of a second is 2.5 MiB.
    for (rate, ahead, far) in [
        (0, NEAR, false),
        (0, NEAR + 1, true),
        (10, 5 * MIB / 2 - 1024, false),
        (10, 5 * MIB / 2 + 1024, true),
    ] {
        let (mut plan, have, now) = registry(50, rate, 1000);
        let at = plan.lanes()[0].at + ahead;
        let next = plan.next(&have, &want(at), now);
        assert_eq!(
            next.map(|span| span.start),
            far.then_some(at),
            "{rate} {ahead}"
        );
        let cut = plan.lanes()[0].end == Some(at);
        assert_eq!(cut, far, "the stream ends where the other begins");
        if let Some(span) = next {
            assert!(
                span.end.unwrap() >= at + MIN_LANE,
                "of a blob that is wanted whole"
            );
        }
    }
    // Where only ranges are wanted, no more than the range.
    let (mut plan, have, now) = registry(50, 0, 1000);
    plan.fill = false;
    let next = plan.next(&have, &want(30 * MIB), now).unwrap();
    assert_eq!((next.start, next.end), (30 * MIB, Some(30 * MIB + 10)));
    // Behind the end there is nothing to wait for.
    assert_eq!(plan.next(&have, &want(50 * MIB), now), None);
}

#[test]
fn what_is_not_stored_comes_in_order() {
    let (mut plan, have, now) = registry(50, 10, 1);
    plan.stop();
    plan.in_order();
    let far = Demand {
        wants: vec![MissingBytes {
            at: 40 * MIB,
            end: None,
        }],
        floor: 0,
        announced: RangeSet::new(),
    };
    let next = plan.next(&have, &far, now).unwrap();
    assert_eq!((next.start, next.end), (have.end_of(0), None));
    plan.open(next);
    assert_eq!(plan.next(&have, &far, now), None);
    let mut whole = RangeSet::new();
    whole.insert(0, 50 * MIB);
    plan.stop();
    assert_eq!(plan.next(&whole, &far, now), None);
}

#[test]
fn announced_ranges_are_fetched_at_once_and_neighbours_together() {
    let segments = Segments {
        min_size: u64::MAX,
        count: 4,
        per_blob: 3,
    };
    let (now, have) = (Instant::now(), RangeSet::new());
    let mut plan = Plan::new(segments, false);
    plan.opened(Some(50 * MIB));
    let mut demand = Demand::default();
    for start in [MIB, MIB + 10_000, 2 * MIB, 3 * MIB, 4 * MIB] {
        demand.announced.insert(start, start + 1000);
    }
    // Somebody waits at the third.
    demand.wants.push(MissingBytes {
        at: 3 * MIB,
        end: Some(3 * MIB + 1000),
    });
    for (start, end) in [
        (3 * MIB, 3 * MIB + 1000),
        (4 * MIB, 4 * MIB + 1000),
        (MIB, MIB + 11_000),
    ] {
        let end = Some(end);
        assert_eq!(plan.next(&have, &demand, now), Some(Span { start, end }));
        plan.open(Span { start, end });
    }
    assert_eq!(plan.next(&have, &demand, now), None, "no more at a time");
    // What a stream brings isn't asked for twice, and what is there neither.
    plan.close(0);
    let mut have = RangeSet::new();
    have.insert(3 * MIB, 3 * MIB + 1000);
    have.insert(2 * MIB + 400, 2 * MIB + 500);
    let first = plan.next(&have, &demand, now).unwrap();
    assert_eq!((first.start, first.end), (2 * MIB, Some(2 * MIB + 400)));
    plan.fill = true;
    assert_ne!(plan.next(&have, &demand, now), Some(first));
}
