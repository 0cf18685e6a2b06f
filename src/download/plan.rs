//! Decides which bytes are requested next, and by how many streams at once. Pure: the caller passes
//! time and progress.
//!
//! Each stream has a range of the blob of its own, a [`Segment`]. Segments don't overlap, and hold no
//! bytes that have arrived. A segment is shortened for a client that waits far ahead in it, and to
//! share it with another stream; what is cut off waits for the next stream.

use std::time::Duration;

use tokio::time::Instant;

use super::batch;
pub(super) use super::segment::NEAR;
use super::segment::{Segment, to_bytes};
use crate::config::Segments;
use crate::oci::{ByteRange, RangeSet};

/// A download that ends sooner than this, in seconds, gets no further streams.
const WORTHWHILE: f64 = 1.0;
/// A stream of at least this many bytes a second gets no help: it isn't the bottleneck.
const FAST: f64 = 128.0 * 1024.0 * 1024.0;
/// A segment whose rest takes less than this, in seconds, isn't shared, nor one with fewer bytes.
const SHARED: f64 = 0.4;
const MIN_SHARED: u64 = 2 * 1024 * 1024;
/// How long a stream should take for its segment, in seconds.
const SEGMENT_TIME: f64 = 3.0;
/// Bytes of a segment at least, and while the throughput isn't known.
pub(super) const MIN_SEGMENT: u64 = 8 * 1024 * 1024;
/// Bytes of a segment at most, so that streams stay close ahead of sequential readers.
const MAX_SEGMENT: u64 = 128 * 1024 * 1024;
/// Time after which the plan is asked again whether another stream helps.
const LOOK: Duration = Duration::from_millis(125);

/// Bytes to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    /// None: to the end of the blob.
    pub(super) end: Option<u64>,
}

/// A client waits for the byte `at` and wants those before `end` (none: all).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MissingBytes {
    pub(super) at: u64,
    pub(super) end: Option<u64>,
}

/// The bytes that clients want.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Of the clients that wait, the longest wait first.
    pub(super) wants: Vec<MissingBytes>,
    /// The lowest offset that a client reads.
    pub(super) floor: u64,
    /// The ranges that clients have announced.
    pub(super) announced: RangeSet,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub(super) struct Plan {
    limits: Segments,
    pub(super) total: Option<u64>,
    /// Disjoint: one for each stream.
    pub(super) segments: Vec<Segment>,
    next_id: u64,
    /// Whether the whole blob is fetched, and not only requested ranges.
    pub(super) fill: bool,
    /// Whether the upstream supports ranges. Otherwise every stream begins at 0.
    ranged: bool,
    /// Whether the upstream gets one stream at a time, because it pushes back.
    pub(super) alone: bool,
    /// The throughput of the stream that was measured last, in bytes a second.
    typical: Option<f64>,
    /// Only contiguous bytes from the blob's start are of use.
    in_order: bool,
    /// Whether a large blob may get further streams that no client waits for. Not from another replica: each
    /// would cost it one more of the upstream's.
    pub(super) helps_filling: bool,
}

impl Plan {
    pub(super) fn new(limits: Segments, fill: bool) -> Self {
        Self {
            limits,
            total: None,
            segments: Vec::new(),
            next_id: 0,
            fill,
            ranged: true,
            alone: false,
            typical: None,
            in_order: false,
            helps_filling: true,
        }
    }

