//! Metrics of the endpoints of upstreams that have several. Labels come from the configuration.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Metrics, Registrar};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEndpoint {
    upstream: String,
    /// `host[:port]` and the prefix.
    endpoint: String,
}

/// The families of all endpoints.
#[derive(Debug)]
pub(super) struct Endpoints {
    requests: Family<OfEndpoint, Counter>,
    failures: Family<OfEndpoint, Counter>,
    hedges: Family<OfEndpoint, Counter>,
    circuit: Family<OfEndpoint, Gauge>,
}

/// The series of one endpoint.
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
}
