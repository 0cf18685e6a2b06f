//! What one download has learned about the endpoints, and whether a client waits for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::attempt::Attempt;
use super::endpoint::Endpoint;
use super::error::UpstreamError;
use super::limiter::Limiter;
use super::one_way::OneWay;
use super::priority::Priority;

/// A stream that has brought this many bytes shows that its endpoint works.
const PROGRESS: u64 = 1024 * 1024;

/// The endpoints and the priority of one download. Endpoints whose streams broke off are asked after all others.
#[derive(Debug, Default)]
pub struct BlobRoute {
    /// Bits of the endpoints whose streams broke off.
    failed: AtomicU32,
    /// Whether only the last endpoint is asked.
    only_last: AtomicBool,
    /// Whether no client waits for it.
    is_background: AtomicBool,
    /// Whether other replicas are asked, and which sends the blob.
    replicas: OneWay<SocketAddr>,
    /// The blob's size by the first replica, and 1; 0 where none has told one.
    size: AtomicU64,
}

impl BlobRoute {
    /// The bytes that arrived were wrong: from now on only the last endpoint is asked, which is the
    /// registry itself as a rule. False where that was so already.
    pub(super) fn distrust(&self) -> bool {
        !self.only_last.swap(true, Ordering::Relaxed)
    }

    /// Whether a client waits for the download from now on.
    pub fn set_urgent(&self, urgent: bool) {
        self.is_background.store(!urgent, Ordering::Relaxed);
    }

    /// Whether no other replica is asked.
    pub fn is_direct(&self) -> bool {
        self.replicas.is_direct()
    }

    /// From now on only the upstream is asked.
    pub fn go_direct(&self) {
        self.replicas.go_direct();
    }

    /// The replica that sends the blob, if one does.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.replicas.peer()
    }

    /// A replica sends the blob. False where that isn't read any more.
    pub(super) fn at_peer(&self, peer: Option<SocketAddr>) -> bool {
        self.replicas.begin(peer)
    }

    /// Whether a size that a replica has told is the one that the first replica told.
    pub(super) fn agrees(&self, size: Option<u64>) -> bool {
        let Some(size) = size.map(|size| size.saturating_add(1)) else {
            return true;
        };
        let known = self
            .size
            .compare_exchange(0, size, Ordering::Relaxed, Ordering::Relaxed);
        known.map_or_else(|known| known == size, |_| true)
    }

    /// The bytes that arrived were wrong. True where some of them came from other replicas: from now on only
    /// the upstream is asked.
    pub(super) fn distrust_peers(&self) -> bool {
        self.replicas.distrust()
    }

    pub(super) fn priority(&self) -> Priority {
        if self.is_background.load(Ordering::Relaxed) {
            Priority::Background
        } else {
            Priority::Client
        }
    }

    pub(super) fn has_failed(&self, index: usize) -> bool {
        self.failed.load(Ordering::Relaxed) & 1 << index != 0
    }

    /// Removes the endpoints that aren't asked any more, of `count`.
    pub(super) fn restrict(&self, endpoints: &mut Vec<&Arc<Endpoint>>, count: usize) {
        if self.only_last.load(Ordering::Relaxed) {
            endpoints.retain(|endpoint| endpoint.index + 1 == count);
        }
    }

    /// A stream has broken off. Once all have, only the newest counts.
    fn on_disconnect(&self, index: usize, count: usize) {
        let failed = self.failed.fetch_or(1 << index, Ordering::Relaxed) | 1 << index;
        if failed.count_ones() as usize == count {
            self.failed.store(1 << index, Ordering::Relaxed);
        }
    }
}

/// A stream's item: what it brings, and how many bytes.
pub(super) trait Piece: Send + 'static {
    fn bytes(&self) -> u64;
}

impl Piece for Bytes {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl Piece for (u64, Bytes) {
    fn bytes(&self) -> u64 {
        self.1.len() as u64
    }
}

/// A body that tells its endpoint's health and its route how it ends.
struct Watched<T> {
    body: BoxStream<'static, Result<T, UpstreamError>>,
    attempt: Attempt,
    route: Arc<BlobRoute>,
    /// Endpoints of the upstream.
    count: usize,
    received: u64,
    /// Whether it counts as a success or a failure already.
    is_settled: bool,
}

/// Watches a body until it ends or is dropped.
pub(super) fn watched<T: Piece>(
    body: BoxStream<'static, Result<T, UpstreamError>>,
    attempt: Attempt,
    route: Arc<BlobRoute>,
    count: usize,
) -> BoxStream<'static, Result<T, UpstreamError>> {
    let watched = Watched {
        body,
        attempt,
        route,
        count,
        received: 0,
        is_settled: false,
    };
    stream::unfold(watched, |mut watched| async move {
        let next = watched.body.next().await;
        watched.on_next(next.as_ref());
        next.map(|next| (next, watched))
    })
    .boxed()
}

impl<T: Piece> Watched<T> {
    fn on_next(&mut self, next: Option<&Result<T, UpstreamError>>) {
        match next {
            Some(Ok(piece)) => self.received = self.received.saturating_add(piece.bytes()),
            Some(Err(error)) => {
                // A reader may poll once more: the end after an error is no success.
                self.is_settled = true;
                self.attempt.failed(error);
                let index = self.attempt.endpoint.index;
                self.route.on_disconnect(index, self.count);
                return;
            }
            None => {}
        }
        if !self.is_settled && (next.is_none() || self.received >= PROGRESS) {
            self.is_settled = true;
            self.attempt.succeeded();
        }
    }
}

/// Counts and delays the pieces of a body by the operator's limits.
pub(super) fn throttled<T: Piece>(
    limiter: &Arc<Limiter>,
    body: BoxStream<'static, Result<T, UpstreamError>>,
    route: &Arc<BlobRoute>,
) -> BoxStream<'static, Result<T, UpstreamError>> {
    if !limiter.limits_bytes() {
        return body;
    }
    let (limiter, route) = (Arc::clone(limiter), Arc::clone(route));
    body.then(move |piece| {
        let (limiter, route) = (Arc::clone(&limiter), Arc::clone(&route));
        async move {
            if let Ok(piece) = &piece {
                limiter.pass(piece.bytes(), || route.priority()).await;
            }
            piece
        }
    })
    .boxed()
}
