//! One log line a request, and its counters: written when the body has ended, because only then is
//! it known what the client got.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::body::BodyError;
use crate::metrics::{Kind, Metrics, Outcome};

/// Longest part of a client's header or URI that a log line repeats, in bytes.
const MAX_SHOWN: usize = 512;

/// What is known of a request before it is answered.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    client_bytes: Option<Counter>,
    started: Instant,
    log: bool,
    method: http::Method,
    uri: String,
    peer: Arc<str>,
    agent: String,
    kind: Kind,
    outcome: Outcome,
    status: u16,
    bytes: u64,
    expects_body: bool,
    completed: bool,
    failure: Option<String>,
}

impl Record {
    /// Begins the record of a request. Without `log` it only counts.
    pub fn new<B>(
        metrics: Arc<Metrics>,
        request: &http::Request<B>,
        peer: Arc<str>,
        log: bool,
    ) -> Self {
        let agent = request.headers().get(http::header::USER_AGENT);
        Self {
            client_bytes: None,
            metrics,
            started: Instant::now(),
            log,
            method: request.method().clone(),
            uri: shown(&request.uri().to_string()),
            peer,
            agent: shown(
                agent
                    .and_then(|agent| agent.to_str().ok())
                    .unwrap_or_default(),
            ),
            kind: Kind::Other,
            outcome: Outcome::Error,
            status: 0,
            bytes: 0,
            expects_body: false,
            completed: false,
            failure: None,
        }
    }

    /// The answer's head is known.
    pub fn answered(
        &mut self,
        kind: Kind,
        outcome: Outcome,
        status: http::StatusCode,
        expects_body: bool,
    ) {
        self.client_bytes = Some(self.metrics.client_bytes(kind));
        (self.kind, self.outcome, self.status) = (kind, outcome, status.as_u16());
        self.expects_body = expects_body;
    }

    /// Why the request failed, for the log: more than the client is told.
    pub fn failed(&mut self, error: String) {
        self.failure = Some(error);
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(counter) = &self.client_bytes {
            counter.inc_by(bytes);
        }
    }

    pub(super) fn completed(&mut self) {
        self.completed = true;
    }

    pub(super) fn broke(&mut self, error: &BodyError) {
        self.failure = Some(format!("broken body: {error}"));
    }

    /// Told by hyper that the whole body is out before its end is polled for.
    pub(super) fn expected(&mut self, remaining: Option<u64>) {
        self.completed |= remaining == Some(0) || !self.expects_body;
    }
}

/// A text from the network, fit for one line of a log.
fn shown(text: &str) -> String {
    let cut = text
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| *at <= MAX_SHOWN)
        .last();
    let kept = text
        .get(..cut.unwrap_or(0))
        .filter(|_| text.len() > MAX_SHOWN)
        .unwrap_or(text);
    kept.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.served(self.kind, self.outcome, self.status);
        if !self.log {
            return;
        }
        let ms = self.started.elapsed().as_secs_f64() * 1000.0;
        tracing::info!(
            target: "millpond::access",
            peer = %self.peer,
            method = %self.method,
            uri = %self.uri,
            status = self.status,
            result = self.outcome.as_str(),
            bytes = self.bytes,
            ms = format_args!("{ms:.1}"),
            agent = %self.agent,
            aborted = (!self.completed && self.failure.is_none()).then_some(true),
            error = self.failure.as_deref(),
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_stays_on_one_bounded_line() {
        assert_eq!(shown("curl/8\r\nGET"), "curl/8\u{fffd}\u{fffd}GET");
        assert!(shown(&"ä".repeat(5000)).len() <= MAX_SHOWN);
        assert_eq!(shown(""), "");
    }
}
