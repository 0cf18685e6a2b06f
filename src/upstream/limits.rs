//! What one account may ask of an endpoint: keeps requests back while the endpoint wants none, and tells
//! operators what is left.

use std::time::Duration;

use http::Method;
use http::header::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::allowance;
use super::budget::{Budget, Crossing, Entry, KINDS, Ticket};
use super::error::{Failure, UpstreamError};
use super::reply::UpstreamResponse;
use super::retry::MAX_RETRY_AFTER;
use super::transport::UpstreamRequest;
use crate::config::Reserve;
use crate::error_chain::on_one_line;
use crate::metrics::{Kind, RateLimitMetrics};

/// The `Retry-After` for clients while another request finds out whether the endpoint answers again.
const SOON: Duration = Duration::from_secs(5);

/// The limits of one account at one endpoint.
pub(super) struct Limits {
    upstream: Box<str>,
    /// The account's name in logs, metrics and lists of operators.
    pub account: String,
    pub budget: Budget,
    /// A pause has ended, or a probe.
    settled: Notify,
    /// None for callers, of whom there may be any number.
    metrics: Option<RateLimitMetrics>,
}

/// An account of an endpoint, as operators see it. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountStatus {
    /// The user name, or what stands for it.
    pub account: String,
    /// Requests that the endpoint permits in `window`, if it says so.
    pub limit: Option<u64>,
    /// Requests that are left of them.
    pub remaining: Option<u64>,
    pub window: Option<f64>,
    /// Until requests are sent again, after a 429.
    pub paused_for: Option<f64>,
}

/// A request that was permitted, until its outcome is told.
pub(super) struct Sending<'a> {
    limits: &'a Limits,
    ticket: Ticket,
    is_settled: bool,
}

impl Limits {
    pub(super) fn new(
        upstream: &str,
        account: String,
        reserve: Reserve,
        metrics: Option<RateLimitMetrics>,
    ) -> Self {
        Self {
            upstream: upstream.into(),
            account,
            budget: Budget::new(reserve, MAX_RETRY_AFTER),
            settled: Notify::new(),
            metrics,
        }
    }

    /// Waits while a probe is under way, for at most `patience`. The pause, where one is in force.
    pub(super) async fn enter(
        &self,
        ask: &UpstreamRequest,
        patience: Duration,
    ) -> Result<Sending<'_>, Duration> {
        let (kind, counts) = (kind(ask.kind), counts(ask));
        let deadline = Instant::now() + patience;
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // Before the budget is asked, so that no change after that is missed.
            settled.as_mut().enable();
            match self.budget.enter(kind, counts, Instant::now()) {
                Entry::Admitted(ticket) => {
                    return Ok(Sending {
                        limits: self,
                        ticket,
                        is_settled: false,
                    });
                }
                Entry::Paused(pause) => return Err(pause),
                Entry::Probing => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if timeout(left, settled).await.is_err() {
                        return Err(SOON);
                    }
                }
            }
        }
    }

    /// A request wasn't sent.
    pub(super) fn withheld(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.withheld();
        }
    }

    pub(super) fn status(&self, now: Instant) -> AccountStatus {
        let left = self.budget.left(now);
        let paused_for = self.budget.paused_for(now);
        AccountStatus {
            account: self.account.clone(),
            limit: left.map(|left| left.limit),
            remaining: left.map(|left| left.remaining),
            window: left.map(|left| left.window.as_secs_f64()),
            paused_for: paused_for.map(|pause| pause.as_secs_f64()),
        }
    }
}

impl Sending<'_> {
    fn observe(&self, headers: &HeaderMap) {
        let Some(left) = allowance::parse(headers) else {
            return;
        };
        let Limits {
            upstream,
            account,
            budget,
            metrics,
            ..
        } = self.limits;
        let crossing = budget.told(self.ticket, left, Instant::now());
        if let Some(metrics) = metrics {
            metrics.told(left.limit, left.remaining);
        }
        let (limit, remaining) = (left.limit, left.remaining);
        match crossing {
            Some(Crossing::Low) => {
                tracing::warn!(upstream, account, limit, remaining, window = ?left.window, "the upstream's rate limit is nearly used up: tags are revalidated less often");
            }
            Some(Crossing::Restored) => {
                tracing::info!(
                    upstream,
                    account,
                    limit,
                    remaining,
                    "enough of the upstream's rate limit is left again"
                );
            }
            None => {}
        }
    }

    /// How the request went. A 429 that doesn't say for how long gets the pause that is made here, so that
    /// clients wait as long as the mirror does.
    pub(super) fn ended(&mut self, result: &mut Result<UpstreamResponse, UpstreamError>) {
        let limits = self.limits;
        let error = match result {
            Ok(reply) => {
                if reply.own {
                    self.observe(reply.headers());
                }
                // The request itself comes after it.
                if !reply.is_challenge() {
                    self.answered();
                }
                return;
            }
            Err(error) => error,
        };
        let Failure::RateLimited { mut retry_after } = error.failure else {
            if error.status().is_some() {
                self.answered();
            }
            return;
        };
        self.is_settled = true;
        let now = Instant::now();
        let pause = limits
            .budget
            .limited(self.ticket, retry_after, now, fastrand::f64());
        limits.settled.notify_waiters();
        if let Some(pause) = pause {
            if let Some(metrics) = &limits.metrics {
                metrics.paused(true);
            }
            let (upstream, account) = (&*limits.upstream, &limits.account);
            tracing::warn!(upstream, account, error = %on_one_line(error), ?pause, "the upstream answers 429: no such requests are sent to it for a while; cached content is served");
        }
        if retry_after.is_none() {
            retry_after = pause.or_else(|| limits.budget.paused_for(now));
            error.failure = Failure::RateLimited { retry_after };
        }
    }

    fn answered(&mut self) {
        self.is_settled = true;
        if self.limits.budget.answered(self.ticket) {
            let (upstream, account) = (&*self.limits.upstream, &self.limits.account);
            tracing::info!(upstream, account, "the upstream answers again after a 429");
            if let Some(metrics) = &self.limits.metrics {
                metrics.paused(false);
            }
            self.limits.settled.notify_waiters();
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.limits.budget.abandoned(self.ticket, Instant::now());
            self.limits.settled.notify_waiters();
        }
    }
}

/// Requests of which a 429 says nothing about the others.
const fn kind(kind: Kind) -> usize {
    let kind = match kind {
        Kind::Manifest | Kind::Base => 0,
        Kind::Blob => 1,
        Kind::Token => 2,
        Kind::Tags => 3,
        Kind::Referrers => 4,
        Kind::Catalog | Kind::Push | Kind::Other => 5,
    };
    assert!(kind < KINDS);
    kind
}

/// Whether the request counts in a registry's limit of pulls: Docker Hub's counts GET requests for
/// manifests, and other registries' limits aren't known.
fn counts(ask: &UpstreamRequest) -> bool {
    ask.kind == Kind::Manifest && ask.method == Method::GET
}
