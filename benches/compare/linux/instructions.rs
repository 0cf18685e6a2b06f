//! The real binary runs under callgrind with one worker thread; this process is its upstream and
//! its client, and is not counted. Each run starts the server, makes everything warm, and sends N
//! requests of one kind. The count of a run with 0 requests is subtracted, so that start and warming don't count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tempfile::TempDir;

use super::common::collector::Collector;
use super::common::content::ContentDir;
use super::common::server::{Server, millpond};
use super::common::upstream::Upstream;
use super::common::wire::Client;
use super::pushes::{Blob, Pusher, host};

/// How far a count may be above the baseline. One that is further below is reported.
const TOLERANCE: f64 = 0.03;
/// Instructions of a run's requests, about: two starts differ by a million or two, which has to be
/// well below the tolerance.
const RUN: u64 = 120_000_000;
/// Counts of which the middle is taken, for a new baseline and where one count doesn't agree.
const PASSES: usize = 3;
/// Fewest and most requests of a run.
const REQUESTS: std::ops::RangeInclusive<u64> = 1000..=20_000;
/// Between two requests, so that the server goes to sleep after each: whether it did or found the
/// next one already there was chance, and a tenth of the count.
const REST: Duration = Duration::from_millis(1);
/// Bytes of the blob that is asked for.
const BLOB: u64 = 1024;
/// The repository of the one that was pushed.
const HOSTED: &str = "pushed/bench";
const HEAD_MIRRORED: &str = "HEAD of a blob";
const HEAD_HOSTED: &str = "HEAD of a hosted blob";

/// Instructions of warm requests, against the baseline.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server to count.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_millpond"))]
    millpond: PathBuf,
    /// Requests of a run; by default enough according to the baseline.
    #[arg(long)]
    requests: Option<u64>,
    /// Writes the counts down as the new baseline.
    #[arg(long)]
    bless: bool,
    /// Where to leave callgrind's files, for `callgrind_annotate`.
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Instructions per request, by kind.
type Counts = BTreeMap<String, u64>;

/// What the counts should be, and with what they were made.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Baseline {
    /// Architecture, compiler and valgrind: with others there are other counts, and none to compare
    /// with.
    made_with: String,
    instructions: Counts,
}

/// A request that is counted.
struct Kind {
    name: &'static str,
    method: &'static str,
    path: String,
    /// Of a server that hosts repositories.
    hosted: bool,
}

impl Kind {
    fn configure(&self, directory: &Path) -> Result<()> {
        if self.hosted {
            host(&directory.join("config.yml"))?;
        }
        Ok(())
    }
}

/// What a server does besides, which a kind of request is counted with, too.
struct Extra {
    name: &'static str,
    /// Variables of its environment.
    variables: Vec<(&'static str, String)>,
}

/// The kind of request that is counted with each [`Extra`]: the one in which they weigh most.
const WITH_EXTRAS: &str = "manifest by digest";

fn extras(collector: &Collector) -> Vec<Extra> {
    let extra = |name, variables: &[(&'static str, &str)]| Extra {
        name,
        variables: variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
    };
    let access_log = [
        ("REGISTRY_LOG_LEVEL", "info"),
        ("REGISTRY_LOG_ACCESSLOG_DISABLED", "false"),
    ];
    let sampled = ("REGISTRY_LOG_ACCESSLOG_SAMPLE", "100");
    let endpoint = collector.url();
    vec![
        extra("access log", &access_log),
        extra(
            "access log, 1 in 100",
            &[access_log[0], access_log[1], sampled],
        ),
        extra(
            "traces of 1 in 100",
            &[
                ("REGISTRY_TRACING_ENDPOINT", &endpoint),
                ("REGISTRY_TRACING_SAMPLE", "0.01"),
            ],
        ),
    ]
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("NO INSTRUCTIONS COUNTED: valgrind is not installed here.");
        return Ok(ExitCode::SUCCESS);
    }
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/instructions/baseline.json"
    ));
    let baseline: Baseline = match fs::read_to_string(&path) {
        Err(_) if args.bless => Baseline::default(),
        text => serde_json::from_str(&text.context("reading the baseline; --bless makes one")?)?,
    };
    if args.bless {
        let counts = middle(args, &baseline, Vec::new())?;
        let baseline = Baseline {
            made_with: made_with()?,
            instructions: counts,
        };
        fs::write(&path, serde_json::to_string_pretty(&baseline)? + "\n")?;
        println!("The baseline is {:#?}", baseline.instructions);
        return Ok(ExitCode::SUCCESS);
    }
    let with = made_with()?;
    if baseline.made_with != with {
        eprintln!(
            "NO INSTRUCTIONS COMPARED: the baseline was made with {}, and this is {with}.",
            baseline.made_with
        );
        eprintln!("Write a new one on both sides of a change: benches/instructions/run --bless");
        return Ok(ExitCode::SUCCESS);
    }
    let mut counts = count(args, &baseline)?;
    if !baseline.agrees(&counts) {
        // Two starts differ by a percent or two; the middle of three doesn't.
        counts = middle(args, &baseline, vec![counts])?;
    }
    Ok(compare(&counts, &baseline))
}

