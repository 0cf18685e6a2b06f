//! The client of one other replica: its connections, its marks, and whether it is skipped.
//!
//! A request to a replica is an upstream's request under another address: the [`Endpoint`] that sends it has
//! a [`Peer`], which sends it without the upstream's credentials, limits and retries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response};
use tokio::time::{Instant, timeout};
use url::Url;

use super::blobs::BlobStream;
use super::clients::{USER_AGENT, authorities};
use super::endpoint::Endpoint;
use super::error::{Failure, Phase, SetupError, UpstreamError};
use super::reply::{UpstreamResponse, shared};
use super::route::BlobRoute;
use super::transport::UpstreamRequest;
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::{Ending, Metrics, UpstreamMetrics};
use crate::replicas::{Marks, Nonce};
use crate::telemetry;

/// How long a replica that has failed isn't asked.
pub(super) const SKIPPED_FOR: Duration = Duration::from_secs(5);
/// Idle connections that are kept to a replica.
const MAX_IDLE: usize = 32;

/// What the clients of all replicas have in common.
pub(super) struct PeerOptions {
    pub marks: Arc<Marks>,
    /// How long connecting may take, and how long a replica may be silent before it is probed.
    pub timeout: Duration,
    pub server_name: Option<String>,
    /// Certificates (PEM) that are trusted beside the system's. None: the replicas speak plain HTTP.
    pub tls: Option<Vec<u8>>,
    /// The path before `/v2/`.
    pub prefix: String,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub counts: Arc<UpstreamMetrics>,
}

