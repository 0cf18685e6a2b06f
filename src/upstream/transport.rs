//! One HTTP exchange at a time: sends, waits within bounds, follows redirects, counts, logs, and
//! turns a library's error or a status into this module's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::timeout;
use url::Url;

use super::clients::Clients;
use super::error::{Phase, SetupError, UpstreamError};
use super::failures::FailureLog;
use super::gate::{Gate, Permit};
use super::guard::{self, Guard};
use super::redirect::{self, RedirectError};
use super::reply::UpstreamResponse;
use super::{UpstreamSettings, body, retry};
use crate::clock::Clock;
use crate::config::Timeouts;
use crate::error_chain::on_one_line;
use crate::metrics::{Ending, Kind, Metrics};

/// The `Retry-After` for clients when too many requests wait for an upstream.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A request to be made. No `Debug`: the query of a page's link may be a secret.
pub(super) struct UpstreamRequest {
    pub kind: Kind,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// A download, which has bounds of its own and a connection of its own.
    is_download: bool,
}

impl UpstreamRequest {
    pub(super) fn new(kind: Kind, method: Method, url: Url) -> Self {
        Self {
            kind,
            method,
            url,
            headers: HeaderMap::new(),
            is_download: false,
        }
    }

    #[must_use]
    pub(super) fn download(mut self) -> Self {
        self.is_download = true;
        self
    }

    #[must_use]
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// Sends requests of one upstream.
pub(super) struct Transport {
    pub name: Arc<str>,
    pub timeouts: Timeouts,
    /// Whether the upstream may lead from https to http, with credentials.
    pub plain_http: bool,
    pub clock: Clock,
    metrics: Arc<Metrics>,
    clients: Clients,
    pub(super) guard: Arc<Guard>,
    gate: Gate,
    pub(super) failures: FailureLog,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("name", &self.name)
            .field("timeouts", &self.timeouts)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

impl Transport {
    pub(super) fn new(
        settings: &UpstreamSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let name: Arc<str> = settings.name.as_str().into();
        let guard = Arc::new(Guard::new(
            Arc::clone(&name),
            settings.url.clone(),
            settings.realm.clone(),
            settings.redirects.clone(),
            Matcher::from_env(),
        ));
        Ok(Self {
            name,
            timeouts: settings.timeouts,
            plain_http: settings.plain_http,
            clock,
            metrics,
            clients: Clients::new(settings, &guard)?,
            guard,
            gate: Gate::new(),
            failures: FailureLog::default(),
        })
    }

