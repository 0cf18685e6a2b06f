//! Streams that bring several ranges, which clients have announced, with one request.

use bytes::Bytes;

use super::DownloadError;
use super::lane::Lane;
use super::plan::Span;
use super::streams::{Body, Stream};
use super::task::Transfer;
use crate::oci::ByteRange;
use crate::upstream::BlobRanges;

impl Transfer<'_> {
    /// The ranges that the request of a new stream asks for, if they are several, and the blob's
    /// length.
    pub(super) fn several_ranges(
        &mut self,
        lane: u64,
        span: Span,
    ) -> Option<(Vec<ByteRange>, u64)> {
        let (start, end) = (span.start, span.end?);
        let total = self.plan.total.filter(|_| self.opened)?;
        if !self.streams.support_multi_range() {
            return None;
        }
        let (progress, plan) = (&self.download.progress, &mut self.plan);
        progress.plan(|have, demand| {
            let further = plan.extend(lane, have, demand);
            let ranges = || [&[ByteRange { start, end }], further].concat();
            (!further.is_empty()).then(|| (ranges(), total))
        })
    }

    /// The upstream gives a stream several ranges.
    pub(super) fn answered_ranges(&mut self, stream: Stream, ranges: BlobRanges) {
        self.prove();
        if !self.storing.is_storing() {
            // What isn't stored can only be passed on in order.
            self.give_up(&stream);
            return;
        }
        self.plan.answered(stream.lane);
        self.streams.read(stream, Body::Several(ranges));
        self.replan = true;
    }

    /// Bytes of one of several ranges have come.
    pub(super) fn came_at(
        &mut self,
        stream: Stream,
        body: Body,
        offset: u64,
        piece: Bytes,
    ) -> Result<(), DownloadError> {
        if self.plan.seek(stream.lane, offset) {
            return self.came(stream, body, piece);
        }
        // Another stream brings these bytes.
        if self.plan.lane(stream.lane).is_some() {
            self.streams.read(stream, body);
        }
        Ok(())
    }

    /// A stream has broken off: its further ranges are asked for again, by others.
    pub(super) fn keep_one_range(&mut self, stream: &Stream) {
        let lane = self.plan.lane(stream.lane);
        if lane.is_some_and(Lane::has_further) {
            self.replan = true;
            let at = self.plan.keep_one_range(stream.lane);
            self.download.progress.mark(stream.lane, at);
        }
    }
}
