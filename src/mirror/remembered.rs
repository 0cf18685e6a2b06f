//! Lists of upstreams, remembered: asked for once for all who want the same one, given out for a while
//! without asking again, and given out stale while the upstream can't answer.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::manifests::PATIENCE;
use super::single_flight::{Interest, SingleFlight};
use super::tags::{MAX_RECHECK, RECHECK};
use super::{Exchange, MirrorError};
use crate::clock::Clock;
use crate::metrics::Outcome;
use crate::oci::Classified;

/// How long a list is given out without asking the upstream again.
const FRESH: Duration = Duration::from_secs(30);
/// Bytes of all lists of one kind; the least used go first. A list is at most about this large.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes that a list costs beside its entries, about.
const OVERHEAD: u64 = 512;

/// A list that knows how much memory it takes.
pub(super) trait List: Send + Sync + 'static {
    /// Bytes, about.
    fn weight(&self) -> u64;
}

/// A list, where it comes from, and what the upstream was asked for it.
pub(super) type Answered<T> = (Arc<T>, Outcome, Exchange);

/// The lists of one kind.
pub(super) struct Remembered<K: Eq + Hash, T> {
    entries: Arc<Cache<K, Entry<T>, Weight>>,
    flights: SingleFlight<K, Result<Answered<T>, MirrorError>>,
    clock: Clock,
}

struct Entry<T> {
    list: Arc<T>,
    weight: u64,
    fresh_until: Instant,
    /// It is given out because the upstream couldn't be asked.
    stale: bool,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self {
            list: Arc::clone(&self.list),
            ..*self
        }
    }
}

impl<T: List> Entry<T> {
    fn new(list: Arc<T>, outcome: Outcome, until: Instant) -> Self {
        Self {
            weight: list.weight().saturating_add(OVERHEAD),
            list,
            fresh_until: until,
            stale: outcome == Outcome::Stale,
        }
    }
}

#[derive(Clone)]
struct Weight;

impl<K, T> Weighter<K, Entry<T>> for Weight {
    fn weight(&self, _key: &K, entry: &Entry<T>) -> u64 {
        entry.weight
    }
}

impl<K: Eq + Hash, T> fmt::Debug for Remembered<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").finish_non_exhaustive()
    }
}

impl<K, T> Remembered<K, T>
where
    K: Eq + Hash + Clone + Send + Sync + Unpin + 'static,
    T: List,
{
    pub(super) fn new(tasks: TaskTracker, clock: Clock) -> Self {
        let usual = 1024;
        let (hash, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        // One part, because a part's share of the bytes is the largest list that is kept.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(usual)
            .weight_capacity(MAX_BYTES)
            .build();
        let entries = match options {
            Ok(options) => Cache::with_options(options, Weight, hash, lifecycle),
            // Only a missing option is an error, and none is missing.
            Err(_incomplete) => Cache::with_weighter(usual, MAX_BYTES, Weight),
        };
        Self {
            entries: Arc::new(entries),
            flights: SingleFlight::new(tasks),
            clock,
        }
    }

    /// The list from memory while it is fresh, else from `ask`, which runs once for all that wait for it.
    /// While the upstream can't answer, or takes long to, the last list is given out. Cancel safe:
    /// `ask` is told when nobody waits any more, `report` of an error instead of which the last list is
    /// given out.
    pub(super) async fn get<F>(
        &self,
        key: K,
        ask: impl FnOnce(Interest) -> F,
        report: impl FnOnce(&MirrorError),
    ) -> Result<Answered<T>, MirrorError>
    where
        F: Future<Output = Result<(T, Outcome), MirrorError>> + Send + 'static,
    {
        let known = self.entries.get(&key);
        if let Some(entry) = &known
            && self.clock.now() < entry.fresh_until
        {
            let outcome = if entry.stale {
                Outcome::Stale
            } else {
                Outcome::Hit
            };
            return Ok((Arc::clone(&entry.list), outcome, Exchange::default()));
        }
        let mut question = {
            let (entries, clock, key) = (Arc::clone(&self.entries), self.clock, key.clone());
            self.flights.join(key.clone(), move |interest| {
                let asked = ask(interest);
                async move {
                    let (list, outcome) = asked.await?;
                    // Even of a stale list: it takes a question to the upstream to find that out.
                    let (fresh, exchange) = match outcome {
                        Outcome::Stale => (RECHECK, Exchange::unanswered()),
                        outcome => (FRESH, Exchange::of(outcome)),
                    };
                    let list = Arc::new(list);
                    let until = clock.now() + fresh;
                    entries.insert(key, Entry::new(Arc::clone(&list), outcome, until));
                    Ok((list, outcome, exchange))
                }
            })
        };
        let Some(known) = known else {
            return self.judged(&key, question.await?);
        };
        let answer = match tokio::time::timeout(PATIENCE, &mut question).await {
            Ok(answer) => self.judged(&key, answer?),
            Err(_elapsed) => {
                // For the next clients: a slow upstream would otherwise never be heard.
                question.leave_running();
                let list = self.stale(key, known.list, None);
                return Ok((list, Outcome::Stale, Exchange::unanswered()));
            }
        };
        match answer {
            Err(error) if error.permits_stale() => {
                report(&error);
                let retry_after = error.upstream().and_then(Classified::retry_after);
                let list = self.stale(key, known.list, retry_after);
                Ok((list, Outcome::Stale, Exchange::failed(&error)))
            }
            answer => answer,
        }
    }

    /// What the upstream doesn't have any more isn't remembered.
    fn judged(
        &self,
        key: &K,
        answer: Result<Answered<T>, MirrorError>,
    ) -> Result<Answered<T>, MirrorError> {
        if answer.as_ref().is_err_and(MirrorError::is_not_found) {
            self.entries.remove(key);
        }
        answer
    }

    /// Gives out the last list, for a while without asking the upstream, or until when it wished to be
    /// asked.
    fn stale(&self, key: K, list: Arc<T>, retry_after: Option<Duration>) -> Arc<T> {
        let until = self.clock.now() + retry_after.unwrap_or(RECHECK).min(MAX_RECHECK);
        let entry = Entry::new(Arc::clone(&list), Outcome::Stale, until);
        self.entries.insert(key, entry);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sized(u64);

    impl List for Sized {
        fn weight(&self) -> u64 {
            self.0
        }
    }

    async fn put(lists: &Remembered<u64, Sized>, key: u64, weight: u64) {
        let ask = |_| async move { Ok((Sized(weight), Outcome::Miss)) };
        let (list, outcome, _) = lists.get(key, ask, |_| ()).await.unwrap();
        assert_eq!((list.0, outcome), (weight, Outcome::Miss));
    }

    #[tokio::test(start_paused = true)]
    async fn the_bytes_are_bounded_and_empty_lists_are_kept() {
        let lists = Remembered::new(TaskTracker::new(), Clock::system());
        for key in 0..100 {
            put(&lists, key, MAX_BYTES / 10).await;
            assert!(lists.entries.weight() <= MAX_BYTES);
        }
        put(&lists, 1_000, MAX_BYTES * 2).await;
        assert!(lists.entries.get(&1_000).is_none(), "too large to remember");
        put(&lists, 2_000, 0).await;
        let never = |_| async { Err(MirrorError::Lost) };
        let (_, outcome, exchange) = lists.get(2_000, never, |_| ()).await.unwrap();
        assert_eq!((outcome, exchange), (Outcome::Hit, Exchange::default()));
    }
}
