//! Blobs from other replicas.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::timeout;
use url::Url;

use super::Upstream;
use super::blobs::BlobStream;
use super::body::BlobChunks;
use super::endpoint::Endpoint;
use super::error::UpstreamError;
use super::peer::{Peer, broken, silent};
use super::peers::Ahead;
use super::route::BlobRoute;
use crate::error_chain::on_one_line;

impl Upstream {
    /// The stream of a blob from another replica, for a download with this route. None: the upstream is to be
    /// asked, now and from then on.
    pub(super) async fn blob_from_peers<'a, F, Asking>(
        &self,
        ahead: &'a Ahead,
        route: &BlobRoute,
        question: &F,
    ) -> Result<Option<BlobStream>, UpstreamError>
    where
        F: Fn(&'a Endpoint) -> Asking + Send + Sync,
        Asking: Future<Output = Result<BlobStream, UpstreamError>> + Send + 'a,
    {
        if !route.is_direct()
            && let Some(stream) = self.ask_peers(ahead, question).await?
        {
            return Ok(Some(stream));
        }
        route.go_direct();
        Ok(None)
    }
}

impl Peer {
    /// Takes a blob's stream for a download with this route: unless the download has gone on to the upstream
    /// meanwhile, or the blob has another size than before.
    pub(super) fn accept(
        self: &Arc<Self>,
        mut stream: BlobStream,
        route: &BlobRoute,
        (url, address): (&Url, Option<SocketAddr>),
    ) -> Result<BlobStream, UpstreamError> {
        if !route.agrees(stream.total) {
            let error = broken(url, 0, OtherSize);
            tracing::warn!(replica = &*self.name, error = %on_one_line(&error), "asking the next source");
            return Err(error);
        }
        if !route.at_peer(address) {
            return Err(broken(url, 0, OtherSource));
        }
        let watched = Watched {
            body: Some(stream.body),
            peer: Arc::clone(self),
            url: url.clone(),
            received: 0,
        };
        stream.body = stream::unfold(watched, Watched::next).boxed();
        Ok(stream)
    }
}

/// Why a stream isn't used.
#[derive(Debug, thiserror::Error)]
#[error("the blob has another size there")]
struct OtherSize;
#[derive(Debug, thiserror::Error)]
#[error("the download goes on from the upstream")]
struct OtherSource;

/// A body from a replica, which is probed while it is silent. All of its errors are breaks: the next source
/// continues.
struct Watched {
    /// None once it has ended.
    body: Option<BlobChunks>,
    peer: Arc<Peer>,
    url: Url,
    received: u64,
}

impl Watched {
    async fn next(mut self) -> Option<(Result<Bytes, UpstreamError>, Self)> {
        let mut body = self.body.take()?;
        let error = loop {
            match timeout(self.peer.options.timeout, body.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(chunk))) => {
                    self.received = self.received.saturating_add(chunk.len() as u64);
                    self.body = Some(body);
                    return Some((Ok(chunk), self));
                }
                Ok(Some(Err(error))) => break broken(&self.url, self.received, error),
                Err(_elapsed) if self.peer.is_there().await => {}
                Err(_elapsed) => break silent(&self.url, self.received),
            }
        };
        self.peer.skip(&error);
        Some((Err(error), self))
    }
}
