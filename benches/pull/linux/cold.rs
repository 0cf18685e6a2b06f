//! One client and a blob that the mirror doesn't have: what the detour costs.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest, Hasher};

use super::Sizes;
use super::common::proc::cpu_seconds;
use super::common::report::{Figure, median, section};
use super::common::upstream::{Blob, Plan, Upstream};
use super::common::wire::get;
use super::common::{note, rounds};
use super::run::{Pulled, cold, cost_table, direct, mirror};

/// Bytes of one small blob: several times the size of a usual image config.
const SMALL_BLOB: u64 = 64 * 1024;

/// Milliseconds by which the mirror's first byte may come later than the upstream's own.
const FIRST_BYTE_LATER_MS: f64 = 5.0;
/// Total time over direct when the line is the bottleneck.
const THROTTLED_OVER_DIRECT: f64 = 1.03;
/// The line's rate then, in bytes per second.
const RATE: u64 = 100 << 20;
/// CPU seconds of the mirror per GiB when nothing is throttled.
const CPU_PER_GIB: f64 = 1.8;

pub(crate) fn measure(sizes: &Sizes) -> Result<String> {
    let mut text = first_byte(sizes)?;
    text.push_str(&throttled(sizes)?);
    text.push_str(&unthrottled(sizes)?);
    Ok(text)
}

/// Small blobs, each asked for once directly and once through the mirror, which has none of them.
fn first_byte(sizes: &Sizes) -> Result<String> {
    note("first byte");
    let blobs = vec![SMALL_BLOB; usize::try_from(sizes.first_bytes)? + 1];
    let upstream = Upstream::with_blobs(&blobs, &Plan::default())?;
    let mirror = mirror(&upstream)?;
    let mut blobs = upstream.blobs().iter();
    // Opens the mirror's connection to the upstream; printed apart.
    let very_first = blobs.next().context("the upstream is empty")?;
    let opening = first_byte_ms(mirror.addr(), very_first)?;
    let (mut through, mut straight) = (Vec::new(), Vec::new());
    for blob in blobs {
        straight.push(first_byte_ms(upstream.addr(), blob)?);
        through.push(first_byte_ms(mirror.addr(), blob).with_context(|| mirror.log_tail())?);
    }
    let difference = median(&through) - median(&straight);
    let figures = [
        Figure::new("straight from the upstream", "ms", straight),
        Figure::new("through the mirror", "ms", through),
        Figure::new(
            "the very first, before the mirror has a connection",
            "ms",
            vec![opening],
        ),
        Figure::new(
            "mirror minus upstream, of the medians",
            "ms",
            vec![difference],
        )
        .at_most(FIRST_BYTE_LATER_MS),
    ];
    let heading = format!(
        "First byte, cold, {} blobs of {} KiB",
        sizes.first_bytes,
        SMALL_BLOB >> 10
    );
    Ok(section(&heading, &figures))
}

/// Milliseconds from before the connection to the first byte of the body. The body is checked: the
/// one place of the bench where a client looks at what it got.
fn first_byte_ms(addr: SocketAddr, blob: &Blob) -> Result<f64> {
    let started = Instant::now();
    let mut answer = get(addr, &blob.path())?.expect_ok()?;
    answer.wait_first_byte()?;
    let first = started.elapsed().as_secs_f64() * 1e3;
    let body = answer.read_all()?;
    let got = Digest::of(Algorithm::Sha256, &body).to_string();
    let wanted = &blob.digest;
    ensure!(got == *wanted, "{wanted} was asked for and {got} came");
    Ok(first)
}

fn throttled(sizes: &Sizes) -> Result<String> {
    let plan = Plan {
        rate: RATE,
        ..Plan::default()
    };
    let upstream = Upstream::with_blobs(&[sizes.throttled_blob], &plan)?;
    let pairs = rounds("throttled upstream", sizes.rounds, || {
        Ok((
            direct(&upstream, 1)?.cost.wall,
            cold(&upstream, 1)?.cost.wall,
        ))
    })?;
    let ratios: Vec<_> = { pairs.iter() }
        .map(|(direct, mirror)| mirror / direct)
        .collect();
    let (straight, through): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let figures = [
        Figure::new("straight from the upstream", "s", straight),
        Figure::new("through the mirror", "s", through),
        Figure::new("mirror over upstream", "x", ratios).at_most(THROTTLED_OVER_DIRECT),
    ];
    let heading = format!(
        "One client, cold, {} MiB from an upstream held to {} MiB/s",
        sizes.throttled_blob >> 20,
        RATE >> 20
    );
    Ok(section(&heading, &figures))
}

fn unthrottled(sizes: &Sizes) -> Result<String> {
    let upstream = Upstream::with_blobs(&[sizes.blob], &Plan::default())?;
    let mut hashing = Vec::new();
    let pairs = rounds("unthrottled upstream", sizes.rounds, || {
        let pair = (direct(&upstream, 1)?, cold(&upstream, 1)?);
        hashing.push(hash_seconds(sizes.blob)? / sizes.gibibytes());
        Ok(pair)
    })?;
    let (straight, through): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let per_gib = |runs: &[Pulled], part: fn(&Pulled) -> f64| {
        runs.iter()
            .map(|run| part(run) / sizes.gibibytes())
            .collect::<Vec<_>>()
    };
    let ratios = through
        .iter()
        .zip(&straight)
        .map(|(mirror, direct)| mirror.cost.wall / direct.cost.wall);
    let figures = [
        Figure::new(
            "CPU of the mirror per GiB",
            "s",
            per_gib(&through, |run| run.cost.mirror),
        )
        .at_most(CPU_PER_GIB),
        Figure::new("CPU of SHA-256 alone per GiB", "s", hashing),
        Figure::new(
            "CPU of writing a file alone per GiB",
            "s",
            per_gib(&through, |run| run.write),
        ),
        Figure::new("CPU of a direct fetch per GiB, upstream and client", "s", {
            per_gib(&straight, |run| run.cost.parts())
        }),
        Figure::new("total over direct", "x", ratios),
    ];
    let costs = |runs: &[Pulled]| runs.iter().map(|run| run.cost).collect::<Vec<_>>();
    let heading = format!("One client, cold, {}, nothing throttled", sizes.name());
    let mut text = section(&heading, &figures);
    text.push_str(&cost_table(&[
        ("straight from the upstream", &costs(&straight)),
        ("through the mirror, cold", &costs(&through)),
    ]));
    Ok(text)
}

/// CPU seconds that the mirror's hash takes for `bytes` on this machine, in pieces of 256 KiB.
fn hash_seconds(bytes: u64) -> Result<f64> {
    const PIECE: u64 = 256 * 1024;
    let piece = vec![0x5a; usize::try_from(PIECE)?];
    let before = cpu_seconds(std::process::id())?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for _ in 0..bytes / PIECE {
        hasher.update(&piece);
    }
    std::hint::black_box(hasher.finish());
    Ok(cpu_seconds(std::process::id())? - before)
}
