//! `millpond copy`: reads what is to be copied, runs the copies, and says how they ended.
//!
//! ```text
//! remote     the options of one side; the client of a registry
//! jobs       from the texts of the command line to copies
//! progress   bars, lines or JSON
//! ```

mod jobs;
mod progress;
mod remote;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::table::{Table, bytes};
use super::{fail, print, say};
use crate::clock::Clock;
use crate::config;
use crate::copy::{
    Copied, CopyError, CopySettings, Engine, Job, Journal, Location, Observer, Platform,
    SpoolSettings,
};
use crate::error_chain::on_one_line;
use crate::oci::Pattern;
use progress::{BlobBars, Lines, Shown};
use remote::{DestinationOptions, SourceOptions};

/// Of all failed.
const REFUSED: u8 = 3;
/// Some failed, and the rest were copied.
const SOME_FAILED: u8 = 4;
const USAGE: u8 = 2;
/// The most blobs at a time.
const MAX_JOBS: i64 = 64;

#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "options, which don't depend on each other"
)]
pub(super) struct Arguments {
    /// What to copy: `[docker://]host/repository[:tag][@digest]`, or an image in files: `oci:DIR[:tag]`,
    /// `oci-archive:FILE[:name]` or `docker-archive:FILE[:name]`
    ///
    /// Without a host, what the server of --config hosts under this name, else Docker Hub.
    #[arg(value_name = "SRC", required = true, value_parser = location)]
    sources: Vec<Location>,
    /// Where to: `host/repository[:tag]`, `oci:DIR[:tag]` or `oci-archive:FILE[:tag]`; without a tag, the
    /// source's
    ///
    /// With a slash at its end, images go below it, under their own repositories' names. Without a host,
    /// what the server of --config hosts. An archive that is there is replaced.
    #[arg(value_name = "DST", value_parser = location)]
    destination: Location,
    /// Copy only this platform of an index: linux/arm64. Repeatable
    ///
    /// One: its manifest alone. Several: an index with these only, which has another digest.
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// Copy all tags of each source
    #[arg(long, conflicts_with = "tags")]
    all_tags: bool,
    /// Copy the tags that match: `v1.*` (`*` and `**` match any characters)
    #[arg(long, value_name = "PATTERN")]
    tags: Option<Pattern>,
    /// Leave tags alone that the destination has
    #[arg(long)]
    no_clobber: bool,
    /// Don't copy signatures, attestations and other manifests that are attached to an image
    #[arg(long)]
    no_referrers: bool,
    /// Blobs that are copied at a time, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=MAX_JOBS))]
    jobs: u8,
    /// Only say what would be copied
    #[arg(long)]
    dry_run: bool,
    /// Print a JSON object a line for everything that happens
    #[arg(long)]
    json: bool,
    /// Print failures only
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
    /// For files that bridge a slow destination, and records of uploads that the next run resumes [default:
    /// millpond/copy in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Bytes of all such files together; 0: none
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = config::parse_size)]
    spool_size: u64,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    target: DestinationOptions,
    /// A configuration of millpond: its upstreams' credentials, TLS and proxies are used, and what is copied
    /// from one of them goes through the cache of its server if that runs
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The command line doesn't make sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

fn location(text: &str) -> Result<Location, String> {
    text.parse()
        .map_err(|error: crate::copy::LocationError| error.to_string())
}

/// `millpond copy`
pub(super) fn copy(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(code) => code,
        Err(error) if error.is::<UsageError>() => {
            fail(&error);
            ExitCode::from(USAGE)
        }
        Err(error) => fail(&error),
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let ran = runtime.block_on(copy_all(arguments));
    // A name service or a disk that doesn't answer would hold it up.
    runtime.shutdown_background();
    ran
}

