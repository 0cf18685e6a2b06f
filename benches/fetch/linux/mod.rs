//! The bench proper: rows of downloads that something makes hard, be it the line, the clients or
//! the upstream. The upstream is a process of its own, the mirror another; the clients are threads
//! of this one, for no CPU time is measured here. Everything talks over 127.0.0.1, and every wait
//! has a bound.

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
mod cuts;
mod joins;
mod ranges;
mod throttled;

#[path = "../../pull/linux/content.rs"]
mod content;
#[expect(dead_code, reason = "benches/pull uses more of it")]
#[path = "../../pull/linux/mirror.rs"]
mod mirror;
#[path = "../../pull/linux/pace.rs"]
mod pace;
#[expect(dead_code, reason = "benches/pull uses more of it")]
#[path = "../../pull/linux/proc.rs"]
mod proc;
#[path = "../../pull/linux/registry.rs"]
mod registry;
#[expect(dead_code, reason = "benches/pull uses more of it")]
#[path = "../../pull/linux/report.rs"]
mod report;
#[expect(dead_code, reason = "benches/pull uses more of it")]
#[path = "../../pull/linux/upstream.rs"]
mod upstream;
#[path = "../../pull/linux/wire.rs"]
mod wire;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use mirror::Mirror;
use upstream::{Stats, Upstream};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Medians of ratios whose samples lie further apart than this part of them aren't printed.
const STEADY: f64 = 0.2;

/// Cold content through the mirror, measured against the project's targets.
#[derive(Debug, Parser)]
struct Args {
    /// Small sizes and one round: shows that the bench works, not how good the mirror is.
    #[arg(long)]
    quick: bool,
    /// Measure only this; may be given more than once.
    #[arg(long)]
    only: Vec<Part>,
    /// How often each comparison is repeated.
    #[arg(long)]
    rounds: Option<u32>,
    /// Keys for the section `proxy` of the mirror's configuration, as a JSON object. Without it the
    /// mirror runs with its defaults, and those are what the targets are for.
    #[arg(long)]
    proxy: Option<String>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Throttled,
    Joins,
    Cuts,
    Ranges,
}

/// What the other process of a run is told to be.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Role {
    Upstream(upstream::Plan),
}

/// How much is measured, in bytes and bytes per second where nothing else is said.
#[derive(Debug)]
struct Sizes {
    rounds: u32,
    /// A connection's rate where connections are throttled, the blob, and the image's layers.
    throttled_rate: u64,
    throttled_blob: u64,
    layers: Vec<u64>,
    /// How many clients join, the rate of the line, and the blob.
    joiners: u32,
    join_rate: u64,
    join_blob: u64,
    /// The upstream cuts [`cuts::CUTS`] times in this blob.
    cut_blob: u64,
    /// The blob that is read in ranges, and how much of a range each request takes.
    range_blob: u64,
    range_chunk: u64,
}

impl Sizes {
    fn full() -> Self {
        Self {
            rounds: 3,
            throttled_rate: 20 * MIB,
            throttled_blob: 512 * MIB,
            layers: [40, 100, 52, 88, 64, 76].map(|size| size * MIB).to_vec(),
            joiners: 63,
            join_rate: 32 * MIB,
            join_blob: GIB,
            cut_blob: GIB,
            range_blob: 512 * MIB,
            range_chunk: 8 * MIB,
        }
    }

    fn quick() -> Self {
        Self {
            rounds: 1,
            throttled_rate: 60 * MIB,
            throttled_blob: 96 * MIB,
            layers: [6, 15, 8, 13, 9, 11].map(|size| size * MIB).to_vec(),
            joiners: 15,
            join_rate: 32 * MIB,
            join_blob: 48 * MIB,
            cut_blob: 128 * MIB,
            range_blob: 64 * MIB,
            range_chunk: MIB,
        }
    }
}

/// What every part is given.
#[derive(Debug)]
struct Bench {
    sizes: Sizes,
    /// Keys for the section `proxy` of the mirror's configuration.
    proxy: Map<String, Value>,
}

impl Bench {
    fn new(args: &Args) -> Result<Self> {
        let mut sizes = if args.quick {
            Sizes::quick()
        } else {
            Sizes::full()
        };
        sizes.rounds = args.rounds.unwrap_or(sizes.rounds).max(1);
        let proxy = args.proxy.as_deref().unwrap_or("{}");
        let proxy = serde_json::from_str(proxy).context("--proxy wants a JSON object")?;
        Ok(Self { sizes, proxy })
    }

    /// A new mirror, with nothing in it.
    fn mirror(&self, upstream: &Upstream) -> Result<Mirror> {
        Mirror::start_with(upstream.addr(), &self.proxy)
    }

    /// Calls `measure` for every round, saying which.
    fn rounds<T>(&self, what: &str, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        let rounds = self.sizes.rounds;
        (1..=rounds)
            .map(|round| {
                eprintln!("{what}, round {round} of {rounds}");
                measure()
            })
            .collect()
    }
}

/// The upstream's counts once it has sent nothing for a while: a download may outlive its clients.
fn settled(upstream: &Upstream) -> Result<Stats> {
    const POLL: Duration = Duration::from_millis(20);
    const QUIET_POLLS: u32 = 20;
    const LIMIT: Duration = Duration::from_mins(2);
    let started = Instant::now();
    let (mut last, mut quiet) = (upstream.stats()?, 0);
    while quiet < QUIET_POLLS {
        ensure!(
            started.elapsed() < LIMIT,
            "the upstream doesn't come to rest"
        );
        thread::sleep(POLL);
        let now = upstream.stats()?;
        quiet = if now.sending > 0 || now.bytes > last.bytes {
            0
        } else {
            quiet + 1
        };
        last = now;
    }
    Ok(last)
}

/// How many times `size` goes into `bytes`.
#[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
fn times(bytes: u64, size: u64) -> f64 {
    bytes as f64 / size as f64
}

pub(super) fn main() -> Result<()> {
    // `cargo test --all-targets` and test runners start every target; only cargo bench says so.
    if std::env::args().len() == 1 || std::env::args().any(|arg| arg == "--list") {
        eprintln!("nothing measured: run cargo bench --bench fetch");
        return Ok(());
    }
    let args = Args::parse();
    match &args.role {
        Some(Role::Upstream(plan)) => upstream::run(plan, |line| println!("{line}")),
        None => orchestrate(&args),
    }
}

fn orchestrate(args: &Args) -> Result<()> {
    let bench = Bench::new(args)?;
    println!("# Cold content through the mirror, measured\n");
    println!("{}", proc::describe_machine(&std::env::temp_dir())?);
    if args.quick {
        println!("\nA quick run: it shows that the bench works; its figures mean little.");
    }
    if !bench.proxy.is_empty() {
        println!(
            "\nThe mirror's section proxy: `{}`",
            Value::Object(bench.proxy.clone())
        );
    }
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Throttled) {
        println!("{}", throttled::measure(&bench)?);
    }
    if wanted(Part::Joins) {
        println!("{}", joins::measure(&bench)?);
    }
    if wanted(Part::Cuts) {
        println!("{}", cuts::measure(&bench)?);
    }
    if wanted(Part::Ranges) {
        println!("{}", ranges::measure(&bench)?);
    }
    println!("{}", proc::describe_load()?);
    Ok(())
}
