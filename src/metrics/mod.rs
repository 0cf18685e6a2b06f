//! Typed metrics, passed to the modules that count: there is no global registry.
//!
//! Label values come from fixed sets and from the configuration, never from a request, so the
//! number of series is bounded.

mod downloads;
mod labels;
mod serving;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::error_chain::on_one_line;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use downloads::Downloads;
use labels::{AuthenticatedBy, DegradedBy, OfListener, OfUpstream, UpstreamBytes, UpstreamRequest};
pub use labels::{Authentication, Degraded, Ending, Handshake, Kind, Outcome, RefusedConnection};
use serving::Serving;

/// What is known of the cache, at one moment; `CACHE` says what each figure is.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheFigures {
    pub bytes: u64,
    pub reserved_bytes: u64,
    /// None where there is no limit.
    pub limit_bytes: Option<u64>,
    pub links: u64,
    pub blobs: u64,
    pub delete_failures: u64,
    pub save_failures: u64,
    pub full: u64,
    pub unreadable: u64,
}

type Figure = fn(&CacheFigures) -> u64;

/// The gauges of the cache: name, help, and the figure that each shows.
const CACHE: [(&str, &str, Figure); 9] = [
    ("bytes", "Bytes of all files", |cache| cache.bytes),
    ("reserved_bytes", "Bytes of running downloads", |cache| {
        cache.reserved_bytes
    }),
    (
        "limit_bytes",
        "Bytes that may be used; 0 is no limit",
        |cache| cache.limit_bytes.unwrap_or(0),
    ),
    (
        "links",
        "Blobs and manifests linked into repositories",
        |cache| cache.links,
    ),
    ("blobs", "Files", |cache| cache.blobs),
    (
        "delete_failures",
        "Removals that failed and are tried again",
        |cache| cache.delete_failures,
    ),
    (
        "unreadable",
        "Entries of the store that could not be read at the start",
        |cache| cache.unreadable,
    ),
    (
        "save_failures",
        "Saves of the expiry state that failed",
        |cache| cache.save_failures,
    ),
    (
        "full",
        "Downloads that found no space and were passed through",
        |cache| cache.full,
    ),
];

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    upstream_requests: Family<UpstreamRequest, Counter>,
    upstream_bytes: Family<UpstreamBytes, Counter>,
    serving: Serving,
    store_failures: Counter,
    pub downloads: Downloads,
    connections: Gauge,
    authentications: Family<AuthenticatedBy, Counter>,
    log_lines_dropped: Counter,
    audit_lines_lost: Counter,
    trace_spans_exported: Counter,
    trace_spans_dropped: Counter,
    task_panics: Gauge,
    longest_poll: Gauge<f64, AtomicU64>,
    long_polls: Gauge,
    degraded: Family<DegradedBy, Gauge>,
    upstream_degraded: Family<OfUpstream, Gauge>,
    tls_expiry: Family<OfListener, Gauge>,
    cache: [Gauge; CACHE.len()],
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes metrics that are registered under their names.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// A metric that counts bytes.
    fn bytes<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0
            .register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("millpond");
        let r = &mut Registrar(&mut registry);
        Self {
            upstream_requests: r.metric("upstream_requests", "Requests sent upstream"),
            upstream_bytes: r.bytes("upstream_received", "Body bytes received from upstream"),
            serving: Serving::register(r),
            store_failures: r.metric("store_failures", "Failed reads and writes of the store"),
            downloads: Downloads::register(r),
            connections: r.metric("connections", "Open client connections"),
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
            upstream_degraded: r.metric(
                "upstream_degraded",
                "1 while the last answer of an upstream was none, or a server error",
            ),
            tls_expiry: r.metric(
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate of a listener expires, in seconds since the Unix epoch",
            ),
            cache: {
                let mut r = Registrar(r.0.sub_registry_with_prefix("cache"));
                CACHE.map(|(name, help, _)| r.metric(name, help))
            },
            registry,
        }
    }

    /// Takes over what is known of the cache.
    pub fn cache(&self, figures: &CacheFigures) {
        for (gauge, (_, _, figure)) in self.cache.iter().zip(CACHE) {
            set(gauge, figure(figures));
        }
    }

    /// A request to an upstream has ended, or its head has arrived.
    pub fn upstream_request(
        &self,
        upstream: &str,
        kind: Kind,
        method: &'static str,
        status: Ending,
    ) {
        let labels = UpstreamRequest {
            upstream: upstream.to_owned(),
            kind,
            method,
            status,
        };
        self.upstream_requests.get_or_create_owned(&labels).inc();
    }

    /// Counter of the body bytes that come from one upstream: for the reader of a body.
    pub fn upstream_bytes(&self, upstream: &str, kind: Kind) -> Counter {
        self.upstream_bytes.get_or_create_owned(&UpstreamBytes {
            upstream: upstream.to_owned(),
            kind,
        })
    }

    /// A client's request has been answered.
    pub fn served(&self, kind: Kind, result: Outcome, status: u16) {
        self.serving.served(kind, result, status);
    }

    /// A client has been sent bytes of a body.
    pub fn client_sent(&self, kind: Kind, bytes: u64) {
        self.serving.sent(kind, bytes);
    }

    /// A caller has presented credentials, or has been issued a token.
    pub fn authenticated(&self, result: Authentication) {
        let labels = AuthenticatedBy { result };
        self.authentications.get_or_create_owned(&labels).inc();
    }

    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// A client's connection has been refused.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        self.serving.refused(reason);
    }

    /// A client's TLS handshake has ended.
    pub fn handshake(&self, result: Handshake) {
        self.serving.handshake(result);
    }

    /// When the certificate of a listener expires, in seconds since the Unix epoch.
    pub fn tls_expiry(&self, listener: &str, seconds: u64) {
        let listener = listener.to_owned();
        set(
            &self
                .tls_expiry
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
        set(&self.task_panics, count);
    }

    /// Takes over how long, and how often for long, tasks have held their threads.
    pub fn long_polls(&self, (longest, count): (Duration, u64)) {
        self.longest_poll.set(longest.as_secs_f64());
        set(&self.long_polls, count);
    }

    /// Says whether a condition holds under which the server still serves.
    pub fn degraded(&self, condition: Degraded, holds: bool) {
        let gauge = self.degraded.get_or_create_owned(&DegradedBy { condition });
        gauge.set(holds.into());
    }

    /// Says whether an upstream couldn't answer its last request.
    pub fn upstream_degraded(&self, upstream: &str, holds: bool) {
        let upstream = upstream.to_owned();
        let gauge = self
            .upstream_degraded
            .get_or_create_owned(&OfUpstream { upstream });
        gauge.set(holds.into());
    }

    /// Counts an open connection until dropped.
    pub fn connection(&self) -> InFlight {
        InFlight::new(&self.connections)
    }

    /// The Prometheus text exposition of everything.
    pub fn render(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => {
                tracing::error!(error = %on_one_line(&error), "the metrics can't be written as text");
                String::new()
            }
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
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_bytes_are_rendered_as_text() {
        let metrics = Metrics::new();
        metrics.upstream_request("docker.io", Kind::Blob, "GET", Ending::Status(200));
        metrics.upstream_request("docker.io", Kind::Token, "GET", Ending::Error("timeout"));
        metrics.upstream_bytes("docker.io", Kind::Blob).inc_by(7);
        metrics.served(Kind::Manifest, Outcome::Stale, 200);
        metrics.authenticated(Authentication::Refused);
        metrics.served(Kind::Blob, Outcome::Hit, 206);
        metrics.served(Kind::Blob, Outcome::Hit, 418);
        metrics.served(Kind::Blob, Outcome::Miss, 418);
        metrics.client_sent(Kind::Blob, 2);
        metrics.client_sent(Kind::Blob, 7);
        metrics.handshake(Handshake::Resumed);
        metrics.tls_expiry(":5000", 7);
        let (_one, two) = (metrics.follower(), metrics.follower());
        drop(two);
        let text = metrics.render();
        for line in [
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="blob",method="GET",status="200"} 1"#,
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="token",method="GET",status="timeout"} 1"#,
            r#"millpond_upstream_received_bytes_total{upstream="docker.io",kind="blob"} 7"#,
            r#"millpond_requests_total{kind="manifest",result="stale"} 1"#,
            r#"millpond_authentications_total{result="refused"} 1"#,
            r#"millpond_responses_total{kind="manifest",status="200"} 1"#,
            r#"millpond_requests_total{kind="blob",result="hit"} 2"#,
            r#"millpond_responses_total{kind="blob",status="206"} 1"#,
            r#"millpond_responses_total{kind="blob",status="418"} 2"#,
            r#"millpond_client_sent_bytes_total{kind="blob"} 9"#,
            r#"millpond_tls_handshakes_total{result="resumed"} 1"#,
            r#"millpond_tls_handshakes_total{result="timeout"} 0"#,
            r#"millpond_tls_certificate_expiry_timestamp_seconds{listener=":5000"} 7"#,
            "millpond_followers 1",
            "millpond_downloads_in_flight 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
