//! The orchestrator. The load generator, the nodes of the trace and, where the reference registry
//! isn't installed, the upstream are processes of their own. All connections are over 127.0.0.1, and
//! every wait has a bound.

#![expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
#![expect(clippy::print_stderr, reason = "progress, apart from the report")]
#![expect(
    clippy::disallowed_types,
    reason = "real time between processes is what is measured"
)]
#![expect(
    clippy::format_push_string,
    reason = "reports are short, and read better so"
)]

mod chart;
#[path = "../../common/mod.rs"]
mod common;
mod library;
mod memory;
mod peers;
mod results;
mod rows;
mod run;
mod stats;
mod trace;
mod upstream;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tempfile::TempDir;

use common::{MIB, is_wanted, note};
use library::Library;
use peers::{Peer, Sources};
use results::Results;
use run::Runner;
use upstream::Upstream;

/// Open files that the bench asks for: a thousand connections and then some.
const OPEN_FILES: u64 = 16 * 1024;

/// millpond beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Small sizes and short rounds: shows that the bench works, not how fast anything is.
    #[arg(long)]
    quick: bool,
    /// How often each comparison is repeated.
    #[arg(long)]
    rounds: Option<u32>,
    /// Where cold bytes come from; the reference registry, where it is installed.
    #[arg(long)]
    upstream: Option<Kind>,
    /// The binary to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_millpond"))]
    millpond: PathBuf,
    /// Objects in the cache whose memory is measured.
    #[arg(long)]
    objects: Option<u64>,
    /// Doesn't write the report to benches/results.
    #[arg(long)]
    dry: bool,
    /// Only rows whose name begins so: warm-1g-1, warm-1g-16, warm-1m, warm-1k, tag-get, tag-head,
    /// digest-get, digest-head, churn-1k, busy-manifests, busy-uncached, cold-1, cold-16, memory,
    /// trace, rollout. soak runs only when it is named.
    rows: Vec<String>,
    /// Minutes of the row soak.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Registry,
    Ours,
}

/// What the other processes of a run do.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Role {
    #[command(flatten)]
    Common(common::Role),
    Nodes(trace::nodes::Plan),
}

/// How much is measured.
#[derive(Debug)]
struct Sizes {
    /// Bytes of the large blob.
    large: u64,
    /// Duration of a timed run.
    timed: Duration,
    rounds: u32,
    objects: u64,
    /// How long slow readers hold on.
    hold: Duration,
}

impl Sizes {
    fn new(args: &Args) -> Self {
        let (large, timed, rounds, objects, hold) = if args.quick {
            (64 * MIB, 300, 3, 2000, 2)
        } else {
            (1024 * MIB, 2000, 5, 100_000, 8)
        };
        Self {
            large,
            timed: Duration::from_millis(timed),
            rounds: args.rounds.unwrap_or(rounds).max(1),
            objects: args.objects.unwrap_or(objects),
            hold: Duration::from_secs(hold),
        }
    }
}

pub(super) fn main() -> Result<()> {
    if !is_wanted("compare") {
        return Ok(());
    }
    let args = Args::parse();
    match &args.role {
        Some(Role::Common(role)) => role.play(),
        Some(Role::Nodes(plan)) => trace::nodes::run(plan),
        None => orchestrate(&args),
    }
}

fn orchestrate(args: &Args) -> Result<()> {
    allow_open_files()?;
    let sizes = Sizes::new(args);
    let wanted =
        |key: &str| args.rows.is_empty() || args.rows.iter().any(|row| key.starts_with(row));
    let directory = TempDir::with_prefix("millpond-compare-")?;
    note("making the content");
    let library = Library::make(directory.path(), sizes.large)?;
    let upstream = start_upstream(args, &library)?;
    let mut results = Results::new(args.quick, &sizes, upstream.name(), directory.path())?;
    let sources = Sources {
        upstream: upstream.addr(),
        files: library.files.clone(),
        millpond: args.millpond.clone(),
    };
    let mut runner = Runner::new(&sources, &upstream, &sizes);
    for row in rows::all(&library, &sizes) {
        if wanted(row.key) {
            runner.measure(&row, &mut results)?;
        }
    }
    drop(runner);
    if wanted("memory") {
        memory::measure(&library, &sources, &sizes, &mut results)?;
    }
    if wanted("trace") {
        trace::measure(args.quick, &args.millpond, &mut results)?;
    }
    if wanted("rollout") {
        trace::rollout::measure(args.quick, sizes.rounds, &args.millpond, &mut results)?;
    }
    if args.rows.iter().any(|row| row == "soak") {
        let length = Duration::from_mins(args.minutes);
        trace::soak::measure(length, &args.millpond, &mut results)?;
    }
    println!("{}", results.text()?);
    if !args.dry {
        results.write().context("writing the report")?;
    }
    Ok(())
}

fn start_upstream(args: &Args, library: &Library) -> Result<Upstream> {
    let installed = Peer::Registry
        .program()
        .is_some_and(|program| peers::version(program).is_some());
    match args.upstream {
        Some(Kind::Registry) => Upstream::registry(library.shelf.root()),
        None if installed => Upstream::registry(library.shelf.root()),
        _ => Upstream::ours(library.shelf.root(), 0),
    }
}

/// A thousand connections need more files than some shells allow. The servers inherit the limit.
fn allow_open_files() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
