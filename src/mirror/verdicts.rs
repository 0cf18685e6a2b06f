//! What upstreams have said about callers: who may read a repository (`proxy.authorize: caller`).
//!
//! A permission is for a repository, and valid for a while, longer while the upstream can't answer. A
//! refusal is for one question, and valid for a few seconds, so that a client that insists costs the
//! upstream little; it ends the permission, so that all other questions are asked again. Nothing
//! outlives the process.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::MirrorError;
use super::single_flight::{Interest, SingleFlight, Waiter};
use super::tags::{PATIENCE, recheck_after};
use crate::clock::Clock;
use crate::config::CallerAccess;
use crate::oci::{Accept, Classified as _, Digest, Reference, RepoName};
use crate::upstream::CallerId;

/// Permissions that are remembered; the least used go first.
const MAX_VERDICTS: usize = 100_000;
/// Refusals that are remembered; the least used go first.
const MAX_REFUSALS: usize = 10_000;
/// How long a refusal is valid.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What a permission is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Manifests, blobs and referrers.
    Content,
    /// Tags: an account may be allowed to list them and no more.
    List,
}

/// A repository, by its name in the store, an account at its upstream, and what it wants.
pub(super) type VerdictKey = (RepoName, CallerId, Class);

/// What the upstream is asked, to find out whether an account may read a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Manifest(Reference, Accept),
    Blob(Digest),
    Tags,
    Referrers(Digest),
}

impl Question {
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Manifest(..) | Self::Blob(_) | Self::Referrers(_) => Class::Content,
            Self::Tags => Class::List,
        }
    }
}

#[derive(Debug, Clone)]
enum Verdict {
    Allowed {
        fresh_until: Instant,
        /// While the upstream can't answer.
        valid_until: Instant,
    },
    /// A permission ended at this time: what was asked before it permits nothing.
    Ended(Instant),
}

/// The upstream's error, and until when it answers the same question.
type Refusal = (Instant, MirrorError);

/// The verdicts. Clones share them.
#[derive(Debug, Clone)]
struct Known {
    verdicts: Arc<Cache<VerdictKey, Verdict>>,
    refusals: Arc<Cache<(VerdictKey, Question), Refusal>>,
    /// Held where a verdict is looked at and then replaced.
    writing: Arc<Mutex<()>>,
    clock: Clock,
}

/// A question in flight. With a question of its own where the answer to another one said nothing.
type FlightKey = (VerdictKey, Option<Question>);
/// What was asked, and the answer.
type Answer = (Question, Result<(), MirrorError>);

#[derive(Debug)]
pub(super) struct Verdicts {
    known: Known,
    questions: SingleFlight<FlightKey, Answer>,
}

impl Verdicts {
    pub(super) fn new(tasks: TaskTracker, clock: Clock) -> Self {
        Self {
            known: Known {
                verdicts: Arc::new(Cache::new(MAX_VERDICTS)),
                refusals: Arc::new(Cache::new(MAX_REFUSALS)),
                writing: Arc::default(),
                clock,
            },
            questions: SingleFlight::new(tasks),
        }
    }

    /// Whether the upstream lately let the account read the repository.
    pub(super) fn is_allowed(&self, key: &VerdictKey) -> bool {
        self.known.is_fresh(key)
    }

    /// Whether the account may read the repository: from memory, or else by asking the upstream, once
    /// for all that wait. The error is the upstream's, and answers this question only, unless the
    /// upstream can't answer any. Cancel safe.
    pub(super) async fn get<F>(
        &self,
        key: VerdictKey,
        question: Question,
        access: CallerAccess,
        ask: impl Fn(Interest) -> F,
    ) -> Result<(), MirrorError>
    where
        F: Future<Output = Result<(), MirrorError>> + Send + 'static,
    {
        if let Some(error) = self.known.refusal(&key, &question) {
            return Err(error);
        }
        if self.known.is_fresh(&key) {
            return Ok(());
        }
        let mut asking = self.join((key.clone(), None), &question, access, &ask);
        let (asked, answer) = if self.known.is_extensible(&key) {
            match tokio::time::timeout(PATIENCE, &mut asking).await {
                Ok(answer) => answer?,
                Err(_elapsed) if self.known.extend(&key, None) => {
                    // For the next clients: a slow upstream would otherwise never be heard.
                    asking.leave_running();
                    return Ok(());
                }
                Err(_elapsed) => asking.await?,
            }
        } else {
            asking.await?
        };
        match answer {
            Err(error) if asked != question && !error.permits_stale() => {
                let own = (key, Some(question.clone()));
                self.join(own, &question, access, &ask).await?.1
            }
            answer => answer,
        }
    }

