//! Which calls fail, stall or fall short: those that a test names, and those that chance picks.

use std::io;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Operation;
use crate::storage::StoreError;

/// What calls fail with by chance: a damaged medium, a full disk, and an error that passes.
const KINDS: [io::ErrorKind; 3] = [
    io::ErrorKind::Other,
    io::ErrorKind::StorageFull,
    io::ErrorKind::OutOfMemory,
];
/// The most bytes of a read that chance cuts short.
const SHORT: usize = 5000;

#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    pub(super) reached: CancellationToken,
    pub(super) released: CancellationToken,
}

/// What a store's calls meet.
#[derive(Debug, Default)]
pub(super) struct Script(Mutex<ScriptState>);

#[derive(Debug, Default)]
struct ScriptState {
    faults: Vec<Fault>,
    chance: Option<Chance>,
    delays: Option<(fastrand::Rng, Duration)>,
}

/// Failures by chance.
#[derive(Debug)]
struct Chance {
    random: fastrand::Rng,
    per_mille: u32,
    operations: Vec<Operation>,
}

#[derive(Debug)]
struct Fault {
    operation: Operation,
    /// Calls of the operation that still pass before this fault strikes.
    passing: u64,
    effect: Effect,
}

#[derive(Debug, Clone)]
pub(super) enum Effect {
    FailOnce(io::ErrorKind),
    FailAlways(io::ErrorKind),
    Stall(Gate),
    /// A read returns at most so many bytes.
    Short(usize),
    Panic,
}

impl Gate {
    pub(super) async fn wait(&self) {
        self.reached.cancel();
        self.released.cancelled().await;
    }
}

/// What one call meets.
#[derive(Debug)]
struct Due {
    stalls: Vec<Gate>,
    /// The most bytes that a read may return, or an error.
    outcome: Result<usize, io::ErrorKind>,
    panics: bool,
}

impl Due {
    fn outcome(self, operation: Operation) -> Result<usize, StoreError> {
        assert!(!self.panics, "a scripted panic of {operation:?}");
        self.outcome.map_err(|kind| StoreError::Io {
            operation: "pass",
            path: Path::new("a faulty store").join(format!("{operation:?}")),
            source: kind.into(),
        })
    }
}

impl Chance {
    fn strike(&mut self, operation: Operation) -> Option<Result<usize, io::ErrorKind>> {
        if !self.operations.contains(&operation) || self.random.u32(0..1000) >= self.per_mille {
            return None;
        }
        let short = operation == Operation::Read && self.random.bool();
        if short {
            return Some(Ok(self.random.usize(1..=SHORT)));
        }
        self.random.choice(KINDS).map(Err)
    }
}

impl Script {
    pub(super) fn add(&self, operation: Operation, nth: u64, effect: Effect) {
        let fault = Fault {
            operation,
            passing: nth.saturating_sub(1),
            effect,
        };
        self.0.lock().faults.push(fault);
    }

    /// From now on each call of `operations` fails with this probability; none for 0.
    pub(super) fn chance(&self, seed: u64, per_mille: u32, operations: &[Operation]) {
        self.0.lock().chance = (per_mille > 0).then(|| Chance {
            random: fastrand::Rng::with_seed(seed),
            per_mille,
            operations: operations.to_vec(),
        });
    }

    pub(super) fn delay(&self, seed: u64, max: Duration) {
        self.0.lock().delays = Some((fastrand::Rng::with_seed(seed), max));
    }

    pub(super) async fn pass(&self, operation: Operation) -> Result<usize, StoreError> {
        let delay = self
            .0
            .lock()
            .delays
            .as_mut()
            .map(|(random, max)| max.mul_f64(random.f64()));
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let due = self.strike(operation);
        for gate in &due.stalls {
            gate.wait().await;
        }
        due.outcome(operation)
    }

    pub(super) fn pass_blocking(&self, operation: Operation) -> Result<usize, StoreError> {
        let due = self.strike(operation);
        for gate in &due.stalls {
            tokio::runtime::Handle::current().block_on(gate.wait());
        }
        due.outcome(operation)
    }

    /// Counts a call; faults that strike once are used up.
    fn strike(&self, operation: Operation) -> Due {
        let mut due = Due {
            stalls: Vec::new(),
            outcome: Ok(usize::MAX),
            panics: false,
        };
        let mut state = self.0.lock();
        state.faults.retain_mut(|fault| {
            if fault.operation != operation {
                return true;
            }
            if fault.passing > 0 {
                fault.passing -= 1;
                return true;
            }
            match &fault.effect {
                Effect::FailOnce(kind) | Effect::FailAlways(kind) => due.outcome = Err(*kind),
                Effect::Stall(gate) => due.stalls.push(gate.clone()),
                Effect::Short(max) => due.outcome = due.outcome.map(|most| most.min(*max)),
                Effect::Panic => due.panics = true,
            }
            matches!(fault.effect, Effect::FailAlways(_))
        });
        let chance = state.chance.as_mut();
        if let Some(outcome) = chance.and_then(|chance| chance.strike(operation)) {
            due.outcome = due.outcome.and(outcome);
        }
        due
    }
}
