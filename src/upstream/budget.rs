//! What one account may still ask of an endpoint: what the endpoint says is left of its rate limit, and
//! the pauses that it has demanded with a 429.
//!
//! A 429 concerns the kind of request that it answers: a registry that limits manifests goes on serving
//! blobs. Until its pause is over, no request of this kind is sent; then one is, as a probe, and the
//! others follow once that is answered. Each kind has a [`Circuit`] for this. Pure: the caller brings
//! the time and the jitter.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::{Change, Circuit, Pass, Trouble, View};
use super::sync::{Mutex, MutexGuard, PoisonError};
use crate::config::Reserve;

/// The most by which the time between questions is stretched.
pub(super) const MAX_STRETCH: u32 = 60;
/// Kinds of requests that are limited separately.
pub(super) const KINDS: usize = 6;

/// What is left of a rate limit, as a response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Requests; more than 0.
    pub limit: u64,
    /// Requests; at most `limit`.
    pub remaining: u64,
    /// The time that the limit is for. What is left is unknown once it has passed.
    pub window: Duration,
}

#[derive(Debug)]
pub(super) struct Budget {
    reserve: Reserve,
    pauses: [Circuit; KINDS],
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Requests since the start.
    entered: u64,
    /// Of them, those that count.
    counted: u64,
    told: Option<Told>,
    /// Whether the last word was that less than the reserve is left.
    is_low: bool,
}

#[derive(Debug)]
struct Told {
    allowance: Allowance,
    /// `counted` when the request was sent that this answers, itself included.
    counted: u64,
    at: Instant,
}

/// The right to send one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    kind: usize,
    pass: Pass,
    counted: u64,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Admitted(Ticket),
    /// A probe is under way: its outcome decides.
    Probing,
    /// Not for this long.
    Paused(Duration),
}

/// What a response has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crossing {
    /// Less than the reserve is left.
    Low,
    /// The reserve is left again.
    Restored,
}

impl Budget {
    /// `longest`: the longest `Retry-After` that is honoured.
    pub(super) fn new(reserve: Reserve, longest: Duration) -> Self {
        Self {
            reserve,
            pauses: std::array::from_fn(|_| Circuit::honouring(longest)),
            inner: Mutex::new(Inner::default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the right to send a request of this `kind` (less than [`KINDS`]). `counts`: the rate
    /// limit counts it.
    pub(super) fn enter(&self, kind: usize, counts: bool, now: Instant) -> Entry {
        let Some(pause) = self.pauses.get(kind) else {
            return Entry::Probing;
        };
        let Some(pass) = pause.admit(now, false) else {
            return match pause.view() {
                View::Open(until) if until > now => Entry::Paused(until.duration_since(now)),
                View::Open(_) | View::HalfOpen | View::Closed => Entry::Probing,
            };
        };
        let mut inner = self.lock();
        inner.entered += 1;
        inner.counted += u64::from(counts);
        Entry::Admitted(Ticket {
            kind,
            pass,
            counted: inner.counted,
        })
    }

    /// The request was answered, and not with a 429. Whether that ends a pause.
    pub(super) fn answered(&self, ticket: Ticket) -> bool {
        let pause = self.pauses.get(ticket.kind);
        pause.and_then(|pause| pause.succeeded(ticket.pass)) == Some(Change::Closed)
    }

    /// The request was answered with a 429. The pause, if this begins one.
    pub(super) fn limited(
        &self,
        ticket: Ticket,
        retry_after: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        let pause = self.pauses.get(ticket.kind)?;
        let trouble = Trouble::PushedBack(retry_after);
        match pause.failed(ticket.pass, trouble, now, jitter)? {
            Change::Opened(pause) => Some(pause),
            Change::Closed => None,
        }
    }

    /// The request has ended without an answer.
    pub(super) fn abandoned(&self, ticket: Ticket, now: Instant) {
        if let Some(pause) = self.pauses.get(ticket.kind) {
            pause.abandoned(ticket.pass, now);
        }
    }

    /// A response says what is left. One to an earlier request than the last word's is out of date.
    pub(super) fn told(
        &self,
        ticket: Ticket,
        allowance: Allowance,
        now: Instant,
    ) -> Option<Crossing> {
        let mut inner = self.lock();
        if let Some(told) = &inner.told
            && told.counted > ticket.counted
        {
            return None;
        }
        let is_low = allowance.remaining < self.reserve.of(allowance.limit);
        inner.told = Some(Told {
            allowance,
            counted: ticket.counted,
            at: now,
        });
        let was_low = std::mem::replace(&mut inner.is_low, is_low);
        match (was_low, is_low) {
            (false, true) => Some(Crossing::Low),
            (true, false) => Some(Crossing::Restored),
            _ => None,
        }
    }

    /// What is left, without the requests that were sent since; None where that isn't known.
    pub(super) fn left(&self, now: Instant) -> Option<Allowance> {
        let inner = self.lock();
        let told = inner.told.as_ref()?;
        let is_known = now.saturating_duration_since(told.at) < told.allowance.window;
        let sent = inner.counted - told.counted;
        is_known.then(|| Allowance {
            remaining: told.allowance.remaining.saturating_sub(sent),
            ..told.allowance
        })
    }

    /// Sorts accounts: the one that has most left comes first, of equal ones the one that was used least,
    /// and those that are paused come last.
    pub(super) fn preference(&self, now: Instant) -> (bool, Reverse<u64>, u64) {
        let left = self.left(now).map_or(u64::MAX, |left| left.remaining);
        let used = self.lock().entered;
        (self.paused_for(now).is_some(), Reverse(left), used)
    }

    /// How many times as long as usual known answers are used without asking again: 1 while the reserve
    /// is left, then the reserve in relation to what is left.
    pub(super) fn stretch(&self, now: Instant) -> u32 {
        let Some(left) = self.left(now) else {
            return 1;
        };
        let reserve = self.reserve.of(left.limit);
        let stretch = match reserve.checked_div(left.remaining) {
            Some(stretch) => u32::try_from(stretch).unwrap_or(MAX_STRETCH),
            None if reserve == 0 => 1,
            None => MAX_STRETCH,
        };
        stretch.clamp(1, MAX_STRETCH)
    }

    /// The longest pause that isn't over.
    pub(super) fn paused_for(&self, now: Instant) -> Option<Duration> {
        let pauses = self.pauses.iter().filter_map(|pause| match pause.view() {
            View::Open(until) if until > now => Some(until.duration_since(now)),
            _ => None,
        });
        pauses.max()
    }
}
