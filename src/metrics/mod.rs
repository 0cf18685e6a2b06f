//! Typed metrics, passed to the modules that count: there is no global registry.
//!
//! Label values come from fixed sets and from the configuration, never from a request, so the
//! number of series is bounded. `deploy/metrics.md` lists all metrics; a test compares it.

mod bucket;
mod cache;
mod downloads;
mod endpoints;
mod exposition;
mod histogram;
mod keep_fresh;
mod labels;
mod rate_limits;
mod replicas;
mod requests;
#[cfg(test)]
mod tests;
mod upstreams;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error_chain::on_one_line;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use bucket::{BucketMetrics, BucketSwept};
pub use cache::CacheFigures;
use cache::CacheMetrics;
pub use downloads::Downloads;
pub use endpoints::{CircuitState, EndpointFigures};
pub use exposition::Format;
pub use histogram::Histogram;
use labels::{AuthenticatedBy, DegradedBy, HandshakeResult, OfListener, OfReason, RefusedFor};
pub use labels::{
    Authentication, BucketRequest, BucketUpload, Degraded, Ending, Handshake, KeptFresh, Kind,
    Outcome, RefusedCaller, RefusedConnection, Relayed, Removal, TokenAge, TokenFetch,
};
pub use rate_limits::RateLimitMetrics;
pub use replicas::ReplicaMetrics;
use requests::Requests;
pub use requests::{Addressed, Answer, UpstreamId};
pub use upstreams::UpstreamMetrics;
use upstreams::Upstreams;

/// A counter whose value is counted elsewhere and copied before it is rendered.
#[derive(Debug, Clone, Default)]
struct CopiedCounter(Arc<AtomicU64>);

impl CopiedCounter {
    fn set(&self, count: u64) {
        // Two renderings at once mustn't make it fall.
        self.0.fetch_max(count, Ordering::Relaxed);
    }
}

impl EncodeMetric for CopiedCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let count = self.0.load(Ordering::Relaxed);
        encoder.encode_counter::<NoLabelSet, u64, f64>(&count, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Connections of clients.
#[derive(Debug)]
struct Connections {
    open: Gauge,
    refused: Family<OfReason, Counter>,
    handshakes: Family<HandshakeResult, Counter>,
    certificates: Family<OfListener, Gauge>,
}

impl Connections {
    fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            open: r.metric("connections", "Open connections of clients and operators"),
            refused: r.metric(
                "connections_refused",
                "Connections of clients and operators that were refused, by the limit",
            ),
            handshakes: r.metric("tls_handshakes", "TLS handshakes of clients by their end"),
            certificates: r.metric(
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate of a listener expires, in seconds since the Unix epoch",
            ),
        }
    }
}

/// The store and its file system.
#[derive(Debug)]
struct StoreMetrics {
    failures: Counter,
    reads: Histogram,
    commits: Histogram,
    free: Gauge<f64, AtomicU64>,
}

impl StoreMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            failures: r.metric("store_failures", "Failed reads and writes of the store"),
            reads: r.seconds(
                "store_read_duration",
                "Duration of reads of blobs that had to wait for the disk",
            ),
            commits: r.seconds(
                "store_commit_duration",
                "Duration of commits to the store: synchronizing a file and naming it",
            ),
            free: r.metric(
                "store_free_bytes",
                "Bytes that the file system of the cache has left; NaN where that is unknown",
            ),
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    requests: Arc<Requests>,
    upstreams: Upstreams,
    store: StoreMetrics,
    pub downloads: Downloads,
    connections: Connections,
    refused_callers: Family<RefusedFor, Counter>,
    authentications: Family<AuthenticatedBy, Counter>,
    log_lines_dropped: Counter,
    audit_lines_lost: Counter,
    trace_spans_exported: Counter,
    trace_spans_dropped: Counter,
    task_panics: CopiedCounter,
    longest_poll: Gauge<f64, AtomicU64>,
    long_polls: CopiedCounter,
    degraded: Family<DegradedBy, Gauge>,
    cache: CacheMetrics,
    registry: Registry,
    /// The name in text 0.0.4 and the type of each metric.
    names: Vec<(String, String)>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes metrics that are registered under their names.
struct Registrar<'a> {
    registry: &'a mut Registry,
    names: Vec<(String, String)>,
}

