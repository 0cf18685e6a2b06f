//! Typed metrics, passed to the modules that count: there is no global registry.
//!
//! Label values come from fixed sets and from the configuration, never from a request, so the
//! number of series is bounded.

mod fetch;
mod labels;
mod serving;

use crate::error_chain::on_one_line;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use fetch::Fetching;
pub use labels::{Degraded, Ending, Kind, Outcome, RefusedConnection};
use labels::{DegradedBy, OfUpstream, UpstreamBytes, UpstreamRequest};
use serving::Serving;

/// What is known of the cache, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheFigures {
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of running downloads.
    pub reserved_bytes: u64,
    /// Bytes that may be used; none where there is no limit.
    pub limit_bytes: Option<u64>,
    pub links: u64,
    pub blobs: u64,
    pub delete_failures: u64,
    pub save_failures: u64,
    /// Downloads for which there was no space.
    pub full: u64,
    /// Entries of the store that couldn't be read at the start.
    pub unreadable: u64,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    upstream_requests: Family<UpstreamRequest, Counter>,
    upstream_bytes: Family<UpstreamBytes, Counter>,
    serving: Serving,
    store_failures: Counter,
    fetching: Fetching,
    connections: Gauge,
    log_lines_dropped: Counter,
    task_panics: Gauge,
    degraded: Family<DegradedBy, Gauge>,
    upstream_degraded: Family<OfUpstream, Gauge>,
    cache: CacheGauges,
}

#[derive(Debug, Default)]
struct CacheGauges {
    bytes: Gauge,
    reserved: Gauge,
    limit: Gauge,
    links: Gauge,
    blobs: Gauge,
    delete_failures: Gauge,
    save_failures: Gauge,
    full: Gauge,
    unreadable: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("millpond"),
            upstream_requests: Family::default(),
            upstream_bytes: Family::default(),
            serving: Serving::default(),
            store_failures: Counter::default(),
            fetching: Fetching::default(),
            connections: Gauge::default(),
            log_lines_dropped: Counter::default(),
            task_panics: Gauge::default(),
            degraded: Family::default(),
            upstream_degraded: Family::default(),
            cache: CacheGauges::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "upstream_requests",
            "Requests sent upstream",
            self.upstream_requests.clone(),
        );
        let bytes = "Body bytes received from upstream";
        r.register_with_unit(
            "upstream_received",
            bytes,
            Unit::Bytes,
            self.upstream_bytes.clone(),
        );
        self.serving.register(r);
        r.register(
            "store_failures",
            "Failed reads and writes of the store",
            self.store_failures.clone(),
        );
        self.fetching.register(r);
        r.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
        r.register(
            "log_lines_dropped",
            "Log lines that standard error did not take",
            self.log_lines_dropped.clone(),
        );
        r.register(
            "task_panics",
            "Panics of tasks that run as long as the server",
            self.task_panics.clone(),
        );
        r.register(
            "degraded",
            "1 while the server serves without storing: the file system is full or read-only",
            self.degraded.clone(),
        );
        r.register(
            "upstream_degraded",
            "1 while the last answer of an upstream was none, or a server error",
            self.upstream_degraded.clone(),
        );
        self.register_cache();
    }

    fn register_cache(&mut self) {
        let cache = self.registry.sub_registry_with_prefix("cache");
        let gauges = &self.cache;
        for (name, help, gauge) in [
            ("bytes", "Bytes of all files", &gauges.bytes),
            (
                "reserved_bytes",
                "Bytes of running downloads",
                &gauges.reserved,
            ),
            (
                "limit_bytes",
                "Bytes that may be used; 0 is no limit",
                &gauges.limit,
            ),
            (
                "links",
                "Blobs and manifests linked into repositories",
                &gauges.links,
            ),
            ("blobs", "Files", &gauges.blobs),
            (
                "delete_failures",
                "Removals that failed and are tried again",
                &gauges.delete_failures,
            ),
            (
                "unreadable",
                "Entries of the store that could not be read at the start",
                &gauges.unreadable,
            ),
            (
                "save_failures",
                "Saves of the expiry state that failed",
                &gauges.save_failures,
            ),
            (
                "full",
                "Downloads that found no space and were passed through",
                &gauges.full,
            ),
        ] {
            cache.register(name, help, gauge.clone());
        }
    }

    /// Takes over what is known of the cache.
    pub fn cache(&self, figures: &CacheFigures) {
        set(&self.cache.bytes, figures.bytes);
        set(&self.cache.reserved, figures.reserved_bytes);
        set(&self.cache.limit, figures.limit_bytes.unwrap_or(0));
        set(&self.cache.links, figures.links);
        set(&self.cache.blobs, figures.blobs);
        set(&self.cache.delete_failures, figures.delete_failures);
        set(&self.cache.save_failures, figures.save_failures);
        set(&self.cache.full, figures.full);
        set(&self.cache.unreadable, figures.unreadable);
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

    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// A client's connection has been refused.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        self.serving.refused(reason);
    }

    /// Counter of the log lines that were dropped: kept by the log's writer.
    pub fn log_lines_dropped(&self) -> Counter {
        self.log_lines_dropped.clone()
    }

    /// Takes over how many times tasks have panicked.
    pub fn task_panics(&self, count: u64) {
        set(&self.task_panics, count);
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
    fn the_text_form() {
        let metrics = Metrics::new();
        metrics.upstream_request("docker.io", Kind::Blob, "GET", Ending::Status(200));
        metrics.upstream_request("docker.io", Kind::Token, "GET", Ending::Error("timeout"));
        metrics.upstream_bytes("docker.io", Kind::Blob).inc_by(7);
        metrics.served(Kind::Manifest, Outcome::Stale, 200);
        metrics.served(Kind::Blob, Outcome::Hit, 206);
        metrics.served(Kind::Blob, Outcome::Hit, 418);
        metrics.served(Kind::Blob, Outcome::Miss, 418);
        metrics.client_sent(Kind::Blob, 2);
        metrics.client_sent(Kind::Blob, 7);
        let (_one, two) = (metrics.follower(), metrics.follower());
        drop(two);
        let text = metrics.render();
        for line in [
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="blob",method="GET",status="200"} 1"#,
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="token",method="GET",status="timeout"} 1"#,
            r#"millpond_upstream_received_bytes_total{upstream="docker.io",kind="blob"} 7"#,
            r#"millpond_requests_total{kind="manifest",result="stale"} 1"#,
            r#"millpond_responses_total{kind="manifest",status="200"} 1"#,
            r#"millpond_requests_total{kind="blob",result="hit"} 2"#,
            r#"millpond_responses_total{kind="blob",status="206"} 1"#,
            r#"millpond_responses_total{kind="blob",status="418"} 2"#,
            r#"millpond_client_sent_bytes_total{kind="blob"} 9"#,
            "millpond_followers 1",
            "millpond_downloads_in_flight 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
