//! What one download has learned about the endpoints, and whether a client waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::attempt::Attempt;
use super::endpoint::Endpoint;
use super::error::UpstreamError;
use super::limiter::Priority;

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
