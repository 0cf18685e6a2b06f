//! One HTTP exchange at a time: sends, waits within bounds, follows redirects, counts, logs, and
//! turns a library's error or a status into this module's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    RANGE,
};
use http::{Method, StatusCode};
use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::{Mutex, RwLock};
use reqwest::{RequestBuilder, Response};
use tokio::time::timeout;
use url::Url;

use super::clients::{Clients, TlsFiles};
use super::error::{Failure, Phase, SetupError, ShownUrl, UpstreamError, Violation};
use super::failures::FailureLog;
use super::gate::{Gate, Permit};
use super::guard::{self, Guard};
use super::limiter::Limiter;
use super::priority::Priority;
use super::redirect::{self, RedirectError};
use super::reply::UpstreamResponse;
use super::upload_body::{Pace, UploadBody};
use super::{body, retry};
use crate::clock::Clock;
use crate::config::{self, ForwardProxy, Timeouts};
use crate::error_chain::on_one_line;
use crate::metrics::{Ending, Kind, UpstreamMetrics};
use crate::telemetry::{self, Span, SpanKind, Waiting};

/// A request to be made. No `Debug`: the query of a page's link may be a secret.
pub(super) struct UpstreamRequest {
    pub kind: Kind,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    body: RequestBody,
    pub priority: Priority,
    /// A blob in either direction, which has bounds of its own and a connection of its own.
    is_transfer: bool,
}

/// The body of a request.
enum RequestBody {
    None,
    Whole(Bytes),
    /// Sent once: the request isn't repeated.
    Streamed(Mutex<Option<UploadBody>>),
}

impl UpstreamRequest {
    pub(super) fn new(kind: Kind, method: Method, url: Url) -> Self {
        Self {
            kind,
            method,
            url,
            headers: HeaderMap::new(),
            body: RequestBody::None,
            priority: Priority::Client,
            is_transfer: false,
        }
    }

    /// A download of this priority.
    pub(super) fn download(mut self, priority: Priority) -> Self {
        self.is_transfer = true;
        self.priority = priority;
        self
    }

    /// With a body of `application/x-www-form-urlencoded`.
    pub(super) fn with_form(self, form: String) -> Self {
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        self.with_body(form.into(), kind)
    }

    /// With a body of this media type.
    pub(super) fn with_body(mut self, body: Bytes, media_type: HeaderValue) -> Self {
        self.body = RequestBody::Whole(body);
        self.with(CONTENT_TYPE, media_type)
    }

    /// With a part of a blob as the body. It is sent once, and no redirect is followed.
    pub(super) fn upload(mut self, body: UploadBody) -> Self {
        let length = HeaderValue::from(body.length());
        self.is_transfer = true;
        self.body = RequestBody::Streamed(Mutex::new(Some(body)));
        let kind = HeaderValue::from_static("application/octet-stream");
        self.with(CONTENT_LENGTH, length).with(CONTENT_TYPE, kind)
    }

    /// Whether the request can be sent only once.
    pub(super) fn is_upload(&self) -> bool {
        matches!(self.body, RequestBody::Streamed(_))
    }

    /// Whether it writes to the registry.
    fn is_write(&self) -> bool {
        let is_post = self.method == Method::POST && self.kind != Kind::Token;
        is_post || matches!(self.method, Method::PUT | Method::PATCH)
    }

    /// Whether the response says that what the request's condition names hasn't changed.
    pub(super) fn is_not_modified(&self, reply: &UpstreamResponse) -> bool {
        reply.status() == StatusCode::NOT_MODIFIED && self.headers.contains_key(IF_NONE_MATCH)
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Asks for ranges only (`Range`, RFC 9110, section 14.2): from an offset to another one
    /// (exclusive), or to the end. Fails when one of them has no bytes.
    pub(super) fn with_ranges(
        self,
        ranges: impl IntoIterator<Item = (u64, Option<u64>)>,
    ) -> Result<Self, UpstreamError> {
        let spec = |(start, end)| match end {
            None => Some(format!("{start}-")),
            Some(end) if end > start => Some(format!("{start}-{}", end - 1)),
            Some(_) => None,
        };
        let specs: Option<Vec<_>> = ranges.into_iter().map(spec).collect();
        let header = specs.and_then(|specs| format!("bytes={}", specs.join(",")).try_into().ok());
        match header {
            Some(header) => Ok(self.with(RANGE, header)),
            None => Err(UpstreamError::protocol(
                &self.url,
                Violation::Header("Range"),
            )),
        }
    }
}

/// Sends requests of one upstream.
pub(super) struct Transport {
    config: Arc<config::Upstream>,
    pub timeouts: Timeouts,
    pub clock: Clock,
    pub metrics: Arc<UpstreamMetrics>,
    clients: RwLock<Arc<Clients>>,
    pub guard: Arc<Guard>,
    gate: Gate,
    pub failures: FailureLog,
    /// The operator's limits.
    pub limiter: Arc<Limiter>,
    /// Whether requests are sent again here; otherwise another endpoint is asked.
    retries: bool,
}

impl Transport {
    pub(super) fn new(
        config: Arc<config::Upstream>,
        files: &TlsFiles,
        (timeouts, clock): (Timeouts, Clock),
        metrics: Arc<UpstreamMetrics>,
        limiter: Arc<Limiter>,
        retries: bool,
    ) -> Result<Self, SetupError> {
        let proxies = match &config.proxy {
            ForwardProxy::Environment => Matcher::from_env(),
            ForwardProxy::Direct => Matcher::builder().build(),
            ForwardProxy::Url(url) => Matcher::builder().all(url.secret().as_str()).build(),
        };
        let guard = Arc::new(Guard::new(Arc::clone(&config), proxies));
        Ok(Self {
            clients: RwLock::new(Arc::new(Clients::new(
                &config,
                files,
                timeouts.connect,
                &guard,
                &metrics,
            )?)),
            config,
            timeouts,
            clock,
            metrics,
            guard,
            gate: Gate::new(),
            failures: FailureLog::default(),
            limiter,
            retries,
        })
    }

