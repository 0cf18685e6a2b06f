//! The orchestrator. The load generator, the nodes of the trace and the upstream are processes of their
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
#![expect(
    clippy::format_push_string,
    reason = "reports are short, and read better so"
)]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "three digits of a figure are printed"
)]

mod ahead;
mod bucket;
mod chart;
mod common;
mod instructions;
mod library;
mod memory;
mod peers;
mod pulls;
mod pushes;
mod replicas;
mod results;
mod rows;
mod run;
mod tls;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};
use tempfile::TempDir;

use common::server::Server;
use common::upstream::Upstream;
use common::{MIB, Role, note};
use library::Library;
use peers::{Peer, Sources};
use results::Results;
use run::Runner;

/// Open files that the bench asks for: a thousand connections and then some.
const OPEN_FILES: u64 = 16 * 1024;

/// The real program, measured: beside its peers, beside pulls straight from the upstream, and alone.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// Small sizes and short rounds: shows that the bench works, not how fast anything is.
    #[arg(long)]
    quick: bool,
    /// How often each comparison is repeated.
    #[arg(long)]
    rounds: Option<u32>,
    /// Where the cold bytes of the peers' rows come from; the reference registry, where it is installed.
    #[arg(long)]
    upstream: Option<Kind>,
    /// The binary to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_millpond"))]
    millpond: PathBuf,
    /// Objects in the cache whose memory is measured.
    #[arg(long)]
    objects: Option<u64>,
    /// Keys for the section `proxy` of the mirror's configuration in the rows without peers, as a JSON
    /// object. Without it the mirror runs with its defaults, and those are what the targets are for.
    #[arg(long, value_parser = json_object, default_value = "{}")]
    proxy: Map<String, Value>,
    /// Doesn't write the report to benches/results.
    #[arg(long)]
    dry: bool,
    /// Only rows whose name begins so: warm-1g-1, warm-1g-16, warm-1m, warm-1k, tag-get, tag-head,
    /// digest-get, digest-head, churn-1k, busy-manifests, busy-uncached, cold-1, cold-16,
    /// tls-warm-1g-16, tls-handshakes, tls-resumed, tls-manifests, push-large, push-layers,
    /// push-manifests, push-memory, push-beside, copy-large, warming, import, replicas-first-byte,
    /// replicas-cpu, bucket-read, bucket-upload, memory, trace, rollout, first-byte, storm, throttled,
    /// endpoints, joins, cuts, ranges. soak runs only when it is named.
    rows: Vec<String>,
    /// Minutes of the row soak.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Given by cargo bench.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    /// What this process does in a run, if it doesn't lead it, as JSON.
    #[arg(long, hide = true)]
    role: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Instructions(instructions::Args),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Registry,
    Ours,
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
            (1024 * MIB, 2000, 5, 100_000, 12)
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

pub(super) fn main() -> Result<ExitCode> {
    // `cargo test --all-targets` and test runners start every target, and only `cargo bench` passes an
    // argument.
    if std::env::args().len() == 1 || std::env::args().any(|arg| arg == "--list") {
        note("nothing measured: run cargo bench --bench compare");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    if let Some(Command::Instructions(args)) = &args.command {
        return instructions::run(args);
    }
    match &args.role {
        Some(role) => serde_json::from_str::<Role>(role)?.play()?,
        None => orchestrate(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn json_object(text: &str) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_str(text)
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
    tls::measure(wanted, &library, &sources, &sizes, &mut results)?;
    pushes::measure(wanted, &library, &sources, &sizes, &mut results)?;
    ahead::measure(wanted, &args.millpond, &sizes, &mut results)?;
    replicas::measure(wanted, &library, &sources, &sizes, &mut results)?;
    bucket::measure(wanted, &library, &sources, &sizes, &mut results)?;
    if wanted("memory") {
        memory::measure(&library, &sources, &upstream, &sizes, &mut results)?;
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
    drop(upstream);
    let bench = pulls::Bench::new(args.quick, args.rounds, &args.millpond, &args.proxy);
    for (name, measure) in pulls::ROWS {
        if wanted(name) {
            measure(&bench, &mut results)?;
        }
    }
    println!("{}", results.text()?);
    if !args.dry {
        results.write().context("writing the report")?;
    }
    Ok(())
}

fn start_upstream(args: &Args, library: &Library) -> Result<Upstream> {
    let content = library.content_dir.root();
    let program = Peer::Registry.program();
    let registry = match args.upstream {
        Some(kind) => kind == Kind::Registry,
        None => program.is_some_and(|program| peers::version(program).is_some()),
    };
    if !registry {
        return Upstream::ours(content);
    }
    let server = Server::start(|directory, addr| {
        peers::registry(peers::REGISTRY.as_ref(), directory, addr, None, content)
    })?;
    Ok(Upstream::registry(server))
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
