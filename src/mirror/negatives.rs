//! What an upstream doesn't have (404) or doesn't give (403), remembered for a few seconds
//! (`proxy.negativettl`), so that clients that insist cost it little.
//!
//! An answer is for one question, and for one account where the upstream is asked with those of callers.
//! All answers about a repository end when something new of it arrives: with the same account, because what
//! others pull must change nothing for a caller that may not see it.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::verdicts::Question;
use super::{MirrorError, Target};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::oci::RepoName;
use crate::upstream::{CallerId, UpstreamError};

/// Answers that are remembered; the least used go first.
const MAX_ANSWERS: usize = 10_000;
/// Repositories, and accounts, for which something arrived lately; the least used go first.
const MAX_ARRIVALS: usize = 10_000;

/// A repository, by its name in the store, an account at its upstream, and what was asked.
type Key = (RepoName, Option<CallerId>, Question);

#[derive(Debug)]
pub(super) struct Negatives {
    answers: Cache<Key, UpstreamError>,
    /// When something new of a repository has arrived for an account.
    arrivals: Cache<(RepoName, Option<CallerId>), Instant>,
    ttl: Duration,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Negatives {
    /// `ttl` counts from the question; 0 remembers nothing.
    pub(super) fn new(ttl: Duration, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            answers: Cache::new(MAX_ANSWERS),
            arrivals: Cache::new(MAX_ARRIVALS),
            ttl,
            metrics,
            clock,
        }
    }

    /// Those of other upstreams or other accounts, of nothing yet.
    pub(super) fn renewed(&self, ttl: Duration) -> Self {
        Self::new(ttl, Arc::clone(&self.metrics), self.clock)
    }

    /// An error when the upstream has lately answered this question so.
    pub(super) fn check(
        &self,
        target: &Target,
        question: impl FnOnce() -> Question,
    ) -> Result<(), MirrorError> {
        match self.answer(target, question) {
            Some(error) => {
                self.metrics.answered_from_memory();
                Err(MirrorError::Remembered(error))
            }
            None => Ok(()),
        }
    }

    /// What the upstream has lately answered, if it was that there is nothing.
    pub(super) fn answer(
        &self,
        target: &Target,
        question: impl FnOnce() -> Question,
    ) -> Option<UpstreamError> {
        if self.answers.is_empty() {
            return None;
        }
        let known = self.answers.get(&key(target, question()));
        known.filter(|error| self.holds(target, error))
    }

    fn holds(&self, target: &Target, error: &UpstreamError) -> bool {
        let arrived = self.arrivals.get(&party(target));
        self.clock.now() < error.asked_at() + self.ttl
            && arrived.is_none_or(|arrived| error.asked_at() > arrived)
    }

    /// Remembers the error, if it is an answer that says so.
    pub(super) fn note(&self, target: &Target, question: Question, error: &MirrorError) {
        if let Some(answer) = error.negative_answer()
            && self.holds(target, answer)
        {
            self.answers.insert(key(target, question), answer.clone());
        }
    }

    /// Something that wasn't known of the repository has arrived.
    pub(super) fn on_arrival(&self, target: &Target) {
        self.arrivals.insert(party(target), self.clock.now());
    }
}

fn party(target: &Target) -> (RepoName, Option<CallerId>) {
    (target.stored.clone(), target.upstream.caller())
}

fn key(target: &Target, question: Question) -> Key {
    let (stored, account) = party(target);
    (stored, account, question)
}
