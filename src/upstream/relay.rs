//! Relays requests to the replica that writes hosted content, and its answers back.
//!
//! ```text
//! request ─► marked, with the caller ─► the writer ─► head: checked mark ─► body, as it comes
//!               │ skipped, unreachable, silent, unmarked, 421                 │ breaks off, silent
//!               ▼                                                             ▼
//!             RelayError: 503 for the client                                cut off
//! ```
//!
//! A request is sent once. Only a read whose connection was lost before an answer is sent again, once, because
//! the writer may have closed an idle connection at that moment. A writer that is silent is probed like any
//! replica; one that answers the probe may still take no longer than [`ANSWER_TIME`] or [`STALL`].

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::time::sleep;
use url::Url;

use super::error::{Failure, Phase, UpstreamError};
use super::peer::{Peer, silent};
use super::relay_answer::{Counted, RelayAnswer, RelayError, STALL};
use super::relay_body::RelayBody;
use super::upload_body::{Awaited, Pace, watched};
use crate::metrics::Relayed;
use crate::replicas::{Nonce, RelayedCaller, Subject};
use crate::telemetry;

/// How long the writer may work on a request whose body it has: a manifest is answered when all that it
/// refers to is stored.
const ANSWER_TIME: Duration = Duration::from_mins(15);

/// A request to relay.
#[derive(Debug)]
pub struct RelayRequest {
    pub method: Method,
    /// The path from `/v2/` on, with its query.
    pub target: String,
    /// The fields that the writer needs; none about the connection.
    pub headers: HeaderMap,
    /// The client that sends it, which may do this.
    pub caller: RelayedCaller,
    pub body: Option<RelayBody>,
}

/// A request without an answer.
struct NoAnswer {
    error: UpstreamError,
    /// The connection was lost, which the writer may have closed although it is there.
    is_lost: bool,
}

impl From<UpstreamError> for NoAnswer {
    fn from(error: UpstreamError) -> Self {
        let is_lost = false;
        Self { error, is_lost }
    }
}

impl Peer {
    /// Relays a request to this replica as the writer.
    pub(super) async fn relay(
        self: &Arc<Self>,
        request: RelayRequest,
    ) -> Result<RelayAnswer, RelayError> {
        let mut counted = Counted::new(&self.options.metrics);
        if let Some(retry_after) = self.skipped_for() {
            counted.result = Relayed::Unavailable;
            let writer = Arc::clone(&self.name);
            return Err(RelayError::Skipped {
                writer,
                retry_after,
            });
        }
        let (url, response) = match self.answer(request).await {
            Ok(answer) => answer,
            Err(source) => {
                counted.result = Relayed::Unavailable;
                let writer = Arc::clone(&self.name);
                return Err(RelayError::unavailable(writer, source));
            }
        };
        if response.status() == StatusCode::MISDIRECTED_REQUEST {
            counted.result = Relayed::Misdirected;
            self.options.metrics.replicas().misdirected.inc();
            tracing::warn!(
                replica = &*self.name,
                "the replica doesn't take itself for the writer of hosted content"
            );
            return Err(RelayError::Misdirected(Arc::clone(&self.name)));
        }
        Ok(RelayAnswer::new(self, url, response, counted))
    }

    /// The answer's head, which has the writer's mark. Notes whether it is there.
    async fn answer(&self, request: RelayRequest) -> Result<(Url, Response), UpstreamError> {
        let url = self.url(&request.target);
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        let mut may_repeat = is_read && request.body.is_none();
        let mut body = request.body;
        let head = (&request.method, &request.headers, &request.caller);
        loop {
            let error = match self.exchange(&url, head, body.take()).await {
                Ok((response, nonce)) => {
                    let response = self.checked(response, nonce, &url)?;
                    self.answered();
                    return Ok((url, response));
                }
                Err(NoAnswer { error, is_lost }) => {
                    if is_lost && self.is_there().await {
                        if std::mem::take(&mut may_repeat) {
                            continue;
                        }
                        return Err(error);
                    }
                    error
                }
            };
            self.skip(&error);
            return Err(error);
        }
    }

    /// Sends a request, and waits for the head of the answer.
    async fn exchange(
        &self,
        url: &Url,
        (method, fields, caller): (&Method, &HeaderMap, &RelayedCaller),
        body: Option<RelayBody>,
    ) -> Result<(Response, Nonce), NoAnswer> {
        let mut headers = fields.clone();
        telemetry::insert_into(&mut headers, None);
        let nonce = self.mark(
            &mut headers,
            method,
            url,
            Subject::Relayed(&caller.encode()),
        )?;
        let is_write = !matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
        let length = match &body {
            Some(body) => body.length,
            None => is_write.then_some(0),
        };
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let request = self.client().request(method.clone(), url.clone());
        let request = request.headers(headers);
        let (request, pace) = match body {
            Some(body) => {
                let (body, pace) = watched(body.chunks);
                (request.body(body), pace)
            }
            None => (request, Pace::new(Awaited::Answer)),
        };
        let mut sending = std::pin::pin!(request.send());
        tokio::select! {
            biased;
            sent = &mut sending => {
                let response = sent.map_err(|error| {
                    let is_lost = !error.is_connect();
                    NoAnswer { error: self.failure(url, error), is_lost }
                })?;
                Ok((response, nonce))
            }
            waited = self.waits(&pace) => Err(match waited {
                Waited::Silent => silent(url, 0),
                Waited::TooLong(phase, after) => {
                    UpstreamError::new(url, Failure::Timeout { phase, after })
                }
            }.into()),
        }
    }

    /// Waits until the writer has been waited for in vain.
    async fn waits(&self, pace: &Pace) -> Waited {
        loop {
            sleep(self.options.timeout).await;
            let (phase, since, most) = match pace.now() {
                // The client, whose silence has a limit of its own.
                (Awaited::Bytes, _) => continue,
                (Awaited::Room, since) => (Phase::Send, since, STALL),
                (Awaited::Answer, since) => (Phase::Header, since, ANSWER_TIME),
            };
            if since.elapsed() < self.options.timeout {
                continue;
            }
            if !self.is_there().await && pace.now().1 == since {
                return Waited::Silent;
            }
            if since.elapsed() > most && pace.now().1 == since {
                return Waited::TooLong(phase, most);
            }
        }
    }

    /// Where a request is sent.
    fn url(&self, target: &str) -> Url {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let mut url = self.base().clone();
        let whole = format!("{}{path}", url.path().trim_end_matches('/'));
        url.set_path(&whole);
        url.set_query(query);
        url
    }
}

/// How waiting for the writer ends.
enum Waited {
    /// It doesn't answer a probe either.
    Silent,
    TooLong(Phase, Duration),
}
