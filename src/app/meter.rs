//! The metrics behind the trait through which `upstream` counts.

use std::time::Duration;

use crate::metrics::{self, Ending, Metrics};
use crate::upstream::{Kind, Meter, Outcome};

impl Meter for Metrics {
    fn request(
        &self,
        upstream: &str,
        kind: Kind,
        method: &'static str,
        outcome: Outcome,
        _elapsed: Duration,
    ) {
        let (ending, degraded) = match outcome {
            Outcome::Status(status) => (Ending::Status(status), status >= 500),
            Outcome::Error(class) => (Ending::Error(class), true),
        };
        self.upstream_degraded(upstream, degraded);
        self.upstream_request(upstream, label(kind), method, ending);
    }

    fn bytes(&self, upstream: &str, kind: Kind, n: u64) {
        self.upstream_bytes(upstream, label(kind)).inc_by(n);
    }
}

const fn label(kind: Kind) -> metrics::Kind {
    match kind {
        Kind::Manifest => metrics::Kind::Manifest,
        Kind::Blob => metrics::Kind::Blob,
        Kind::Token => metrics::Kind::Token,
        Kind::Tags => metrics::Kind::Tags,
        Kind::Referrers => metrics::Kind::Referrers,
    }
}
