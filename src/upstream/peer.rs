//! The client of one other replica: its connections, its marks, and whether it is skipped.
//!
//! A request to a replica is an upstream's request under another address: the endpoint that sends it has a
//! [`Peer`], which sends it without the upstream's credentials, limits and retries.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use reqwest::Response;
use tokio::time::{Instant, timeout};
use url::Url;

use super::error::{Failure, Phase, SetupError, Source, UpstreamError};
use super::peer_client::{PeerClient, PeerTrust};
use super::reply::{UpstreamResponse, shared};
use super::transport::{Transport, UpstreamRequest};
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::{Ending, Metrics, UpstreamMetrics};
use crate::replicas::{Marks, Nonce, Subject};
use crate::telemetry;

/// How long a replica that has failed isn't asked.
pub(super) const SKIPPED_FOR: Duration = Duration::from_secs(5);

/// What the clients of all replicas have in common.
pub(super) struct PeerOptions {
    pub marks: Arc<Marks>,
    /// How long connecting may take, and how long a replica may be silent before it is probed.
    pub timeout: Duration,
    pub server_name: Option<String>,
    /// None: the replicas speak plain HTTP.
    pub tls: Option<PeerTrust>,
    /// The path before `/v2/`.
    pub prefix: String,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub counts: Arc<UpstreamMetrics>,
}

/// For whom a replica is asked.
pub(super) struct Asker<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// What a caller presents; sent over TLS only.
    pub login: Option<&'a HeaderValue>,
    /// The upstream's own, whose times count here, too.
    pub transport: &'a Transport,
}

/// Another replica.
pub(super) struct Peer {
    pub name: Arc<str>,
    base: Url,
    client: PeerClient,
    /// Whether it is one of the replicas that are counted, and not only a name for one.
    is_counted: bool,
    skipped_until: Mutex<Option<Instant>>,
    pub options: Arc<PeerOptions>,
}

/// Why an answer isn't a replica's.
#[derive(Debug, thiserror::Error)]
#[error("the answer has no valid mark; another secret, or clocks that differ by more than 30 s?")]
struct Unmarked;

/// Why a connection isn't waited for any longer.
#[derive(Debug, thiserror::Error)]
#[error("it is silent, and doesn't answer `GET /v2/` either")]
struct Silent;

impl Peer {
    /// Sets up the client of the member `name`, `host:port`. Blocks: certificates are read.
    pub(super) fn new(name: &Arc<str>, options: &Arc<PeerOptions>) -> Result<Self, SetupError> {
        Self::open(name, options, true)
    }

    /// The same for the writer of hosted content, by a name that needn't be a member's.
    pub(super) fn of_writer(
        name: &Arc<str>,
        options: &Arc<PeerOptions>,
    ) -> Result<Self, SetupError> {
        Self::open(name, options, false)
    }

    fn open(
        name: &Arc<str>,
        options: &Arc<PeerOptions>,
        is_counted: bool,
    ) -> Result<Self, SetupError> {
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
        let host = options
            .server_name
            .as_deref()
            .filter(|_| options.tls.is_some())
            .unwrap_or(host);
        let base = Url::parse(&format!("{scheme}://{host}:{port}{}/", options.prefix));
        Ok(Self {
            name: Arc::clone(name),
            base: base.map_err(|error| SetupError::Tls(Arc::new(error)))?,
            client: PeerClient::new(name, options.timeout, options.tls.as_ref())?,
            is_counted,
            skipped_until: Mutex::default(),
            options: Arc::clone(options),
        })
    }

