//! Streams that bring several ranges: what the plan expects of them.

use std::time::Duration;

use tokio::time::Instant;

use super::MIB;
use crate::config::Segments;
use crate::download::plan::{Demand, MissingBytes, Plan, Span};
use crate::oci::RangeSet;

/// A plan with a stream that brings the ranges at 1, 3, 5 and 7 MiB, of 1000 bytes each.
fn several() -> (Plan, Demand, u64, Instant) {
    let segments = Segments {
        min_size: u64::MAX,
        count: 1,
        per_blob: 2,
    };
    let (now, have) = (Instant::now(), RangeSet::new());
    let mut plan = Plan::new(segments, false);
    plan.opened(Some(50 * MIB));
    let mut demand = Demand::default();
    for start in [MIB, 3 * MIB, 5 * MIB, 7 * MIB] {
        demand.announced.insert(start, start + 1000);
    }
    let first = plan.next(&have, &demand, now).unwrap();
    let id = plan.open(first);
    let further = plan.extend(id, &have, &demand);
    let starts: Vec<_> = further.iter().map(|range| range.start / MIB).collect();
    assert_eq!((first.start, starts), (MIB, vec![3, 5, 7]));
    (plan, demand, id, now)
}

fn place(plan: &Plan, id: u64) -> (u64, Option<u64>) {
    let lane = plan.lane(id).unwrap();
    (lane.at, lane.end)
}

#[test]
fn a_stream_brings_several_ranges_in_any_order() {
    let (mut plan, demand, id, now) = several();
    assert_eq!(plan.next(&RangeSet::new(), &demand, now), None);
    assert!(!plan.seek(id, 2 * MIB) && !plan.seek(id, 3 * MIB + 1000));
    assert_eq!(place(&plan, id), (MIB, Some(MIB + 1000)));
    // What it leaves unfinished is still expected.
    let mut have = RangeSet::new();
    for start in [5 * MIB, MIB, 7 * MIB, 3 * MIB] {
        assert!(plan.seek(id, start));
        assert_eq!(place(&plan, id), (start, Some(start + 1000)));
        assert_eq!(plan.next(&have, &demand, now), None);
        plan.advance(id, 1000, Duration::ZERO, now);
        have.insert(start, start + 1000);
        assert!(!plan.seek(id, start));
    }
    assert!(!plan.lane(id).unwrap().has_further());
    plan.close(id);
    assert_eq!(plan.next(&have, &demand, now), None);
    assert!(plan.next(&RangeSet::new(), &demand, now).is_some());
}

#[test]
fn a_further_range_that_comes_too_late_gets_a_stream_of_its_own() {
    let (mut plan, mut demand, id, mut now) = several();
    let (at, end) = (7 * MIB, Some(7 * MIB + 1000));
    demand.wants.push(MissingBytes { at, end });
    let have = RangeSet::new();
    assert_eq!(plan.next(&have, &demand, now), None, "it comes soon");
    // A large range before it, which comes slowly.
    demand.announced.insert(10 * MIB, 14 * MIB);
    plan.close(id);
    let id = plan.open(Span {
        start: 10 * MIB,
        end: Some(14 * MIB),
    });
    demand.announced.insert(20 * MIB, 20 * MIB + 1000);
    plan.extend(id, &have, &demand);
    demand.announced = RangeSet::new();
    let (at, end) = (20 * MIB, Some(20 * MIB + 1000));
    demand.wants = vec![MissingBytes { at, end }];
    assert_eq!(plan.next(&have, &demand, now), None, "its pace isn't known");
    for _ in 0..3 {
        plan.advance(id, 100_000, Duration::ZERO, now);
        now += Duration::from_millis(200);
    }
    plan.advance(id, 0, Duration::ZERO, now);
    let span = Span { start: at, end };
    assert_eq!(plan.next(&have, &demand, now), Some(span));
    assert!(!plan.lane(id).unwrap().has_further() && !plan.seek(id, at));
}

#[test]
fn a_broken_stream_keeps_one_range() {
    let (mut plan, demand, id, now) = several();
    plan.advance(id, 400, Duration::ZERO, now);
    assert_eq!(plan.keep_one_range(id), Some(MIB + 400));
    assert_eq!(place(&plan, id).1, Some(MIB + 1000));
    let mut have = RangeSet::new();
    have.insert(MIB, MIB + 400);
    let next = plan.next(&have, &demand, now).unwrap();
    assert_eq!(next.start, 3 * MIB);
    // Between two ranges it goes on with the next one.
    let (mut plan, _, id, now) = several();
    plan.advance(id, 1000, Duration::ZERO, now);
    assert_eq!(plan.keep_one_range(id), Some(3 * MIB));
    assert!(!plan.lane(id).unwrap().has_further());
}

#[test]
fn only_what_is_announced_is_fetched_along() {
    let (have, now) = (RangeSet::new(), Instant::now());
    let (mut plan, demand, first, _) = several();
    plan.close(first);
    let far = plan.open(Span {
        start: 20 * MIB,
        end: Some(20 * MIB + 1000),
    });
    assert!(plan.extend(far, &have, &demand).is_empty());
    plan.close(far);
    plan.fill = true;
    let all = plan.next(&have, &demand, now).unwrap();
    let id = plan.open(all);
    assert!(plan.extend(id, &have, &demand).is_empty());
}
