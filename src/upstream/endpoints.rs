//! Chooses the endpoint of each request, and moves on to the next one when it can't answer.
//!
//! The choice is made as late as possible and anew for each request: by the order of the configuration
//! or the latency, among the endpoints whose circuits permit a request. After a connection failure, a
//! timeout, a 5xx or a 429 the next one is asked at once; each of them once, and once more after a pause
//! where [`retry`] permits that. While no circuit permits a request, the endpoint is asked whose pause
//! ends first: no client is refused because of circuits alone.
//!
//! With one endpoint none of this happens: it is simply asked.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep};

use super::attempt::{Attempt, AttemptKind};
use super::callers::CallerId;
use super::circuit::View;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError};
use super::health::Verdict;
use super::hedge::{HedgeBudget, MIN_WAIT};
use super::login::Login;
use super::retry;
use super::route::BlobRoute;
use crate::config::EndpointSelection;
use crate::error_chain::on_one_line;

/// The endpoints of one upstream; at least one.
pub(super) struct Endpoints {
    pub first: Arc<Endpoint>,
    others: Vec<Arc<Endpoint>>,
    selection: EndpointSelection,
    hedges: HedgeBudget,
    /// None of them is ever asked.
    pub offline: bool,
}

/// What a request is for.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// A manifest: sent to a second endpoint when the first one is slow.
    Manifest,
    Metadata,
    /// A blob, of a download with this route.
    Blob(&'a BlobRoute),
}

/// One question on its way through the endpoints.
#[derive(Default)]
struct Round {
    /// Bits of the endpoints that were asked.
    asked: u32,
    /// Requests.
    sent: u32,
    /// What is returned if no endpoint answers.
    error: Option<UpstreamError>,
    /// Whether one has failed, and not only said that it doesn't have it.
    has_failed: bool,
}

/// An answer, and its attempt, whose success is yet to be told.
type Answer<T> = Result<(T, Attempt), UpstreamError>;
type Pending<'a, T> = Pin<Box<dyn Future<Output = Asked<T>> + Send + 'a>>;

/// How one endpoint has been asked.
enum Asked<T> {
    Answered(Answer<T>),
    /// The next one is asked.
    Failed(UpstreamError),
}

impl Endpoints {
    pub(super) fn new(
        first: Endpoint,
        others: Vec<Endpoint>,
        selection: EndpointSelection,
    ) -> Self {
        Self {
            first: Arc::new(first),
            others: others.into_iter().map(Arc::new).collect(),
            selection,
            hedges: HedgeBudget::default(),
            offline: false,
        }
    }

    /// The same for a caller with a login, who needs a single one.
    pub(super) fn with_login(&self, login: &Login, id: CallerId) -> Self {
        let endpoint = self.first.with_login(login, id);
        Self {
            offline: self.offline,
            ..Self::new(endpoint, Vec::new(), self.selection)
        }
    }

