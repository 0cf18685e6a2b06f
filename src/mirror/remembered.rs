//! Lists of upstreams, in memory: requested once for all clients that wait, fresh for a while, and
//! served stale while the upstream can't answer.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::single_flight::{Interest, SingleFlight};
use super::tags::{PATIENCE, RECHECK, recheck_after};
use super::{Exchange, MirrorError};
use crate::clock::Clock;
use crate::metrics::Outcome;
use crate::oci::Classified as _;
use crate::upstream::CallerId;

/// How long a list is served without asking the upstream again.
const FRESH: Duration = Duration::from_secs(30);
/// Bytes of all lists of one kind; the least used go first. A list is at most about this large.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes that a list costs beside its entries, about.
const OVERHEAD: u64 = 512;

/// A list that knows how much memory it takes.
pub(super) trait List: Clone + Send + Sync + 'static {
    /// Bytes, about.
    fn weight(&self) -> u64;
}

/// A list, where it comes from, and what the upstream was asked for it.
pub(super) type Answered<T> = (Arc<T>, Outcome, Exchange);

/// The lists of one kind.
#[derive(Debug)]
pub(super) struct Remembered<K: Eq + Hash, T> {
    entries: Arc<Cache<K, Entry<T>, Weight>>,
    /// One caller is never given the answer for another one's account.
    flights: SingleFlight<(K, Option<CallerId>), Result<Answered<T>, MirrorError>>,
    clock: Clock,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    list: Arc<T>,
    weight: u64,
    fresh_until: Instant,
    /// `Stale` when the upstream couldn't be asked, else `Hit`.
    outcome: Outcome,
}

impl<T: List> Entry<T> {
    fn new(list: Arc<T>, outcome: Outcome, fresh_until: Instant) -> Self {
        Self {
            weight: list.weight().saturating_add(OVERHEAD),
            list,
            fresh_until,
            outcome,
        }
    }
}

#[derive(Debug, Clone)]
struct Weight;

impl<K, T> Weighter<K, Entry<T>> for Weight {
    fn weight(&self, _key: &K, entry: &Entry<T>) -> u64 {
        entry.weight
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
    /// While the upstream can't answer, or takes long to, the last list is served stale, and the error
    /// given to `report`. `account`: the caller's, if the upstream is asked with it; then its failure to
    /// answer isn't remembered, because it may answer the other ones. Cancel safe.
    pub(super) async fn get<F>(
        &self,
        (key, account): (K, Option<CallerId>),
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
            let list = Arc::clone(&entry.list);
            return Ok((list, entry.outcome, Exchange::default()));
        }
        let mut question = {
            let (entries, clock, key) = (Arc::clone(&self.entries), self.clock, key.clone());
            let flight = (key.clone(), account);
            self.flights.join(flight, move |interest| {
                let asked = ask(interest);
                async move {
                    let (list, outcome) = asked.await.inspect_err(|error| {
                        if error.is_not_found() && account.is_none() {
                            entries.remove(&key);
                        }
                    })?;
                    // Even of a stale list: it takes a question to the upstream to find that out.
                    let (fresh, later, exchange) = match outcome {
                        Outcome::Stale => (RECHECK, Outcome::Stale, Exchange::unanswered()),
                        outcome => (FRESH, Outcome::Hit, Exchange::of(outcome)),
                    };
                    let list = Arc::new(list);
                    if account.is_none() || outcome != Outcome::Stale {
                        let entry = Entry::new(Arc::clone(&list), later, clock.now() + fresh);
                        entries.insert(key, entry);
                    }
                    Ok((list, outcome, exchange))
                }
            })
        };
        let Some(Entry { list, .. }) = known else {
            return question.await?;
        };
        let (retry_after, exchange) = match tokio::time::timeout(PATIENCE, &mut question).await {
            Ok(answer) => match answer? {
                Err(error) if error.permits_stale() => {
                    report(&error);
                    (error.retry_after(), Exchange::failed(&error))
                }
                answer => return answer,
            },
            Err(_elapsed) => {
                // For the next clients: a slow upstream would otherwise never be heard.
                question.leave_running();
                (None, Exchange::unanswered())
            }
        };
        if account.is_none() {
            let until = self.clock.now() + recheck_after(retry_after);
            let entry = Entry::new(Arc::clone(&list), Outcome::Stale, until);
            self.entries.insert(key, entry);
        }
        Ok((list, Outcome::Stale, exchange))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Sized(u64);

    impl List for Sized {
        fn weight(&self) -> u64 {
            self.0
        }
    }

    async fn put(lists: &Remembered<u64, Sized>, key: u64, weight: u64) {
        let ask = |_| async move { Ok((Sized(weight), Outcome::Miss)) };
        let (list, outcome, _) = lists.get((key, None), ask, |_| ()).await.unwrap();
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
        let (_, outcome, exchange) = lists.get((2_000, None), never, |_| ()).await.unwrap();
        assert_eq!((outcome, exchange), (Outcome::Hit, Exchange::default()));
    }
}
