//! One request to one of several endpoints, from its choice to its outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::circuit::Pass;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError};
use super::health::Verdict;

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptKind {
    /// Its time is measured.
    Manifest,
    Metadata,
    /// Counts among the endpoint's streams as long as it lives.
    Stream,
}

/// Tells the endpoint's health how the request went. Dropped without an outcome, it says nothing of the
/// endpoint.
pub(super) struct Attempt {
    pub endpoint: Arc<Endpoint>,
    pass: Pass,
    sent_at: Instant,
    kind: AttemptKind,
    /// Whether an outcome was told.
    is_settled: bool,
}

impl Attempt {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        pass: Pass,
        sent_at: Instant,
        kind: AttemptKind,
    ) -> Self {
        if kind == AttemptKind::Stream {
            endpoint.health.streams.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            endpoint,
            pass,
            sent_at,
            kind,
            is_settled: false,
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.settle();
        self.endpoint.health.succeeded(self.pass);
    }

    /// Whether another endpoint is asked after this error.
    pub(super) fn failed(&mut self, error: &UpstreamError) -> bool {
        let health = &self.endpoint.health;
        match Verdict::of(error) {
            Verdict::Trouble(trouble) => {
                health.failed(self.pass, trouble, error);
                self.is_settled = true;
                true
            }
            Verdict::Unasked => {
                health.note(error);
                true
            }
            Verdict::Answer => {
                health.note(error);
                self.succeeded();
                matches!(error.failure, Failure::NotFound(_)) && self.endpoint.falls_back_on_404
            }
        }
    }

    fn settle(&mut self) {
        let was_settled = std::mem::replace(&mut self.is_settled, true);
        if self.kind == AttemptKind::Manifest && !was_settled {
            let now = Instant::now();
            let elapsed = now.duration_since(self.sent_at);
            self.endpoint.health.latency.record(elapsed, now);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let health = &self.endpoint.health;
        if self.kind == AttemptKind::Stream {
            health.streams.fetch_sub(1, Ordering::Relaxed);
        }
        if !self.is_settled {
            health.abandoned(self.pass);
        }
    }
}