fn made_with() -> Result<String> {
    let version = |tool: &str| -> Result<String> {
        let told = Command::new(tool).arg("--version").output()?.stdout;
        let told = String::from_utf8_lossy(&told);
        // Without the date of a build.
        Ok(told.split('(').next().unwrap_or_default().trim().to_owned())
    };
    let (rustc, valgrind) = (version("rustc")?, version("valgrind")?);
    Ok(format!("{}, {rustc}, {valgrind}", std::env::consts::ARCH))
}

/// The middle of three counts, given those that have been made.
fn middle(args: &Args, baseline: &Baseline, mut counted: Vec<Counts>) -> Result<Counts> {
    while counted.len() < PASSES {
        counted.push(count(args, baseline)?);
    }
    let names = counted.first().map(|counts| counts.keys().cloned());
    let middle = names.into_iter().flatten().map(|name| {
        let each = counted.iter().filter_map(|counts| counts.get(&name));
        let mut each: Vec<u64> = each.copied().collect();
        each.sort_unstable();
        let middle = each.get(each.len() / 2).copied().unwrap_or(0);
        (name, middle)
    });
    Ok(middle.collect())
}

impl Baseline {
    /// How many requests of a kind make a run.
    fn requests(&self, kind: &str) -> u64 {
        let each = self.instructions.get(kind).copied().unwrap_or(RUN).max(1);
        (RUN / each).clamp(*REQUESTS.start(), *REQUESTS.end())
    }

    /// How far a count is from the baseline, over the baseline.
    fn change(&self, kind: &str, now: u64) -> f64 {
        let before = self.instructions.get(kind).copied().unwrap_or(0);
        now as f64 / before.max(1) as f64 - 1.0
    }

    /// Whether every count is within the tolerance of the baseline, above and below.
    fn agrees(&self, counts: &Counts) -> bool {
        let steady = |(name, now): (&String, &u64)| self.change(name, *now).abs() <= TOLERANCE;
        counts.len() == self.instructions.len() && counts.iter().all(steady)
    }

    /// Whether a count is above the tolerance, or has no baseline.
    fn has_regressed(&self, counts: &Counts) -> bool {
        let worse = |(name, now): (&String, &u64)| self.change(name, *now) > TOLERANCE;
        counts.len() != self.instructions.len() || counts.iter().any(worse)
    }
}

fn count(args: &Args, baseline: &Baseline) -> Result<Counts> {
    let directory = TempDir::with_prefix("millpond-instructions-")?;
    let content_dir = ContentDir::new(&directory.path().join("upstream"))?;
    let kinds = fill(&content_dir)?;
    let upstream = Upstream::ours(content_dir.root())?;
    let collector = Collector::start()?;
    let run = |name: &str, kind: &Kind, requests: u64, extra: Option<&Extra>| -> Result<u64> {
        let out = directory.path().join(name);
        let server = Server::start(|directory, addr| {
            let upstream = upstream.addr();
            let server = millpond(&args.millpond, directory, addr, upstream, &Map::new());
            kind.configure(directory)?;
            let mut server = under_callgrind(&server, &out);
            let variables = extra.into_iter().flat_map(|extra| &extra.variables);
            server.envs(variables.map(|(name, value)| (*name, value)));
            Ok(server)
        })?;
        let mut client = Client::connect(server.addr())?;
        if kind.hosted {
            Pusher::connect(server.addr())?.put(HOSTED, &Blob::new(1, BLOB))?;
        }
        for warmed in kinds.iter().filter(|warmed| warmed.hosted == kind.hosted) {
            // The first fetches, the second reads what the first left.
            ask(&mut client, warmed, 2)?;
        }
        ask(&mut client, kind, requests)?;
        drop((client, server));
        if let Some(keep) = &args.keep {
            fs::create_dir_all(keep)?;
            fs::copy(&out, keep.join(format!("callgrind.out.{name}")))?;
        }
        total(&out)
    };
    let mut counts = BTreeMap::new();
    let mut count = |name: &str, kind: &Kind, nothing: u64, extra: Option<&Extra>| {
        let requests = args.requests.unwrap_or(baseline.requests(kind.name));
        let all = run(name, kind, requests, extra)?;
        let each = all.saturating_sub(nothing) / requests;
        eprintln!("{name}: {each} instructions a request");
        counts.insert(name.to_owned(), each);
        Ok::<_, anyhow::Error>(each)
    };
    let nothing = |hosted: bool| -> Result<u64> {
        let kind = kinds.iter().find(|kind| kind.hosted == hosted);
        run("nothing", kind.context("a kind of each server")?, 0, None)
    };
    let (mirroring, hosting) = (nothing(false)?, nothing(true)?);
    for kind in &kinds {
        let nothing = if kind.hosted { hosting } else { mirroring };
        let plain = count(kind.name, kind, nothing, None)?;
        for extra in extras(&collector)
            .iter()
            .filter(|_| kind.name == WITH_EXTRAS)
        {
            let nothing = run("nothing", kind, 0, Some(extra))?;
            let name = format!("{WITH_EXTRAS}, {}", extra.name);
            let each = count(&name, kind, nothing, Some(extra))?;
            let more = (each as f64 / plain.max(1) as f64 - 1.0) * 100.0;
            eprintln!("  that is {more:+.1} % for the {}", extra.name);
        }
    }
    Ok(counts)
}

