//! One log line a request, and its counters: written when the body has ended, because only then is
//! it known what the client got.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::User;
use crate::config::AccessLog;
use crate::error_chain::on_one_line;
use crate::log_levels::ACCESS_LOG;
use crate::metrics::{Answer, Kind, Metrics, Outcome, UpstreamId};
use crate::telemetry::{Context, Span};

/// Longest part of a client's header or URI that a log line repeats, in bytes.
const MAX_SHOWN: usize = 512;

/// What is known of a request.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    context: Context,
    started: Instant,
    /// When the first bytes of the body were handed over.
    first_byte: Option<Instant>,
    answer: Answer,
    status: u16,
    expects_body: bool,
    completed: bool,
    span: Option<Box<RequestSpan>>,
    line: Option<Box<Line>>,
}

/// What a record is for.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) metrics: Arc<Metrics>,
    pub(super) context: Context,
    /// Without it, nothing is logged.
    pub(super) log: Option<AccessLog>,
    /// The request's, if it is traced.
    pub(super) span: Option<Span>,
    /// The other end of the connection.
    pub(super) peer: Arc<str>,
    pub(super) address: Option<IpAddr>,
}

/// What only the log needs.
#[derive(Debug)]
struct Line {
    settings: AccessLog,
    method: http::Method,
    uri: String,
    /// The other end of the connection.
    peer: Arc<str>,
    address: Option<IpAddr>,
    /// The caller behind a trusted proxy.
    forwarded: Option<String>,
    user: Option<Arc<User>>,
    agent: String,
    bytes: u64,
    failure: Option<String>,
}

/// What only the trace needs.
#[derive(Debug)]
struct RequestSpan {
    span: Span,
    bytes: u64,
}

impl Record {
    /// Begins the record of a request.
    pub(super) fn new(options: Options, request: &http::request::Parts) -> Self {
        let span = options.span.map(|mut span| {
            span.set("http.request.method", request.method.as_str());
            span.set("url.path", target(&request.uri));
            span.set("millpond.request_id", options.context.id().as_str());
            Box::new(RequestSpan { span, bytes: 0 })
        });
        Self {
            metrics: options.metrics,
            context: options.context,
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
            span,
            line: options
                .log
                .map(|log| Box::new(Line::new(log, request, options.peer, options.address))),
        }
    }

    /// What the request carries through all that it causes.
    pub(super) const fn context(&self) -> &Context {
        &self.context
    }

    /// The caller is known: its address, if it can be told, and its user.
    pub(super) fn comes_from(&mut self, address: Option<IpAddr>, user: Option<&Arc<User>>) {
        if let Some(RequestSpan { span, .. }) = self.span.as_deref_mut()
            && let Some(address) = address
        {
            span.set("client.address", address.to_string());
        }
        if let Some(line) = &mut self.line {
            line.user = user.cloned();
            if line.address != address {
                let known = address.map(|address| address.to_string());
                line.forwarded = Some(known.unwrap_or_else(|| "unknown".to_owned()));
            }
        }
    }

    /// What the request is for. Until it is answered, it counts as one whose client has left.
    pub(super) const fn is_for(&mut self, route: Kind) {
        self.answer.route = route;
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
        if let Some(RequestSpan { span, .. }) = self.span.as_deref_mut() {
            span.set("millpond.error", error);
        }
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.first_byte.get_or_insert_with(Instant::now);
        self.metrics.client_sent(self.answer, bytes);
        if let Some(line) = &mut self.line {
            line.bytes += bytes;
        }
        if let Some(span) = &mut self.span {
            span.bytes += bytes;
        }
    }

    pub(super) fn completed(&mut self) {
        self.completed = true;
    }

    pub(super) fn broke(&mut self, error: &(dyn std::error::Error + 'static)) {
        let failure = format!("broken body: {}", on_one_line(error));
        if let Some(RequestSpan { span, .. }) = self.span.as_deref_mut() {
            span.fail(&failure);
        }
        if let Some(line) = &mut self.line {
            line.failure = Some(failure);
        }
    }

    /// Told by hyper that the whole body is out before its end is polled for.
    pub(super) fn expected(&mut self, remaining: Option<u64>) {
        self.completed |= remaining == Some(0) || !self.expects_body;
    }

    fn end_span(&self, RequestSpan { mut span, bytes }: RequestSpan) {
        span.rename(self.answer.route.as_str());
        span.set("http.response.status_code", self.status);
        span.set("http.response.body.size", bytes);
        span.set("millpond.result", self.answer.result.as_str());
        if self.status >= 500 {
            span.fail("the request failed");
        }
    }
}

impl Line {
    fn new(
        settings: AccessLog,
        request: &http::request::Parts,
        peer: Arc<str>,
        address: Option<IpAddr>,
    ) -> Self {
        let agent = request.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok());
        Self {
            settings,
            method: request.method.clone(),
            uri: target(&request.uri),
            peer,
            address,
            forwarded: None,
            user: None,
            agent: shown(agent.unwrap_or_default()),
            bytes: 0,
            failure: None,
        }
    }

    /// Whether the line is written: all are but those of quick successes that the sampling leaves out.
    fn is_wanted(&self, record: &Record, took: Duration) -> bool {
        let AccessLog { sample, slow } = self.settings;
        let failed = record.status >= 400
            || record.answer.result == Outcome::Error
            || !record.completed
            || self.failure.is_some();
        sample <= 1 || failed || took >= slow || fastrand::u32(..sample) == 0
    }
}

/// A text from the network, fit for one line of a log.
fn shown(text: &str) -> String {
    // Looks at every byte, which the processor does many at a time.
    let printable = |so_far: bool, byte: &u8| so_far & matches!(byte, b' '..=b'~');
    if text.len() <= MAX_SHOWN && text.as_bytes().iter().fold(true, printable) {
        return text.to_owned();
    }
    let kept = text
        .get(..text.floor_char_boundary(MAX_SHOWN))
        .unwrap_or_default();
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
    if uri.query().is_none() {
        return shown(uri.path());
    }
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
        let took = record.started.elapsed();
        if !self.is_wanted(record, took) {
            return;
        }
        let proxy = self.forwarded.is_some().then_some(&*self.peer);
        tracing::info!(
            target: ACCESS_LOG,
            client = self.forwarded.as_deref().unwrap_or(&self.peer),
            proxy,
            user = self.user.as_ref().map(|user| user.name.as_str()),
            method = self.method.as_str(),
            uri = self.uri,
            status = record.status,
            result = record.answer.result.as_str(),
            bytes = self.bytes,
            ms = milliseconds(took),
            upstream_ms = record.context.waited().map(milliseconds),
            agent = self.agent,
            aborted = (!record.completed && self.failure.is_none()).then_some(true),
            error = self.failure.as_deref(),
            "request"
        );
    }
}

/// With one decimal place.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            self.context.enter(|| line.log(self));
        }
        if let Some(span) = self.span.take() {
            self.end_span(*span);
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