    pub(super) fn segment(&self, id: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.id == id)
    }

    fn segment_mut(&mut self, id: u64) -> Option<&mut Segment> {
        self.segments.iter_mut().find(|segment| segment.id == id)
    }

    /// Adds the segment of a new stream and returns its id.
    pub(super) fn open(&mut self, span: Span) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let end = span.end.or(self.total);
        self.segments.push(Segment {
            id,
            at: span.start,
            end,
            ..Segment::default()
        });
        id
    }

    /// Adds to a new stream's segment the announced ranges behind it that fit into the same request.
    pub(super) fn extend(&mut self, id: u64, have: &RangeSet, demand: &Demand) -> &[ByteRange] {
        let whole = self.fill || self.in_order || !self.ranged;
        let Some(total) = self.total.filter(|_| !whole) else {
            return &[];
        };
        let taken = self.taken(have, total);
        let Some(segment) = self.segment_mut(id) else {
            return &[];
        };
        let (start, end) = (segment.at, segment.end.unwrap_or(total));
        if demand.announced.contains(start, start + 1) {
            let first = ByteRange { start, end };
            segment.further = batch::further(&demand.announced, taken, first);
        }
        segment.further.ranges()
    }

    /// Moves a stream to `offset`, the byte that it brings next. False when that byte isn't in its
    /// segment, or not any more.
    pub(super) fn seek(&mut self, id: u64, offset: u64) -> bool {
        self.segment_mut(id)
            .is_some_and(|segment| segment.seek(offset))
    }

    /// Frees the further ranges of a stream that has broken off, except the next one when its current
    /// range is complete. Returns where the stream continues; none when it has no further ranges.
    pub(super) fn keep_one_range(&mut self, id: u64) -> Option<u64> {
        let segment = self.segment_mut(id)?;
        let further = std::mem::take(&mut segment.further);
        let next = further.ranges().first()?;
        if segment.is_through() {
            (segment.at, segment.end) = (next.start, Some(next.end));
        }
        Some(segment.at)
    }

    /// The upstream has answered a stream's request.
    pub(super) fn answered(&mut self, id: u64) {
        if let Some(segment) = self.segment_mut(id) {
            segment.answered = true;
        }
    }

    /// A stream has brought bytes, after the task has waited for them for `waited`.
    pub(super) fn advance(&mut self, id: u64, bytes: u64, waited: Duration, now: Instant) {
        if let Some(segment) = self.segment_mut(id) {
            segment.at += bytes;
            segment.throughput.add(bytes, waited, now);
            self.typical = segment.throughput.rate(now).or(self.typical);
        }
    }

    /// Removes the segment of a stream that has ended.
    pub(super) fn close(&mut self, id: u64) {
        self.segments.retain(|segment| segment.id != id);
    }

    /// The upstream has answered and announced `total` bytes, if any.
    pub(super) fn opened(&mut self, total: Option<u64>) {
        self.total = total;
        for segment in &mut self.segments {
            segment.end = match (segment.end, total) {
                (Some(end), Some(total)) => Some(end.min(total)),
                (end, total) => end.or(total),
            };
        }
    }

    /// Another source takes over: it may support what the previous one didn't.
    pub(super) fn change_source(&mut self) {
        self.segments.clear();
        self.ranged = true;
        self.alone = self.in_order;
        self.typical = None;
    }

    /// From now on one stream, in order and to the end: nothing is stored, so bytes that arrive early
    /// would be lost to the hash.
    pub(super) fn in_order(&mut self) {
        self.alone = true;
        self.in_order = true;
        self.fill = true;
    }

    /// The upstream ignores ranges: the stream brings everything from byte 0 on.
    pub(super) fn without_ranges(&mut self, id: u64) {
        self.ranged = false;
        self.alone = true;
        let total = self.total;
        if let Some(segment) = self.segment_mut(id) {
            segment.at = 0;
            segment.end = total;
        }
    }

    /// The bytes for another stream, if one is useful. The segment that has them is shortened already.
    pub(super) fn next(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        if self.alone && !self.segments.is_empty() {
            return None;
        }
        if !self.ranged || self.in_order || self.total.is_none() {
            let start = if self.ranged { have.end_of(0) } else { 0 };
            let missing = self.total.is_none_or(|total| have.end_of(0) < total);
            let first = Span { start, end: None };
            return (self.segments.is_empty() && missing).then_some(first);
        }
        let announced = self.announced(have, demand);
        let wanted = announced.or_else(|| self.wanted(have, demand, now));
        wanted.or_else(|| {
            let count = if self.helps_filling {
                self.limits.count
            } else {
                1
            };
            let may = self.fill && self.segments.len() < count;
            may.then(|| self.filling(have, demand, now)).flatten()
        })
    }

    /// When [`next`](Self::next) may return another result without an event.
    pub(super) fn look_again(&self, demand: &Demand) -> Option<Duration> {
        let helped = !self.alone && !self.segments.is_empty();
        let filling = self.fill && self.segments.len() < self.limits.count && self.is_large();
        (helped && (filling || !demand.wants.is_empty())).then_some(LOOK)
    }

    fn is_large(&self) -> bool {
        self.total
            .is_some_and(|total| total >= self.limits.min_size)
    }

    /// A stream for a client that waits, unless one brings its bytes soon.
    fn wanted(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        let total = self.total?;
        if self.segments.len() >= self.limits.per_blob {
            return None;
        }
        for want in &demand.wants {
            let at = want.at;
            if at >= total || have.contains(at, at + 1) {
                continue;
            }
            let window = self.window(now);
            let owner = self.segments.iter_mut().find(|segment| segment.brings(at));
            if let Some(segment) = owner {
                if segment.comes_soon(at, want.end, total, now) {
                    continue;
                }
                segment.cut(at);
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

    /// A stream for announced ranges: the first missing one from where a client waits, with those that
    /// follow closely.
    fn announced(&self, have: &RangeSet, demand: &Demand) -> Option<Span> {
        let total = self.total?;
        let ranges = &demand.announced;
        if self.fill || ranges.is_empty() || self.segments.len() >= self.limits.per_blob {
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

    /// A stream for bytes that no client waits for yet.
    fn filling(&mut self, have: &RangeSet, demand: &Demand, now: Instant) -> Option<Span> {
        let total = self.total?;
        let taken = self.taken(have, total);
        let gap_from = |from: u64| {
            let start = taken.end_of(from);
            (start < total).then(|| (start, taken.next_start(start).unwrap_or(total)))
        };
        let gap = gap_from(demand.floor).or_else(|| gap_from(0));
        if self.segments.is_empty() {
            let (start, end) = gap?;
            let end = (end < total).then_some(end);
            return Some(Span { start, end });
        }
        // One after the other: the upstream may refuse a second one.
        let asked = self.segments.iter().any(|segment| !segment.answered);
        if asked || !self.is_large() {
            return None;
        }
        let window = self.even(self.window(now), have, total);
        if !self.is_upstream_slow(now) {
            return None;
        }
        if let Some((start, end)) = gap {
            // A short rest isn't left to a stream of its own.
            let all = end - start <= window + MIN_SHARED;
            let end = Some(if all { end } else { start + window });
            let worthwhile = self.is_worthwhile(have, total, now);
            return worthwhile.then_some(Span { start, end });
        }
        // Once several are open, short segments are shared too, so that all end together.
        let least = if self.segments.len() > 1 {
            SHARED
        } else {
            WORTHWHILE
        };
        let typical = self.typical;
        let longest = self
            .segments
            .iter_mut()
            .max_by_key(|segment| segment.left(total))?;
        let left = longest.left(total);
        let rate = longest.throughput.rate(now).or(typical)?;
        if left < MIN_SHARED || to_float(left) < rate * least {
            return None;
        }
        let start = longest.at + window.min(left / 2);
        let old = longest.end.replace(start).unwrap_or(total);
        let end = Some(old.min(start + window));
        Some(Span { start, end })
    }

    /// The bytes that have arrived and those in segments.
    fn taken(&self, have: &RangeSet, total: u64) -> RangeSet {
        let mut taken = have.clone();
        for segment in &self.segments {
            taken.insert(segment.at, segment.end.unwrap_or(total));
            taken.extend(&segment.further);
        }
        taken
    }

    /// Whether the download takes long enough for another stream to help. False before the throughput
    /// is known.
    fn is_worthwhile(&self, have: &RangeSet, total: u64, now: Instant) -> bool {
        let rates = self.rates(now);
        let (rate, known) = rates.fold((0.0, 0), |(sum, known), rate| (sum + rate, known + 1));
        known > 0 && to_float(total - have.len().min(total)) >= WORTHWHILE * rate
    }

    /// The window, or less, so that all streams end together at the end of the blob.
    fn even(&self, window: u64, have: &RangeSet, total: u64) -> u64 {
        let left = total.saturating_sub(have.len());
        let round = window.saturating_mul(self.limits.count as u64).max(1);
        let rounds = left.div_ceil(round).max(1);
        let share = left.div_ceil(rounds * self.limits.count as u64);
        share.clamp(MIN_SHARED.min(window), window)
    }

    /// Whether further streams would bring more: none is fast, and none has its bytes ready.
    fn is_upstream_slow(&self, now: Instant) -> bool {
        let mut segments = self.segments.iter();
        let ready = segments.any(|segment| segment.throughput.is_ready());
        !ready && self.rates(now).all(|rate| rate < FAST)
    }

    /// The throughput of each stream; for one that hasn't been measured, that of another.
    fn rates(&self, now: Instant) -> impl Iterator<Item = f64> {
        let rate = move |segment: &Segment| segment.throughput.rate(now).or(self.typical);
        self.segments.iter().filter_map(rate)
    }

    /// Bytes of a segment at the measured throughput.
    fn window(&self, now: Instant) -> u64 {
        let rates = self.rates(now);
        let fastest = rates.fold(0.0, f64::max);
        to_bytes(fastest * SEGMENT_TIME).clamp(MIN_SEGMENT, MAX_SEGMENT)
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn to_float(bytes: u64) -> f64 {
    bytes as f64
}
