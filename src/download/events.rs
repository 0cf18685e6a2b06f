//! Handles the events of a download's streams: response, chunk, end, error.

use std::time::Duration;

use bytes::Bytes;

use super::commit;
use super::place::{Space, place};
use super::plan::Span;
use super::storing::Storing;
use super::streams::{Body, Event, Stream};
use super::task::Transfer;
use super::writer::Writer;
use super::{Download, DownloadError};
use crate::error_chain::on_one_line;
use crate::oci::{Classified as _, RangeSet};
use crate::upstream::{BlobStream, UpstreamError};

/// Consecutive attempts to reopen a broken stream.
const MAX_RESUMES: u32 = 5;
/// A stream that has brought this many bytes before it broke resets the count of [`MAX_RESUMES`].
const PROGRESS: u64 = 1024 * 1024;
/// Pause before the first attempt to reopen a stream. Doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Upper bound for an upstream's Retry-After while clients wait in the middle of a blob.
const MAX_PAUSE: Duration = Duration::from_secs(30);

impl Transfer<'_> {
    pub(super) async fn happened(
        &mut self,
        (stream, body, event): (Stream, Option<Body>, Event),
    ) -> Result<(), DownloadError> {
        match (event, body) {
            (Event::Opened(Ok(answer)), _) => self.answered(stream, answer).await,
            (Event::Opened(Err(error)), _) => self.refused(stream, error).await,
            (Event::OpenedRanges(ranges), _) => {
                self.answered_ranges(stream, ranges);
                Ok(())
            }
            (Event::NoRanges, _) => {
                self.give_up(&stream);
                Ok(())
            }
            (Event::Chunk(chunk), Some(body)) => self.came(stream, body, chunk),
            (Event::Piece(offset, piece), Some(body)) => self.came_at(stream, body, offset, piece),
            (Event::Ended(Ok(())), Some(Body::Several(_))) => {
                // Ranges that the response lacks are requested again.
                self.give_up(&stream);
                Ok(())
            }
            (Event::Ended(Ok(())), _) => self.ended(&stream),
            (Event::Ended(Err(error)), _) => self.broke(stream, error),
            (Event::Chunk(_) | Event::Piece(..), None) => Err(DownloadError::Lost),
        }
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
    async fn answered(
        &mut self,
        mut stream: Stream,
        answer: BlobStream,
    ) -> Result<(), DownloadError> {
        let BlobStream {
            offset,
            total,
            body,
            ..
        } = answer;
        self.prove();
        if self.opened
            && let Some(total) = total
        {
            self.learn_total(total)?;
        }
        if !self.opened && !self.begin(total).await {
            // The resumed bytes belong to a blob of another size: start again without them.
            self.give_up(&stream);
            return Ok(());
        }
        if !self.storing.is_storing() && !self.download.progress.has(0, offset) {
            // Pass-through needs contiguous bytes.
            self.give_up(&stream);
            return Ok(());
        }
        if offset != stream.offset {
            // The upstream ignores ranges: another stream brings the blob, or this one does from byte 0.
            if self.plan.lanes().len() > 1 {
                self.plan.one_at_a_time();
                self.give_up(&stream);
                return Ok(());
            }
            self.plan.without_ranges(stream.lane);
            stream.offset = offset;
            self.download.progress.mark(stream.lane, Some(offset));
        }
        if stream.breaks > 0 {
            self.shared.metrics.download_resumed();
        }
        self.plan.answered(stream.lane);
        self.streams.read(stream, Body::One(body));
        self.replan = true;
        Ok(())
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
    pub(super) fn prove(&mut self) {
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
            let described = self.streams.described_size();
            let stored = place(self.shared, self.download, total, described).await;
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
        self.plan.forget_total();
        let algorithm = self.download.digest.algorithm();
        let nothing = Storing::new(None, algorithm, RangeSet::new(), None);
        commit::discard(std::mem::replace(&mut self.storing, nothing)).await;
    }

    fn content(&self) -> Option<crate::cache::Reader> {
        self.storing.idle().and_then(Writer::content)
    }

    /// Ends a stream and frees its lane.
    pub(super) fn give_up(&mut self, stream: &Stream) {
        self.plan.close(stream.lane);
        self.download.progress.mark(stream.lane, None);
        self.replan = true;
    }

    /// Whether a blob of unknown size ends at `at`, by its digest: the stream may have broken off
    /// after the last byte and before the end of the body.
    async fn is_whole_by_digest(&mut self, at: u64) -> Result<bool, DownloadError> {
        if !self.opened || self.plan.total.is_some() {
            return Ok(false);
        }
        self.hash_all().await?;
        let writer = self.storing.idle();
        Ok(writer.is_some_and(|writer| writer.is_whole(at, &self.download.digest)))
    }

    /// Handles a stream that couldn't be opened.
    async fn refused(&mut self, stream: Stream, error: UpstreamError) -> Result<(), DownloadError> {
        if error.is_out_of_range() && self.is_whole_by_digest(stream.offset).await? {
            return self.ended(&stream);
        }
        if self.opened || self.plan.lanes().len() > 1 {
            return self.broke(stream, error);
        }
        if error.is_out_of_range() && self.resumed.is_some() {
            self.give_up(&stream);
            self.forget_resumed().await;
            return Ok(());
        }
        if stream.offset > 0 && error.is_out_of_range() {
            // The client requested bytes beyond the end: learn the size, so that it can be told.
            self.give_up(&stream);
            self.ask_from_start();
            return Ok(());
        }
        Err(error.into())
    }

    /// Handles a stream that broke off: reopens it, or ends it.
    fn broke(&mut self, mut stream: Stream, error: UpstreamError) -> Result<(), DownloadError> {
        self.keep_one_range(&stream);
        let Some(lane) = self.plan.lane(stream.lane) else {
            return Ok(());
        };
        let (at, end) = (lane.at, lane.end);
        let is_through = lane.is_through();
        let others = self.plan.lanes().len() > 1;
        if others && (error.pushes_back() || !error.is_transient()) {
            tracing::info!(digest = %self.download.digest, error = %on_one_line(&error), "going on with one stream");
            self.plan.one_at_a_time();
            self.give_up(&stream);
            return Ok(());
        }
        if is_through && error.is_transient() {
            self.give_up(&stream);
            return Ok(());
        }
        stream.breaks = if at >= stream.broke_at + PROGRESS {
            1
        } else {
            stream.breaks + 1
        };
        stream.broke_at = at;
        if stream.breaks > MAX_RESUMES || !error.is_transient() {
            if others {
                // No successor: it would reset the count of attempts.
                self.plan.one_at_a_time();
                self.give_up(&stream);
                return Ok(());
            }
            return Err(error.into());
        }
        tracing::info!(digest = %self.download.digest, offset = at, error = %on_one_line(&error), "resuming download");
        let pause = FIRST_PAUSE * 2_u32.pow(stream.breaks - 1);
        let pause = pause.mul_f64(0.5 + fastrand::f64());
        let wanted = error.retry_after().unwrap_or_default().min(MAX_PAUSE);
        let end = end.filter(|end| self.plan.total != Some(*end));
        let span = Span { start: at, end };
        self.streams.reopen(stream, span, pause.max(wanted));
        Ok(())
    }

    /// Handles a chunk.
    pub(super) fn came(
        &mut self,
        stream: Stream,
        body: Body,
        chunk: Bytes,
    ) -> Result<(), DownloadError> {
        let Some(lane) = self.plan.lane(stream.lane) else {
            return Ok(());
        };
        let (at, end) = (lane.at, lane.end);
        let sent = at + chunk.len() as u64;
        if let Some(announced) = self.plan.total
            && sent > announced
        {
            return Err(self.length_error(announced, sent));
        }
        let length = end.map_or(sent, |end| end.min(sent)).saturating_sub(at);
        let mut part = chunk;
        part.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.received = self.received.max(at + length);
        self.plan
            .advance(stream.lane, length, tokio::time::Instant::now());
        if part.is_empty() {
            self.go_on(stream, body, at, end);
            return Ok(());
        }
        let progress = &self.download.progress;
        let missing = progress.missing(at, at + length);
        progress.mark(stream.lane, Some(at + length));
        let new: u64 = missing.iter().map(|(start, until)| until - start).sum();
        let repeats = new < length;
        for (start, until) in missing {
            let skip = |offset: u64| usize::try_from(offset - at).unwrap_or(part.len());
            let new = part.slice(skip(start)..skip(until));
            if self.storing.is_storing() {
                self.space.stored += new.len() as u64;
            }
            progress.received(start, new);
        }
        self.storing.push(at, part, repeats);
        self.reserve_ahead();
        self.go_on(stream, body, at + length, end);
        Ok(())
    }

    /// Reads on, or closes the stream at the end of its lane. A multi-range body is read on: the next
    /// part or the closing delimiter has to follow.
    fn go_on(&mut self, stream: Stream, body: Body, at: u64, end: Option<u64>) {
        if end.is_some_and(|end| at >= end) && !body.has_several_ranges() {
            self.give_up(&stream);
        } else {
            self.streams.read(stream, body);
        }
    }

    /// Handles the clean end of a body.
    fn ended(&mut self, stream: &Stream) -> Result<(), DownloadError> {
        let at = self.plan.lane(stream.lane).map_or(0, |lane| lane.at);
        self.give_up(stream);
        match self.plan.total {
            Some(announced) if self.is_short(at) => Err(self.length_error(announced, at)),
            Some(_) => Ok(()),
            // A body that didn't start at byte 0 has told the size by its end.
            None if !self.download.progress.has(0, at) => self.learn_total(at),
            None => {
                self.ended = true;
                Ok(())
            }
        }
    }

    /// Whether the body ended before the blob's end and no other stream brings the rest.
    fn is_short(&self, at: u64) -> bool {
        self.plan.total.is_some_and(|total| at < total) && self.plan.lanes().is_empty()
    }
}
