//! What one stream brings.

use tokio::time::Instant;

use super::throughput::Throughput;
use crate::oci::RangeSet;

/// Bytes that are waited for behind a stream's mark at any pace.
pub(super) const NEAR: u64 = 1024 * 1024;
/// How long is waited for a stream that comes nearer, instead of opening another one.
const NEAR_TIME: f64 = 0.25;
/// Bytes that who reads on from there waits for behind a new stream's mark, whose pace is yet to be
/// seen: a fast one is there at once, and where it is cut short, what is on its way is lost.
const PATIENT: u64 = 64 * 1024 * 1024;

/// The stretch of one stream.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: u64,
    /// The next byte that it brings.
    pub(super) at: u64,
    /// Where it ends: none where the blob's length isn't known.
    pub(super) end: Option<u64>,
    /// Further ranges that the same request has asked for, and that have yet to begin.
    pub(super) further: RangeSet,
    /// Whether the upstream has given the stream.
    pub(super) answered: bool,
    pub(super) pace: Throughput,
}

impl Lane {
    pub(super) fn new(id: u64, at: u64, end: Option<u64>) -> Self {
        Self {
            id,
            at,
            end,
            further: RangeSet::new(),
            answered: false,
            pace: Throughput::default(),
        }
    }

    /// The stream brings the byte `offset` next. False when it isn't expected to.
    pub(super) fn seek(&mut self, offset: u64) -> bool {
        if self.at == offset && self.owns(offset) {
            return true;
        }
        let end = self.further.end_of(offset);
        if end == offset {
            return false;
        }
        self.further.remove(offset, end);
        if let Some(old) = self.end.replace(end) {
            self.further.insert(self.at, old);
        }
        self.at = offset;
        true
    }

    /// Frees the further ranges, but the next one where the present one has come.
    pub(super) fn keep_one_range(&mut self) {
        let further = std::mem::take(&mut self.further);
        if let (true, Some(next)) = (self.is_through(), further.ranges().first()) {
            (self.at, self.end) = (next.start, Some(next.end));
        }
    }

    pub(super) fn owns(&self, at: u64) -> bool {
        self.at <= at && self.end.is_none_or(|end| at < end)
    }

    /// Whether the stream brings the byte: now, or in one of its further ranges.
    pub(super) fn brings(&self, at: u64) -> bool {
        self.owns(at) || self.further.contains(at, at + 1)
    }

    /// Another stream brings what begins there.
    pub(super) fn cut(&mut self, at: u64) {
        if self.owns(at) {
            self.end = Some(at);
        } else {
            self.further.remove(at, self.further.end_of(at));
        }
    }

    /// Whether all of its present range has come.
    pub(super) fn is_through(&self) -> bool {
        self.end.is_some_and(|end| self.at >= end)
    }

    /// Whether its request has asked for ranges that have yet to begin.
    pub(super) fn has_further(&self) -> bool {
        !self.further.is_empty()
    }

    pub(super) fn left(&self, total: u64) -> u64 {
        self.end.unwrap_or(total).saturating_sub(self.at)
    }

    /// Whether the stream is about to bring the byte `at` for somebody who reads up to `end`.
    pub(super) fn comes_soon(&self, at: u64, end: Option<u64>, total: u64, now: Instant) -> bool {
        let rate = self.pace.rate(now);
        if !self.owns(at) {
            // A further range: all before it comes first.
            let ahead = self.left(total) + self.further.len();
            let reach = rate.map(|rate| to_bytes(rate * NEAR_TIME).max(NEAR));
            return reach.is_none_or(|reach| ahead <= reach);
        }
        let reads_on = end.is_none_or(|end| end >= total);
        let reach = match rate {
            Some(rate) => to_bytes(rate * NEAR_TIME),
            None if reads_on => PATIENT,
            None => 0,
        };
        at - self.at <= NEAR.max(reach)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate; the cast saturates"
)]
pub(super) fn to_bytes(bytes: f64) -> u64 {
    bytes as u64
}
