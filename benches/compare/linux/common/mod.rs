//! What the rows share: the upstream, the server under test, the load generator, and the report. Each
//! runs in a process of its own, so that the CPU time of each is known.

pub(crate) mod collector;
pub(crate) mod content;
mod line;
pub(crate) mod load;
pub(crate) mod objects;
pub(crate) mod pace;
pub(crate) mod proc;
mod registry;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod scratch;
pub(crate) mod server;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::thread;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::bucket::client;
use super::trace::nodes;
use proc::Process;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// What the other processes of a run do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Upstream(upstream::Plan),
    Load(load::Plan),
    Nodes(nodes::Plan),
    Bucket(client::Plan),
}

impl Role {
    /// Starts this very binary in the role.
    pub(crate) fn spawn(&self) -> Result<Process> {
        self.spawn_with(&[])
    }

    /// The same with more variables in its environment.
    pub(crate) fn spawn_with(&self, variables: &[(&str, &str)]) -> Result<Process> {
        Process::spawn_self(&["--role", &serde_json::to_string(self)?], variables)
    }

    pub(crate) fn play(self) -> Result<()> {
        match self {
            Self::Upstream(plan) => registry::run(plan),
            Self::Load(plan) => load::run(&plan),
            Self::Nodes(plan) => nodes::run(&plan),
            Self::Bucket(plan) => client::run(&plan),
        }
    }
}

/// Reports progress, apart from the report.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Calls `measure` once for each round.
pub(crate) fn rounds<T>(
    what: &str,
    rounds: u32,
    mut measure: impl FnMut() -> Result<T>,
) -> Result<Vec<T>> {
    (1..=rounds)
        .map(|round| {
            note(&format!("{what}, round {round} of {rounds}"));
            measure()
        })
        .collect()
}

/// Runs each in a thread of its own; what all of them return, or the first error.
pub(crate) fn together<T: Send>(
    work: impl IntoIterator<Item = impl FnOnce() -> Result<T> + Send>,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = work.into_iter().map(|work| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(threads.len());
        for thread in threads {
            let Ok(done) = thread.join() else {
                bail!("a thread panicked")
            };
            all.push(done?);
        }
        Ok(all)
    })
}

/// How many times `size` goes into `bytes`.
pub(crate) fn times(bytes: u64, size: u64) -> f64 {
    bytes as f64 / size as f64
}
