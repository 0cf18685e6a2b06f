//! The orchestrator. The upstream, the mirror under test and the load generator are processes of their
//! own. All connections are over 127.0.0.1, and every wait has a bound.

#![expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
#![expect(clippy::print_stderr, reason = "progress, apart from the report")]
#![expect(
    clippy::disallowed_types,
    reason = "real time between processes is what is measured"
)]

mod cold;
#[path = "../../common/mod.rs"]
mod common;
mod memory;
mod run;
mod storm;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use common::{GIB, MIB, Role, is_wanted, print_heading, times};

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

    /// The large blob in GiB.
    fn gibibytes(&self) -> f64 {
        times(self.blob, GIB)
    }

    /// The large blob's size in words.
    fn name(&self) -> String {
        format!("{} MiB", self.blob / MIB)
    }
}

pub(super) fn main() -> Result<()> {
    if !is_wanted("pull") {
        return Ok(());
    }
    let args = Args::parse();
    match &args.role {
        Some(role) => role.play(),
        None => orchestrate(&args),
    }
}

fn orchestrate(args: &Args) -> Result<()> {
    let sizes = Sizes::new(args);
    print_heading("Pulls through the mirror, measured", args.quick)?;
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
    println!("{}", common::proc::describe_load()?);
    Ok(())
}
