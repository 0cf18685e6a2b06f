//! Typed metrics, handed to whoever counts: there is no global registry.
//!
//! Label values come from fixed sets and from the configuration, never from a request, so the
//! number of series is bounded.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Base,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Catalog,
    /// A request for a token; only ever sent upstream.
    Token,
    /// A request without a route.
    Other,
}

impl Kind {
    /// The word used in logs and as the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Catalog => "catalog",
            Self::Token => "token",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The store alone.
    Hit,
    /// The store, after the upstream confirmed it.
    Revalidated,
    /// The store, because the upstream couldn't answer.
    Stale,
    /// A download that another client's request had started.
    Joined,
    /// The upstream.
    Miss,
    /// Neither: the request was refused or failed.
    Error,
}

impl Outcome {
    /// The word used in logs and as the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Joined => "joined",
            Self::Miss => "miss",
            Self::Error => "error",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// How a request to an upstream ended: a status, or no status at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    Status(u16),
    /// The class of the error, a fixed word.
    Error(&'static str),
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Status(status) => write!(encoder, "{status}"),
            Self::Error(class) => encoder.write_str(class),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamRequest {
    upstream: String,
    kind: Kind,
    method: &'static str,
    status: Ending,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamBytes {
    upstream: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    kind: Kind,
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedStatus {
    kind: Kind,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: Kind,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    upstream_requests: Family<UpstreamRequest, Counter>,
    upstream_bytes: Family<UpstreamBytes, Counter>,
    requests: Family<Served, Counter>,
    responses: Family<ServedStatus, Counter>,
    client_bytes: Family<OfKind, Counter>,
    store_failures: Counter,
    resumed: Counter,
    downloads: Gauge,
    followers: Gauge,
    connections: Gauge,
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
            requests: Family::default(),
            responses: Family::default(),
            client_bytes: Family::default(),
            store_failures: Counter::default(),
            resumed: Counter::default(),
            downloads: Gauge::default(),
            followers: Gauge::default(),
            connections: Gauge::default(),
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
        let help = "Clients' requests by where the answer came from";
        r.register("requests", help, self.requests.clone());
        r.register(
            "responses",
            "Clients' requests by status",
            self.responses.clone(),
        );
        let help = "Body bytes sent to clients";
        r.register_with_unit("client_sent", help, Unit::Bytes, self.client_bytes.clone());
        r.register(
            "store_failures",
            "Failed reads and writes of the store",
            self.store_failures.clone(),
        );
        let help = "Downloads that went on where the upstream had broken off";
        r.register("downloads_resumed", help, self.resumed.clone());
        r.register(
            "downloads_in_flight",
            "Downloads running",
            self.downloads.clone(),
        );
        r.register(
            "followers",
            "Clients reading a running download",
            self.followers.clone(),
        );
        r.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
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

    /// Counter of the body bytes that come from one upstream: kept by whoever reads a body.
    pub fn upstream_bytes(&self, upstream: &str, kind: Kind) -> Counter {
        self.upstream_bytes.get_or_create_owned(&UpstreamBytes {
            upstream: upstream.to_owned(),
            kind,
        })
    }

    /// A client's request has been answered.
    pub fn served(&self, kind: Kind, result: Outcome, status: u16) {
        self.requests
            .get_or_create_owned(&Served { kind, result })
            .inc();
        self.responses
            .get_or_create_owned(&ServedStatus { kind, status })
            .inc();
    }

    /// Counter of the body bytes that clients are sent.
    pub fn client_bytes(&self, kind: Kind) -> Counter {
        self.client_bytes.get_or_create_owned(&OfKind { kind })
    }

    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    pub fn download_resumed(&self) {
        self.resumed.inc();
    }

    /// Counts a running download until dropped.
    pub fn download(&self) -> InFlight {
        InFlight::new(&self.downloads)
    }

    /// Counts a client that reads a running download until dropped.
    pub fn follower(&self) -> InFlight {
        InFlight::new(&self.followers)
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
                tracing::error!(%error, "the metrics can't be written as text");
                String::new()
            }
        }
    }
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
        metrics.client_bytes(Kind::Blob).inc_by(9);
        let (_one, two) = (metrics.follower(), metrics.follower());
        drop(two);
        let text = metrics.render();
        for line in [
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="blob",method="GET",status="200"} 1"#,
            r#"millpond_upstream_requests_total{upstream="docker.io",kind="token",method="GET",status="timeout"} 1"#,
            r#"millpond_upstream_received_bytes_total{upstream="docker.io",kind="blob"} 7"#,
            r#"millpond_requests_total{kind="manifest",result="stale"} 1"#,
            r#"millpond_responses_total{kind="manifest",status="200"} 1"#,
            r#"millpond_client_sent_bytes_total{kind="blob"} 9"#,
            "millpond_followers 1",
            "millpond_downloads_in_flight 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
