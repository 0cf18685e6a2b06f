//! The byte range of one stream.

use tokio::time::Instant;

use super::throughput::Throughput;
use crate::oci::RangeSet;

/// How far ahead of a stream a reader may wait, whatever the stream's throughput.
pub(super) const NEAR: u64 = 1024 * 1024;
/// How long a reader waits for an approaching stream before another one is opened for it.
const NEAR_TIME: f64 = 0.25;
/// How far ahead of a new stream, whose throughput is not known yet, an open-ended reader may be before
/// another stream is opened for it. Shortening a stream wastes the bytes in flight.
const PATIENT: u64 = 64 * 1024 * 1024;

/// The range that one stream brings.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) id: u64,
    /// Offset of the next byte.
    pub(super) at: u64,
    /// End, exclusive. None when the blob's size isn't known.
    pub(super) end: Option<u64>,
    /// Further ranges of the same request that haven't begun.
    pub(super) further: RangeSet,
    /// Whether the upstream has answered.
    pub(super) answered: bool,
    pub(super) throughput: Throughput,
}

impl Segment {
    /// Moves to `offset`, which the stream brings next. False when it isn't expected there.
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

    fn owns(&self, at: u64) -> bool {
        self.at <= at && self.end.is_none_or(|end| at < end)
    }

    /// Whether the stream brings the byte, in its current or a further range.
    pub(super) fn brings(&self, at: u64) -> bool {
        self.owns(at) || self.further.contains(at, at + 1)
    }

    /// Removes the further range that begins there: another stream brings it.
    pub(super) fn cut(&mut self, at: u64) {
        if self.owns(at) {
            self.end = Some(at);
        } else {
            self.further.remove(at, self.further.end_of(at));
        }
    }

    /// Whether its current range is complete.
    pub(super) fn is_through(&self) -> bool {
        self.end.is_some_and(|end| self.at >= end)
    }

    pub(super) fn left(&self, total: u64) -> u64 {
        self.end.unwrap_or(total).saturating_sub(self.at)
    }

    /// Whether the stream brings the wanted byte soon enough for the reader to wait.
    pub(super) fn comes_soon(&self, at: u64, end: Option<u64>, total: u64, now: Instant) -> bool {
        let rate = self.throughput.rate(now);
        if !self.owns(at) {
            // A further range: the ranges before it come first.
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
