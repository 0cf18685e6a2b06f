//! What is counted of the work that replicas share, and of where content comes from.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::histogram::{Histogram, Totals};
use super::labels::{Relayed, RelayedResult};
use super::{Metrics, Registrar, set};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FromSource {
    source: &'static str,
}

/// What was fetched, by where it came from.
#[derive(Debug)]
pub(super) struct Sources {
    requests: Family<FromSource, Counter>,
    received: Family<FromSource, Counter>,
    first_byte: Family<FromSource, Histogram>,
}

/// The figures of one source.
#[derive(Debug)]
pub struct SourceFigures {
    pub(super) requests: Counter,
    received: Counter,
    pub(super) first_byte: Histogram,
}

impl Sources {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            requests: r.metric(
                "source_requests",
                "Requests to the cache, another replica, the bucket or an upstream",
            ),
            received: r.bytes(
                "source_received",
                "Body bytes from the cache, another replica, the bucket or an upstream",
            ),
            first_byte: r.seconds(
                "source_first_byte",
                "Time until the head of an answer of another replica, the bucket or an upstream; of the cache, until the first byte is sent",
            ),
        }
    }

    /// `source` is a fixed word.
    pub(super) fn figures(&self, source: &'static str) -> SourceFigures {
        let labels = FromSource { source };
        SourceFigures {
            requests: self.requests.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            first_byte: self.first_byte.get_or_create_owned(&labels),
        }
    }
}

impl SourceFigures {
    /// Copies what is counted elsewhere. Nobody else does meanwhile.
    pub(super) fn raise_to(&self, (requests, received, first_byte): &(u64, u64, Totals)) {
        for (counter, total) in [(&self.requests, requests), (&self.received, received)] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        self.first_byte.raise_to(first_byte);
    }

    /// The head of an answer came so long after the request.
    pub fn answered(&self, after: Duration) {
        self.first_byte.observe(after);
    }

    /// Bytes of a body have arrived.
    pub fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }
}

/// The other replicas.
#[derive(Debug)]
pub struct ReplicaMetrics {
    known: Gauge,
    skipped: Gauge,
    /// Answers of replicas that would have had to ask another one.
    pub misdirected: Counter,
    /// Requests of replicas that would have had to wait for another one.
    pub refused: Counter,
    relayed: Family<RelayedResult, Counter>,
}

impl Metrics {
    /// Metrics of the other replicas.
    pub fn replicas(&self) -> &ReplicaMetrics {
        &self.upstreams.replicas
    }
}

impl ReplicaMetrics {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            known: r.metric("replicas", "Other replicas that are known"),
            skipped: r.metric(
                "replicas_skipped",
                "Other replicas that have failed and have not answered since",
            ),
            misdirected: r.metric("replica_misdirected", "Answers 421 of other replicas"),
            refused: r.metric(
                "replica_refused",
                "Requests of other replicas that were answered 421",
            ),
            relayed: r.metric(
                "relayed_requests",
                "Requests for hosted repositories that were relayed to their writer, by their end",
            ),
        }
    }

    /// A relayed request has ended.
    pub fn relayed(&self, result: Relayed) {
        self.relayed.get_or_create(&RelayedResult { result }).inc();
    }

    /// One more has failed, or one answers again.
    pub fn failed(&self, is_more: bool) {
        if is_more {
            self.skipped.inc();
        } else {
            self.skipped.dec();
        }
    }

    /// The other replicas, and how many of them have failed.
    pub fn members(&self, known: usize, skipped: usize) {
        set(&self.known, known as u64);
        set(&self.skipped, skipped as u64);
    }
}
