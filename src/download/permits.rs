//! How many requests for blobs are open at once: over all upstreams, and to each.
//!
//! A request takes two permits, one after the other: one to be sent, and one for its body to be read.
//! A request that the upstream answers with an error never takes the second, so requests for blobs
//! that don't exist use up no streams.
//!
//! Order of those that wait: requests with an answer, downloads that a client waits for, those of the
//! client that holds the fewest permits, the oldest. Downloads without a client leave half of an
//! upstream's permits free.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::DownloadError;
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

#[derive(Debug, Clone)]
pub(super) struct Permits(Arc<PermitsInner>);

#[derive(Debug)]
struct PermitsInner {
    metrics: Arc<Metrics>,
    state: Mutex<PermitState>,
}

#[derive(Debug)]
struct PermitState {
    limits: Streams,
    streams: usize,
    upstreams: HashMap<Arc<str>, Used>,
    /// Permits of each client.
    clients: HashMap<Client, usize>,
    /// In the order of arrival. At most [`MAX_WAITING`] wait to send their request, and no more for a
    /// stream than there are permits to send.
    waiting: Vec<Waiter>,
}

/// Permits of one upstream.
#[derive(Debug, Default)]
struct Used {
    streams: usize,
    opening: usize,
    opening_by_client: HashMap<Client, usize>,
}

/// What a permit allows. In the order in which waiting requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Allows {
    /// Reading one body.
    Stream,
    /// Sending one request.
    Opening,
}

/// Whom a permit is for, and what for.
#[derive(Debug, Clone)]
struct Holder {
    upstream: Arc<str>,
    client: Client,
    urgent: Urgency,
    allows: Allows,
}

#[derive(Debug)]
struct Waiter {
    holder: Holder,
    granted: oneshot::Sender<Permit>,
}

/// Whether a client waits for a download. It may change while the download waits for a permit.
#[derive(Debug, Clone)]
pub(super) struct Urgency(Arc<AtomicBool>);

impl Urgency {
    pub(super) fn new(urgent: bool) -> Self {
        Self(Arc::new(AtomicBool::new(urgent)))
    }

