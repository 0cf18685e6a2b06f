//! containerd 2.x: parallel, open-ended ranges of a cold blob, each hung up after its chunk.

use anyhow::{Context, Result};

use super::common::report::{Figure, section};
use super::common::times;
use super::common::upstream::{Plan, Upstream};
use super::{Bench, MIB, clients};

/// Bytes from upstream over the blob's.
const BYTES: f64 = 1.10;
/// A connection's rate, where it has one.
const RATE: u64 = 50 * MIB;

/// Seconds, and bytes from upstream over the blob's, each way.
struct Round {
    direct: (f64, f64),
    through: (f64, f64),
    gets: f64,
}

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let mut text = at_rate(bench, 0, "nothing throttled")?;
    let line = format!("{} MiB/s a connection", RATE / MIB);
    text.push_str(&at_rate(bench, RATE, &line)?);
    Ok(text)
}

fn at_rate(bench: &Bench, rate: u64, line: &str) -> Result<String> {
    let sizes = &bench.sizes;
    let plan = Plan {
        rate,
        ..Plan::default()
    };
    let upstream = Upstream::with_blobs(&[sizes.range_blob], &plan)?;
    let rounds = bench.rounds(&format!("ranges, {line}"), || round(bench, &upstream))?;
    let each = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let figures = [
        Figure::new("upstream bytes over the blob's", "x", {
            each(|round| round.through.1)
        })
        .at_most(BYTES),
        Figure::new("upstream GETs", "", each(|round| round.gets)),
        Figure::new("through the mirror", "s", each(|round| round.through.0)),
        Figure::new("straight from the upstream", "s", {
            each(|round| round.direct.0)
        }),
        Figure::new("the upstream's own bytes over the blob's then", "x", {
            each(|round| round.direct.1)
        }),
    ];
    let heading = format!(
        "A cold blob of {} MiB by 8 parallel `bytes=N-`, hung up after {} MiB each, {line}",
        sizes.range_blob / MIB,
        sizes.range_chunk / MIB,
    );
    Ok(section(&heading, &figures))
}

#[expect(clippy::cast_precision_loss, reason = "a handful of GETs")]
fn round(bench: &Bench, upstream: &Upstream) -> Result<Round> {
    let blob = upstream.large()?;
    let chunk = bench.sizes.range_chunk;
    let start = upstream.settled()?;
    let direct = clients::ranged(upstream.addr(), blob, chunk)?;
    let between = upstream.settled()?;
    let mirror = bench.mirror(upstream)?;
    let through = clients::ranged(mirror.addr(), blob, chunk);
    let through = through.with_context(|| mirror.log_tail())?;
    let end = upstream.settled()?;
    Ok(Round {
        direct: (direct, times(between.bytes - start.bytes, blob.bytes)),
        through: (through, times(end.bytes - between.bytes, blob.bytes)),
        gets: (end.blob_gets - between.blob_gets) as f64,
    })
}