    /// In the order of the configuration.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Whether there is a choice.
    pub(super) fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Asks a question that is answered when its future ends.
    pub(super) async fn ask<'a, T, F, Asking>(
        &'a self,
        purpose: Purpose<'a>,
        question: F,
    ) -> Result<T, UpstreamError>
    where
        T: Send + 'a,
        F: Fn(&'a Endpoint) -> Asking + Send + Sync,
        Asking: Future<Output = Result<T, UpstreamError>> + Send + 'a,
    {
        if self.offline {
            return Err(self.offline_error());
        }
        if self.are_several() {
            // On the heap: with one endpoint, requests have no room for it.
            let asking = Box::pin(self.ask_in_turn(purpose, &question));
            let (answer, mut attempt) = asking.await?;
            attempt.succeeded();
            return Ok(answer);
        }
        let Endpoint { health, .. } = &*self.first;
        let asked_at = Instant::now();
        let answer = question(&self.first).await;
        match &answer {
            Ok(_) if matches!(purpose, Purpose::Manifest) => {
                let now = Instant::now();
                health.latency.record(now.duration_since(asked_at), now);
            }
            Ok(_) => {}
            Err(error) => health.note(error),
        }
        answer
    }

    /// Asks one of several endpoints after the other. The caller tells the attempt how it went on.
    pub(super) async fn ask_in_turn<'a, T, F, Asking>(
        &'a self,
        purpose: Purpose<'a>,
        question: &F,
    ) -> Answer<T>
    where
        T: Send + 'a,
        F: Fn(&'a Endpoint) -> Asking + Send + Sync,
        Asking: Future<Output = Result<T, UpstreamError>> + Send + 'a,
    {
        if self.offline {
            return Err(self.offline_error());
        }
        let mut round = Round::default();
        self.hedges.earn();
        loop {
            while let Some(attempt) = self.next(&mut round, purpose) {
                let patience = match purpose {
                    Purpose::Manifest => attempt.endpoint.health.latency.p99(),
                    Purpose::Metadata | Purpose::Blob(_) => None,
                };
                let first = self.send(attempt, question);
                let asked = match patience {
                    Some(p99) => {
                        let patience = p99.max(MIN_WAIT);
                        self.hedged(first, patience, &mut round, question).await
                    }
                    None => first.await,
                };
                match asked {
                    Asked::Answered(answer) => return answer,
                    Asked::Failed(error) => round.on_failure(error),
                }
            }
            // Each round asks at least one.
            let error = round.error.take().unwrap_or_else(|| self.nobody());
            let Some(wait) = retry::delay(round.sent, &error, fastrand::f64()) else {
                return Err(error);
            };
            tracing::debug!(upstream = self.first.name(), error = %on_one_line(&error), ?wait, "no endpoint answers; trying again");
            sleep(wait).await;
            round = Round {
                sent: round.sent,
                ..Round::default()
            };
        }
    }

    /// Waits for an answer, and asks another endpoint, too, when that takes longer than `patience`. The
    /// first one that answers cancels the other.
    async fn hedged<'a, T, F, Asking>(
        &'a self,
        first: Pending<'a, T>,
        patience: Duration,
        round: &mut Round,
        question: &F,
    ) -> Asked<T>
    where
        T: Send + 'a,
        F: Fn(&'a Endpoint) -> Asking + Send + Sync,
        Asking: Future<Output = Result<T, UpstreamError>> + Send + 'a,
    {
        let slow = match select(first, Box::pin(sleep(patience))).await {
            Either::Left((answer, _)) => return answer,
            Either::Right(((), slow)) => slow,
        };
        let is_healthy = |endpoint: &Endpoint| endpoint.health.circuit.view() == View::Closed;
        let others = self
            .all()
            .any(|endpoint| is_healthy(endpoint) && !round.has_asked(endpoint));
        let hedge = (others && self.hedges.take()).then(|| self.next(round, Purpose::Manifest));
        let Some(attempt) = hedge.flatten() else {
            return slow.await;
        };
        attempt.endpoint.health.hedged();
        let second = self.send(attempt, question);
        match select(slow, second).await.factor_first() {
            (Asked::Failed(error), other) => {
                round.on_failure(error);
                other.await
            }
            (answered, _) => answered,
        }
    }

    fn send<'a, T, F, Asking>(&'a self, mut attempt: Attempt, question: &F) -> Pending<'a, T>
    where
        T: Send + 'a,
        F: Fn(&'a Endpoint) -> Asking,
        Asking: Future<Output = Result<T, UpstreamError>> + Send + 'a,
    {
        let index = attempt.endpoint.index;
        let endpoint = self.all().nth(index).unwrap_or(&self.first);
        let asking = question(endpoint);
        Box::pin(async move {
            match asking.await {
                Ok(answer) => Asked::Answered(Ok((answer, attempt))),
                Err(error) if attempt.failed(&error) => Asked::Failed(error),
                Err(error) => Asked::Answered(Err(error)),
            }
        })
    }

    /// The next endpoint to ask, if one is left.
    fn next(&self, round: &mut Round, purpose: Purpose<'_>) -> Option<Attempt> {
        let now = Instant::now();
        let mut left: Vec<_> = self.all().filter(|one| !round.has_asked(one)).collect();
        if let Purpose::Blob(route) = purpose {
            route.restrict(&mut left, self.all().count());
        }
        // Stable: the configuration's order decides between equals.
        match (purpose, self.selection) {
            (Purpose::Blob(_), _) if left.iter().any(|endpoint| endpoint.weight > 0) => {
                left.sort_by(|one, other| one.load().total_cmp(&other.load()));
            }
            (_, EndpointSelection::Latency) => {
                left.sort_by_cached_key(|endpoint| endpoint.health.latency.expected(now));
            }
            (_, EndpointSelection::Order) => {}
        }
        if let Purpose::Blob(route) = purpose {
            left.sort_by_key(|endpoint| route.has_failed(endpoint.index));
        }
        let mut admitted = left.iter().map(|one| (*one, one.health.admit(now, false)));
        let admitted = admitted.find_map(|(endpoint, pass)| Some((endpoint, pass?)));
        let (endpoint, pass) = match admitted {
            None if !round.has_failed => {
                let due = |endpoint: &&&Arc<Endpoint>| match endpoint.health.circuit.view() {
                    View::Closed => now,
                    View::HalfOpen => now + Duration::from_secs(1),
                    View::Open(until) => until,
                };
                let endpoint = *left.iter().min_by_key(due)?;
                (endpoint, endpoint.health.admit(now, true)?)
            }
            admitted => admitted?,
        };
        endpoint.health.latency.measuring(now);
        round.asked |= 1 << endpoint.index;
        round.sent += 1;
        let kind = match purpose {
            Purpose::Manifest => AttemptKind::Manifest,
            Purpose::Metadata => AttemptKind::Metadata,
            Purpose::Blob(_) => AttemptKind::Stream,
        };
        Some(Attempt::new(Arc::clone(endpoint), pass, now, kind))
    }

    pub(super) fn offline_error(&self) -> UpstreamError {
        UpstreamError::new(&self.first.config.url, Failure::Offline)
    }

    fn nobody(&self) -> UpstreamError {
        UpstreamError::new(&self.first.config.url, Failure::Busy)
    }
}

impl Round {
    const fn has_asked(&self, endpoint: &Endpoint) -> bool {
        self.asked & 1 << endpoint.index != 0
    }

    /// The error that says most is returned, of equal ones the last: the client's own fallback depends
    /// on a status and a `Retry-After`, and a 404 counts only if all endpoints agree.
    fn on_failure(&mut self, error: UpstreamError) {
        let rank = |error: &UpstreamError| match error.failure {
            Failure::NotFound(_) => 0,
            Failure::RateLimited { .. } => 3,
            Failure::Unavailable { .. } => 2,
            _ => 1,
        };
        self.has_failed |= Verdict::of(&error) != Verdict::Answer;
        if self
            .error
            .as_ref()
            .is_none_or(|before| rank(&error) >= rank(before))
        {
            self.error = Some(error);
        }
    }
}
