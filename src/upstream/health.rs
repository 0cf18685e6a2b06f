//! What is known of an endpoint by the outcomes of its requests.

use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::circuit::{Change, Circuit, Pass, Trouble, View};
use super::error::{Failure, UpstreamError};
use super::latency::Latency;
use crate::error_chain::on_one_line;
use crate::metrics::{CircuitState, EndpointFigures};
use crate::oci::Classified as _;

/// What is known of an endpoint.
pub(super) struct Health {
    upstream: Box<str>,
    /// `host[:port]` and the prefix.
    pub label: String,
    pub circuit: Circuit,
    pub latency: Latency,
    pub last_error: Mutex<Option<(Instant, String)>>,
    /// Streams of blobs.
    pub streams: AtomicUsize,
    /// None where the upstream has one endpoint: then the upstream's own metrics say it all.
    figures: Option<EndpointFigures>,
}

/// What an error says of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the answer to the question.
    Answer,
    /// Another endpoint may answer.
    Trouble(Trouble),
    /// Nothing was sent.
    Unasked,
}

impl Verdict {
    pub(super) fn of(error: &UpstreamError) -> Self {
        match error.failure {
            Failure::RateLimited { .. } => Self::Trouble(Trouble::PushedBack(error.retry_after())),
            Failure::Unavailable { .. }
            | Failure::Unreachable(_)
            | Failure::Timeout { .. }
            | Failure::Broken { .. } => Self::Trouble(Trouble::Failed),
            Failure::Busy | Failure::MonthUsedUp | Failure::NoCredentials(_) => Self::Unasked,
            Failure::NotFound(_)
            | Failure::Unauthorized(_)
            | Failure::CredentialsRefused { .. }
            | Failure::Denied(_)
            | Failure::Rejected { .. }
            | Failure::Unexpected(_)
            | Failure::Protocol(_)
            | Failure::Schema1
            | Failure::Manifest(_) => Self::Answer,
        }
    }
}

impl Health {
    pub(super) fn new(upstream: &str, label: String, figures: Option<EndpointFigures>) -> Self {
        Self {
            upstream: upstream.into(),
            label,
            circuit: Circuit::new(),
            latency: Latency::default(),
            last_error: Mutex::default(),
            streams: AtomicUsize::new(0),
            figures,
        }
    }

    /// The right to send a request; see [`Circuit::admit`].
    pub(super) fn admit(&self, now: Instant, forced: bool) -> Option<Pass> {
        let pass = self.circuit.admit(now, forced)?;
        if let Some(figures) = &self.figures {
            figures.requests.inc();
        }
        self.show();
        Some(pass)
    }

    pub(super) fn hedged(&self) {
        if let Some(figures) = &self.figures {
            figures.hedges.inc();
        }
    }

    pub(super) fn succeeded(&self, pass: Pass) {
        if let Some(Change::Closed) = self.circuit.succeeded(pass) {
            let (upstream, endpoint) = (&*self.upstream, &self.label);
            tracing::info!(upstream, endpoint, "the endpoint answers again");
        }
        self.show();
    }

    pub(super) fn failed(&self, pass: Pass, trouble: Trouble, error: &UpstreamError) {
        self.note(error);
        if let Some(figures) = &self.figures {
            figures.failures.inc();
        }
        let change = self
            .circuit
            .failed(pass, trouble, Instant::now(), fastrand::f64());
        if let Some(Change::Opened(pause)) = change {
            let (upstream, endpoint) = (&*self.upstream, &self.label);
            tracing::warn!(upstream, endpoint, error = %on_one_line(error), ?pause, "the endpoint fails; asking the others");
        }
        self.show();
    }

    pub(super) fn abandoned(&self, pass: Pass) {
        self.circuit.abandoned(pass, Instant::now());
        self.show();
    }

    /// Remembers an error for operators, unless it is an answer that registries give every day.
    pub(super) fn note(&self, error: &UpstreamError) {
        if !matches!(error.failure, Failure::NotFound(_)) && !error.is_out_of_range() {
            *self.last_error.lock() = Some((Instant::now(), on_one_line(error)));
        }
    }

    fn show(&self) {
        if let Some(figures) = &self.figures {
            figures.circuit(match self.circuit.view() {
                View::Closed => CircuitState::Closed,
                View::HalfOpen => CircuitState::HalfOpen,
                View::Open(_) => CircuitState::Open,
            });
        }
    }
}
