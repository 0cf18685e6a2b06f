//! The answer of the replica to which a request was relayed, as it comes, and why there is none.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::StatusCode;
use http::header::HeaderMap;
use reqwest::Response;
use tokio::time::{Instant, timeout};
use url::Url;

use super::error::{Failure, Phase, UpstreamError, Violation};
use super::peer::{Peer, SKIPPED_FOR, broken, silent};
use super::relay_body::BodyFeed;
use crate::error_chain::on_one_line;
use crate::metrics::{Metrics, Relayed};
use crate::oci::{Classified, ErrorKind};

/// How long the writer may take no bytes of a body, or send none.
pub(super) const STALL: Duration = Duration::from_mins(1);

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
    /// The answer that the writer begins.
    pub(super) fn new(peer: &Arc<Peer>, url: Url, response: Response, counted: Counted) -> Self {
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            writer: Arc::clone(&peer.name),
            body: Answering {
                length: response.content_length(),
                chunks: Some(chunks(response)),
                received: 0,
                peer: Arc::clone(peer),
                url,
                counted,
                feed: None,
            },
        }
    }

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
    pub(super) fn unavailable(writer: Arc<str>, source: UpstreamError) -> Self {
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
pub(super) struct Counted {
    metrics: Arc<Metrics>,
    pub(super) result: Relayed,
}

impl Counted {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            result: Relayed::Abandoned,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.replicas().relayed(self.result);
    }
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
        tracing::warn!(replica = &*self.peer.name, error = %on_one_line(&error), "a relayed answer broke off");
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
