//! Runs a plan without upstream and store, and checks its rules.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::config::Segments;
use crate::download::plan::{Demand, MissingBytes, Plan, Span};
use crate::download::segment::Segment;
use crate::oci::RangeSet;

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A chunk of this many KiB arrives on one of the segments, after this many milliseconds.
    Chunk(usize, u64, u64),
    /// One of the segments ends early.
    Break(usize),
    /// A client joins for this many KiB from a place, in thousandths of the blob.
    Client(u64, u64),
    /// A client joins for ranges: the place of the first, their number, their KiB, and the KiB between
    /// them.
    Ranges(u64, u64, u64, u64),
    /// A connection breaks, and the rest of one range is requested again.
    Resume(usize),
    /// The client that waits longest leaves.
    Leave,
    Alone,
    Fill,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (any::<usize>(), 1..6_000_u64, 0..400_u64)
            .prop_map(|(segment, kib, millis)| Step::Chunk(segment, kib, millis)),
        2 => any::<usize>().prop_map(Step::Break),
        3 => (0..1_010_u64, 1..40_000_u64).prop_map(|(place, kib)| Step::Client(place, kib)),
        2 => (0..1_000_u64, 1..150_u64, 1..300_u64, 1..600_u64)
            .prop_map(|(place, count, kib, apart)| Step::Ranges(place, count, kib, apart)),
        2 => any::<usize>().prop_map(Step::Resume),
        1 => Just(Step::Leave),
        1 => Just(Step::Alone),
        1 => Just(Step::Fill),
    ]
}

/// A download of a blob, without upstream and without store.
pub(super) struct World {
    pub(super) plan: Plan,
    segments: Segments,
    total: u64,
    pub(super) have: RangeSet,
    /// Where each client is, and where its range ends.
    pub(super) clients: VecDeque<(u64, u64)>,
    pub(super) announced: RangeSet,
    alone: bool,
    pub(super) now: Instant,
    pub(super) came: u64,
}

impl World {
    pub(super) fn new(total: u64, segments: Segments, fill: bool) -> Self {
        let mut plan = Plan::new(segments, fill);
        plan.opened(Some(total));
        Self {
            plan,
            segments,
            total,
            have: RangeSet::new(),
            clients: VecDeque::new(),
            announced: RangeSet::new(),
            alone: false,
            now: Instant::now(),
            came: 0,
        }
    }

    fn demand(&mut self) -> Demand {
        let have = &self.have;
        for (at, end) in &mut self.clients {
            *at = have.end_of(*at).min(*end);
        }
        let total = self.total;
        self.clients.retain(|(at, end)| at < end && *at < total);
        let wants = self
            .clients
            .iter()
            .map(|&(at, end)| MissingBytes { at, end: Some(end) });
        Demand {
            wants: wants.collect(),
            floor: self.clients.iter().map(|(at, _)| *at).min().unwrap_or(0),
            announced: self.announced.clone(),
        }
    }

    /// Opens what the plan wants opened.
    pub(super) fn open(&mut self) {
        let demand = self.demand();
        loop {
            let open = self.plan.segments.len();
            let Some(Span { start, end }) = self.plan.next(&self.have, &demand, self.now) else {
                break;
            };
            assert!(
                !self.alone || open == 0,
                "a second segment of a lone stream"
            );
            assert!(open < self.segments.per_blob);
            assert!(start < end.unwrap_or(self.total) && end.is_none_or(|end| end <= self.total));
            let announced = demand.announced.contains(start, start + 1);
            if self.plan.fill {
                assert!(!demand.wants.is_empty() || open < self.segments.count);
            } else if !announced {
                let wanted = |want: &MissingBytes| want.at <= start && end <= want.end;
                assert!(
                    demand.wants.iter().any(wanted),
                    "no client wants {start}..{end:?}"
                );
            }
            let id = self.plan.open(Span { start, end });
            let further = self.plan.extend(id, &self.have, &demand);
            assert!(
                further
                    .iter()
                    .all(|r| self.announced.contains(r.start, r.start + 1))
            );
            assert!(further.is_empty() || announced && !self.plan.fill);
            self.plan.answered(id);
            self.check();
        }
        let missing = self.have.len() < self.total;
        if self.plan.segments.is_empty() {
            assert!(!(self.plan.fill && missing), "no stream brings the rest");
        }
        let full = self.plan.segments.len() >= self.segments.per_blob;
        let lone = self.alone && !self.plan.segments.is_empty();
        for want in &demand.wants {
            let owned = self
                .plan
                .segments
                .iter()
                .any(|segment| segment.brings(want.at));
            assert!(owned || full || lone, "no stream for {want:?}");
        }
    }

    /// No byte is in two segments, and no byte that has arrived is in one.
    fn check(&self) {
        let mut taken = self.have.clone();
        for segment in &self.plan.segments {
            let end = segment.end.unwrap_or(self.total);
            assert!(segment.at <= end && end <= self.total);
            let before = taken.len();
            taken.insert(segment.at, end);
            taken.extend(&segment.further);
            let added = end - segment.at + segment.further.len();
            assert_eq!(taken.len(), before + added, "{:?}", self.plan.segments);
        }
    }

    /// One of the segments.
    fn pick(&self, segment: usize) -> Option<&Segment> {
        let segments = &self.plan.segments;
        segments.get(segment.checked_rem(segments.len())?)
    }

    fn chunk(&mut self, segment: usize, bytes: u64, waited: Duration) {
        self.now += waited;
        let Some(segment) = self.pick(segment) else {
            return;
        };
        let (id, at, end) = (segment.id, segment.at, segment.end.unwrap_or(self.total));
        let until = (at + bytes).min(end);
        self.plan.advance(id, until - at, waited, self.now);
        self.have.insert(at, until);
        self.came += until - at;
        if until < end {
            return;
        }
        // The last range first, or the next one.
        let further = self.plan.segment(id).unwrap().further.ranges();
        let next = if bytes.is_multiple_of(2048) {
            further.last()
        } else {
            further.first()
        };
        match next.map(|range| range.start) {
            Some(start) => assert!(self.plan.seek(id, start)),
            None => self.plan.close(id),
        }
    }

    fn resume(&mut self, segment: usize) {
        if let Some(id) = self.pick(segment).map(|segment| segment.id) {
            self.plan.keep_one_range(id);
            let segment = self.plan.segment(id).unwrap();
            assert!(segment.further.is_empty());
            if segment.is_through() {
                self.plan.close(id);
            }
        }
    }

    fn announce(&mut self, place: u64, count: u64, length: u64, apart: u64) {
        let first = self.total / 1000 * place;
        for n in 0..count {
            let start = (first + n * (length + apart)).min(self.total);
            let end = (start + length).min(self.total);
            self.announced.insert(start, end);
        }
        self.clients.push_back((first, first + length));
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Chunk(segment, kib, millis) => {
                self.chunk(segment, kib * 1024, Duration::from_millis(millis));
            }
            Step::Break(segment) => {
                if let Some(id) = self.pick(segment).map(|segment| segment.id) {
                    self.plan.close(id);
                }
            }
            Step::Client(place, kib) => {
                let at = self.total / 1000 * place;
                self.clients.push_back((at, at + kib * 1024));
            }
            Step::Ranges(place, count, kib, apart) => {
                self.announce(place, count, kib * 1024, apart * 1024);
            }
            Step::Resume(segment) => self.resume(segment),
            Step::Leave => drop(self.clients.pop_front()),
            Step::Alone => {
                self.plan.alone = true;
                self.alone = true;
            }
            Step::Fill => self.plan.fill = true,
        }
        self.check();
    }
}
