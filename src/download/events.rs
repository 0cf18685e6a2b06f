//! Handles the events of a download's streams: response, chunk, end, error.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::admission::{self, Space};
use super::commit;
use super::plan::Span;
use super::storing::Storing;
use super::streams::{Body, Event, Stream};
use super::task::Transfer;
use super::writer::Writer;
use super::{Download, DownloadError};
use crate::cache::Reader;
use crate::error_chain::on_one_line;
use crate::oci::{ByteRange, Classified as _, RangeSet};
use crate::upstream::{BlobRanges, BlobStream, UpstreamError};

/// Consecutive attempts to reopen a broken stream.
const MAX_RESUMES: u32 = 5;
/// A stream that has brought this many bytes before it broke resets the count of [`MAX_RESUMES`].
const PROGRESS: u64 = 1024 * 1024;
/// Pause before the first attempt to reopen a stream. Doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Upper bound for an upstream's Retry-After while clients wait in the middle of a blob.
const MAX_PAUSE: Duration = Duration::from_secs(30);

impl Transfer<'_> {
    pub(super) async fn on_event(
        &mut self,
        (stream, event): (Stream, Event),
    ) -> Result<(), DownloadError> {
        match event {
            Event::Opened(Ok(response)) => return self.on_response(stream, response).await,
            Event::Opened(Err(error)) => return self.on_refusal(stream, error).await,
            Event::OpenedRanges(ranges) => self.on_ranges(stream, ranges),
            Event::Chunk(body, offset, chunk) => {
                return self.on_chunk(stream, body, offset, chunk);
            }
            Event::RangesEnded => self.give_up(&stream),
            Event::Ended(Ok(())) => return self.on_end(&stream),
            Event::Ended(Err(error)) => return self.on_disconnect(stream, error),
        }
        Ok(())
    }

    fn length_error(&self, announced: u64, sent: u64) -> DownloadError {
        let digest = self.download.digest.into();
        DownloadError::Length {
            digest,
            announced,
            sent,
        }
    }

    /// Handles a response head. The body may start elsewhere than requested.
    async fn on_response(
        &mut self,
        mut stream: Stream,
        response: BlobStream,
    ) -> Result<(), DownloadError> {
        let BlobStream { offset, total, .. } = response;
        self.prove();
        if self.opened
            && let Some(total) = total
        {
            self.learn_total(total)?;
        }
        // The resumed bytes may belong to a blob of another size: start again without them.
        let begun = self.opened || self.begin(total).await;
        // Pass-through needs contiguous bytes.
        let passes = !self.storing.is_storing();
        if !begun || passes && !self.download.progress.has(0, offset) {
            self.give_up(&stream);
            return Ok(());
        }
        if offset != stream.offset {
            // The upstream ignores ranges: another stream brings the blob, or this one does from byte 0.
            if self.plan.segments.len() > 1 {
                self.plan.alone = true;
                self.give_up(&stream);
                return Ok(());
            }
            self.plan.without_ranges(stream.segment);
            stream.offset = offset;
            self.download.progress.mark(stream.segment, Some(offset));
        }
        if stream.breaks > 0 {
            self.shared.options.metrics.downloads.resumed.inc();
        }
        self.read(stream, Body::One(response.body));
        Ok(())
    }

    /// Handles the response head of a request for several ranges.
    fn on_ranges(&mut self, stream: Stream, ranges: BlobRanges) {
        self.prove();
        if self.storing.is_storing() {
            self.read(stream, Body::Several(ranges));
        } else {
            // Pass-through needs contiguous bytes.
            self.give_up(&stream);
        }
    }

    /// Reads a body whose head has arrived.
    fn read(&mut self, stream: Stream, body: Body) {
        self.plan.answered(stream.segment);
        self.streams.read(stream, body);
        self.replan = true;
    }

    /// Learns the blob's size from a later response. Fails when it contradicts an earlier one.
    fn learn_total(&mut self, total: u64) -> Result<(), DownloadError> {
        match self.plan.total {
            Some(announced) if announced == total => Ok(()),
            None if self.received <= total => {
                self.plan.opened(Some(total));
                self.download.progress.learned(total);
                Ok(())
            }
            other => Err(self.length_error(other.unwrap_or(self.received), total)),
        }
    }

    /// The upstream has answered: the source's repository has the blob.
    fn prove(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            let Download { digest, id, .. } = self.download;
            self.shared.registry.prove(digest, *id, self.member);
            self.download.progress.prove(self.member);
        }
    }

    /// Handles the first response: the size is known and followers may read. False when a resumed
    /// partial file belongs to a blob of another size.
    async fn begin(&mut self, total: Option<u64>) -> bool {
        let other_length = self.length_error(total.unwrap_or(0), 0);
        let progress = &self.download.progress;
        if let Some((resumed, ranges)) = self.resumed.take() {
            if total.is_some_and(|total| total != resumed) {
                self.forget_resumed().await;
                return false;
            }
            progress.opened(Some(resumed), self.content(), &ranges, &other_length);
        } else {
            let described = self.streams.source.described_size();
            let stored = admission::admit(self.shared, self.download, total, described).await;
            let algorithm = self.download.digest.algorithm();
            let suspect = self.suspect.take();
            self.storing = Storing::new(stored, algorithm, RangeSet::new(), suspect);
            self.plan.opened(total);
            let content = self.content();
            if content.is_none() {
                self.plan.in_order();
            }
            progress.opened(total, content, &RangeSet::new(), &other_length);
        }
        self.opened = true;
        true
    }

    /// Discards the resumed partial file: it isn't of this blob.
    async fn forget_resumed(&mut self) {
        self.resumed = None;
        self.space = Space::default();
        self.mixed = false;
        self.plan.total = None;
        let nothing = Storing::nothing(self.download.digest.algorithm());
        commit::discard(std::mem::replace(&mut self.storing, nothing)).await;
    }

    fn content(&self) -> Option<Reader> {
        self.storing.idle.as_deref().and_then(Writer::content)
    }

    /// Ends a stream and frees its segment.
    fn give_up(&mut self, stream: &Stream) {
        self.plan.close(stream.segment);
        self.download.progress.mark(stream.segment, None);
        self.replan = true;
    }

    /// Whether a blob of unknown size ends at `at`, by its digest: the stream may have broken off
    /// after the last byte and before the end of the body.
    async fn is_whole_by_digest(&mut self, at: u64) -> Result<bool, DownloadError> {
        if !self.opened || self.plan.total.is_some() {
            return Ok(false);
        }
        self.hash_all().await?;
        let writer = self.storing.idle.as_ref();
        Ok(writer.is_some_and(|writer| writer.is_whole(at, &self.download.digest)))
    }

    /// Handles a stream that couldn't be opened.
    async fn on_refusal(
        &mut self,
        stream: Stream,
        error: UpstreamError,
    ) -> Result<(), DownloadError> {
        if error.is_out_of_range() && self.is_whole_by_digest(stream.offset).await? {
            return self.on_end(&stream);
        }
        if self.opened || self.plan.segments.len() > 1 {
            return self.on_disconnect(stream, error);
        }
        if error.is_out_of_range() && self.resumed.is_some() {
            self.give_up(&stream);
            self.forget_resumed().await;
            return Ok(());
        }
        if stream.offset > 0 && error.is_out_of_range() {
            // The client requested bytes beyond the end: request the first byte, to learn the size.
            self.give_up(&stream);
            (self.wanted.start, self.wanted.end) = (0, Some(1));
            return Ok(());
        }
        Err(error.into())
    }

    /// Handles a stream that broke off: reopens it, or ends it.
    fn on_disconnect(
        &mut self,
        mut stream: Stream,
        error: UpstreamError,
    ) -> Result<(), DownloadError> {
        if let Some(at) = self.plan.keep_one_range(stream.segment) {
            // Other streams bring the further ranges.
            self.download.progress.mark(stream.segment, Some(at));
            self.replan = true;
        }
        let Some(segment) = self.plan.segment(stream.segment) else {
            return Ok(());
        };
        let (at, end, is_through) = (segment.at, segment.end, segment.is_through());
        let digest = self.download.digest;
        let others = self.plan.segments.len() > 1;
        if others && (error.pushes_back() || !error.is_transient()) {
            tracing::info!(%digest, error = %on_one_line(&error), "going on with one stream");
            self.plan.alone = true;
            self.give_up(&stream);
            return Ok(());
        }
        if is_through && error.is_transient() {
            self.give_up(&stream);
            return Ok(());
        }
        let progressed = at >= stream.broke_at + PROGRESS;
        stream.breaks = if progressed { 1 } else { stream.breaks + 1 };
        stream.broke_at = at;
        if stream.breaks > MAX_RESUMES || !error.is_transient() {
            if others {
                // No successor: it would reset the count of attempts.
                self.plan.alone = true;
                self.give_up(&stream);
                return Ok(());
            }
            return Err(error.into());
        }
        tracing::info!(%digest, offset = at, error = %on_one_line(&error), "resuming download");
        let pause = FIRST_PAUSE * 2_u32.pow(stream.breaks - 1);
        let pause = pause.mul_f64(0.5 + fastrand::f64());
        // Another source is there to continue at once.
        let pause = if self.streams.source.reads_from_peer() {
            Duration::ZERO
        } else {
            pause
        };
        let wanted = error.retry_after().unwrap_or_default().min(MAX_PAUSE);
        let end = end.filter(|end| self.plan.total != Some(*end));
        let span = Span { start: at, end };
        self.streams.reopen(stream, span, pause.max(wanted));
        Ok(())
    }

    /// Handles a chunk. `offset` is known for a body of several ranges.
    fn on_chunk(
        &mut self,
        stream: Stream,
        body: Body,
        offset: Option<u64>,
        mut chunk: Bytes,
    ) -> Result<(), DownloadError> {
        let elsewhere = offset.is_some_and(|offset| !self.plan.seek(stream.segment, offset));
        let Some(segment) = self.plan.segment(stream.segment) else {
            return Ok(());
        };
        if elsewhere {
            // Another stream brings these bytes.
            self.streams.read(stream, body);
            return Ok(());
        }
        let (at, end) = (segment.at, segment.end);
        let sent = at + chunk.len() as u64;
        if let Some(announced) = self.plan.total
            && sent > announced
        {
            return Err(self.length_error(announced, sent));
        }
        let until = end.map_or(sent, |end| end.min(sent)).max(at);
        let length = until - at;
        chunk.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.received = self.received.max(until);
        self.plan
            .advance(stream.segment, length, stream.waited, Instant::now());
        if !chunk.is_empty() {
            self.publish(stream.segment, at, chunk);
        }
        // Of several ranges, the next part or the closing delimiter has to follow.
        if end.is_some_and(|end| until >= end) && !body.has_several_ranges() {
            self.give_up(&stream);
        } else {
            self.streams.read(stream, body);
        }
        Ok(())
    }

    /// Publishes a chunk to followers, and hands it to the writer.
    fn publish(&mut self, segment: u64, at: u64, chunk: Bytes) {
        let progress = &self.download.progress;
        let end = at + chunk.len() as u64;
        let missing = progress.missing(at, end);
        progress.mark(segment, Some(end));
        let new: u64 = missing.iter().map(ByteRange::len).sum();
        for range in missing {
            let skip = |offset: u64| usize::try_from(offset - at).unwrap_or(chunk.len());
            progress.received(range.start, chunk.slice(skip(range.start)..skip(range.end)));
        }
        if self.storing.is_storing() {
            self.space.stored += new;
        }
        let repeats = new < chunk.len() as u64;
        self.storing.push(at, chunk, repeats);
        self.reserve_ahead();
    }

    /// Handles the clean end of a body.
    fn on_end(&mut self, stream: &Stream) -> Result<(), DownloadError> {
        let at = self
            .plan
            .segment(stream.segment)
            .map_or(0, |segment| segment.at);
        self.give_up(stream);
        match self.plan.total {
            // No other stream brings the rest.
            Some(announced) if at < announced && self.plan.segments.is_empty() => {
                Err(self.length_error(announced, at))
            }
            Some(_) => Ok(()),
            // A body that didn't start at byte 0 has told the size by its end.
            None if !self.download.progress.has(0, at) => self.learn_total(at),
            None => {
                self.ended = true;
                Ok(())
            }
        }
    }
}
