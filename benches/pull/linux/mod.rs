//! The bench proper. The binary plays three roles, each in processes of its own, so that the CPU
//! time of each is known apart: the orchestrator (this page), the upstream and the clients. The
//! mirror under test is a fourth. Everything talks over 127.0.0.1, and every wait has a bound.

#![expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
#![expect(clippy::print_stderr, reason = "progress, apart from the report")]
#![expect(
    clippy::disallowed_types,
    reason = "real time between processes is what is measured"
)]

mod clients;
mod cold;
mod content;
mod memory;
mod mirror;
mod pace;
mod proc;
mod registry;
#[expect(dead_code, reason = "benches/fetch uses more of it")]
mod report;
mod run;
mod scratch;
mod storm;
mod upstream;
#[expect(dead_code, reason = "benches/fetch uses more of it")]
mod wire;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Pulls through the mirror, measured against the project's targets.
#[derive(Debug, Parser)]
struct Args {
    /// Small sizes and one round: shows that the bench works, not how fast the mirror is.
    #[arg(long)]
    quick: bool,
    /// Measure only this; may be given more than once.
    #[arg(long)]
    only: Vec<Part>,
    /// How often each comparison is repeated.
    #[arg(long)]
    rounds: Option<u32>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Storm,
    Cold,
    Memory,
}

/// What the other processes of a run are told to be.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Role {
    Upstream(upstream::Plan),
    Clients(clients::Plan),
}

/// How much is measured.
#[derive(Debug)]
struct Sizes {
    /// Bytes of the blob where the mirror is the bottleneck.
    blob: u64,
    /// Bytes of the blob where the upstream is.
    throttled_blob: u64,
    /// How often each comparison is repeated.
    rounds: u32,
    /// Blobs whose first byte is timed.
    first_bytes: u64,
    /// How long slow clients hold on.
    hold: Duration,
}

impl Sizes {
    fn new(args: &Args) -> Self {
        let (blob, throttled_blob, rounds, first_bytes, hold) = if args.quick {
            (128 * MIB, 64 * MIB, 1, 9, Duration::from_secs(2))
        } else {
            (GIB, 512 * MIB, 3, 31, Duration::from_secs(12))
        };
        let rounds = args.rounds.unwrap_or(rounds).max(1);
        Self {
            blob,
            throttled_blob,
            rounds,
            first_bytes,
            hold,
        }
    }

    /// How many blobs of `size` are `bytes`.
    #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
    fn blobs(bytes: u64, size: u64) -> f64 {
        bytes as f64 / size as f64
    }

    /// The large blob in GiB.
    fn gibibytes(&self) -> f64 {
        Self::blobs(self.blob, GIB)
    }

    /// The large blob's size in words.
    fn name(&self) -> String {
        format!("{} MiB", self.blob / MIB)
    }
}

/// Says what is going on, apart from the report.
fn note(text: &str) {
    eprintln!("{text}");
}

pub(super) fn main() -> Result<()> {
    // `cargo test --all-targets` and test runners start every target; only cargo bench says so.
    if std::env::args().len() == 1 || std::env::args().any(|arg| arg == "--list") {
        note("nothing measured: run cargo bench --bench pull");
        return Ok(());
    }
    let args = Args::parse();
    match &args.role {
        Some(Role::Upstream(plan)) => upstream::run(plan, |line| println!("{line}")),
        Some(Role::Clients(plan)) => clients::run(plan, |line| println!("{line}")),
        None => orchestrate(&args),
    }
}

fn orchestrate(args: &Args) -> Result<()> {
    let sizes = Sizes::new(args);
    println!("# Pulls through the mirror, measured\n");
    println!("{}", proc::describe_machine(&std::env::temp_dir())?);
    if args.quick {
        println!("\nA quick run: it shows that the bench works; its figures mean little.");
    }
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Storm) {
        println!("{}", storm::measure(&sizes)?);
    }
    if wanted(Part::Cold) {
        println!("{}", cold::measure(&sizes)?);
    }
    if wanted(Part::Memory) {
        println!("{}", memory::measure(&sizes)?);
    }
    println!("{}", proc::describe_load()?);
    Ok(())
}
