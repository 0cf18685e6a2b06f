//! What the benches share: the upstream, the server under test, the load generator, and the report.
//! Each runs in a process of its own, so that the CPU time of each is known.

#![allow(dead_code, reason = "no bench uses everything")]

pub(crate) mod content;
pub(crate) mod load;
pub(crate) mod pace;
pub(crate) mod proc;
pub(crate) mod report;
pub(crate) mod scratch;
pub(crate) mod server;
pub(crate) mod upstream;
pub(crate) mod wire;

use anyhow::Result;
use clap::Subcommand;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// What the other processes of a run do.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    Upstream(upstream::Plan),
    Load(load::Plan),
}

impl Role {
    pub(crate) fn play(&self) -> Result<()> {
        match self {
            Self::Upstream(plan) => upstream::run(plan),
            Self::Load(plan) => load::run(plan),
        }
    }
}

/// Reports progress, apart from the report.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Whether something is to be measured: `cargo test --all-targets` and test runners start every
/// target, and only `cargo bench` passes an argument.
pub(crate) fn is_wanted(bench: &str) -> bool {
    let wanted = std::env::args().len() > 1 && !std::env::args().any(|arg| arg == "--list");
    if !wanted {
        note(&format!(
            "nothing measured: run cargo bench --bench {bench}"
        ));
    }
    wanted
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

/// The opening lines of a report.
pub(crate) fn print_heading(title: &str, quick: bool) -> Result<()> {
    println!("# {title}\n");
    println!("{}", proc::describe_machine(&std::env::temp_dir())?);
    if quick {
        println!("\nA quick run: it shows that the bench works; its figures mean little.");
    }
    Ok(())
}

/// How many times `size` goes into `bytes`.
#[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
pub(crate) fn times(bytes: u64, size: u64) -> f64 {
    bytes as f64 / size as f64
}
