//! Chooses the bytes to request next and opens the streams for them.

use tokio::time::Instant;

use super::BlobRequest;
use super::permits::Permit;
use super::plan::{MIN_SEGMENT, NEAR, Span};
use super::task::Transfer;
use crate::oci::{ByteRange, RangeSet};

impl Transfer<'_> {
    /// Opens the streams that the plan asks for, and shortens the segments that they take over.
    pub(super) fn open_streams(&mut self) {
        if self.turn.is_some() {
            return;
        }
        loop {
            let now = Instant::now();
            // Taken before the plan shortens a segment: without a permit the segment stays as it is.
            let further = !self.plan.segments.is_empty();
            let (permits, urgent) = (&self.shared.permits, self.download.urgency.get());
            self.streams.source.set_urgent(urgent);
            let (upstream, client) = (self.streams.source.upstream(), self.wanted.client);
            let permit = further.then(|| permits.try_stream(upstream, client, urgent));
            let may = !matches!(permit, Some(None));
            self.plan.helps_filling = !self.streams.source.reads_from_peer();
            let (first, plan) = (self.first_span(), &mut self.plan);
            let resumed = self.resumed.as_ref().map(|(_, ranges)| ranges);
            let (next, look) = self.download.progress.plan(|have, demand| {
                // Resumed bytes aren't published before the upstream has answered.
                let have = resumed.unwrap_or(have);
                let next = match first {
                    Some(first) => plan.segments.is_empty().then_some(first),
                    None if may => plan.next(have, demand, now),
                    None => None,
                };
                (next, plan.look_again(demand))
            });
            // Other events don't postpone a look that is due earlier.
            let set = self.look.filter(|look| *look > now);
            self.look = look.map(|pause| set.unwrap_or(now + pause));
            let Some(span) = next else { return };
            let Some(permit) = permit.flatten() else {
                let (permits, upstream) = (permits.clone(), upstream.to_owned());
                let urgency = self.download.urgency.clone();
                self.turn = Some(Box::pin(async move {
                    (span, permits.open(&upstream, client, urgency).await)
                }));
                return;
            };
            self.shared.options.metrics.downloads.segments.inc();
            self.open(span, permit);
        }
    }

    /// The bytes to request while the size is unknown.
    fn first_span(&self) -> Option<Span> {
        if self.opened {
            return None;
        }
        let BlobRequest {
            start, end, fill, ..
        } = self.wanted;
        if let Some((total, there)) = &self.resumed {
            return Some(first_missing(*total, there, self.wanted));
        }
        let (start, end) = match fill {
            // The whole blob is wanted and the client starts near its beginning.
            true if start < NEAR => (0, None),
            true => (start, None),
            false => (start, end.or(Some(start.saturating_add(MIN_SEGMENT)))),
        };
        Some(Span { start, end })
    }

    pub(super) fn open(&mut self, span: Span, permit: Permit) {
        let segment = self.plan.open(span);
        let Span { start, end } = span;
        tracing::debug!(digest = %self.download.digest, segment, start, end, "opening a stream");
        self.download.progress.mark(segment, Some(start));
        match self.several_ranges(segment, span) {
            Some((ranges, total)) => self.streams.open_ranges(segment, ranges, total, permit),
            None => self.streams.open(segment, span, permit),
        }
    }

    /// The ranges that the request of a new stream asks for, if they are several, and the blob's size.
    fn several_ranges(&mut self, segment: u64, span: Span) -> Option<(Vec<ByteRange>, u64)> {
        let (start, end) = (span.start, span.end?);
        let total = self.plan.total.filter(|_| self.opened)?;
        if !self.streams.source.supports_multi_range() {
            return None;
        }
        let (progress, plan) = (&self.download.progress, &mut self.plan);
        progress.plan(|have, demand| {
            let further = plan.extend(segment, have, demand);
            let ranges = || [&[ByteRange { start, end }], further].concat();
            (!further.is_empty()).then(|| (ranges(), total))
        })
    }
}

/// The bytes to request first when a partial file is resumed: those missing at the client's offset,
/// at least one byte.
fn first_missing(total: u64, there: &RangeSet, wanted: BlobRequest) -> Span {
    let BlobRequest {
        start, end, fill, ..
    } = wanted;
    let at = there.end_of(start);
    let at = if at < total { at } else { there.end_of(0) };
    let gap = there.next_start(at).unwrap_or(total);
    let end = if fill {
        gap
    } else {
        end.unwrap_or(at.saturating_add(MIN_SEGMENT))
            .min(gap)
            .max(at + 1)
    };
    Span {
        start: at,
        end: (end < total).then_some(end),
    }
}
