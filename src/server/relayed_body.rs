//! The body of an answer that another replica gives, as it comes.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::cursor::BodyError;
use crate::access::Watch;
use crate::upstream::RelayChunks;

/// What is passed on: at most one chunk of the other connection is in memory.
pub(super) struct RelayedBody {
    chunks: RelayChunks,
    /// The rest of the chunk that is being sent.
    rest: Bytes,
    /// Says when an operator denies the content.
    watch: Option<Watch>,
}

impl RelayedBody {
    pub(super) fn new(chunks: RelayChunks, watch: Option<Watch>) -> Self {
        Self {
            chunks,
            rest: Bytes::new(),
            watch,
        }
    }

    /// The next bytes, at most `max`; none at the end of a complete body.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        while self.rest.is_empty() {
            match ready!(self.chunks.poll_next_unpin(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(chunk)) => self.rest = chunk,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        if self.watch.as_mut().is_some_and(Watch::is_denied) {
            return Poll::Ready(Some(Err(BodyError::Denied)));
        }
        let length = max.min(self.rest.len());
        Poll::Ready(Some(Ok(self.rest.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::stream;

    use super::*;
    use crate::upstream::{Failure, UpstreamError};

    #[tokio::test]
    async fn chunks_come_in_pieces_and_a_break_is_an_error() {
        let url = url::Url::parse("http://10.0.0.1/").unwrap();
        let broken = UpstreamError::new(
            &url,
            Failure::Broken {
                received: 5,
                source: None,
            },
        );
        let chunks = [
            Ok(Bytes::from_static(b"abc")),
            Ok(Bytes::new()),
            Ok(Bytes::from_static(b"de")),
            Err(broken),
        ];
        let mut body = RelayedBody::new(stream::iter(chunks).boxed(), None);
        for expected in ["ab", "c", "de"] {
            let piece = poll_fn(|cx| body.poll_next(cx, 2)).await;
            assert_eq!(piece.unwrap().unwrap(), expected);
        }
        let end = poll_fn(|cx| body.poll_next(cx, 2)).await;
        assert!(matches!(end, Some(Err(BodyError::Relay(_)))), "{end:?}");
    }
}
