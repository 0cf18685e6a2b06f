//! What is counted of the requests to upstreams.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::bucket::BucketMetrics;
use super::endpoints::Endpoints;
use super::histogram::Histogram;
use super::labels::{
    Ending, Kind, OfUpstream, TokenFetch, UpstreamBytes, UpstreamFailure, UpstreamPhase,
    UpstreamRequest, UpstreamToken,
};
use super::rate_limits::RateLimits;
use super::replicas::{ReplicaMetrics, SourceFigures, Sources};
use super::requests::{Requests, UpstreamId};
use super::{Metrics, Registrar};

/// Metrics of all upstreams.
#[derive(Debug)]
pub(super) struct Upstreams {
    requests: Family<UpstreamRequest, Counter>,
    received: Family<UpstreamBytes, Counter>,
    errors: Family<UpstreamFailure, Counter>,
    phases: Family<UpstreamPhase, Histogram>,
    tokens: Family<UpstreamToken, Counter>,
    degraded: Family<OfUpstream, Gauge>,
    pub(super) negative_answers: Counter,
    pub(super) endpoints: Endpoints,
    pub(super) rate_limits: RateLimits,
    sources: Sources,
    /// Copied before it is rendered.
    cache: Mutex<SourceFigures>,
    pub(super) replicas: ReplicaMetrics,
    pub(super) bucket: Arc<BucketMetrics>,
}

impl Upstreams {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let sources = Sources::register(r);
        Self {
            bucket: Arc::new(BucketMetrics::register(r, &sources)),
            requests: r.metric("upstream_requests", "Requests sent upstream"),
            received: r.bytes("upstream_received", "Body bytes received from upstream"),
            errors: r.metric(
                "upstream_errors",
                "Requests to an upstream that failed, each attempt, by the kind of error",
            ),
            phases: r.seconds(
                "upstream_phase_duration",
                "Duration of requests to an upstream: until the connection is made, the first byte of the answer, the end of the whole body",
            ),
            tokens: r.metric(
                "upstream_token_fetches",
                "Tokens requested from an upstream's token service, by the result",
            ),
            degraded: r.metric(
                "upstream_degraded",
                "1 while the last answer of an upstream was none, or a server error",
            ),
            negative_answers: r.metric(
                "negative_answers",
                "Requests that were answered with a remembered 404 or 403 of an upstream",
            ),
            endpoints: Endpoints::register(r),
            rate_limits: RateLimits::register(r),
            cache: Mutex::new(sources.figures("cache")),
            sources,
            replicas: ReplicaMetrics::register(r),
        }
    }
}

impl Upstreams {
    /// Copies the counts of what the cache has given.
    pub(super) fn copy_hits(&self, requests: &Requests) {
        let cache = self.cache.lock();
        cache.raise_to(&requests.hits());
    }
}

/// Metrics of one upstream, for its client.
#[derive(Debug)]
pub struct UpstreamMetrics {
    id: UpstreamId,
    name: String,
    requests: Family<UpstreamRequest, Counter>,
    received: Family<UpstreamBytes, Counter>,
    errors: Family<UpstreamFailure, Counter>,
    tokens: Family<UpstreamToken, Counter>,
    degraded: Gauge,
    connect: Histogram,
    first_byte: Histogram,
    whole: Histogram,
    pub source: SourceFigures,
}

impl Metrics {
    /// Metrics of one upstream. `name` is a configured one.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let of = &self.upstreams;
        let upstream = || name.to_owned();
        let phase = |phase| {
            let upstream = upstream();
            let labels = UpstreamPhase { upstream, phase };
            of.phases.get_or_create_owned(&labels)
        };
        Arc::new(UpstreamMetrics {
            id: self.requests.upstream(name),
            name: upstream(),
            requests: of.requests.clone(),
            received: of.received.clone(),
            errors: of.errors.clone(),
            tokens: of.tokens.clone(),
            degraded: of.degraded.get_or_create_owned(&OfUpstream {
                upstream: upstream(),
            }),
            connect: phase("connect"),
            first_byte: phase("first_byte"),
            whole: phase("whole"),
            source: of.sources.figures("upstream"),
        })
    }

    /// Metrics of the other replicas, which are no upstream: only the source is counted.
    pub fn peers(&self) -> Arc<UpstreamMetrics> {
        Arc::new(UpstreamMetrics {
            id: UpstreamId::default(),
            name: String::new(),
            requests: Family::default(),
            received: Family::default(),
            errors: Family::default(),
            tokens: Family::default(),
            degraded: Gauge::default(),
            connect: Histogram::default(),
            first_byte: Histogram::default(),
            whole: Histogram::default(),
            source: self.upstreams.sources.figures("peer"),
        })
    }
}

