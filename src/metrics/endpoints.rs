//! Metrics of the endpoints of upstreams. Labels come from the configuration.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::labels::TokenAge;
use super::{Metrics, Registrar};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEndpoint {
    upstream: String,
    /// `host[:port]` and the prefix.
    endpoint: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTokens {
    upstream: String,
    /// `host[:port]` and the prefix.
    endpoint: String,
    age: TokenAge,
}

/// The families of all endpoints.
#[derive(Debug)]
pub(super) struct Endpoints {
    requests: Family<OfEndpoint, Counter>,
    failures: Family<OfEndpoint, Counter>,
    hedges: Family<OfEndpoint, Counter>,
    circuit: Family<OfEndpoint, Gauge>,
    tokens: Family<OfTokens, Gauge>,
}

/// The series of one endpoint of an upstream that has several.
#[derive(Debug, Clone)]
pub struct EndpointFigures {
    /// Questions that it was asked.
    pub requests: Counter,
    /// Questions that another endpoint was asked because of a failure, and streams that broke off.
    pub failures: Counter,
    /// Questions that it was asked because another endpoint was slow.
    pub hedges: Counter,
    circuit: Gauge,
}

/// The state of an endpoint's circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
}

impl Endpoints {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            requests: r.metric("endpoint_requests", "Questions sent to an endpoint"),
            failures: r.metric(
                "endpoint_failures",
                "Questions that an endpoint failed to answer, and streams that broke off",
            ),
            hedges: r.metric(
                "endpoint_hedges",
                "Questions sent to an endpoint because another one was slow",
            ),
            circuit: r.metric(
                "endpoint_circuit",
                "State of an endpoint's circuit: 0 closed, 1 half-open, 2 open",
            ),
            tokens: r.metric(
                "endpoint_tokens",
                "Tokens in use at an endpoint, by the time since they were obtained",
            ),
        }
    }
}

impl Metrics {
    /// The series of one endpoint of an upstream. Both names are configured ones.
    pub fn endpoint(&self, upstream: &str, endpoint: &str) -> EndpointFigures {
        let of = &self.upstreams.endpoints;
        let labels = OfEndpoint {
            upstream: upstream.to_owned(),
            endpoint: endpoint.to_owned(),
        };
        EndpointFigures {
            requests: of.requests.get_or_create_owned(&labels),
            failures: of.failures.get_or_create_owned(&labels),
            hedges: of.hedges.get_or_create_owned(&labels),
            circuit: of.circuit.get_or_create_owned(&labels),
        }
    }
}

impl Metrics {
    /// Takes over the ages of the tokens in use: of each endpoint its upstream, its name, and the ages.
    pub fn tokens(&self, endpoints: impl IntoIterator<Item = (String, String, Vec<Duration>)>) {
        let family = &self.upstreams.endpoints.tokens;
        // A reload may have removed endpoints.
        family.clear();
        for (upstream, endpoint, ages) in endpoints {
            for age in TokenAge::ALL {
                let count = ages.iter().filter(|since| TokenAge::of(**since) == *age);
                let labels = OfTokens {
                    upstream: upstream.clone(),
                    endpoint: endpoint.clone(),
                    age: *age,
                };
                let gauge = family.get_or_create_owned(&labels);
                gauge.set(i64::try_from(count.count()).unwrap_or(i64::MAX));
            }
        }
    }
}

impl EndpointFigures {
    pub fn circuit(&self, state: CircuitState) {
        self.circuit.set(state as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_its_own_series() {
        let metrics = Metrics::new();
        let endpoint = metrics.endpoint("docker.io", "mirror:5000/hub");
        endpoint.failures.inc();
        endpoint.circuit(CircuitState::Open);
        let text = metrics.render();
        for line in [
            r#"millpond_endpoint_requests_total{upstream="docker.io",endpoint="mirror:5000/hub"} 0"#,
            r#"millpond_endpoint_failures_total{upstream="docker.io",endpoint="mirror:5000/hub"} 1"#,
            r#"millpond_endpoint_hedges_total{upstream="docker.io",endpoint="mirror:5000/hub"} 0"#,
            r#"millpond_endpoint_circuit{upstream="docker.io",endpoint="mirror:5000/hub"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn tokens_are_counted_by_age_and_those_of_a_removed_endpoint_are_not() {
        let metrics = Metrics::new();
        let minute = Duration::from_mins(1);
        let ages = vec![Duration::ZERO, minute, 4 * minute, 59 * minute, 60 * minute];
        metrics.tokens([("ghcr.io".to_owned(), "ghcr.io".to_owned(), ages)]);
        let text = metrics.render();
        for (age, count) in [("1m", 1), ("5m", 2), ("1h", 1), ("longer", 1)] {
            let line = format!(
                r#"millpond_endpoint_tokens{{upstream="ghcr.io",endpoint="ghcr.io",age="{age}"}} {count}"#
            );
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        metrics.tokens([]);
        assert!(!metrics.render().contains("endpoint_tokens{"));
    }
}