/// Another replica.
pub(super) struct Peer {
    pub name: Arc<str>,
    base: Url,
    client: Client,
    skipped_until: Mutex<Option<Instant>>,
    options: Arc<PeerOptions>,
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
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.timeout)
            .pool_max_idle_per_host(MAX_IDLE)
            .no_proxy()
            .dns_resolver(Arc::new(ToMember(Arc::clone(name))))
            .http1_only();
        let builder = match &options.tls {
            Some(pem) => builder.tls_certs_merge(authorities(pem)?),
            None => builder.tls_certs_only([]),
        };
        Ok(Self {
            name: Arc::clone(name),
            base: base.map_err(|error| SetupError::Tls(Arc::new(error)))?,
            client: builder
                .build()
                .map_err(|error| SetupError::Tls(shared(error)))?,
            skipped_until: Mutex::default(),
            options: Arc::clone(options),
        })
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    pub(super) fn is_skipped(&self) -> bool {
        self.skipped_until
            .lock()
            .is_some_and(|until| Instant::now() < until)
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
    fn skip(&self, why: &dyn std::error::Error) {
        let before = self
            .skipped_until
            .lock()
            .replace(Instant::now() + SKIPPED_FOR);
        if before.is_none() {
            self.options.metrics.replicas().failed(true);
            tracing::warn!(replica = &*self.name, error = %on_one_line(why), "a replica failed; it isn't asked for a while");
        }
    }

    fn answered(&self) {
        if self.skipped_until.lock().take().is_some() {
            self.options.metrics.replicas().failed(false);
            tracing::info!(replica = &*self.name, "the replica answers again");
        }
    }

    /// Sends a request for a repository of `upstream`. An error that has a `peer` is the replica's final
    /// answer; after any other, the next source is asked.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        ask: &UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let (started, counts) = (self.options.clock.now(), &self.options.counts);
        let sent = self.send(endpoint, ask).await;
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
                let error = endpoint.transport.refusal(reply).await;
                let peer = peer.map(Box::new);
                Err(UpstreamError { peer, ..error })
            }
        }
    }

    /// Sends a marked request and waits for the head of the answer, for as long as the replica answers
    /// others, and at most `patience`.
    async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &UpstreamRequest,
    ) -> Result<(Response, Nonce), UpstreamError> {
        let (url, options) = (&ask.url, &self.options);
        // It waits for the upstream itself, and may have to ask for a token first.
        let patience = endpoint.transport.timeouts.header * 2;
        let deadline = Instant::now() + patience;
        let mut headers = ask.headers.clone();
        telemetry::insert_into(&mut headers, None);
        if let Some(login) = endpoint.login.as_ref().filter(|_| options.tls.is_some()) {
            headers.insert(AUTHORIZATION, login.clone());
        }
        let nonce = self.mark(&mut headers, &ask.method, url, endpoint.name())?;
        let request = self.client.request(ask.method.clone(), url.clone());
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
        let Ok(nonce) = self.mark(&mut headers, &Method::GET, &url, "") else {
            return false;
        };
        let asking = self.client.get(url).headers(headers).send();
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

    fn mark(
        &self,
        headers: &mut HeaderMap,
        method: &Method,
        url: &Url,
        upstream: &str,
    ) -> Result<Nonce, UpstreamError> {
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let now = self.options.clock.wall();
        let asked = (method.as_str(), target.as_str());
        let marked = self.options.marks.mark(headers, asked, upstream, now);
        marked.map_err(|error| broken(url, 0, error))
    }

    /// The answer, if it is a replica's.
    fn checked(
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

    fn failure(&self, url: &Url, error: reqwest::Error) -> UpstreamError {
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

    /// Takes a blob's stream for a download with this route: unless the download has gone on to the upstream
    /// meanwhile, or the blob has another size than before.
    pub(super) fn accept(
        self: &Arc<Self>,
        mut stream: BlobStream,
        route: &BlobRoute,
        (url, address): (&Url, Option<SocketAddr>),
    ) -> Result<BlobStream, UpstreamError> {
        if !route.agrees(stream.total) {
            let error = broken(url, 0, OtherSize);
            tracing::warn!(replica = &*self.name, error = %on_one_line(&error), "asking the next source");
            return Err(error);
        }
        if !route.at_peer(address) {
            return Err(broken(url, 0, OtherSource));
        }
        let watched = Watched {
            body: Some(stream.body),
            peer: Arc::clone(self),
            url: url.clone(),
            received: 0,
        };
        stream.body = stream::unfold(watched, Watched::next).boxed();
        Ok(stream)
    }
}

/// Why a stream isn't used.
#[derive(Debug, thiserror::Error)]
#[error("the blob has another size there")]
struct OtherSize;
#[derive(Debug, thiserror::Error)]
#[error("the download goes on from the upstream")]
struct OtherSource;

/// A body from a replica, which is probed while it is silent. All of its errors are breaks: the next source
/// continues.
struct Watched {
    /// None once it has ended.
    body: Option<super::BlobChunks>,
    peer: Arc<Peer>,
    url: Url,
    received: u64,
}

impl Watched {
    async fn next(mut self) -> Option<(Result<bytes::Bytes, UpstreamError>, Self)> {
        let mut body = self.body.take()?;
        let error = loop {
            match timeout(self.peer.options.timeout, body.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(chunk))) => {
                    self.received = self.received.saturating_add(chunk.len() as u64);
                    self.body = Some(body);
                    return Some((Ok(chunk), self));
                }
                Ok(Some(Err(error))) => break broken(&self.url, self.received, error),
                Err(_elapsed) if self.peer.is_there().await => {}
                Err(_elapsed) => break silent(&self.url, self.received),
            }
        };
        self.peer.skip(&error);
        Some((Err(error), self))
    }
}

fn silent(url: &Url, received: u64) -> UpstreamError {
    broken(url, received, Silent)
}

fn broken(
    url: &Url,
    received: u64,
    source: impl std::error::Error + Send + Sync + 'static,
) -> UpstreamError {
    let source: Option<super::Source> = Some(Arc::new(source));
    UpstreamError::new(url, Failure::Broken { received, source })
}

/// Finds the addresses of one member, whatever name its certificate has.
struct ToMember(Arc<str>);

impl Resolve for ToMember {
    fn resolve(&self, _name: Name) -> Resolving {
        let member = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses: Vec<_> = tokio::net::lookup_host(&*member).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