    /// Sends a request and follows its redirects, trying again where [`retry`] says so. Returns
    /// an answer that [`UpstreamResponse::is_answer`], or the error.
    pub(super) async fn exchange(
        &self,
        ask: &UpstreamRequest,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut attempt = 1;
        loop {
            let error = match self.follow(ask, authorization).await {
                Ok(reply) if reply.is_answer() => return Ok(reply),
                Ok(reply) => self.refusal(reply).await,
                Err(error) => error,
            };
            let Some(wait) = retry::delay(attempt, &error, fastrand::f64()) else {
                return Err(error);
            };
            // The caller reports the final result.
            tracing::debug!(upstream = %self.name, attempt, error = %on_one_line(&error), ?wait, "upstream request failed; trying again");
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
        let mut permit = self.enter(ask).await?;
        let mut url = ask.url.clone();
        for _ in 0..=redirect::MAX_REDIRECTS {
            let own = redirect::same_origin(&url, &ask.url);
            let authorization = authorization.filter(|_| own);
            let mut reply = self.send(ask, &url, own, authorization, permit).await?;
            if ask.kind == Kind::Token || !redirect::is_redirect(reply.status()) {
                return Ok(reply);
            }
            let next = redirect::target(&url, reply.headers(), self.plain_http)
                .map_err(|violation| reply.violates(violation))?;
            body::drain(&mut reply).await;
            permit = reply.permit;
            url = next;
        }
        Err(UpstreamError::protocol(&url, RedirectError::TooMany))
    }

    /// Waits until a metadata request may be sent.
    async fn enter(&self, ask: &UpstreamRequest) -> Result<Option<Permit>, UpstreamError> {
        if ask.is_download {
            return Ok(None);
        }
        let permit = self.gate.enter(self.timeouts.header).await;
        permit.map(Some).ok_or_else(|| UpstreamError::Busy {
            upstream: Arc::clone(&self.name),
            retry_after: BUSY_RETRY_AFTER,
        })
    }

    async fn send(
        &self,
        ask: &UpstreamRequest,
        url: &Url,
        own: bool,
        authorization: Option<&HeaderValue>,
        permit: Option<Permit>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let internal = |error| UpstreamError::protocol(url, error);
        let route = self.guard.route(url).map_err(internal)?;
        let client = self.clients.get(route, ask.is_download);
        let mut headers = ask.headers.clone();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let request = client
            .request(ask.method.clone(), url.clone())
            .headers(headers);
        let started = self.clock.now();
        let result = match timeout(self.timeouts.header, request.send()).await {
            Ok(Ok(response)) => {
                self.guard.answered(url, response.remote_addr());
                Ok(response)
            }
            Ok(Err(error)) => Err(self.failure(url, error)),
            Err(_elapsed) => Err(UpstreamError::Timeout {
                url: url.into(),
                phase: Phase::Header,
                after: self.timeouts.header,
            }),
        };
        let ending = match &result {
            Ok(response) => Ending::Status(response.status().as_u16()),
            Err(error) => Ending::Error(error.class()),
        };
        self.report(ask, url, ending, started.elapsed());
        result.map(|response| UpstreamResponse {
            url: url.clone(),
            own,
            kind: ask.kind,
            received: self.metrics.upstream_bytes(&self.name, ask.kind),
            response,
            permit,
        })
    }

    fn report(&self, ask: &UpstreamRequest, url: &Url, ending: Ending, elapsed: Duration) {
        let method = if ask.method == Method::HEAD {
            "HEAD"
        } else {
            "GET"
        };
        tracing::debug!(
            upstream = %self.name,
            method,
            url = %super::ShownUrl::from(url),
            ?ending,
            ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "upstream request"
        );
        let degraded = match ending {
            Ending::Status(status) => status >= 500,
            Ending::Error(_) => true,
        };
        self.metrics.upstream_degraded(&self.name, degraded);
        self.metrics
            .upstream_request(&self.name, ask.kind, method, ending);
    }

    /// The library's error before there was a header. Its own text names the whole URL.
    fn failure(&self, url: &Url, error: reqwest::Error) -> UpstreamError {
        let error = error.without_url();
        if let Some(internal) = guard::refusal(&error) {
            return UpstreamError::protocol(url, internal);
        }
        let url = url.into();
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => UpstreamError::Timeout {
                url,
                phase: Phase::Connect,
                after: self.timeouts.connect,
            },
            (true, false) => UpstreamError::Unreachable {
                url,
                source: Arc::new(error),
            },
            (false, _) => UpstreamError::Broken {
                url,
                received: 0,
                source: Some(Arc::new(error)),
            },
        }
    }

    /// The error that an answer without success means.
    pub(super) async fn refusal(&self, mut reply: UpstreamResponse) -> UpstreamError {
        let message = body::message(&mut reply).await;
        let url = (&reply.url).into();
        let retry_after = retry::retry_after(reply.headers(), self.clock.wall());
        // Another host's 401 and 403 say that the redirect was bad, not who may read; a token
        // service's 404 says nothing about the repository.
        match reply.status().as_u16() {
            404 if reply.kind != Kind::Token => UpstreamError::NotFound { url, message },
            401 if reply.own => UpstreamError::Unauthorized { url, message },
            403 if reply.own => UpstreamError::Denied { url, message },
            429 => UpstreamError::RateLimited { url, retry_after },
            status @ 500..=599 => UpstreamError::Unavailable {
                url,
                status,
                retry_after,
            },
            status => UpstreamError::Unexpected { url, status },
        }
    }
}
