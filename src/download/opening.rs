//! Chooses the bytes to request next and opens the streams for them.

use tokio::time::Instant;

use super::BlobRequest;
use super::permits::Permit;
use super::plan::{MIN_LANE, NEAR, Span};
use super::task::Transfer;
use crate::oci::RangeSet;

impl Transfer<'_> {
    /// Requests the first byte, to learn the size.
    pub(super) fn ask_from_start(&mut self) {
        self.wanted = BlobRequest {
            start: 0,
            end: Some(1),
            ..self.wanted
        };
        self.replan = true;
    }

    /// Opens the streams that the plan asks for, and shortens the lanes that they take over.
    pub(super) fn open_streams(&mut self) {
        if self.turn.is_some() {
            return;
        }
        loop {
            let now = Instant::now();
            // Taken before the plan shortens a lane: without a permit the lane stays as it is.
            let further = !self.plan.lanes().is_empty();
            let (permits, urgent) = (&self.shared.permits, self.download.urgency.get());
            let (upstream, client) = (self.streams.upstream(), self.wanted.client);
            let slot = further.then(|| permits.try_stream(upstream, client, urgent));
            let may = !matches!(slot, Some(None));
            let (first, plan) = (self.first_span(), &mut self.plan);
            let resumed = self.resumed.as_ref().map(|(_, ranges)| ranges);
            let (next, look) = self.download.progress.plan(|have, demand| {
                // Resumed bytes aren't published before the upstream has answered.
                let have = resumed.unwrap_or(have);
                let next = match first {
                    Some(first) => plan.lanes().is_empty().then_some(first),
                    None if may => plan.next(have, demand, now),
                    None => None,
                };
                (next, plan.look_again(demand))
            });
            // Other events don't postpone a look that is due earlier.
            let set = self.look.filter(|look| *look > now);
            self.look = look.map(|pause| set.unwrap_or(now + pause));
            let Some(span) = next else { return };
            let Some(slot) = slot.flatten() else {
                let (permits, upstream) = (
                    self.shared.permits.clone(),
                    self.streams.upstream().to_owned(),
                );
                let urgency = self.download.urgency.clone();
                let opening = async move { permits.open(&upstream, client, urgency).await };
                self.turn = Some((span, Box::pin(opening)));
                return;
            };
            self.shared.metrics.downloads.segments.inc();
            self.open(span, Permit::Stream(slot));
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
            false => (start, end.or(Some(start.saturating_add(MIN_LANE)))),
        };
        Some(Span { start, end })
    }

    pub(super) fn open(&mut self, span: Span, permit: Permit) {
        let lane = self.plan.open(span);
        let Span { start, end } = span;
        tracing::debug!(digest = %self.download.digest, lane, start, end, "opening a stream");
        self.download.progress.mark(lane, Some(span.start));
        match self.several_ranges(lane, span) {
            Some((ranges, total)) => self.streams.open_ranges(lane, ranges, total, permit),
            None => self.streams.open(lane, span, permit),
        }
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
        end.unwrap_or(at.saturating_add(MIN_LANE))
            .min(gap)
            .max(at + 1)
    };
    Span {
        start: at,
        end: (end < total).then_some(end),
    }
}