    /// The upstream has just refused the account, if that is what the error says.
    pub(super) fn on_error(&self, key: &VerdictKey, question: &Question, error: &MirrorError) {
        if error.is_refusal() {
            self.known.refuse(key, question, error);
        }
    }

    fn join<F>(
        &self,
        flight: FlightKey,
        question: &Question,
        access: CallerAccess,
        ask: &impl Fn(Interest) -> F,
    ) -> Waiter<FlightKey, Answer>
    where
        F: Future<Output = Result<(), MirrorError>> + Send + 'static,
    {
        let (known, key, question) = (self.known.clone(), flight.0.clone(), question.clone());
        self.questions.join(flight, |interest| {
            let asked_at = known.clock.now();
            let answer = ask(interest);
            async move {
                let answer = answer.await;
                let answer = known.record(&key, &question, asked_at, answer, access);
                (question, answer)
            }
        })
    }
}

impl Known {
    /// The permission that needs no question.
    fn is_fresh(&self, key: &VerdictKey) -> bool {
        let now = self.clock.now();
        matches!(self.verdicts.get(key), Some(Verdict::Allowed { fresh_until, .. }) if now < fresh_until)
    }

    /// What the upstream lately refused.
    fn refusal(&self, key: &VerdictKey, question: &Question) -> Option<MirrorError> {
        if self.refusals.is_empty() {
            return None;
        }
        let (until, error) = self.refusals.get(&(key.clone(), question.clone()))?;
        (self.clock.now() < until).then_some(error)
    }

    /// The end of a permission that is valid while the upstream can't answer.
    fn valid_until(&self, key: &VerdictKey) -> Option<Instant> {
        match self.verdicts.get(key)? {
            Verdict::Allowed { valid_until, .. } => {
                (self.clock.now() < valid_until).then_some(valid_until)
            }
            Verdict::Ended(_) => None,
        }
    }

    fn is_extensible(&self, key: &VerdictKey) -> bool {
        self.valid_until(key).is_some()
    }

    /// The upstream couldn't answer: a permission stays valid, and the upstream is asked again after a
    /// while, or when it wished to be. False when there is none.
    fn extend(&self, key: &VerdictKey, retry_after: Option<Duration>) -> bool {
        let _writing = self.writing.lock();
        let Some(valid_until) = self.valid_until(key) else {
            return false;
        };
        let recheck = self.clock.now() + recheck_after(retry_after);
        let extended = Verdict::Allowed {
            fresh_until: recheck.min(valid_until),
            valid_until,
        };
        self.verdicts.insert(key.clone(), extended);
        true
    }

    /// The account may read the repository, unless the upstream has refused it since it was asked.
    fn permit(&self, key: &VerdictKey, asked_at: Instant, access: CallerAccess) {
        let _writing = self.writing.lock();
        if let Some(Verdict::Ended(at)) = self.verdicts.get(key)
            && asked_at < at
        {
            return;
        }
        let fresh_until = self.clock.now() + access.ttl;
        let allowed = Verdict::Allowed {
            fresh_until,
            valid_until: fresh_until + access.stale,
        };
        self.verdicts.insert(key.clone(), allowed);
    }

    fn end(&self, key: &VerdictKey) {
        let ended = Verdict::Ended(self.clock.now());
        self.verdicts.insert(key.clone(), ended);
    }

    fn refuse(&self, key: &VerdictKey, question: &Question, error: &MirrorError) {
        let until = self.clock.now() + REFUSED_FOR;
        let asked = (key.clone(), question.clone());
        self.refusals.insert(asked, (until, error.clone()));
        let _writing = self.writing.lock();
        self.end(key);
    }

    /// The upstream may mean a refusal: a permission that is no longer fresh isn't extended again.
    fn miss(&self, key: &VerdictKey) {
        let _writing = self.writing.lock();
        if self.is_extensible(key) && !self.is_fresh(key) {
            self.end(key);
        }
    }

    /// Remembers what an answer says, and returns what follows from it.
    fn record(
        &self,
        key: &VerdictKey,
        question: &Question,
        asked_at: Instant,
        answer: Result<(), MirrorError>,
        access: CallerAccess,
    ) -> Result<(), MirrorError> {
        match answer {
            Ok(()) => self.permit(key, asked_at, access),
            Err(error) if error.is_outage() && self.extend(key, error.retry_after()) => {}
            Err(error) => {
                if error.is_refusal() {
                    self.refuse(key, question, &error);
                } else if error.is_not_found() {
                    self.miss(key);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "verdicts/tests.rs"]
mod tests;