impl Registrar<'_> {
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.add(name, help, metric.clone());
        metric
    }

    /// A metric that counts bytes.
    fn bytes<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.add_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    /// A metric of durations.
    fn seconds<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.add_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.note(name, metric.metric_type());
        self.registry.register(name, help, metric);
    }

    fn add_with_unit(&mut self, name: &str, help: &str, unit: Unit, metric: impl Metric) {
        let unit_name = unit.as_str();
        self.note(&format!("{name}_{unit_name}"), metric.metric_type());
        self.registry.register_with_unit(name, help, unit, metric);
    }

    fn note(&mut self, name: &str, kind: MetricType) {
        let (suffix, kind) = exposition::in_text(kind.as_str());
        let name = format!("{PREFIX}_{name}{suffix}");
        self.names.push((name, kind.to_owned()));
    }
}

const PREFIX: &str = "millpond";

/// The version of this build, and the commit that it is made from, where that is known.
fn build_info() -> Info<[(&'static str, &'static str); 2]> {
    let commit = env!("MILLPOND_COMMIT_SHOWN");
    let commit = commit.trim_matches([' ', '(', ')']);
    Info::new([("version", env!("CARGO_PKG_VERSION")), ("commit", commit)])
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let r = &mut Registrar {
            registry: &mut registry,
            names: Vec::new(),
        };
        r.add("build", "The build that runs", build_info());
        let (requests, upstreams) = (Requests::register(r), Upstreams::register(r));
        let downloads = Downloads::register(r);
        let metrics = Self {
            requests,
            upstreams,
            downloads,
            connections: Connections::register(r),
            refused_callers: r.metric(
                "callers_refused",
                "Requests that were refused because of who sent them, by the reason",
            ),
            store: StoreMetrics::register(r),
            authentications: r.metric(
                "authentications",
                "Credentials of callers, and tokens issued, by the result",
            ),
            log_lines_dropped: r.metric(
                "log_lines_dropped",
                "Log lines that standard error did not take",
            ),
            audit_lines_lost: r.metric(
                "audit_lines_lost",
                "Lines of the audit log that could not be written",
            ),
            trace_spans_exported: r.metric(
                "trace_spans_exported",
                "Spans that the collector of traces has taken",
            ),
            trace_spans_dropped: r.metric(
                "trace_spans_dropped",
                "Spans that were not exported: the queue was full, or the collector failed",
            ),
            task_panics: r.metric(
                "task_panics",
                "Panics of tasks that run as long as the server",
            ),
            longest_poll: r.metric(
                "task_longest_poll_seconds",
                "Longest time that a task held a thread of the runtime, if above 1 ms",
            ),
            long_polls: r.metric(
                "task_long_polls",
                "How often a task held a thread of the runtime for more than 1 ms",
            ),
            degraded: r.metric(
                "degraded",
                "1 while the server serves without storing: the file system is full or read-only",
            ),
            cache: CacheMetrics::register(r),
            names: std::mem::take(&mut r.names),
            registry,
        };
        metrics.start_at_zero();
        metrics
    }

    /// Makes the series of fixed sets: a rate needs the zero before the first event.
    fn start_at_zero(&self) {
        self.store_free(None);
        for &reason in RefusedConnection::ALL {
            let labels = OfReason { reason };
            drop(self.connections.refused.get_or_create_owned(&labels));
        }
        for &reason in RefusedCaller::ALL {
            let labels = RefusedFor { reason };
            drop(self.refused_callers.get_or_create_owned(&labels));
        }
        for &result in Handshake::ALL {
            let labels = HandshakeResult { result };
            drop(self.connections.handshakes.get_or_create_owned(&labels));
        }
        for &condition in Degraded::ALL {
            self.degraded(condition, false);
        }
        self.cache.start_at_zero();
    }

    /// The name in text 0.0.4 and the type of each metric; a histogram's without the suffixes of its
    /// series.
    pub fn names(&self) -> &[(String, String)] {
        &self.names
    }

    /// A client's request has ended; `times` are those until the first byte and until the end. Status 0:
    /// the client left before the answer.
    /// The position of hosted repositories in the counts of clients' requests, under a name of their own
    /// in the place of an upstream's.
    pub fn hosted(&self, name: &str) -> UpstreamId {
        self.requests.upstream(name)
    }

    pub fn served(&self, answer: Answer, status: u16, times: (Duration, Duration)) {
        self.requests.served(answer, status, times);
    }

    /// A client has been sent bytes of a body.
    pub fn client_sent(&self, answer: Answer, bytes: u64) {
        self.requests.sent(answer, bytes);
    }

    /// A caller has presented credentials, or has been issued a token.
    pub fn authenticated(&self, result: Authentication) {
        let labels = AuthenticatedBy { result };
        self.authentications.get_or_create_owned(&labels).inc();
    }

    /// A request was answered with a remembered 404 or 403.
    pub fn answered_from_memory(&self) {
        self.upstreams.negative_answers.inc();
    }

    /// A request was refused because of who sent it.
    pub fn caller_refused(&self, reason: RefusedCaller) {
        let labels = RefusedFor { reason };
        self.refused_callers.get_or_create_owned(&labels).inc();
    }

    pub fn store_failed(&self) {
        self.store.failures.inc();
    }

    /// The histogram of reads that wait for the disk: for the store.
    pub fn store_reads(&self) -> Histogram {
        self.store.reads.clone()
    }

    /// A commit to the store took so long.
    pub fn store_committed(&self, after: Duration) {
        self.store.commits.observe(after);
    }

    /// Takes over how many bytes the file system of the cache has left.
    pub fn store_free(&self, bytes: Option<u64>) {
        // Above 2^53 bytes a float is not exact to the byte.
        #[expect(
            clippy::cast_precision_loss,
            reason = "free space is never exact anyway"
        )]
        let bytes = bytes.map_or(f64::NAN, |bytes| bytes as f64);
        self.store.free.set(bytes);
    }

    /// A client's connection has been refused.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        let labels = OfReason { reason };
        self.connections.refused.get_or_create_owned(&labels).inc();
    }

    /// A client's TLS handshake has ended.
    pub fn handshake(&self, result: Handshake) {
        let labels = HandshakeResult { result };
        self.connections
            .handshakes
            .get_or_create_owned(&labels)
            .inc();
    }

    /// When the certificate of a listener expires, in seconds since the Unix epoch.
    pub fn tls_expiry(&self, listener: &str, seconds: u64) {
        let listener = listener.to_owned();
        set(
            &self
                .connections
                .certificates
                .get_or_create_owned(&OfListener { listener }),
            seconds,
        );
    }

    /// Counter of the log lines that were dropped: kept by the log's writer.
    pub fn log_lines_dropped(&self) -> Counter {
        self.log_lines_dropped.clone()
    }

    pub fn audit_lines_lost(&self) -> Counter {
        self.audit_lines_lost.clone()
    }

    /// Counter of the spans that were exported.
    pub fn trace_spans_exported(&self) -> Counter {
        self.trace_spans_exported.clone()
    }

    /// Counter of the spans that were not.
    pub fn trace_spans_dropped(&self) -> Counter {
        self.trace_spans_dropped.clone()
    }

    /// Takes over how many times tasks have panicked.
    pub fn task_panics(&self, count: u64) {
        self.task_panics.set(count);
    }

    /// Takes over how long, and how often for long, tasks have held their threads.
    pub fn long_polls(&self, (longest, count): (Duration, u64)) {
        self.longest_poll.set(longest.as_secs_f64());
        self.long_polls.set(count);
    }

    /// Says whether a condition holds under which the server still serves.
    pub fn degraded(&self, condition: Degraded, holds: bool) {
        let gauge = self.degraded.get_or_create_owned(&DegradedBy { condition });
        gauge.set(holds.into());
    }

    /// Counts an open connection until dropped.
    pub fn connection(&self) -> InFlight {
        InFlight::new(&self.connections.open)
    }

    /// Everything as Prometheus text 0.0.4.
    pub fn render(&self) -> String {
        self.render_as(Format::Text)
    }

    /// Everything as text. Takes milliseconds when there are many series: not for a thread of the runtime.
    pub fn render_as(&self, format: Format) -> String {
        self.upstreams.copy_hits(&self.requests);
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(error = %on_one_line(&error), "the metrics can't be written as text");
            return String::new();
        }
        match format {
            Format::Text => exposition::to_text(&text),
            Format::OpenMetrics => text,
        }
    }
}

/// The text form has 63 bits.
fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// One more on a gauge for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl InFlight {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }

    /// None while the gauge is above a number.
    fn unless_above(gauge: &Gauge, above: usize) -> Option<Self> {
        let above = i64::try_from(above).unwrap_or(i64::MAX);
        let one_more = |count: i64| (count <= above).then(|| count.saturating_add(1));
        let counted = gauge
            .inner()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        counted.is_ok().then(|| Self(gauge.clone()))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
