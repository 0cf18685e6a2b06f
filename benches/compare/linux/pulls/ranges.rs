//! containerd 2.x: parallel, open-ended ranges of a cold blob, each hung up after its chunk.

use anyhow::{Context, Result};

use super::super::common::report::{Figures, Target::AtMost};
use super::super::common::upstream::{Plan, Upstream};
use super::super::common::{MIB, times};
use super::super::results::Results;
use super::{Bench, clients};

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

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let line = format!("{} MiB/s a connection", RATE / MIB);
    for (rate, line) in [(0, "nothing throttled"), (RATE, &line)] {
        let plan = Plan {
            rate,
            ..Plan::default()
        };
        let upstream = Upstream::with_blobs(&[bench.sizes.medium], &plan)?;
        let rounds = bench.rounds(&format!("ranges, {line}"), || round(bench, &upstream))?;
        let mut figures = Figures::of(&rounds);
        let name = "upstream bytes over the blob's";
        figures.add(name, "x", AtMost(BYTES), |round| round.through.1);
        figures.show("upstream GETs", "", |round| round.gets);
        figures.show("through the mirror", "s", |round| round.through.0);
        figures.show("straight from the upstream", "s", |round| round.direct.0);
        let name = "the upstream's own bytes over the blob's then";
        figures.show(name, "x", |round| round.direct.1);
        let title = format!(
            "A cold blob of {} MiB by 8 parallel `bytes=N-`, hung up after {} MiB each, {line}",
            bench.sizes.medium / MIB,
            bench.sizes.range_chunk / MIB,
        );
        results.section(&title, &figures.table());
    }
    Ok(())
}

fn round(bench: &Bench<'_>, upstream: &Upstream) -> Result<Round> {
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
