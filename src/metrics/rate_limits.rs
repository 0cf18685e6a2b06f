//! Metrics of the rate limits of upstreams. Labels come from the configuration.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Metrics, Registrar};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAccount {
    upstream: String,
    /// `host[:port]` and the prefix.
    endpoint: String,
    /// The user name, or what stands for it.
    account: String,
}

/// The families of all accounts.
#[derive(Debug, Clone)]
pub(super) struct RateLimits {
    limit: Family<OfAccount, Gauge>,
    remaining: Family<OfAccount, Gauge>,
    paused: Family<OfAccount, Gauge>,
    refused: Family<OfAccount, Counter>,
}

/// The series of one account at one endpoint. They exist once there is something to say.
#[derive(Debug)]
pub struct RateLimitMetrics {
    of: RateLimits,
    labels: OfAccount,
}

impl RateLimits {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            limit: r.metric(
                "upstream_ratelimit",
                "Requests that an upstream permits an account in a window of time, as its last response says",
            ),
            remaining: r.metric(
                "upstream_ratelimit_remaining",
                "Requests that an account has left at an upstream, as its last response says",
            ),
            paused: r.metric(
                "upstream_ratelimit_paused",
                "1 from a response with status 429 until a request of the same kind is answered",
            ),
            refused: r.metric(
                "upstream_ratelimit_withheld",
                "Requests that were not sent to an upstream because of a 429 before",
            ),
        }
    }
}

impl Metrics {
    /// The series of one account at one endpoint. All names are configured ones.
    pub fn rate_limit(&self, upstream: &str, endpoint: &str, account: &str) -> RateLimitMetrics {
        RateLimitMetrics {
            of: self.upstreams.rate_limits.clone(),
            labels: OfAccount {
                upstream: upstream.to_owned(),
                endpoint: endpoint.to_owned(),
                account: account.to_owned(),
            },
        }
    }
}

impl RateLimitMetrics {
    /// A response says what is left.
    pub fn told(&self, limit: u64, remaining: u64) {
        let set = |family: &Family<OfAccount, Gauge>, value: u64| {
            let gauge = family.get_or_create_owned(&self.labels);
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.of.limit, limit);
        set(&self.of.remaining, remaining);
    }

    pub fn paused(&self, is_paused: bool) {
        let gauge = self.of.paused.get_or_create_owned(&self.labels);
        gauge.set(is_paused.into());
    }

    /// A request wasn't sent.
    pub fn withheld(&self) {
        self.of.refused.get_or_create_owned(&self.labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_its_own_series_once_something_is_known() {
        let metrics = Metrics::new();
        let account = metrics.rate_limit("docker.io", "registry-1.docker.io", "someone");
        let has = |line: &str| metrics.render().lines().any(|found| found == line);
        let labels = r#"{upstream="docker.io",endpoint="registry-1.docker.io",account="someone"}"#;
        let remaining = format!("millpond_upstream_ratelimit_remaining{labels} 76");
        assert!(
            !metrics
                .render()
                .contains("millpond_upstream_ratelimit_remaining{")
        );
        account.told(100, 76);
        account.withheld();
        account.paused(true);
        assert!(has(&remaining));
        assert!(has(&format!("millpond_upstream_ratelimit{labels} 100")));
        assert!(has(&format!(
            "millpond_upstream_ratelimit_paused{labels} 1"
        )));
        assert!(has(&format!(
            "millpond_upstream_ratelimit_withheld_total{labels} 1"
        )));
        account.paused(false);
        assert!(has(&format!(
            "millpond_upstream_ratelimit_paused{labels} 0"
        )));
    }
}
