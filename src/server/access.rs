//! One log line a request, and its counters: written when the body has ended, because only then is
//! it known what the client got.

use std::sync::Arc;

use tokio::time::Instant;

use crate::error_chain::on_one_line;
use crate::metrics::{Answer, Kind, Metrics, Outcome, UpstreamId};

/// Longest part of a client's header or URI that a log line repeats, in bytes.
const MAX_SHOWN: usize = 512;

/// What is known of a request.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    /// When the first bytes of the body were handed over.
    first_byte: Option<Instant>,
    answer: Answer,
    status: u16,
    expects_body: bool,
    completed: bool,
    line: Option<Box<Line>>,
}

/// What only the log needs.
#[derive(Debug)]
struct Line {
    method: http::Method,
    uri: String,
    peer: Arc<str>,
    agent: String,
    bytes: u64,
    failure: Option<String>,
}

impl Record {
    /// Begins the record of a request. Without `log` it only counts.
    pub fn new(
        metrics: Arc<Metrics>,
        request: &http::request::Parts,
        peer: Arc<str>,
        log: bool,
    ) -> Self {
        Self {
            metrics,
            started: Instant::now(),
            first_byte: None,
            answer: Answer {
                upstream: UpstreamId::NONE,
                route: Kind::Other,
                result: Outcome::Error,
            },
            status: 0,
            expects_body: false,
            completed: false,
            line: log.then(|| Box::new(Line::new(request, peer))),
        }
    }

    /// The answer's head is known.
    pub fn answered(&mut self, answer: Answer, status: http::StatusCode, expects_body: bool) {
        (self.answer, self.status) = (answer, status.as_u16());
        self.expects_body = expects_body;
    }

    /// Why the request failed, for the log.
    pub fn failed(&mut self, error: &str) {
        if let Some(line) = &mut self.line {
            line.failure = Some(error.to_owned());
        }
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.first_byte.get_or_insert_with(Instant::now);
        self.metrics.client_sent(self.answer, bytes);
        if let Some(line) = &mut self.line {
            line.bytes += bytes;
        }
    }

    pub(super) fn completed(&mut self) {
        self.completed = true;
    }

    pub(super) fn broke(&mut self, error: &(dyn std::error::Error + 'static)) {
        if let Some(line) = &mut self.line {
            line.failure = Some(format!("broken body: {}", on_one_line(error)));
        }
    }

    /// Told by hyper that the whole body is out before its end is polled for.
    pub(super) fn expected(&mut self, remaining: Option<u64>) {
        self.completed |= remaining == Some(0) || !self.expects_body;
    }
}

impl Line {
    fn new(request: &http::request::Parts, peer: Arc<str>) -> Self {
        let agent = request.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok());
        Self {
            method: request.method.clone(),
            uri: target(&request.uri),
            peer,
            agent: shown(agent.unwrap_or_default()),
            bytes: 0,
            failure: None,
        }
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
        .map(|c| {
            if c.is_control() || is_unprintable(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Whether a character that is no control character changes how a terminal shows its neighbours:
/// marks of direction, separators of lines, and what has no width.
pub fn is_unprintable(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Query parameters that this server reads. Others may carry anything, secrets included.
const KNOWN_PARAMETERS: [&str; 4] = ["ns", "n", "last", "artifactType"];

/// The path and the known query parameters: no scheme, user information or host.
fn target(uri: &http::Uri) -> String {
    let known = uri.query().into_iter().flat_map(|query| query.split('&'));
    let known = known.filter(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default();
        KNOWN_PARAMETERS.contains(&name)
    });
    let known: Vec<_> = known.collect();
    if known.is_empty() {
        return shown(uri.path());
    }
    shown(&format!("{}?{}", uri.path(), known.join("&")))
}

impl Line {
    fn log(&self, record: &Record) {
        let ms = (record.started.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        tracing::info!(
            target: "millpond::access",
            peer = &*self.peer,
            method = self.method.as_str(),
            uri = self.uri,
            status = record.status,
            result = record.answer.result.as_str(),
            bytes = self.bytes,
            ms,
            agent = self.agent,
            aborted = (!record.completed && self.failure.is_none()).then_some(true),
            error = self.failure.as_deref(),
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.log(self);
        }
        // Last: a request that is counted has its line in the log.
        let whole = self.started.elapsed();
        let first_byte = self.first_byte.map_or(whole, |at| at - self.started);
        self.metrics
            .served(self.answer, self.status, (first_byte, whole));
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
        assert_eq!(shown("a\u{202e}b\u{200f}"), "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn a_logged_target_has_no_user_information_and_no_unknown_parameter() {
        for (uri, logged) in [
            (
                "/v2/app/tags/list?n=5&last=a%20b",
                "/v2/app/tags/list?n=5&last=a%20b",
            ),
            ("/v2/?ns=docker.io&token=secret&n", "/v2/?ns=docker.io&n"),
            ("/v2/?token=secret", "/v2/"),
            ("http://user:secret@mirror:5000/v2/?ns=a", "/v2/?ns=a"),
        ] {
            assert_eq!(target(&uri.parse().unwrap()), logged);
        }
    }
}
