//! The body of a relayed request, on its way from the client's connection to the writer's.

use std::fmt;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot};

use super::upload_body::{Aborted, UploadChunks};

/// Chunks that wait between the two connections. With one of each connection, that is all that is in memory.
const MAX_WAITING: usize = 1;

/// The body of a request to relay.
pub struct RelayBody {
    /// Bytes; none where they aren't announced.
    pub(super) length: Option<u64>,
    pub(super) chunks: UploadChunks,
}

impl fmt::Debug for RelayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RelayBody").field(&self.length).finish()
    }
}

/// Takes the bytes of a [`RelayBody`]. Dropping it before its [end](Self::end) breaks the request off.
#[derive(Debug)]
pub struct BodyFeed {
    wanted: Option<oneshot::Receiver<()>>,
    /// None is the end of the body.
    chunks: mpsc::Sender<Option<Bytes>>,
}

/// A body of `length` bytes, if that is known, and what feeds it.
pub fn relay_body(length: Option<u64>) -> (BodyFeed, RelayBody) {
    let (want, wanted) = oneshot::channel();
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let next = |(want, mut receiver): (Option<oneshot::Sender<()>>, mpsc::Receiver<_>)| async {
        let has_left = want.is_some_and(|want| want.send(()).is_err());
        if has_left {
            return Some((Err(Aborted), (None, receiver)));
        }
        let chunk = match receiver.recv().await {
            Some(None) => return None,
            Some(Some(bytes)) => Ok(bytes),
            None => Err(Aborted),
        };
        Some((chunk, (None, receiver)))
    };
    let feed = BodyFeed {
        wanted: Some(wanted),
        chunks: sender,
    };
    let chunks = stream::unfold((Some(want), receiver), next).boxed();
    (feed, RelayBody { length, chunks })
}

impl BodyFeed {
    /// Waits until a connection to the writer has sent the head and takes the body. False if none does.
    pub async fn is_wanted(&mut self) -> bool {
        match &mut self.wanted {
            None => true,
            Some(wanted) => {
                let is_wanted = wanted.await.is_ok();
                self.wanted = None;
                is_wanted
            }
        }
    }

    /// Waits for room, and passes bytes on. False where nobody takes them any more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.chunks.send(Some(bytes)).await.is_ok()
    }

    /// The body is complete.
    pub async fn end(&self) {
        // Where nobody takes it any more, the request has its answer already.
        drop(self.chunks.send(None).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_asked_for_when_it_is_read_and_ends_well_only_by_its_end() {
        let (mut feed, mut body) = relay_body(None);
        {
            let wanted = std::pin::pin!(feed.is_wanted());
            assert!(futures_util::poll!(wanted).is_pending());
        }
        assert!(futures_util::poll!(body.chunks.next()).is_pending());
        assert!(feed.is_wanted().await && feed.is_wanted().await);
        assert!(feed.send(Bytes::from_static(b"a")).await);
        // One waits; the next has to.
        assert!(futures_util::poll!(std::pin::pin!(feed.end())).is_pending());
        assert_eq!(body.chunks.next().await, Some(Ok(Bytes::from_static(b"a"))));
        feed.end().await;
        assert_eq!(body.chunks.next().await, None);

        let (mut feed, mut body) = relay_body(Some(2));
        assert!(futures_util::poll!(body.chunks.next()).is_pending());
        assert!(feed.is_wanted().await && feed.send(Bytes::from_static(b"a")).await);
        drop(feed);
        assert_eq!(body.chunks.next().await, Some(Ok(Bytes::from_static(b"a"))));
        assert_eq!(body.chunks.next().await, Some(Err(Aborted)));
        let (feed, mut body) = relay_body(Some(2));
        drop(feed);
        assert_eq!(body.chunks.next().await, Some(Err(Aborted)));
        let (mut feed, body) = relay_body(None);
        drop(body);
        assert!(!feed.is_wanted().await && !feed.send(Bytes::new()).await);
    }
}