fn under_callgrind(server: &Command, out: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet", "--fair-sched=try"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(server.get_program())
        .args(server.get_args())
        // One worker: nothing is stolen from it, and nothing waits for a lock.
        .env("TOKIO_WORKER_THREADS", "1");
    command
}

/// Sends a request so often, one after the answer to another.
fn ask(client: &mut Client, kind: &Kind, times: u64) -> Result<()> {
    for _ in 0..times {
        client.request(kind.method, &kind.path)?;
        client.read_all()?;
        thread::sleep(REST);
    }
    Ok(())
}

/// All instructions of all threads, in callgrind's file.
fn total(out: &Path) -> Result<u64> {
    let text = fs::read_to_string(out)?;
    let totals = text
        .lines()
        .filter_map(|line| line.strip_prefix("totals: "))
        .map(|count| count.trim().parse::<u64>());
    let total = totals.sum::<Result<u64, _>>()?;
    ensure!(total > 0, "callgrind counted nothing");
    Ok(total)
}

fn fill(content_dir: &ContentDir) -> Result<[Kind; 5]> {
    let repo = "library/bench".parse()?;
    let mut random = fastrand::Rng::with_seed(1);
    let blob = content_dir.blob(&repo, BLOB, |_, piece| random.fill(piece))?;
    let image = content_dir.image(&repo, (blob, BLOB), &[(blob, BLOB)])?;
    let index = content_dir.index(&repo, &[image; 8], "counted")?;
    content_dir.tag(&repo, &"latest".parse()?, &index)?;
    let kind = |name, rest| Kind {
        name,
        method: "GET",
        path: format!("/v2/{repo}/{rest}"),
        hosted: false,
    };
    let mirrored = format!("blobs/{blob}");
    Ok([
        kind("manifest by digest", format!("manifests/{index}")),
        kind("manifest by tag", "manifests/latest".to_owned()),
        kind("blob of 1 KiB", mirrored.clone()),
        Kind {
            method: "HEAD",
            ..kind(HEAD_MIRRORED, mirrored)
        },
        Kind {
            name: HEAD_HOSTED,
            method: "HEAD",
            path: format!("/v2/{HOSTED}/blobs/{}", Blob::new(1, BLOB).digest),
            hosted: true,
        },
    ])
}

fn compare(counts: &Counts, baseline: &Baseline) -> ExitCode {
    println!("| instructions a request | baseline | now | change | |\n|---|---:|---:|---:|---|");
    for (name, now) in counts {
        let before = baseline.instructions.get(name).copied().unwrap_or(0);
        let change = baseline.change(name, *now);
        let verdict = if change > TOLERANCE {
            "more than 3 % WORSE"
        } else if change < -TOLERANCE {
            "better: write it down with benches/instructions/run --bless"
        } else {
            "as before"
        };
        println!(
            "| {name} | {before} | {now} | {:+.1} % | {verdict} |",
            change * 100.0
        );
    }
    let of = |name: &str| counts.get(name).map_or(1.0, |each| *each as f64);
    let more = (of(HEAD_HOSTED) / of(HEAD_MIRRORED) - 1.0) * 100.0;
    println!("\nHosted over mirrored, HEAD: {more:+.1} % (asked for: at most 10 %).");
    if baseline.has_regressed(counts) {
        eprintln!("Some counts are above the baseline.");
        return ExitCode::FAILURE;
    }
    if !baseline.agrees(counts) {
        eprintln!("Some counts are far below the baseline: it should be written anew.");
    }
    ExitCode::SUCCESS
}
