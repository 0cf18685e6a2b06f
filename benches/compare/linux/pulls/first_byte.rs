//! Small blobs, each asked for once straight from the upstream and once through the mirror, which has
//! none of them.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest};

use super::super::common::note;
use super::super::common::report::{Figure, Figures, Samples, Target::AtMost};
use super::super::common::upstream::{Blob, Plan, Upstream};
use super::super::common::wire::get;
use super::super::results::Results;
use super::Bench;

/// Bytes of one small blob: several times the size of a usual image config.
const SMALL_BLOB: u64 = 64 * 1024;
/// Milliseconds by which the mirror's first byte may come later than the upstream's own.
const LATER_MS: f64 = 5.0;

/// Milliseconds to the first byte, each way.
struct Pair {
    direct: f64,
    through: f64,
}

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    note("first byte");
    let count = bench.sizes.first_bytes;
    let upstream = Upstream::with_blobs(&vec![SMALL_BLOB; count + 1], &Plan::default())?;
    let mirror = bench.mirror(&upstream)?;
    let through = |blob| first_byte_ms(mirror.addr(), blob).with_context(|| mirror.log_tail());
    let (first, blobs) = upstream.blobs().split_first().context("there are blobs")?;
    // Opens the mirror's connection to the upstream; printed apart.
    let opening = through(first)?;
    let pairs = blobs.iter().map(|blob| {
        Ok(Pair {
            direct: first_byte_ms(upstream.addr(), blob)?,
            through: through(blob)?,
        })
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let mut figures = Figures::of(&pairs);
    figures.show("straight from the upstream", "ms", |pair| pair.direct);
    figures.show("through the mirror", "ms", |pair| pair.through);
    let name = "the very first, before the mirror has a connection";
    figures.push(Figure::new(name, "ms", [opening]));
    let middle = |part: fn(&Pair) -> f64| Samples::new(pairs.iter().map(part)).median();
    let later = middle(|pair| pair.through) - middle(|pair| pair.direct);
    let later = Figure::new("mirror minus upstream, of the medians", "ms", [later]);
    figures.push(later.target(AtMost(LATER_MS)));
    let title = format!(
        "First byte, cold, {count} blobs of {} KiB",
        SMALL_BLOB >> 10
    );
    results.section(&title, &figures.table());
    Ok(())
}

/// Milliseconds from before the connection to the first byte of the body. The body's digest is checked.
fn first_byte_ms(addr: SocketAddr, blob: &Blob) -> Result<f64> {
    let started = Instant::now();
    let mut answer = get(addr, &blob.path())?;
    answer.wait_first_byte()?;
    let first = started.elapsed().as_secs_f64() * 1e3;
    let got = Digest::of(Algorithm::Sha256, &answer.read_all()?).to_string();
    let wanted = &blob.digest;
    ensure!(got == *wanted, "{wanted} was asked for and {got} came");
    Ok(first)
}
