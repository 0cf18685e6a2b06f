//! `millpond warm`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::images::Images;
use super::operate::with_any_server;
use super::progress::{Progress, amount};
use super::{Located, fail, print, print_json};
use crate::admin::client::Client;
use crate::config;
use crate::copy::Platform;
use crate::copy::warm::{Amount, Event, Pinning, WarmRequest, WarmResult};
use crate::error_chain::printable;

/// Some images failed, and others didn't.
const SOME_FAILED: u8 = 4;

/// What is asked for.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    images: Images,
    /// Of an image of several platforms, only those of OS/ARCHITECTURE[/VARIANT], such as linux/arm64;
    /// may be repeated [default: all]
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// Fetch nothing but manifests, and say what would be fetched
    #[arg(long)]
    check: bool,
    /// Keep the images from eviction and expiry, as `millpond pin` does
    #[arg(long, conflicts_with = "check")]
    pin: bool,
    /// When the pins end, such as 30d [default: when they are unpinned]
    #[arg(long = "for", value_name = "DURATION", value_parser = config::parse_duration, requires = "pin")]
    lasting: Option<Duration>,
    /// Print one JSON document instead of a summary
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    located: Located,
}

/// `millpond warm`: 0 if all images are cached, 4 if some failed, 1 if all did.
pub(super) fn warm(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok((complete, failed)) => code(complete, failed),
        Err(error) => fail(&error),
    }
}

/// The exit code of a command of which so many images are complete, and so many failed.
pub(super) fn code(complete: usize, failed: usize) -> ExitCode {
    match (complete, failed) {
        (_, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        _ => ExitCode::from(SOME_FAILED),
    }
}

/// How many images are complete, and how many failed.
fn run(arguments: &Arguments) -> anyhow::Result<(usize, usize)> {
    let images = arguments.images.read()?;
    let request = WarmRequest {
        images: images.clone(),
        platforms: arguments.platform.clone(),
        check: arguments.check,
        referrers: false,
        contents: false,
        pin: arguments.pin.then(|| Pinning::lasting(arguments.lasting)),
    };
    let results = with_any_server(&arguments.located, "warm", async |client| {
        let mut progress = Progress::new(arguments.quiet);
        let (_, results) = fetch(client, &request, &mut progress).await?;
        progress.finish();
        Ok(results)
    })?;
    let results = images.into_iter().zip(results);
    summarize(&results.collect::<Vec<_>>(), arguments)
}

/// Has the server fetch images, and shows it. Returns a result for each.
pub(super) async fn fetch(
    client: Client,
    request: &WarmRequest,
    progress: &mut Progress,
) -> anyhow::Result<(Client, Vec<WarmResult>)> {
    let name = |image: usize| request.images.get(image).map_or("", String::as_str);
    let broke_off = || WarmResult::Failed("the server broke off".to_owned());
    let mut results: Vec<_> = request.images.iter().map(|_| broke_off()).collect();
    let mut events = client.warm(request).await?;
    while let Some(event) = events.next().await? {
        match event {
            Event::Planned { image, missing } => progress.expect(image, name(image), missing),
            Event::Arrived { image, bytes } => progress.arrived(image, bytes),
            Event::Ended { image, result } => {
                progress.ended(image, &line(name(image), &result, request.check));
                if let Some(slot) = results.get_mut(image) {
                    *slot = result;
                }
            }
        }
    }
    Ok((events.into_client(), results))
}

/// What is said of one image.
fn line(name: &str, result: &WarmResult, check: bool) -> String {
    match result {
        WarmResult::Failed(reason) => format!("failed   {name}: {reason}"),
        WarmResult::Complete(report) if report.fetched.blobs == 0 => format!("cached   {name}"),
        WarmResult::Complete(report) => {
            let verb = if check { "missing " } else { "fetched " };
            let Amount { blobs, bytes } = report.fetched;
            format!("{verb} {name}: {}", amount(blobs, bytes))
        }
    }
}

fn summarize(
    results: &[(String, WarmResult)],
    arguments: &Arguments,
) -> anyhow::Result<(usize, usize)> {
    let (mut cached, mut fetched) = (Amount::default(), Amount::default());
    let mut failed = Vec::new();
    for (image, result) in results {
        match result {
            WarmResult::Complete(report) => {
                cached.add(report.cached);
                fetched.add(report.fetched);
            }
            WarmResult::Failed(reason) => failed.push((image, reason)),
        }
    }
    let counts = (results.len() - failed.len(), failed.len());
    if arguments.json {
        let images = results.iter().map(|(image, result)| match result {
            WarmResult::Complete(report) => json!({
                "image": image,
                "stored": report.stored,
                "digest": report.digest,
                "cached": report.cached,
                "fetched": report.fetched,
            }),
            WarmResult::Failed(reason) => json!({ "image": image, "error": reason }),
        });
        let images: Vec<_> = images.collect();
        let document = json!({ "images": images, "check": arguments.check });
        print_json(&document)?;
        return Ok(counts);
    }
    let verb = if arguments.check {
        "to be fetched"
    } else {
        "fetched"
    };
    let mut text = format!(
        "{} of {} images: {} already cached; {} {verb}\n",
        counts.0,
        results.len(),
        amount(cached.blobs, cached.bytes),
        amount(fetched.blobs, fetched.bytes),
    );
    // On a terminal they may have scrolled away.
    for (image, reason) in failed {
        writeln!(text, "failed: {}: {reason}", printable(image))?;
    }
    print(&text)?;
    Ok(counts)
}
