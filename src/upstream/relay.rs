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

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::error::{Failure, Phase, UpstreamError, Violation};
use super::peer::{Peer, SKIPPED_FOR, broken, silent};
use super::relay_body::{BodyFeed, RelayBody};
use super::upload_body::{Awaited, Pace, watched};
use crate::error_chain::on_one_line;
use crate::metrics::{Metrics, Relayed};
use crate::oci::{Classified, ErrorKind};
use crate::replicas::{Nonce, RelayedCaller, Subject};
use crate::telemetry;

/// How long the writer may work on a request whose body it has: a manifest is answered when all that it
/// refers to is stored.
const ANSWER_TIME: Duration = Duration::from_mins(15);
/// How long the writer may take no bytes of a body, or send none.
const STALL: Duration = Duration::from_mins(1);

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

/// The writer's answer, whose body hasn't been read.
pub struct RelayAnswer {
    pub status: StatusCode,
    /// All that the writer sent, also what is between replicas only.
    pub headers: HeaderMap,
    /// The writer, as the operator names it.
    pub writer: Arc<str>,
    body: Answering,
}

impl fmt::Debug for RelayAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RelayAnswer");
        shown.field("status", &self.status).finish_non_exhaustive()
    }
}

/// The bytes of an answer's body. An error means that the rest is missing.
pub type RelayChunks = BoxStream<'static, Result<Bytes, UpstreamError>>;

impl RelayAnswer {
    /// The body as a stream. `feed` is what the writer hasn't taken of the request's body: it may have
    /// answered before, and the connection lasts until the answer has been read.
    pub fn into_body(mut self, feed: Option<BodyFeed>) -> RelayChunks {
        self.body.feed = feed;
        stream::unfold(self.body, Answering::next).boxed()
    }

    /// Ends an answer without a body.
    pub fn end(mut self) {
        self.body.counted.result = Relayed::Answered;
    }
}

/// Why there is no answer of the writer.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no replica is configured to write hosted repositories")]
    NoWriter,
    #[error("the replica {writer}, which writes hosted repositories, failed lately")]
    Skipped {
        writer: Arc<str>,
        retry_after: Duration,
    },
    #[error("the replica {writer}, which writes hosted repositories, doesn't answer")]
    Unavailable {
        writer: Arc<str>,
        #[source]
        source: Box<UpstreamError>,
    },
    #[error(
        "the replica {0} doesn't write hosted repositories: is `replicas.hostedwriter` the same at all replicas?"
    )]
    Misdirected(Arc<str>),
    #[error("the answer of the replica {0} doesn't say which manifest the tag names")]
    NoDigest(Arc<str>),
    #[error("the answer of the replica {0} is no list of repositories")]
    NoList(Arc<str>),
}

impl RelayError {
    fn unavailable(writer: Arc<str>, source: UpstreamError) -> Self {
        let source = Box::new(source);
        Self::Unavailable { writer, source }
    }
}

impl Classified for RelayError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Busy
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::NoWriter | Self::Misdirected(_) => {
                "the servers disagree on which of them stores pushes; its operator's log says more"
            }
            Self::Skipped { .. } | Self::Unavailable { .. } => {
                "the server that stores pushes doesn't answer; try again later"
            }
            Self::NoDigest(_) | Self::NoList(_) => {
                "the answer of the server that stores pushes can't be used; its operator's log says more"
            }
        }
        .into()
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(match self {
            Self::Skipped { retry_after, .. } => *retry_after,
            _ => SKIPPED_FOR,
        })
    }
}

/// Counts how a relayed request ends. Until that is known, its client has left.
struct Counted {
    metrics: Arc<Metrics>,
    result: Relayed,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.replicas().relayed(self.result);
    }
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
        let mut counted = Counted {
            metrics: Arc::clone(&self.options.metrics),
            result: Relayed::Abandoned,
        };
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
        Ok(RelayAnswer {
            status: response.status(),
            headers: response.headers().clone(),
            writer: Arc::clone(&self.name),
            body: Answering {
                length: response.content_length(),
                chunks: Some(chunks(response)),
                received: 0,
                peer: Arc::clone(self),
                url,
                counted,
                feed: None,
            },
        })
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

fn chunks(response: Response) -> BoxStream<'static, Result<Bytes, reqwest::Error>> {
    let next = |mut response: Response| async {
        let chunk = response.chunk().await?;
        Ok(chunk.map(|chunk| (chunk, response)))
    };
    stream::try_unfold(response, next).boxed()
}

/// The body of an answer.
struct Answering {
    /// None once it has ended.
    chunks: Option<BoxStream<'static, Result<Bytes, reqwest::Error>>>,
    /// Bytes that have come.
    received: u64,
    /// Bytes that the whole body has, if that is announced: then nobody may ask for its end.
    length: Option<u64>,
    peer: Arc<Peer>,
    url: Url,
    counted: Counted,
    feed: Option<BodyFeed>,
}

impl Answering {
    async fn next(mut self) -> Option<(Result<Bytes, UpstreamError>, Self)> {
        let mut chunks = self.chunks.take()?;
        let (started, url) = (Instant::now(), &self.url);
        let patience = self.peer.options.timeout;
        let error = loop {
            match timeout(patience, chunks.next()).await {
                Ok(None) => {
                    self.counted.result = Relayed::Answered;
                    return None;
                }
                Ok(Some(Ok(chunk))) => {
                    self.received = self.received.saturating_add(chunk.len() as u64);
                    if self.length == Some(self.received) {
                        self.counted.result = Relayed::Answered;
                    }
                    self.chunks = Some(chunks);
                    return Some((Ok(chunk), self));
                }
                Ok(Some(Err(error))) => {
                    break broken(url, self.received, error.without_url());
                }
                Err(_elapsed) if started.elapsed() > STALL => {
                    let (phase, after) = (Phase::Stall, STALL);
                    break UpstreamError::new(url, Failure::Timeout { phase, after });
                }
                Err(_elapsed) if self.peer.is_there().await => {}
                Err(_elapsed) => {
                    let error = silent(url, self.received);
                    self.peer.skip(&error);
                    break error;
                }
            }
        };
        tracing::warn!(replica = &*self.peer.name, error = %on_one_line(&error), "an answer that is relayed broke off");
        self.counted.result = Relayed::Broken;
        Some((Err(error), self))
    }
}

/// All of an answer's body, of at most `max` bytes.
pub async fn read_answer(answer: RelayAnswer, max: usize) -> Result<Vec<u8>, RelayError> {
    let (writer, url) = (Arc::clone(&answer.writer), answer.body.url.clone());
    let unavailable = |source| RelayError::unavailable(writer, source);
    let (mut chunks, mut whole) = (answer.into_body(None), Vec::new());
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) if whole.len() + chunk.len() <= max => whole.extend_from_slice(&chunk),
            Ok(_) => {
                let limit = max as u64;
                let error = UpstreamError::protocol(&url, Violation::TooLarge { limit });
                return Err(unavailable(error));
            }
            Err(error) => return Err(unavailable(error)),
        }
    }
    Ok(whole)
}