async fn copy_all(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let shown: Arc<dyn Shown> = match arguments {
        Arguments { json: true, .. } => Arc::new(Lines::json()),
        Arguments { quiet: true, .. } => Arc::new(()),
        _ if std::io::stderr().is_terminal() => Arc::new(BlobBars::new()),
        _ => Arc::new(Lines::text()),
    };
    let observer: Arc<dyn Observer> = Arc::clone(&shown) as _;
    let (jobs, unread) = jobs::of(arguments, &observer).await?;
    let engine = engine(arguments, observer);
    let results = engine.run(&jobs).await;
    shown.end();
    let ended: Vec<_> = jobs.iter().zip(&results).collect();
    let all = ended.len() + unread.len();
    let unread = unread.iter().map(|(source, error)| (&**source, error));
    let images = ended.iter().filter_map(|(job, result)| {
        let error = result.as_ref().err()?;
        Some((&*job.image, error))
    });
    let failed: Vec<_> = unread.chain(images).collect();
    if !arguments.json {
        if !arguments.quiet {
            print(&summary(&ended, arguments.dry_run)?)?;
        }
        if !failed.is_empty() {
            say(failures(&failed).trim_end());
        }
    }
    Ok(code(&failed, all))
}

fn engine(arguments: &Arguments, observer: Arc<dyn Observer>) -> Engine {
    let directory = arguments.spool.clone();
    let directory = directory.unwrap_or_else(|| config::cache_directory().join("copy"));
    let journal = Journal::open(&directory.join("uploads"), Clock::system().wall());
    let journal = journal.unwrap_or_else(|error| {
        let directory = directory.display();
        let error = on_one_line(&error);
        say(&format!(
            "millpond: {directory} can't be used, so the next run won't resume uploads: {error}"
        ));
        Journal::none()
    });
    let settings = CopySettings {
        platforms: arguments.platform.clone(),
        referrers: !arguments.no_referrers,
        clobber: !arguments.no_clobber,
        dry_run: arguments.dry_run,
        jobs: arguments.jobs.into(),
        spool: SpoolSettings {
            file: arguments.spool_size / u64::from(arguments.jobs),
            directory,
        },
    };
    Engine::new(settings, journal, observer)
}

type Ended<'a> = (&'a Job, &'a Result<Copied, CopyError>);

/// A line for each image that is at the destination now.
fn summary(ended: &[Ended<'_>], dry_run: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    for (job, result) in ended {
        let Ok(copied) = result else { continue };
        writeln!(text, "{}: {}", job.image, described(copied, dry_run))?;
    }
    Ok(text)
}

/// What was done for one image.
fn described(copied: &Copied, dry_run: bool) -> String {
    let Some(digest) = &copied.digest else {
        return "left alone, because the destination has the tag".to_owned();
    };
    let (blobs, size) = (copied.sent.0, bytes(copied.sent.1));
    let done = match (copied.is_unchanged, dry_run) {
        (true, _) => "unchanged".to_owned(),
        (false, true) => format!("would be copied, {blobs} of {} blobs, {size}", copied.blobs),
        (false, false) => format!("copied, {blobs} of {} blobs, {size}", copied.blobs),
    };
    let mut parts = vec![format!("{digest} {done}")];
    if copied.mounted > 0 {
        parts.push(format!("{} mounted", copied.mounted));
    }
    if copied.referrers > 0 {
        parts.push(format!("{} attached", copied.referrers));
    }
    if copied.is_sparse {
        let why = "the digest isn't the source's, because only some platforms were selected";
        parts.push(why.to_owned());
    }
    parts.join(", ")
}

/// What failed, and why.
fn failures(failed: &[(&str, &CopyError)]) -> String {
    let mut table = Table::new(["FAILED", "WHY"]);
    for (image, error) in failed {
        table.row([(*image).to_owned(), on_one_line(*error)]);
    }
    table.to_string()
}

/// The exit code where these of so many images failed.
fn code(failed: &[(&str, &CopyError)], all: usize) -> ExitCode {
    match failed.len() {
        0 => ExitCode::SUCCESS,
        some if some < all => ExitCode::from(SOME_FAILED),
        _ if failed.iter().all(|(_, error)| error.is_refused()) => ExitCode::from(REFUSED),
        _ => ExitCode::FAILURE,
    }
}
