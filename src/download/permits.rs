//! How many requests for blobs are open at once: over all upstreams, and to each.
//!
//! A request takes two permits, one after the other. An [`Opening`] lets it be sent, and a [`Stream`]
//! lets its body be read. A request that the upstream answers with an error never takes the second,
//! so requests for blobs that don't exist use up no streams.
//!
//! Those that wait are served fairly: a download that a client waits for before one without, then the
//! client that holds the fewest permits, then in order. Downloads without a client leave half of an
//! upstream's permits free.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::client::Client;
use crate::config::Streams;
use crate::metrics::{InFlight, Metrics};

/// Requests to one upstream that may wait for its answer, and that may have answers for which there
/// is no stream yet.
const MAX_OPENING: usize = 64;
/// Of them, those of one client: one that requests much must not keep all others waiting.
const MAX_OPENING_OF_CLIENT: usize = 48;
/// Where few streams are configured: the requests for each.
const OPENING_PER_STREAM: usize = 4;
/// Downloads that wait to send their request.
const MAX_WAITING: usize = 1024;

/// Too many downloads wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_WAITING} downloads wait for an upstream already")]
pub(super) struct Busy;

#[derive(Debug, Clone)]
pub(super) struct Permits(Arc<PermitsInner>);

#[derive(Debug)]
struct PermitsInner {
    limits: Streams,
    metrics: Arc<Metrics>,
    state: Mutex<PermitState>,
}

#[derive(Debug, Default)]
struct PermitState {
    streams: usize,
    upstreams: HashMap<Arc<str>, Used>,
    /// Permits of each client.
    clients: HashMap<Client, usize>,
    /// Downloads that wait to send their request, in the order of their coming.
    waiting: Vec<Waiter<Opening>>,
    /// Requests with an answer that wait for a stream. Never more than there are openings.
    answered: Vec<Waiter<Stream>>,
}

/// Permits of one upstream.
#[derive(Debug, Default)]
struct Used {
    streams: usize,
    opening: usize,
    opening_by_client: HashMap<Client, usize>,
}

/// Whom a permit is for.
#[derive(Debug, Clone)]
struct Holder {
    upstream: Arc<str>,
    client: Client,
    urgent: Urgency,
}

#[derive(Debug)]
struct Waiter<T> {
    holder: Holder,
    granted: oneshot::Sender<T>,
}

/// Whether a client waits for a download. It may change while the download waits for a permit.
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

/// The right to send one request, until dropped.
#[derive(Debug)]
pub(super) struct Opening {
    permits: Permits,
    holder: Holder,
}

/// The right to read one body, until dropped.
#[derive(Debug)]
pub(super) struct Stream {
    permits: Permits,
    holder: Holder,
    _counted: InFlight,
}

