//! The endpoints of the upstreams, as operators see them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::circuit::View;
use super::endpoint::Endpoint;
use super::health::Health;
use super::limits::AccountStatus;

/// An endpoint, as operators see it. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    pub upstream: String,
    /// `host[:port]` and the prefix.
    pub endpoint: String,
    /// `closed`, `half-open` or `open`. None where the upstream has one endpoint, which is always
    /// asked.
    pub circuit: Option<String>,
    /// When a request is sent to an endpoint whose circuit is open.
    pub retry_in: Option<f64>,
    /// Moving average of the time to an answer about a manifest.
    pub latency: Option<f64>,
    /// The time within which 99 % of them were answered.
    pub latency_p99: Option<f64>,
    /// Streams of blobs.
    pub streams: usize,
    /// The tokens in use, by the time since they were obtained.
    pub tokens: TokenAges,
    /// What its accounts may still ask.
    pub limits: Vec<AccountStatus>,
    /// Bytes of blobs that the upstream has sent in this month; none where they aren't limited.
    pub month_bytes: Option<u64>,
    /// The limit of them.
    pub month_limit: Option<u64>,
    pub last_error: Option<LastError>,
}

/// The tokens of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenAges {
    pub count: usize,
    pub youngest: Option<f64>,
    pub oldest: Option<f64>,
}

/// The last failure of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    pub ago: f64,
    pub error: String,
}

impl EndpointStatus {
    pub(super) fn of(endpoint: &Endpoint, is_alone: bool) -> Self {
        let Health {
            circuit,
            latency,
            last_error,
            ..
        } = &*endpoint.health;
        let now = Instant::now();
        let (circuit, retry_in) = match circuit.view() {
            View::Closed => ("closed", None),
            View::HalfOpen => ("half-open", None),
            View::Open(until) => ("open", Some(until.saturating_duration_since(now))),
        };
        let ages = token_ages(endpoint, now);
        let usage = endpoint.transport.limiter.usage.as_ref();
        let limits = endpoint.accounts().flat_map(|auth| auth.all_limits());
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Self {
            upstream: endpoint.name().to_owned(),
            endpoint: endpoint.health.label.clone(),
            circuit: (!is_alone).then(|| circuit.to_owned()),
            retry_in: seconds(retry_in),
            latency: seconds(latency.average()),
            latency_p99: seconds(latency.p99()),
            streams: endpoint.health.streams.load(Ordering::Relaxed),
            tokens: TokenAges {
                count: ages.len(),
                youngest: seconds(ages.iter().min().copied()),
                oldest: seconds(ages.iter().max().copied()),
            },
            month_bytes: usage.map(|usage| usage.now().bytes),
            month_limit: usage.map(|usage| usage.limit),
            limits: limits.map(|limits| limits.status(now)).collect(),
            last_error: last_error.lock().as_ref().map(|(at, error)| LastError {
                ago: now.duration_since(*at).as_secs_f64(),
                error: error.clone(),
            }),
        }
    }
}

/// The time since each token in use was obtained.
pub(super) fn token_ages(endpoint: &Endpoint, now: Instant) -> Vec<Duration> {
    let accounts = endpoint.accounts();
    accounts.flat_map(|auth| auth.tokens.ages(now)).collect()
}
