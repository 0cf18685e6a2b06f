//! Which bytes are asked of the upstream next, and by how many streams at once. Pure: time and
//! progress are told.
//!
//! Each stream has a stretch of the blob of its own, a [`Lane`]; no byte is in two of them, and
//! none in a lane that is there already. A lane is cut short when somebody waits for bytes far
//! ahead in it, and where others can help; what is cut off waits for the next stream.

use std::time::Duration;

use tokio::time::Instant;

use super::batch;
pub(super) use super::lane::NEAR;
use super::lane::{Lane, to_bytes};
use crate::config::Segments;
use crate::oci::{ByteRange, RangeSet};

/// A download that ends sooner than this, in seconds, gets no further streams.
const WORTHWHILE: f64 = 1.0;
/// A stream that brings so many bytes a second gets no help: it isn't what is slow.
const FAST: f64 = 128.0 * 1024.0 * 1024.0;
/// A lane whose rest takes no longer, in seconds, isn't shared, and none of so few bytes.
const SHARED: f64 = 0.4;
const MIN_SHARED: u64 = 2 * 1024 * 1024;
/// How long a stream shall be busy with its lane, in seconds.
const LANE_TIME: f64 = 3.0;
/// Bytes of a lane: at least, and as long as the pace isn't known.
pub(super) const MIN_LANE: u64 = 8 * 1024 * 1024;
/// Bytes of a lane at most, so that the streams stay close ahead of who reads in order.
const MAX_LANE: u64 = 128 * 1024 * 1024;
/// When to look again whether another stream helps.
const LOOK: Duration = Duration::from_millis(125);

/// Bytes to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    /// None: to the end of the blob.
    pub(super) end: Option<u64>,
}

/// A client waits for the byte `at`, and wants those up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MissingBytes {
    pub(super) at: u64,
    pub(super) end: Option<u64>,
}

/// What the clients want.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Those who wait, the longest wait first.
    pub(super) wants: Vec<MissingBytes>,
    /// The lowest byte that somebody reads.
    pub(super) floor: u64,
    /// The ranges that clients have announced in requests for several.
    pub(super) announced: RangeSet,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub(super) struct Plan {
    segments: Segments,
    pub(super) total: Option<u64>,
    lanes: Vec<Lane>,
    next_id: u64,
    /// Whether the whole blob is wanted, and not only what clients ask for.
    pub(super) fill: bool,
    /// The upstream doesn't know ranges: every stream begins at 0.
    ranged: bool,
    /// The upstream wants no second stream.
    alone: bool,
    /// The pace of the stream that was measured last, in bytes a second.
    typical: Option<f64>,
    /// Only what goes on from the blob's first bytes is of use.
    in_order: bool,
}

