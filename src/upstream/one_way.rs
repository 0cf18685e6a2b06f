//! Whether a download may read from another replica. From some time on it may not, and never again.
//!
//! A replica serves another one from a download only once it reads from none itself; so no two wait for each
//! other. Where both ask each other at the same time, each finds the other one's download undecided, is
//! refused, and goes on to the upstream.
//!
//! `tests/interleavings` compiles this file a second time, with a lock that explores orders of events.

use super::sync::{Mutex, MutexGuard, PoisonError};

/// Whether a download may read from another replica, and which it reads from: a `P`.
#[derive(Debug)]
pub(super) struct OneWay<P>(Mutex<State<P>>);

#[derive(Debug)]
struct State<P> {
    is_direct: bool,
    /// Kept after the download has gone on to the upstream.
    peer: Option<P>,
}

impl<P> Default for OneWay<P> {
    /// It may read from a replica.
    fn default() -> Self {
        Self(Mutex::new(State {
            is_direct: false,
            peer: None,
        }))
    }
}

impl<P: Copy> OneWay<P> {
    fn state(&self) -> MutexGuard<'_, State<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no replica is asked.
    pub(super) fn is_direct(&self) -> bool {
        self.state().is_direct
    }

    /// From now on no replica is asked.
    pub(super) fn go_direct(&self) {
        self.state().is_direct = true;
    }

    /// A replica has begun to send. False where that isn't read, because the download has gone on to the
    /// upstream since it was asked: other replicas may read from the download by now.
    pub(super) fn begin(&self, peer: Option<P>) -> bool {
        let mut state = self.state();
        if !state.is_direct {
            state.peer = peer;
        }
        !state.is_direct
    }

    /// The replica that sends.
    pub(super) fn peer(&self) -> Option<P> {
        let state = self.state();
        state.peer.filter(|_| !state.is_direct)
    }

    /// What came from replicas is wrong: from now on none is asked. False where nothing came from any.
    pub(super) fn distrust(&self) -> bool {
        let mut state = self.state();
        let has_read = state.peer.take().is_some();
        state.is_direct |= has_read;
        has_read
    }
}