/// What a request holds.
#[derive(Debug)]
pub(super) enum Permit {
    Opening(Opening),
    Stream(#[expect(dead_code, reason = "held for its drop")] Stream),
}

impl Permit {
    /// The upstream has answered with a body: waits for the right to read it. Cancel safe.
    pub(super) async fn answered(self) -> Self {
        match self {
            Self::Opening(opening) => Self::Stream(opening.into_stream().await),
            Self::Stream(_) => self,
        }
    }
}

impl Opening {
    async fn into_stream(self) -> Stream {
        let permits = &self.permits;
        let enqueue = |waiter| {
            permits.state().answered.push(waiter);
            Ok(())
        };
        loop {
            // This can't be refused: there are no more of them than openings.
            if let Ok(stream) = permits.wait(&self.holder, enqueue).await {
                return stream;
            }
        }
    }
}

impl Permits {
    pub(super) fn new(limits: Streams, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(PermitsInner {
            limits,
            metrics,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, PermitState> {
        self.0.state.lock()
    }

    /// Waits for the right to send a request. Cancel safe: whoever goes away loses its place.
    pub(super) async fn open(
        &self,
        upstream: &str,
        client: Client,
        urgent: Urgency,
    ) -> Result<Opening, Busy> {
        let _waiting = self.0.metrics.waiting_stream();
        let holder = Holder {
            upstream: upstream.into(),
            client,
            urgent,
        };
        let enqueue = |waiter| {
            let mut state = self.state();
            state.waiting.retain(|waiter| !waiter.granted.is_closed());
            if state.waiting.len() >= MAX_WAITING {
                return Err(Busy);
            }
            state.waiting.push(waiter);
            Ok(())
        };
        self.wait(&holder, enqueue).await
    }

    async fn wait<T>(
        &self,
        holder: &Holder,
        enqueue: impl Fn(Waiter<T>) -> Result<(), Busy>,
    ) -> Result<T, Busy> {
        loop {
            let (granted, permit) = oneshot::channel();
            let holder = holder.clone();
            enqueue(Waiter { holder, granted })?;
            self.dispatch();
            // The sender is dropped only after sending, so this is no way to spin.
            if let Ok(permit) = permit.await {
                return Ok(permit);
            }
        }
    }

    /// A further stream of a running download, for which a client waits if it is `urgent`: only where
    /// nobody has to wait for it.
    pub(super) fn try_stream(
        &self,
        upstream: &str,
        client: Client,
        urgent: bool,
    ) -> Option<Stream> {
        let mut state = self.state();
        let wanted = |holder: &Holder| holder.urgent.get() && *holder.upstream == *upstream;
        let waits = state.waiting.iter().any(|waiter| wanted(&waiter.holder))
            || state.answered.iter().any(|waiter| wanted(&waiter.holder));
        if waits || !state.has_stream(upstream, urgent, self.0.limits) {
            return None;
        }
        let urgency = Urgency::default();
        urgency.set(urgent);
        let holder = Holder {
            upstream: upstream.into(),
            client,
            urgent: urgency,
        };
        state.take_stream(&holder);
        drop(state);
        Some(self.stream(holder))
    }

    fn stream(&self, holder: Holder) -> Stream {
        Stream {
            permits: self.clone(),
            _counted: self.0.metrics.stream(&holder.upstream),
            holder,
        }
    }

    /// Gives free permits to those whose turn it is. Called when one is free, and when somebody
    /// who waits has become urgent.
    pub(super) fn dispatch(&self) {
        let limits = self.0.limits;
        loop {
            let next = self.state().next_answered(limits);
            if let Some(Waiter { holder, granted }) = next {
                // Who has gone away gives the permit back by dropping it, which dispatches again.
                drop(granted.send(self.stream(holder)));
                continue;
            }
            let next = self.state().next_waiting(limits);
            let Some(Waiter { holder, granted }) = next else {
                return;
            };
            let permits = self.clone();
            drop(granted.send(Opening { permits, holder }));
        }
    }
}

impl PermitState {
    fn used(&self, upstream: &str) -> (usize, usize) {
        let used = self.upstreams.get(upstream);
        used.map_or((0, 0), |used| (used.streams, used.opening))
    }

    fn has_stream(&self, upstream: &str, urgent: bool, limits: Streams) -> bool {
        let share = |limit: usize| if urgent { limit } else { limit.div_ceil(2) };
        let (streams, _) = self.used(upstream);
        self.streams < share(limits.total) && streams < share(limits.per_upstream)
    }

    /// Whether a request may be sent: where a stream is free for its answer.
    fn may_open(&self, holder: &Holder, limits: Streams) -> bool {
        let (upstream, urgent) = (&*holder.upstream, holder.urgent.get());
        let (streams, opening) = self.used(upstream);
        if !self.has_stream(upstream, urgent, limits) {
            return false;
        }
        if !urgent {
            return streams + opening < limits.per_upstream.div_ceil(2);
        }
        let most = MAX_OPENING.min(limits.per_upstream.saturating_mul(OPENING_PER_STREAM));
        let used = self.upstreams.get(upstream);
        let of_client = used.and_then(|used| used.opening_by_client.get(&holder.client));
        let of_client = of_client.copied().unwrap_or(0);
        opening < most && of_client < MAX_OPENING_OF_CLIENT
    }

    fn take_stream(&mut self, holder: &Holder) {
        self.streams += 1;
        *self.clients.entry(holder.client).or_default() += 1;
        let used = self.upstreams.entry(Arc::clone(&holder.upstream));
        used.or_default().streams += 1;
    }

    fn take_opening(&mut self, holder: &Holder) {
        *self.clients.entry(holder.client).or_default() += 1;
        let used = self.upstreams.entry(Arc::clone(&holder.upstream));
        let used = used.or_default();
        used.opening += 1;
        *used.opening_by_client.entry(holder.client).or_default() += 1;
    }

    fn give_back(&mut self, holder: &Holder, is_stream: bool) {
        take_one(&mut self.clients, &holder.client);
        self.streams -= usize::from(is_stream && self.streams > 0);
        let Some(used) = self.upstreams.get_mut(&holder.upstream) else {
            return;
        };
        if is_stream {
            used.streams = used.streams.saturating_sub(1);
        } else {
            used.opening = used.opening.saturating_sub(1);
            take_one(&mut used.opening_by_client, &holder.client);
        }
        if used.streams == 0 && used.opening == 0 {
            self.upstreams.remove(&holder.upstream);
        }
    }

    /// Takes a stream for the request whose turn it is.
    fn next_answered(&mut self, limits: Streams) -> Option<Waiter<Stream>> {
        self.answered.retain(|waiter| !waiter.granted.is_closed());
        let turn = self.turn(&self.answered, |state, holder| {
            state.has_stream(&holder.upstream, holder.urgent.get(), limits)
        })?;
        let waiter = self.answered.remove(turn);
        self.take_stream(&waiter.holder);
        Some(waiter)
    }

    /// Takes an opening for the download whose turn it is.
    fn next_waiting(&mut self, limits: Streams) -> Option<Waiter<Opening>> {
        self.waiting.retain(|waiter| !waiter.granted.is_closed());
        let turn = self.turn(&self.waiting, |state, holder| {
            state.may_open(holder, limits)
        })?;
        let waiter = self.waiting.remove(turn);
        self.take_opening(&waiter.holder);
        Some(waiter)
    }

    /// Of those that may go on, the urgent ones first; of them, the one whose client holds least.
    fn turn<T>(
        &self,
        waiting: &[Waiter<T>],
        may: impl Fn(&Self, &Holder) -> bool,
    ) -> Option<usize> {
        let held = |client: &Client| self.clients.get(client).copied().unwrap_or(0);
        let able = waiting.iter().enumerate();
        let able = able.filter(|(_, waiter)| may(self, &waiter.holder));
        let first = able.min_by_key(|(at, Waiter { holder, .. })| {
            (!holder.urgent.get(), held(&holder.client), *at)
        });
        first.map(|(at, _)| at)
    }
}

fn take_one(counts: &mut HashMap<Client, usize>, client: &Client) {
    if let Some(count) = counts.get_mut(client) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(client);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.permits.state().give_back(&self.holder, false);
        self.permits.dispatch();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.permits.state().give_back(&self.holder, true);
        self.permits.dispatch();
    }
}

#[cfg(test)]
mod tests;
