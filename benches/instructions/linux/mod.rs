//! The real binary runs under callgrind with one worker thread; this process is its upstream and
//! its client, and is not counted. Each run starts the server, makes everything warm, and sends N
//! requests of one kind. A run with 0 requests is taken off, so that start and warming don't count.

#![expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
#![expect(clippy::print_stderr, reason = "progress, apart from the report")]
#![expect(
    clippy::disallowed_types,
    reason = "real time between processes is waited for"
)]

#[path = "../../compare/linux/content.rs"]
#[allow(dead_code, reason = "shared with the other benches")]
mod content;
mod counted;
#[path = "../../compare/linux/origin.rs"]
#[allow(dead_code, reason = "shared with the other benches")]
mod origin;
#[path = "../../pull/linux/wire.rs"]
#[allow(dead_code, reason = "shared with the other benches")]
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use content::Shelf;
use counted::Server;

/// How far a count may be from the baseline, up or down.
const TOLERANCE: f64 = 0.03;
/// Requests of a run: enough that what differs between two starts is well below the tolerance.
const REQUESTS: u64 = 1000;
/// Bytes of the blob that is asked for.
const BLOB: u64 = 1024;

/// Instructions of warm requests, against the baseline.
#[derive(Debug, Parser)]
struct Args {
    /// The server to count; it has to have symbols for callgrind's own reports only.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_millpond"))]
    millpond: PathBuf,
    /// Requests of a run.
    #[arg(long, default_value_t = REQUESTS)]
    requests: u64,
    /// Writes the counts down as the new baseline.
    #[arg(long)]
    bless: bool,
    /// Where to leave callgrind's files, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Instructions per request, by kind, and what they were counted on.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    /// `x86_64`: another architecture has other counts, and none to compare with.
    architecture: String,
    instructions: BTreeMap<String, u64>,
}

/// A request that is counted.
struct Kind {
    name: &'static str,
    path: String,
}

pub(super) fn main() -> Result<ExitCode> {
    if std::env::args().len() == 1 || std::env::args().any(|arg| arg == "--list") {
        eprintln!("nothing counted: run benches/instructions/run");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("NO INSTRUCTIONS COUNTED: valgrind is not installed here.");
        return Ok(ExitCode::SUCCESS);
    }
    let counts = count(&args)?;
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/instructions/baseline.json"
    ));
    if args.bless {
        let baseline = Baseline {
            architecture: std::env::consts::ARCH.to_owned(),
            instructions: counts,
        };
        fs::write(&path, serde_json::to_string_pretty(&baseline)? + "\n")?;
        println!("The baseline is {:#?}", baseline.instructions);
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(&path).context("reading the baseline; --bless makes one")?;
    Ok(compare(&counts, &serde_json::from_str(&text)?))
}

fn count(args: &Args) -> Result<BTreeMap<String, u64>> {
    let directory = TempDir::with_prefix("millpond-instructions-")?;
    let shelf = Shelf::new(&directory.path().join("upstream"))?;
    let kinds = fill(&shelf)?;
    let addr = origin::start(&origin::Plan {
        root: shelf.root().to_owned(),
        delay_ms: 0,
    })?;
    let run = |name: &str, path: &str, requests: u64| -> Result<u64> {
        let work = directory.path().join(name);
        fs::create_dir_all(&work)?;
        let server = Server::start(&args.millpond, &work, addr)?;
        let mut client = server.connect()?;
        for kind in &kinds {
            // The first fetches, the second reads what the first left.
            client.get(&kind.path, 2)?;
        }
        client.get(path, requests)?;
        drop(client);
        let out = server.stop()?;
        if let Some(keep) = &args.keep {
            fs::create_dir_all(keep)?;
            fs::copy(&out, keep.join(format!("callgrind.out.{name}")))?;
        }
        counted::total(&out)
    };
    let mut counts = BTreeMap::new();
    let nothing = run("nothing", "", 0)?;
    for kind in &kinds {
        let all = run(kind.name, &kind.path, args.requests)?;
        let each = all.saturating_sub(nothing) / args.requests;
        eprintln!("{}: {each} instructions a request", kind.name);
        counts.insert(kind.name.to_owned(), each);
    }
    Ok(counts)
}

fn fill(shelf: &Shelf) -> Result<[Kind; 3]> {
    let repo = "library/bench".parse()?;
    let mut random = fastrand::Rng::with_seed(1);
    let blob = shelf.blob(&repo, BLOB, &mut random)?;
    let image = shelf.image(&repo, (blob, BLOB), &[(blob, BLOB)])?;
    let index = shelf.index(&repo, &[image; 8], "counted")?;
    shelf.tag(&repo, &"latest".parse()?, &index)?;
    let kind = |name, rest| Kind {
        name,
        path: format!("/v2/{repo}/{rest}"),
    };
    Ok([
        kind("manifest by digest", format!("manifests/{index}")),
        kind("manifest by tag", "manifests/latest".to_owned()),
        kind("blob of 1 KiB", format!("blobs/{blob}")),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn compare(counts: &BTreeMap<String, u64>, baseline: &Baseline) -> ExitCode {
    if baseline.architecture != std::env::consts::ARCH {
        eprintln!(
            "NOTHING COMPARED: the baseline is for {}.",
            baseline.architecture
        );
        return ExitCode::SUCCESS;
    }
    println!("| instructions a request | baseline | now | change | |\n|---|---:|---:|---:|---|");
    let mut steady = counts.len() == baseline.instructions.len();
    for (name, now) in counts {
        let before = baseline.instructions.get(name).copied().unwrap_or(0);
        let change = *now as f64 / before.max(1) as f64 - 1.0;
        let verdict = if change > TOLERANCE {
            "MORE than 3 % worse"
        } else if change < -TOLERANCE {
            "better: write it down with benches/instructions/run --bless"
        } else {
            "as before"
        };
        steady &= change.abs() <= TOLERANCE;
        println!(
            "| {name} | {before} | {now} | {:+.1} % | {verdict} |",
            change * 100.0
        );
    }
    if steady {
        ExitCode::SUCCESS
    } else {
        eprintln!("The counts are not the baseline's.");
        ExitCode::FAILURE
    }
}