    pub(super) fn set(&self, urgent: bool) {
        self.0.store(urgent, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The right to send one request, and then to read its body, until dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    holder: Holder,
    _counted: Option<InFlight>,
}

impl Permit {
    /// The upstream has answered with a body: waits for the right to read it. Cancel safe.
    pub(super) async fn answered(self) -> Self {
        if self.holder.allows == Allows::Stream {
            return self;
        }
        loop {
            let holder = Holder {
                allows: Allows::Stream,
                ..self.holder.clone()
            };
            // This can't be refused: there are no more of them than permits to send.
            if let Ok(stream) = self.permits.wait(holder).await {
                return stream;
            }
        }
    }
}

impl Permits {
    pub(super) fn new(limits: Streams, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(PermitsInner {
            metrics,
            state: Mutex::new(PermitState {
                limits,
                streams: 0,
                upstreams: HashMap::new(),
                clients: HashMap::new(),
                waiting: Vec::new(),
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, PermitState> {
        self.0.state.lock()
    }

    /// Applies other limits. Streams that are open beyond them stay open.
    pub(super) fn configure(&self, limits: Streams) {
        self.state().limits = limits;
        self.dispatch();
    }

    /// Waits for the right to send a request. Cancel safe: a caller that goes away loses its place.
    pub(super) async fn open(
        &self,
        upstream: &str,
        client: Client,
        urgent: Urgency,
    ) -> Result<Permit, DownloadError> {
        let _waiting = self.0.metrics.waiting_stream();
        self.wait(Holder {
            upstream: upstream.into(),
            client,
            urgent,
            allows: Allows::Opening,
        })
        .await
    }

    async fn wait(&self, holder: Holder) -> Result<Permit, DownloadError> {
        let (granted, permit) = oneshot::channel();
        self.state().enqueue(Waiter { holder, granted })?;
        self.dispatch();
        // The sender is dropped only after sending.
        permit.await.map_err(|_dropped| DownloadError::Lost)
    }

    /// A further stream of a running download, for which a client waits if it is `urgent`. None if it
    /// would have to wait, or a download that a client waits for would.
    pub(super) fn try_stream(
        &self,
        upstream: &str,
        client: Client,
        urgent: bool,
    ) -> Option<Permit> {
        let mut state = self.state();
        let wanted =
            |Waiter { holder, .. }: &Waiter| holder.urgent.get() && *holder.upstream == *upstream;
        if state.waiting.iter().any(wanted) || !state.has_stream(upstream, urgent) {
            return None;
        }
        let holder = Holder {
            upstream: upstream.into(),
            client,
            urgent: Urgency::new(urgent),
            allows: Allows::Stream,
        };
        state.take(&holder);
        drop(state);
        Some(self.permit(holder))
    }

    fn permit(&self, holder: Holder) -> Permit {
        let streams = holder.allows == Allows::Stream;
        Permit {
            permits: self.clone(),
            _counted: streams.then(|| self.0.metrics.stream(&holder.upstream)),
            holder,
        }
    }

    /// Gives free permits to those whose turn it is. Called when one is free, and when a download
    /// that waits has become urgent.
    pub(super) fn dispatch(&self) {
        loop {
            let next = self.state().next();
            let Some(Waiter { holder, granted }) = next else {
                return;
            };
            // One that has gone away gives the permit back by dropping it, which dispatches again.
            drop(granted.send(self.permit(holder)));
        }
    }
}

impl PermitState {
    fn enqueue(&mut self, waiter: Waiter) -> Result<(), DownloadError> {
        if waiter.holder.allows == Allows::Opening {
            self.waiting.retain(|waiter| !waiter.granted.is_closed());
            let opens = |waiter: &&Waiter| waiter.holder.allows == Allows::Opening;
            if self.waiting.iter().filter(opens).count() >= MAX_WAITING {
                return Err(DownloadError::Busy);
            }
        }
        self.waiting.push(waiter);
        Ok(())
    }

    fn has_stream(&self, upstream: &str, urgent: bool) -> bool {
        let limits = self.limits;
        let share = |limit: usize| if urgent { limit } else { limit.div_ceil(2) };
        let streams = self.upstreams.get(upstream).map_or(0, |used| used.streams);
        self.streams < share(limits.total) && streams < share(limits.per_upstream)
    }

    /// Whether a waiting request may continue. It may be sent when a stream is free for its answer.
    fn may_continue(&self, holder: &Holder) -> bool {
        let limits = self.limits;
        let urgent = holder.urgent.get();
        if !self.has_stream(&holder.upstream, urgent) {
            return false;
        }
        let Some(used) = self.upstreams.get(&holder.upstream) else {
            return true;
        };
        if holder.allows == Allows::Stream {
            return true;
        }
        if !urgent {
            return used.streams + used.opening < limits.per_upstream.div_ceil(2);
        }
        let most = MAX_OPENING.min(limits.per_upstream.saturating_mul(OPENING_PER_STREAM));
        let of_client = used.opening_by_client.get(&holder.client);
        used.opening < most && of_client.is_none_or(|used| *used < MAX_OPENING_OF_CLIENT)
    }

    /// Takes the permit of the request whose turn it is.
    fn next(&mut self) -> Option<Waiter> {
        self.waiting.retain(|waiter| !waiter.granted.is_closed());
        let held = |client: &Client| self.clients.get(client).copied().unwrap_or(0);
        let able = self.waiting.iter().enumerate();
        let able = able.filter(|(_, waiter)| self.may_continue(&waiter.holder));
        let (turn, _) = able.min_by_key(|(at, Waiter { holder, .. })| {
            (
                holder.allows,
                !holder.urgent.get(),
                held(&holder.client),
                *at,
            )
        })?;
        let waiter = self.waiting.remove(turn);
        self.take(&waiter.holder);
        Some(waiter)
    }

    fn take(&mut self, holder: &Holder) {
        *self.clients.entry(holder.client).or_default() += 1;
        let used = self.upstreams.entry(Arc::clone(&holder.upstream));
        let used = used.or_default();
        match holder.allows {
            Allows::Stream => {
                self.streams += 1;
                used.streams += 1;
            }
            Allows::Opening => {
                used.opening += 1;
                *used.opening_by_client.entry(holder.client).or_default() += 1;
            }
        }
    }

    fn give_back(&mut self, holder: &Holder) {
        take_one(&mut self.clients, &holder.client);
        let Some(used) = self.upstreams.get_mut(&holder.upstream) else {
            return;
        };
        match holder.allows {
            Allows::Stream => {
                self.streams = self.streams.saturating_sub(1);
                used.streams = used.streams.saturating_sub(1);
            }
            Allows::Opening => {
                used.opening = used.opening.saturating_sub(1);
                take_one(&mut used.opening_by_client, &holder.client);
            }
        }
        if used.streams == 0 && used.opening == 0 {
            self.upstreams.remove(&holder.upstream);
        }
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

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.state().give_back(&self.holder);
        self.permits.dispatch();
    }
}

#[cfg(test)]
mod tests;