impl UpstreamMetrics {
    /// The upstream's position in the counts of clients' requests.
    pub fn id(&self) -> UpstreamId {
        self.id
    }

    /// A request has ended without an answer, or the head of the answer has arrived.
    pub fn request(&self, kind: Kind, method: &'static str, status: Ending) {
        let labels = UpstreamRequest {
            upstream: self.name.clone(),
            kind,
            method,
            status,
        };
        self.requests.get_or_create_owned(&labels).inc();
        self.source.requests.inc();
        let degraded = !matches!(status, Ending::Status(..500));
        self.degraded.set(degraded.into());
    }

    /// Counter of body bytes: for the reader of a body.
    pub fn received(&self, kind: Kind) -> Counter {
        self.received.get_or_create_owned(&UpstreamBytes {
            upstream: self.name.clone(),
            kind,
        })
    }

    /// A request has failed. `error` is a fixed word.
    pub fn failed(&self, error: &'static str) {
        let upstream = self.name.clone();
        let labels = UpstreamFailure { upstream, error };
        self.errors.get_or_create_owned(&labels).inc();
    }

    /// A token was requested.
    pub fn token(&self, result: TokenFetch) {
        let upstream = self.name.clone();
        let labels = UpstreamToken { upstream, result };
        self.tokens.get_or_create_owned(&labels).inc();
    }

    /// A connection took so long, TLS included.
    pub fn connected(&self, after: Duration) {
        self.connect.observe(after);
    }

    /// The head of an answer came so long after the request.
    pub fn answered(&self, after: Duration) {
        self.first_byte.observe(after);
        self.source.first_byte.observe(after);
    }

    /// The end of an answer's body came so long after the request.
    pub fn ended(&self, after: Duration) {
        self.whole.observe(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_upstreams_are_rendered() {
        let metrics = Metrics::new();
        let hub = metrics.upstream("docker.io");
        hub.request(Kind::Blob, "GET", Ending::Status(200));
        hub.request(Kind::Token, "GET", Ending::Error("timeout"));
        hub.received(Kind::Blob).inc_by(7);
        hub.failed("timeout");
        hub.token(TokenFetch::Refused);
        hub.connected(Duration::from_millis(3));
        hub.answered(Duration::from_millis(30));
        hub.ended(Duration::from_secs(3));
        metrics.upstream("quay.io");
        let text = metrics.render();
        for line in [
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="blob",method="GET",status="200"} 1"#,
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="token",method="GET",status="timeout"} 1"#,
            r#"millpond_upstream_received_bytes_total{upstream="docker.io",kind="blob"} 7"#,
            r#"millpond_upstream_errors_total{upstream="docker.io",error="timeout"} 1"#,
            r#"millpond_upstream_token_fetches_total{upstream="docker.io",result="refused"} 1"#,
            r#"millpond_upstream_phase_duration_seconds_bucket{le="0.0025",upstream="docker.io",phase="connect"} 0"#,
            r#"millpond_upstream_phase_duration_seconds_bucket{le="0.005",upstream="docker.io",phase="connect"} 1"#,
            r#"millpond_upstream_phase_duration_seconds_bucket{le="0.05",upstream="docker.io",phase="first_byte"} 1"#,
            r#"millpond_upstream_phase_duration_seconds_sum{upstream="docker.io",phase="whole"} 3.0"#,
            r#"millpond_upstream_degraded{upstream="docker.io"} 1"#,
            r#"millpond_upstream_degraded{upstream="quay.io"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
