//! Bodies of answers: bytes in memory, or ranges of a blob that are read while they are sent.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::{Frame, SizeHint};

use super::access::Record;
use crate::fetch::FetchError;
use crate::mirror::BlobBody;
use crate::store::StoreError;

/// Bytes read from a stored blob at once: the buffer that a client costs.
const READ: usize = 128 * 1024;

/// Why a body broke off. hyper then ends the connection, so that the client knows.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the stored blob can't be read: {0}")]
    Store(#[from] StoreError),
    #[error("the download failed: {0}")]
    Fetch(#[from] FetchError),
    #[error("the blob ends at {at}, before its announced length")]
    Short { at: u64 },
}

/// The body of an answer.
pub struct Body {
    inner: Inner,
    /// Bytes still to come, where that is known.
    remaining: Option<u64>,
    record: Option<Record>,
}

enum Inner {
    Bytes(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

/// A part of a blob, with what is written before it (the head of a multipart part).
#[derive(Debug)]
pub(super) struct Part {
    pub head: Bytes,
    pub start: u64,
    /// None: up to the end, wherever that is.
    pub end: Option<u64>,
}

impl Body {
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes: Bytes = bytes.into();
        let remaining = Some(bytes.len() as u64);
        Self {
            inner: Inner::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty())),
            remaining,
            record: None,
        }
    }

    /// Parts of a blob, one after the other, and then `tail`; `length` bytes in all.
    pub(super) fn parts(
        source: BlobBody,
        parts: Vec<Part>,
        tail: Bytes,
        length: Option<u64>,
    ) -> Self {
        let reading = Reading {
            source,
            parts: parts.into(),
            current: None,
            tail: Some(tail),
        };
        let stream = stream::try_unfold(reading, |mut reading| async move {
            Ok(reading.next().await?.map(|bytes| (bytes, reading)))
        });
        Self {
            inner: Inner::Stream(Box::pin(stream)),
            remaining: length,
            record: None,
        }
    }

    /// Writes the access line, and counts, when this body has ended.
    pub(super) fn recorded(mut self, record: Record) -> Self {
        self.record = Some(record);
        self
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            record.expected(self.remaining);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let next = match &mut this.inner {
            Inner::Bytes(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Inner::Stream(stream) => stream.as_mut().poll_next(cx),
        };
        match &next {
            Poll::Ready(Some(Ok(bytes))) => {
                let sent = bytes.len() as u64;
                this.remaining = this
                    .remaining
                    .map(|remaining| remaining.saturating_sub(sent));
                this.record.iter_mut().for_each(|record| record.sent(sent));
            }
            Poll::Ready(Some(Err(error))) => {
                this.record
                    .iter_mut()
                    .for_each(|record| record.broke(error));
            }
            Poll::Ready(None) => this.record.iter_mut().for_each(Record::completed),
            Poll::Pending => {}
        }
        next.map(|next| next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.inner, Inner::Bytes(None))
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Where a body is in its parts.
struct Reading {
    source: BlobBody,
    parts: VecDeque<Part>,
    current: Option<(u64, Option<u64>)>,
    tail: Option<Bytes>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some((offset, end)) = self.current {
                if end.is_none_or(|end| offset < end)
                    && let Some(bytes) = self.read(offset, end).await?
                {
                    self.current = Some((offset + bytes.len() as u64, end));
                    return Ok(Some(bytes));
                }
                self.current = None;
            } else if let Some(Part { head, start, end }) = self.parts.pop_front() {
                self.current = Some((start, end));
                if !head.is_empty() {
                    return Ok(Some(head));
                }
            } else {
                return Ok(self.tail.take().filter(|tail| !tail.is_empty()));
            }
        }
    }

    /// Some bytes at `offset`; none at the end of a blob whose length was not known.
    async fn read(&mut self, offset: u64, end: Option<u64>) -> Result<Option<Bytes>, BodyError> {
        let wanted = end.map_or(u64::MAX, |end| end - offset);
        let bytes = match &mut self.source {
            BlobBody::Stored(content, _hold) => {
                let max = usize::try_from(wanted).unwrap_or(READ).min(READ);
                Some(content.reader.read_at(offset, max).await?).filter(|bytes| !bytes.is_empty())
            }
            BlobBody::Fetching(follower) => follower.read(offset, end).await?,
        };
        if bytes.is_none() && end.is_some() {
            Err(BodyError::Short { at: offset })
        } else {
            Ok(bytes)
        }
    }
}
