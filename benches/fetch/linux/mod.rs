//! The orchestrator: rows of downloads that the line, the clients or the upstream make hard. The
//! upstream and the mirror are processes of their own; the clients are threads of this one, because no
//! CPU time is measured here. All connections are over 127.0.0.1, and every wait has a bound.

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

#[path = "../../common/mod.rs"]
mod common;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value};

use common::server::Server;
use common::upstream::Upstream;
use common::{GIB, MIB, Role, is_wanted, print_heading};

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

    /// A new mirror with an empty cache.
    fn mirror(&self, upstream: &Upstream) -> Result<Server> {
        Server::mirror(upstream.addr(), &self.proxy)
    }

    fn rounds<T>(&self, what: &str, measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        common::rounds(what, self.sizes.rounds, measure)
    }
}

pub(super) fn main() -> Result<()> {
    if !is_wanted("fetch") {
        return Ok(());
    }
    let args = Args::parse();
    match &args.role {
        Some(role) => role.play(),
        None => orchestrate(&args),
    }
}

fn orchestrate(args: &Args) -> Result<()> {
    let bench = Bench::new(args)?;
    print_heading("Cold content through the mirror, measured", args.quick)?;
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
    println!("{}", common::proc::describe_load()?);
    Ok(())
}