impl Plan {
    pub(super) fn new(segments: Segments, fill: bool) -> Self {
        Self {
            segments,
            total: None,
            lanes: Vec::new(),
            next_id: 0,
            fill,
            ranged: true,
            alone: false,
            typical: None,
            in_order: false,
        }
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    pub(super) fn lane(&self, id: u64) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.id == id)
    }

    fn lane_mut(&mut self, id: u64) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    /// A stream begins.
    pub(super) fn open(&mut self, span: Span) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let end = span.end.or(self.total);
        self.lanes.push(Lane::new(id, span.start, end));
        id
    }

    /// Adds to a new stream the announced ranges behind its own that the same request can ask for.
    pub(super) fn extend(&mut self, id: u64, have: &RangeSet, demand: &Demand) -> &[ByteRange] {
        let whole = self.fill || self.in_order || !self.ranged;
        let Some(total) = self.total.filter(|_| !whole) else {
            return &[];
        };
        let taken = self.taken(have, total);
        let Some(lane) = self.lane_mut(id) else {
            return &[];
        };
        let (start, end) = (lane.at, lane.end.unwrap_or(total));
        if demand.announced.contains(start, start + 1) {
            let first = ByteRange { start, end };
            lane.further = batch::further(&demand.announced, taken, first);
        }
        lane.further.ranges()
    }

    /// A stream brings the byte `offset` next: the range that has it becomes its own. False when
    /// the stream isn't expected to bring that byte, or not any more.
    pub(super) fn seek(&mut self, id: u64, offset: u64) -> bool {
        self.lane_mut(id).is_some_and(|lane| lane.seek(offset))
    }

    /// A stream has broken off: it is opened again for one range, and the further ones are free.
    /// Where it goes on.
    pub(super) fn keep_one_range(&mut self, id: u64) -> Option<u64> {
        let lane = self.lane_mut(id)?;
        lane.keep_one_range();
        Some(lane.at)
    }

    /// The upstream has given a stream.
    pub(super) fn answered(&mut self, id: u64) {
        if let Some(lane) = self.lane_mut(id) {
            lane.answered = true;
        }
    }

    /// A stream has brought bytes, after it was waited for so long.
    pub(super) fn advance(&mut self, id: u64, bytes: u64, waited: Duration, now: Instant) {
        if let Some(lane) = self.lane_mut(id) {
            lane.at += bytes;
            lane.pace.add(bytes, waited, now);
            self.typical = lane.pace.rate(now).or(self.typical);
        }
    }

    /// A stream has ended, at the end of its lane or before.
    pub(super) fn close(&mut self, id: u64) {
        self.lanes.retain(|lane| lane.id != id);
    }

    /// The length has become known.
    pub(super) fn opened(&mut self, total: Option<u64>) {
        self.total = total;
        for lane in &mut self.lanes {
            lane.end = match (lane.end, total) {
                (Some(end), Some(total)) => Some(end.min(total)),
                (end, total) => end.or(total),
            };
        }
    }

    /// Every stream has ended.
    pub(super) fn stop(&mut self) {
        self.lanes.clear();
    }

    /// The length that was known isn't right.
    pub(super) fn forget_total(&mut self) {
        self.total = None;
    }

    /// Another source: what the one before it couldn't do, it may.
    pub(super) fn change_source(&mut self) {
        self.stop();
        self.ranged = true;
        self.alone = self.in_order;
        self.typical = None;
    }

    /// From now on one stream at a time: the upstream pushes back.
    pub(super) fn one_at_a_time(&mut self) {
        self.alone = true;
    }

    /// From now on one stream, in order and to the end: nothing is stored, so what comes early would
    /// be lost to the hash.
    pub(super) fn in_order(&mut self) {
        self.alone = true;
        self.in_order = true;
        self.fill = true;
    }

    /// The upstream ignores ranges: the stream, if it may go on, brings everything from 0 on.
    pub(super) fn without_ranges(&mut self, id: u64) {
        self.ranged = false;
        self.alone = true;
        let total = self.total;
        if let Some(lane) = self.lane_mut(id) {
            lane.at = 0;
            lane.end = total;
        }
    }

    /// What another stream would be for, if there may be one: the lane that it is taken from has
    /// been cut already.
    pub(super) fn next(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        if self.alone && !self.lanes.is_empty() {
            return None;
        }
        if !self.ranged || self.in_order || self.total.is_none() {
            let start = if self.ranged { have.end_of(0) } else { 0 };
            let missing = self.total.is_none_or(|total| have.end_of(0) < total);
            let first = Span { start, end: None };
            return (self.lanes.is_empty() && missing).then_some(first);
        }
        let announced = self.announced(have, demand);
        let wanted = announced.or_else(|| self.wanted(have, demand, now));
        wanted.or_else(|| {
            let may = self.fill && self.lanes.len() < self.segments.count;
            may.then(|| self.filling(have, demand, now)).flatten()
        })
    }

    /// When [`next`](Self::next) may have another answer although nothing has happened.
    pub(super) fn look_again(&self, demand: &Demand) -> Option<Duration> {
        let helped = !self.alone && !self.lanes.is_empty();
        let filling = self.fill && self.lanes.len() < self.segments.count && self.is_large();
        (helped && (filling || !demand.wants.is_empty())).then_some(LOOK)
    }

    fn is_large(&self) -> bool {
        self.total
            .is_some_and(|total| total >= self.segments.min_size)
    }

    /// A stream for somebody who waits, unless one is about to come there.
    fn wanted(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        let total = self.total?;
        if self.lanes.len() >= self.segments.per_blob {
            return None;
        }
        for want in &demand.wants {
            let at = want.at;
            if at >= total || have.contains(at, at + 1) {
                continue;
            }
            let window = self.window(now);
            let owner = self.lanes.iter_mut().find(|lane| lane.brings(at));
            if let Some(lane) = owner {
                if lane.comes_soon(at, want.end, total, now) {
                    continue;
                }
                lane.cut(at);
            }
            let taken = self.taken(have, total);
            let limit = taken.next_start(at).unwrap_or(total);
            let reach = match want.end {
                Some(end) if !self.fill => end,
                _ => at + window,
            };
            let end = Some(limit.min(reach.max(at + 1)));
            return Some(Span { start: at, end });
        }
        None
    }

    /// A stream for ranges that a client has announced: the first missing ones from where somebody
    /// waits on, several in one where little lies between them.
    fn announced(&self, have: &RangeSet, demand: &Demand) -> Option<Span> {
        let total = self.total?;
        let ranges = &demand.announced;
        if self.fill || ranges.is_empty() || self.lanes.len() >= self.segments.per_blob {
            return None;
        }
        let taken = self.taken(have, total);
        let waits = demand.wants.iter().map(|want| want.at);
        let from = waits.into_iter().find(|at| ranges.contains(*at, at + 1));
        let from = from.unwrap_or(0);
        let first = batch::first(ranges, &taken, from);
        let ByteRange { start, end } = first.or_else(|| batch::first(ranges, &taken, 0))?;
        let end = Some(end);
        Some(Span { start, end })
    }

    /// A stream for what nobody waits for yet.
    fn filling(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        let total = self.total?;
        let taken = self.taken(have, total);
        let gap_from = |from: u64| {
            let start = taken.end_of(from);
            (start < total).then(|| (start, taken.next_start(start).unwrap_or(total)))
        };
        let gap = gap_from(demand.floor).or_else(|| gap_from(0));
        if self.lanes.is_empty() {
            let (start, end) = gap?;
            let end = (end < total).then_some(end);
            return Some(Span { start, end });
        }
        // One after the other: the upstream may want no second one.
        let asked = self.lanes.iter().any(|lane| !lane.answered);
        if asked || !self.is_large() {
            return None;
        }
        let window = self.even(self.window(now), have, total);
        if self.is_fast(now) || self.lanes.iter().any(|lane| lane.pace.is_ready()) {
            return None;
        }
        if let Some((start, end)) = gap {
            // No crumbs are left for a stream of their own.
            let all = end - start <= window + MIN_SHARED;
            let end = Some(if all { end } else { start + window });
            let worthwhile = self.is_worthwhile(have, total, now);
            return worthwhile.then_some(Span { start, end });
        }
        // Once several are at work, none is left alone with the rest.
        let least = if self.lanes.len() > 1 {
            SHARED
        } else {
            WORTHWHILE
        };
        let typical = self.typical;
        let longest = self.lanes.iter_mut().max_by_key(|lane| lane.left(total))?;
        let left = longest.left(total);
        let rate = longest.pace.rate(now).or(typical)?;
        if left < MIN_SHARED || to_float(left) < rate * least {
            return None;
        }
        let start = longest.at + window.min(left / 2);
        let old = longest.end.replace(start).unwrap_or(total);
        let end = Some(old.min(start + window));
        Some(Span { start, end })
    }

    /// What is there, and what streams are bringing.
    fn taken(&self, have: &RangeSet, total: u64) -> RangeSet {
        let mut taken = have.clone();
        for lane in &self.lanes {
            taken.insert(lane.at, lane.end.unwrap_or(total));
            for range in lane.further.ranges() {
                taken.insert(range.start, range.end);
            }
        }
        taken
    }

    /// Whether the download, at its pace, lasts long enough for another stream to help. Not before
    /// the pace is known.
    fn is_worthwhile(&self, have: &RangeSet, total: u64, now: Instant) -> bool {
        let rates = self.rates(now);
        let (rate, known) = rates.fold((0.0, 0), |(sum, known), rate| (sum + rate, known + 1));
        known > 0 && to_float(total - have.len().min(total)) >= WORTHWHILE * rate
    }

    /// The window, or less, so that all streams come to the end of the blob together.
    fn even(&self, window: u64, have: &RangeSet, total: u64) -> u64 {
        let left = total.saturating_sub(have.len());
        let round = window.saturating_mul(self.segments.count as u64).max(1);
        let rounds = left.div_ceil(round).max(1);
        let share = left.div_ceil(rounds * self.segments.count as u64);
        share.clamp(MIN_SHARED.min(window), window)
    }

    /// Whether some stream is so fast that further ones wouldn't help.
    fn is_fast(&self, now: Instant) -> bool {
        let mut rates = self.rates(now);
        rates.any(|rate| rate >= FAST)
    }

    /// The paces of the streams; for one that hasn't been measured that of another.
    fn rates(&self, now: Instant) -> impl Iterator<Item = f64> {
        let rate = move |lane: &Lane| lane.pace.rate(now).or(self.typical);
        self.lanes.iter().filter_map(rate)
    }

    /// Bytes of a lane at the pace that is seen.
    fn window(&self, now: Instant) -> u64 {
        let rates = self.rates(now);
        let fastest = rates.fold(0.0, f64::max);
        to_bytes(fastest * LANE_TIME).clamp(MIN_LANE, MAX_LANE)
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn to_float(bytes: u64) -> f64 {
    bytes as f64
}
