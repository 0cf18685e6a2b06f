//! How many blob streams are open at once: over all upstreams, and to each.
//!
//! Who waits is served in order, save that a download that a client waits for goes before one that
//! none waits for, and that the latter leave half of an upstream's places free.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::config::Streams;
use crate::metrics::{InFlight, Metrics};

#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Streams,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    total: usize,
    by_upstream: HashMap<Arc<str>, usize>,
    /// In the order of their coming. Never more than there are downloads.
    waiting: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    upstream: Arc<str>,
    urgent: Urgency,
    granted: oneshot::Sender<Slot>,
}

/// Whether a client waits for a download. It may change while the download waits for a slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Urgency(Arc<AtomicBool>);

impl Urgency {
    pub(super) fn set(&self, urgent: bool) {
        self.0.store(urgent, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The right to one stream, until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    upstream: Arc<str>,
    _counted: InFlight,
}

impl Slots {
    pub(super) fn new(limits: Streams, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            limits,
            metrics,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn. Cancel safe: who goes away loses his place.
    pub(super) async fn acquire(&self, upstream: &str, urgent: Urgency) -> Slot {
        let _waiting = self.0.metrics.waiting_stream();
        loop {
            let (granted, slot) = oneshot::channel();
            let waiter = Waiter {
                upstream: upstream.into(),
                urgent: urgent.clone(),
                granted,
            };
            self.state().waiting.push(waiter);
            self.dispatch();
            // The sender is dropped only after sending, so this is no way to spin.
            if let Ok(slot) = slot.await {
                return slot;
            }
        }
    }

    /// A further stream of a running download, for which a client waits if it is `urgent`: only where
    /// nobody has to wait for it.
    pub(super) fn try_acquire(&self, upstream: &str, urgent: bool) -> Option<Slot> {
        let mut state = self.state();
        let wanted = |waiter: &Waiter| waiter.urgent.get() && *waiter.upstream == *upstream;
        if state.waiting.iter().any(wanted) || !state.has_room(upstream, urgent, self.0.limits) {
            return None;
        }
        let upstream: Arc<str> = upstream.into();
        state.take(&upstream);
        drop(state);
        Some(self.slot(upstream))
    }

    fn slot(&self, upstream: Arc<str>) -> Slot {
        Slot {
            slots: self.clone(),
            _counted: self.0.metrics.stream(&upstream),
            upstream,
        }
    }

    /// Gives free slots to those whose turn it is. Called when a slot is free, and when somebody
    /// who waits has become urgent.
    pub(super) fn dispatch(&self) {
        loop {
            let next = self.state().next(self.0.limits);
            let Some(waiter) = next else { return };
            let slot = self.slot(Arc::clone(&waiter.upstream));
            // Who has gone away gives the slot back by dropping it, which dispatches again.
            drop(waiter.granted.send(slot));
        }
    }
}

impl State {
    fn has_room(&self, upstream: &str, urgent: bool, limits: Streams) -> bool {
        let used = self.by_upstream.get(upstream).copied().unwrap_or(0);
        let share = |limit: usize| if urgent { limit } else { limit.div_ceil(2) };
        self.total < share(limits.total) && used < share(limits.per_upstream)
    }

    fn take(&mut self, upstream: &Arc<str>) {
        self.total += 1;
        *self.by_upstream.entry(Arc::clone(upstream)).or_default() += 1;
    }

    /// Takes a slot for whose turn it is.
    fn next(&mut self, limits: Streams) -> Option<Waiter> {
        self.waiting.retain(|waiter| !waiter.granted.is_closed());
        let turn = |urgent: bool| {
            self.waiting.iter().position(|waiter| {
                waiter.urgent.get() == urgent && self.has_room(&waiter.upstream, urgent, limits)
            })
        };
        let waiter = self.waiting.remove(turn(true).or_else(|| turn(false))?);
        self.take(&waiter.upstream);
        Some(waiter)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.total = state.total.saturating_sub(1);
        if let Some(used) = state.by_upstream.get_mut(&self.upstream) {
            *used = used.saturating_sub(1);
            if *used == 0 {
                state.by_upstream.remove(&self.upstream);
            }
        }
        drop(state);
        self.slots.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn slots(total: usize, per_upstream: usize) -> Slots {
        let limits = Streams {
            total,
            per_upstream,
        };
        Slots::new(limits, Arc::new(Metrics::new()))
    }

    fn urgent(urgent: bool) -> Urgency {
        let urgency = Urgency::default();
        urgency.set(urgent);
        urgency
    }

    #[tokio::test]
    async fn who_is_waited_for_goes_first() {
        let slots = slots(10, 2);
        let held = [
            slots.acquire("a", urgent(true)).await,
            slots.acquire("a", urgent(true)).await,
        ];
        let (ahead, wanted) = (urgent(false), urgent(true));
        let mut ahead_waits = Box::pin(slots.acquire("a", ahead.clone()));
        let mut wanted_waits = Box::pin(slots.acquire("a", wanted));
        let mut later = Box::pin(slots.acquire("a", urgent(true)));
        for waits in [&mut ahead_waits, &mut wanted_waits, &mut later] {
            assert!(waits.now_or_never().is_none());
        }
        assert!(slots.try_acquire("a", true).is_none());
        let other = slots.try_acquire("b", true).unwrap();
        let [first, second] = held;
        drop(first);
        let taken = wanted_waits.as_mut().now_or_never().unwrap();
        assert!(ahead_waits.as_mut().now_or_never().is_none());
        // Somebody comes who waits for it: now it is before the one that came later.
        ahead.set(true);
        drop(second);
        let promoted = ahead_waits.as_mut().now_or_never().unwrap();
        assert!(later.as_mut().now_or_never().is_none());
        drop((taken, promoted, other));
        assert!(later.as_mut().now_or_never().is_some());
        drop(later);
        let state = slots.state();
        assert_eq!((state.total, state.by_upstream.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_leaves_room_and_takes_it_when_wanted() {
        let slots = slots(100, 4);
        let _ahead = [
            slots.acquire("a", urgent(false)).await,
            slots.acquire("a", urgent(false)).await,
        ];
        let third = urgent(false);
        let mut waits = Box::pin(slots.acquire("a", third.clone()));
        assert!(waits.as_mut().now_or_never().is_none());
        let client = slots.acquire("a", urgent(true)).now_or_never();
        assert!(client.is_some());
        third.set(true);
        slots.dispatch();
        assert!(waits.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_goes_away_keeps_nothing() {
        let slots = slots(1, 1);
        let held = slots.acquire("a", urgent(true)).await;
        let mut gone = Box::pin(slots.acquire("a", urgent(true)));
        assert!(gone.as_mut().now_or_never().is_none());
        // Granted, and never looked at.
        drop(held);
        assert!(slots.try_acquire("a", true).is_none());
        drop(gone);
        assert!(slots.try_acquire("a", true).is_some());
        let held = slots.acquire("b", urgent(true)).await;
        drop(
            Box::pin(slots.acquire("a", urgent(true)))
                .as_mut()
                .now_or_never(),
        );
        drop(held);
        assert!(slots.acquire("c", urgent(false)).now_or_never().is_some());
    }
}
