//! A download without upstream and without store, which holds a plan to its rules.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::config::Segments;
use crate::download::plan::{Demand, MissingBytes, Plan, Span};
use crate::oci::RangeSet;

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A chunk of this many KiB comes on one of the lanes, after so many milliseconds.
    Chunk(usize, u64, u64),
    /// One of the lanes ends early.
    Break(usize),
    /// A client comes for so many KiB from a place, in parts of a thousand, on.
    Client(u64, u64),
    /// A client comes for so many ranges of so many KiB, from a place on, so many KiB apart.
    Ranges(u64, u64, u64, u64),
    /// A connection breaks, and what is left of one range is requested again.
    Resume(usize),
    /// The client that waits longest leaves.
    Leave,
    Alone,
    Fill,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (any::<usize>(), 1..6_000_u64, 0..400_u64)
            .prop_map(|(lane, kib, millis)| Step::Chunk(lane, kib, millis)),
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
            let open = self.plan.lanes().len();
            let Some(Span { start, end }) = self.plan.next(&self.have, &demand, self.now) else {
                break;
            };
            assert!(!self.alone || open == 0, "a second lane of a lone stream");
            assert!(open < self.segments.per_blob);
            assert!(start < end.unwrap_or(self.total) && end.is_none_or(|end| end <= self.total));
            let announced = demand.announced.contains(start, start + 1);
            if self.plan.fill {
                assert!(!demand.wants.is_empty() || open < self.segments.count);
            } else if !announced {
                let wanted = |want: &MissingBytes| want.at <= start && end <= want.end;
                assert!(
                    demand.wants.iter().any(wanted),
                    "nobody wants {start}..{end:?}"
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
        if self.plan.lanes().is_empty() {
            assert!(!(self.plan.fill && missing), "nothing is on its way");
        }
        let full = self.plan.lanes().len() >= self.segments.per_blob;
        let lone = self.alone && !self.plan.lanes().is_empty();
        for want in &demand.wants {
            let owned = self.plan.lanes().iter().any(|lane| lane.brings(want.at));
            assert!(owned || full || lone, "nothing comes for {want:?}");
        }
    }

    /// No byte is in two lanes, and none in a lane that is there.
    fn check(&self) {
        let mut taken = self.have.clone();
        for lane in self.plan.lanes() {
            let end = lane.end.unwrap_or(self.total);
            assert!(lane.at <= end && end <= self.total);
            let before = taken.len();
            taken.insert(lane.at, end);
            for range in lane.further.ranges() {
                taken.insert(range.start, range.end);
            }
            assert_eq!(
                taken.len(),
                before + (end - lane.at) + lane.further.len(),
                "{:?}",
                self.plan.lanes()
            );
        }
    }

    fn chunk(&mut self, lane: usize, bytes: u64, waited: Duration) {
        self.now += waited;
        let lanes = self.plan.lanes();
        let Some(lane) = lanes.get(lane.checked_rem(lanes.len()).unwrap_or(0)) else {
            return;
        };
        let (id, at, end) = (lane.id, lane.at, lane.end.unwrap_or(self.total));
        let until = (at + bytes).min(end);
        self.plan.advance(id, until - at, waited, self.now);
        self.have.insert(at, until);
        self.came += until - at;
        if until < end {
            return;
        }
        // The last range first, or the next one.
        let further = self.plan.lane(id).unwrap().further.ranges();
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

    fn resume(&mut self, lane: usize) {
        let lanes = self.plan.lanes();
        let lane = lanes.get(lane.checked_rem(lanes.len()).unwrap_or(0));
        if let Some(id) = lane.map(|lane| lane.id) {
            self.plan.keep_one_range(id);
            let lane = self.plan.lane(id).unwrap();
            assert!(lane.further.is_empty());
            if lane.is_through() {
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
            Step::Chunk(lane, kib, millis) => {
                self.chunk(lane, kib * 1024, Duration::from_millis(millis));
            }
            Step::Break(lane) => {
                let lanes = self.plan.lanes();
                let lane = lanes.get(lane.checked_rem(lanes.len()).unwrap_or(0));
                if let Some(id) = lane.map(|lane| lane.id) {
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
            Step::Resume(lane) => self.resume(lane),
            Step::Leave => drop(self.clients.pop_front()),
            Step::Alone => {
                self.plan.one_at_a_time();
                self.alone = true;
            }
            Step::Fill => self.plan.fill = true,
        }
        self.check();
    }
}