    /// Trusts for new connections what is trusted now. Blocks.
    pub(super) fn follow_trust(&self) -> Result<(), SetupError> {
        let trust = self.options.tls.as_ref();
        trust.map_or(Ok(()), |trust| self.client.follow(trust))
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    pub(super) fn client(&self) -> reqwest::Client {
        self.client.get()
    }

    pub(super) fn is_skipped(&self) -> bool {
        self.skipped_for().is_some()
    }

    /// How long it isn't asked yet.
    pub(super) fn skipped_for(&self) -> Option<Duration> {
        let until = *self.skipped_until.lock();
        let left = until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    /// Whether it has failed and hasn't answered since.
    pub(super) fn has_failed(&self) -> bool {
        self.skipped_until.lock().is_some()
    }

    /// Notes whether it is there again.
    pub(super) async fn probe(&self) {
        if self.is_there().await {
            self.answered();
        }
    }

    /// It has failed: for a while it isn't asked.
    pub(super) fn skip(&self, why: &dyn std::error::Error) {
        let before = self
            .skipped_until
            .lock()
            .replace(Instant::now() + SKIPPED_FOR);
        if before.is_none() {
            if self.is_counted {
                self.options.metrics.replicas().failed(true);
            }
            tracing::warn!(replica = &*self.name, error = %on_one_line(why), "a replica failed; it isn't asked for a while");
        }
    }

    pub(super) fn answered(&self) {
        if self.skipped_until.lock().take().is_some() {
            if self.is_counted {
                self.options.metrics.replicas().failed(false);
            }
            tracing::info!(replica = &*self.name, "the replica answers again");
        }
    }

    /// Sends a request for a repository of `upstream`. An error that has a `peer` is the replica's final
    /// answer; after any other, the next source is asked.
    pub(super) async fn ask(
        &self,
        asker: &Asker<'_>,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let (started, counts) = (self.options.clock.now(), &self.options.counts);
        let sent = self.send(asker, ask).await;
        let method = if ask.method == Method::HEAD {
            "HEAD"
        } else {
            "GET"
        };
        let response = match sent {
            Ok((response, nonce)) => {
                let status = response.status().as_u16();
                counts.answered(started.elapsed());
                counts.request(ask.kind, method, Ending::Status(status));
                self.checked(response, nonce, &ask.url)?
            }
            Err(error) => {
                counts.request(ask.kind, method, Ending::Error(error.class()));
                self.skip(&error);
                return Err(error);
            }
        };
        self.answered();
        let peer = response.remote_addr();
        let reply = UpstreamResponse {
            url: ask.url.clone(),
            own: true,
            is_write: false,
            kind: ask.kind,
            metrics: Arc::clone(counts),
            started: Some(started),
            received: counts.received(ask.kind),
            response,
            peer,
            permit: None,
            _spans: None,
        };
        match reply.status() {
            StatusCode::MISDIRECTED_REQUEST => {
                self.options.metrics.replicas().misdirected.inc();
                Err(reply.unexpected())
            }
            // It is at fault itself.
            StatusCode::INTERNAL_SERVER_ERROR => Err(reply.unexpected()),
            status if status.is_success() || ask.is_not_modified(&reply) => Ok(reply),
            _ => {
                let error = asker.transport.refusal(reply).await;
                let peer = peer.map(Box::new);
                Err(UpstreamError { peer, ..error })
            }
        }
    }

    /// Sends a marked request and waits for the head of the answer, for as long as the replica answers
    /// others, and at most `patience`.
    async fn send(
        &self,
        asker: &Asker<'_>,
        ask: &UpstreamRequest,
    ) -> Result<(Response, Nonce), UpstreamError> {
        let (url, options) = (&ask.url, &self.options);
        // It waits for the upstream itself, and may have to ask for a token first.
        let patience = asker.transport.timeouts.header * 2;
        let deadline = Instant::now() + patience;
        let mut headers = ask.headers.clone();
        telemetry::insert_into(&mut headers, None);
        if let Some(login) = asker.login.filter(|_| options.tls.is_some()) {
            headers.insert(AUTHORIZATION, login.clone());
        }
        let subject = Subject::Upstream(asker.upstream);
        let nonce = self.mark(&mut headers, &ask.method, url, subject)?;
        let request = self.client.get().request(ask.method.clone(), url.clone());
        let mut sending = std::pin::pin!(request.headers(headers).send());
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => {
                    let response = sent.map_err(|error| self.failure(url, error))?;
                    return Ok((response, nonce));
                }
                is_there = self.is_there_after(options.timeout) => {
                    if !is_there {
                        return Err(silent(url, 0));
                    }
                    if Instant::now() > deadline {
                        let (phase, after) = (Phase::Header, patience);
                        return Err(UpstreamError::new(url, Failure::Timeout { phase, after }));
                    }
                }
            }
        }
    }

    /// Whether it answers another request, after a while.
    async fn is_there_after(&self, pause: Duration) -> bool {
        tokio::time::sleep(pause).await;
        self.is_there().await
    }

    /// Whether it answers `GET /v2/` on another connection, in time.
    pub(super) async fn is_there(&self) -> bool {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").push("");
        }
        let mut headers = HeaderMap::new();
        let subject = Subject::Upstream("");
        let Ok(nonce) = self.mark(&mut headers, &Method::GET, &url, subject) else {
            return false;
        };
        let asking = self.client.get().get(url).headers(headers).send();
        let answer = timeout(self.options.timeout, asking).await;
        answer.is_ok_and(|answer| {
            answer.is_ok_and(|answer| {
                let status = answer.status().as_u16();
                self.options
                    .marks
                    .is_answer(nonce, status, answer.headers())
            })
        })
    }

    pub(super) fn mark(
        &self,
        headers: &mut HeaderMap,
        method: &Method,
        url: &Url,
        subject: Subject<'_>,
    ) -> Result<Nonce, UpstreamError> {
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let now = self.options.clock.wall();
        let asked = (method.as_str(), target.as_str());
        let marked = self.options.marks.mark(headers, asked, subject, now);
        marked.map_err(|error| broken(url, 0, error))
    }

    /// The answer, if it is a replica's.
    pub(super) fn checked(
        &self,
        response: Response,
        nonce: Nonce,
        url: &Url,
    ) -> Result<Response, UpstreamError> {
        let status = response.status().as_u16();
        if self
            .options
            .marks
            .is_answer(nonce, status, response.headers())
        {
            return Ok(response);
        }
        let error = broken(url, 0, Unmarked);
        self.skip(&error);
        Err(error)
    }

    pub(super) fn failure(&self, url: &Url, error: reqwest::Error) -> UpstreamError {
        let failure = match (error.is_connect(), error.is_timeout()) {
            (true, true) => Failure::Timeout {
                phase: Phase::Connect,
                after: self.options.timeout,
            },
            (true, false) => Failure::Unreachable(shared(error)),
            (false, _) => return broken(url, 0, error.without_url()),
        };
        UpstreamError::new(url, failure)
    }
}

pub(super) fn silent(url: &Url, received: u64) -> UpstreamError {
    broken(url, received, Silent)
}

pub(super) fn broken(
    url: &Url,
    received: u64,
    source: impl std::error::Error + Send + Sync + 'static,
) -> UpstreamError {
    let source: Option<Source> = Some(Arc::new(source));
    UpstreamError::new(url, Failure::Broken { received, source })
}