    /// Clients with what other files have. Blocks.
    pub(super) fn renewed(&self, files: &TlsFiles) -> Result<Clients, SetupError> {
        let connect = self.timeouts.connect;
        Clients::new(&self.config, files, connect, &self.guard, &self.metrics)
    }

    /// Uses these clients from now on. Running requests end as they began.
    pub(super) fn set(&self, clients: Clients) {
        *self.clients.write() = Arc::new(clients);
    }

    /// Sends a request and follows its redirects, trying again where [`retry`] says so. Returns
    /// an answer that [`UpstreamResponse::is_answer`], a 304 where the request is conditional, or the
    /// error.
    pub(super) async fn exchange(
        &self,
        ask: &UpstreamRequest,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let _waiting = Waiting::begin();
        let mut attempt = 1;
        loop {
            let patience = self.timeouts.header;
            if !self.limiter.request(ask.priority, patience).await {
                return Err(self.failed(UpstreamError::new(&ask.url, Failure::Busy)));
            }
            let error = match self.follow(ask, authorization).await {
                Ok(reply) if reply.is_answer() || ask.is_not_modified(&reply) => return Ok(reply),
                Ok(reply) => self.refusal(reply).await,
                Err(error) => error,
            };
            let wait = retry::delay(attempt, &error, fastrand::f64());
            let Some(wait) = wait.filter(|_| self.retries && !ask.is_upload()) else {
                return Err(error);
            };
            // The caller reports the final result.
            tracing::debug!(upstream = self.config.name, attempt, error = %on_one_line(&error), ?wait, "upstream request failed; trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// The credentials go along only to the origin of the request itself. A token service's
    /// redirect isn't followed: a token from elsewhere isn't the one that was asked for.
    async fn follow(
        &self,
        ask: &UpstreamRequest,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut permit = None;
        if !ask.is_transfer {
            let entered = self.gate.enter(self.timeouts.header).await;
            let busy = || self.failed(UpstreamError::new(&ask.url, Failure::Busy));
            permit = Some(entered.ok_or_else(busy)?);
        }
        let mut url = ask.url.clone();
        for _ in 0..=redirect::MAX_REDIRECTS {
            let own = redirect::same_origin(&url, &ask.url);
            let authorization = authorization.filter(|_| own);
            let mut reply = self.send(ask, &url, own, authorization, permit).await?;
            let is_final = ask.kind == Kind::Token || ask.is_upload();
            if is_final || !redirect::is_redirect(reply.status()) {
                return Ok(reply);
            }
            let next = redirect::target(&url, reply.headers(), self.config.plain_http)
                .map_err(|violation| reply.violates(violation))?;
            body::drain(&mut reply).await;
            permit = reply.permit;
            url = next;
        }
        Err(self.failed(UpstreamError::protocol(&url, RedirectError::TooMany)))
    }

    async fn send(
        &self,
        ask: &UpstreamRequest,
        url: &Url,
        own: bool,
        authorization: Option<&HeaderValue>,
        permit: Option<Permit>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let route = self.guard.route(url);
        let route =
            route.map_err(|internal| self.failed(UpstreamError::protocol(url, internal)))?;
        let clients = Arc::clone(&self.clients.read());
        let client = clients.get(route, ask.is_transfer);
        let mut headers = ask.headers.clone();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut span = self.span(ask, url);
        // Not for hosts that the upstream leads to.
        if own {
            telemetry::insert_into(&mut headers, span.as_ref());
        }
        let head = span.as_ref().map(|span| span.phase("response head"));
        let request = client
            .request(ask.method.clone(), url.clone())
            .headers(headers);
        let (request, upload) = self.with_body(request, ask, url)?;
        let started = self.clock.now();
        let sending = telemetry::within(head.as_ref(), request.send());
        let result = self.answer(url, upload, sending).await;
        let ending = match &result {
            Ok(response) => Ending::Status(response.status().as_u16()),
            Err(error) => Ending::Error(error.class()),
        };
        self.report(ask, url, ending, started.elapsed());
        let result = result.map_err(|error| self.failed(error));
        drop(head);
        if let Some(span) = &mut span {
            match &result {
                Ok(response) => span.set("http.response.status_code", response.status().as_u16()),
                Err(error) => span.fail(&on_one_line(error)),
            }
        }
        result.map(|response| UpstreamResponse {
            metrics: Arc::clone(&self.metrics),
            started: Some(started),
            url: url.clone(),
            own,
            kind: ask.kind,
            is_write: ask.is_write(),
            received: self.metrics.received(ask.kind),
            response,
            peer: None,
            permit,
            _spans: span.map(|span| (span.phase("response body"), span)),
        })
    }

    /// Adds the body. Of an upload, also what knows how far that has come.
    fn with_body(
        &self,
        request: RequestBuilder,
        ask: &UpstreamRequest,
        url: &Url,
    ) -> Result<(RequestBuilder, Option<Pace>), UpstreamError> {
        match &ask.body {
            RequestBody::None => Ok((request, None)),
            RequestBody::Whole(body) => Ok((request.body(body.clone()), None)),
            RequestBody::Streamed(body) => {
                let body = body.lock().take().ok_or_else(|| self.sent_before(url))?;
                let (body, pace) = body.watched();
                Ok((request.body(body), Some(pace)))
            }
        }
    }

    /// Waits for the head of the answer to a request that is being sent.
    async fn answer(
        &self,
        url: &Url,
        upload: Option<Pace>,
        sending: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, UpstreamError> {
        let limit = self.timeouts.header;
        let sent = match upload {
            None => timeout(limit, sending)
                .await
                .map_err(|_elapsed| (Phase::Header, limit)),
            // On the heap: all other requests have no room for it.
            Some(pace) => Box::pin(pace.keep(sending, self.timeouts)).await,
        };
        match sent {
            Ok(Ok(response)) => {
                self.guard.answered(url, response.remote_addr());
                Ok(response)
            }
            Ok(Err(error)) => Err(self.failure(url, error)),
            Err((phase, after)) => Err(UpstreamError::new(url, Failure::Timeout { phase, after })),
        }
    }

    /// The span of a request and its response.
    fn span(&self, ask: &UpstreamRequest, url: &Url) -> Option<Span> {
        let mut span = telemetry::span("upstream request", SpanKind::Client)?;
        span.set("http.request.method", ask.method.as_str());
        span.set("url.full", ShownUrl::from(url).to_string());
        span.set("millpond.upstream", self.config.name.as_str());
        Some(span)
    }

    fn report(&self, ask: &UpstreamRequest, url: &Url, ending: Ending, elapsed: Duration) {
        let method = match ask.method {
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            _ => "GET",
        };
        tracing::debug!(
            upstream = self.config.name,
            method,
            url = %ShownUrl::from(url),
            ?ending,
            ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "upstream request"
        );
        if matches!(ending, Ending::Status(_)) {
            self.metrics.answered(elapsed);
        }
        self.metrics.request(ask.kind, method, ending);
    }

    /// An upload whose body was sent before.
    fn sent_before(&self, url: &Url) -> UpstreamError {
        let (received, source) = (0, None);
        self.failed(UpstreamError::new(
            url,
            Failure::Broken { received, source },
        ))
    }

    /// Counts an error that no response makes.
    pub(super) fn failed(&self, error: UpstreamError) -> UpstreamError {
        self.metrics.failed(error.class());
        error
    }

    /// The library's error before there was a header. Its own text names the whole URL.
    fn failure(&self, url: &Url, error: reqwest::Error) -> UpstreamError {
        let error = error.without_url();
        if let Some(internal) = guard::refusal(&error) {
            return UpstreamError::protocol(url, internal);
        }
        let failure = match (error.is_connect(), error.is_timeout()) {
            (true, true) => Failure::Timeout {
                phase: Phase::Connect,
                after: self.timeouts.connect,
            },
            (true, false) => Failure::Unreachable(Arc::new(error)),
            (false, _) => Failure::Broken {
                received: 0,
                source: Some(Arc::new(error)),
            },
        };
        UpstreamError::new(url, failure)
    }

    /// The error that an answer without success means.
    pub(super) async fn refusal(&self, mut reply: UpstreamResponse) -> UpstreamError {
        let message = body::message(&mut reply).await;
        let retry_after = retry::retry_after(reply.headers(), self.clock.wall());
        // Another host's 401 and 403 say that the redirect was bad, not who may read; a token
        // service's 404 says nothing about the repository.
        reply.fails(match reply.status().as_u16() {
            404 if reply.kind != Kind::Token => Failure::NotFound(message),
            401 if reply.own => Failure::Unauthorized(message),
            403 if reply.own => Failure::Denied(message),
            // What another host or the token service rejects is what the upstream made of the request.
            status @ (400 | 406) if reply.own && reply.kind != Kind::Token => {
                Failure::Rejected { status, message }
            }
            451 => Failure::Rejected {
                status: 451,
                message,
            },
            429 => Failure::RateLimited { retry_after },
            status @ 500..=599 => Failure::Unavailable {
                status,
                retry_after,
            },
            status @ 400..=499 if reply.is_write => Failure::Rejected { status, message },
            status => Failure::Unexpected(status),
        })
    }
}
