//! Whether an endpoint is asked: a circuit breaker, judged by outcomes only.
//!
//! ```text
//! Closed ── FAILURES in a row, or a 429 ──► Open ── its pause is over: one probe ──► HalfOpen
//!    ▲                                       ▲                                        │  │
//!    └───────────────────────────────────────┼─────────── the probe succeeds ─────────┘  │
//!                                            └─ it fails: a longer pause; it is cancelled ┘
//! ```
//!
//! Each state has a generation, which a request's [`Pass`] names: an outcome counts only in the state
//! that permitted the request. So a request that was sent before the circuit opened can neither close
//! it nor extend its pause. Pure: the caller brings the time and the jitter.

use std::time::Duration;

use tokio::time::Instant;

use super::sync::{Mutex, MutexGuard, PoisonError};

/// Consecutive failures that open the circuit.
pub(super) const FAILURES: u32 = 3;
/// The first pause; each further one, while no probe succeeds, is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause before jitter. A longer `Retry-After` isn't waited for: one request probes.
pub(super) const MAX_PAUSE: Duration = Duration::from_mins(1);
/// The shortest `Retry-After` that is believed where it is honoured.
pub(super) const MIN_HONOURED: Duration = Duration::from_secs(1);
/// A probe that takes longer than this no longer keeps another one from being sent.
pub(super) const PROBE_TIME: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Circuit {
    /// The longest `Retry-After` that is waited for to its end. None: no pause is longer than
    /// [`MAX_PAUSE`], because there are other endpoints to ask.
    honoured: Option<Duration>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    generation: u64,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        /// Consecutive.
        failures: u32,
    },
    Open {
        until: Instant,
        /// Pauses since it was last closed.
        pauses: u32,
    },
    HalfOpen {
        /// When the probe was sent.
        since: Instant,
        pauses: u32,
    },
}

/// The right to send one request. None within: its outcome doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass(Option<u64>);

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Failed,
    /// The endpoint asks for fewer requests (429), and says for how long, if it does.
    PushedBack(Option<Duration>),
}

/// What an outcome has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// For this long.
    Opened(Duration),
    Closed,
}

/// What the circuit is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Closed,
    /// Until then.
    Open(Instant),
    HalfOpen,
}

impl Circuit {
    pub(super) fn new() -> Self {
        Self {
            honoured: None,
            inner: Mutex::new(Inner {
                generation: 0,
                state: State::Closed { failures: 0 },
            }),
        }
    }

    /// One that sends nothing before a `Retry-After` of at most `longest` is over.
    pub(super) fn honouring(longest: Duration) -> Self {
        Self {
            honoured: Some(longest),
            ..Self::new()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> View {
        match self.lock().state {
            State::Closed { .. } => View::Closed,
            State::Open { until, .. } => View::Open(until),
            State::HalfOpen { .. } => View::HalfOpen,
        }
    }

    /// The right to send a request, if there is one. `forced`: also while the circuit is open.
    pub(super) fn admit(&self, now: Instant, forced: bool) -> Option<Pass> {
        let mut inner = self.lock();
        let pauses = match inner.state {
            State::Closed { .. } => return Some(Pass(Some(inner.generation))),
            State::Open { until, pauses } if forced || now >= until => pauses,
            State::HalfOpen { since, pauses } if now >= since + PROBE_TIME => pauses,
            State::HalfOpen { .. } if forced => return Some(Pass(None)),
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };
        inner.enter(State::HalfOpen { since: now, pauses });
        Some(Pass(Some(inner.generation)))
    }

    /// The endpoint has answered.
    pub(super) fn succeeded(&self, pass: Pass) -> Option<Change> {
        let mut inner = self.of(pass)?;
        match &mut inner.state {
            State::Closed { failures } => {
                *failures = 0;
                None
            }
            State::Open { .. } => None,
            State::HalfOpen { .. } => {
                inner.enter(State::Closed { failures: 0 });
                Some(Change::Closed)
            }
        }
    }

    /// `jitter` is between 0 and 1: the pause is three to five quarters of its nominal length, but no
    /// shorter than a `Retry-After` that is [honoured](Self::honouring).
    pub(super) fn failed(
        &self,
        pass: Pass,
        trouble: Trouble,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let mut inner = self.of(pass)?;
        let pauses = match &mut inner.state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures < FAILURES && trouble == Trouble::Failed {
                    return None;
                }
                0
            }
            State::HalfOpen { pauses, .. } => *pauses,
            State::Open { .. } => return None,
        };
        let pause = self.pause(trouble, pauses, jitter.clamp(0.0, 1.0));
        inner.enter(State::Open {
            until: now + pause,
            pauses: pauses.saturating_add(1),
        });
        Some(Change::Opened(pause))
    }

    fn pause(&self, trouble: Trouble, pauses: u32, jitter: f64) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(pauses));
        let jittered = |nominal: Duration| nominal.min(MAX_PAUSE).mul_f64(0.75 + jitter / 2.0);
        match (trouble, self.honoured) {
            (Trouble::PushedBack(Some(wanted)), Some(longest)) => {
                let wanted = wanted.clamp(MIN_HONOURED, longest);
                let own = if pauses == 0 {
                    Duration::ZERO
                } else {
                    jittered(doubled)
                };
                own.max(wanted)
            }
            (Trouble::PushedBack(Some(wanted)), None) => jittered(doubled.max(wanted)),
            _ => jittered(doubled),
        }
    }

    /// The request has ended without an outcome. The next request is the probe in its place.
    pub(super) fn abandoned(&self, pass: Pass, now: Instant) {
        if let Some(mut inner) = self.of(pass)
            && let State::HalfOpen { pauses, .. } = inner.state
        {
            inner.enter(State::Open { until: now, pauses });
        }
    }

    /// The state, if the pass is for it.
    fn of(&self, pass: Pass) -> Option<MutexGuard<'_, Inner>> {
        let inner = self.lock();
        (pass.0 == Some(inner.generation)).then_some(inner)
    }
}

impl Inner {
    fn enter(&mut self, state: State) {
        self.generation += 1;
        self.state = state;
    }
}
