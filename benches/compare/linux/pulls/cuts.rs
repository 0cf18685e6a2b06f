//! An upstream that closes the connection again and again in the middle of a blob.

use anyhow::{Context, Result};

use super::super::common::report::{
    Figures,
    Target::{AtLeast, AtMost},
};
use super::super::common::upstream::{Counts, Plan, Upstream};
use super::super::common::{MIB, times};
use super::super::results::Results;
use super::{Bench, clients};

/// How often the upstream cuts.
const CUTS: u32 = 16;
/// Bytes from upstream over the blob's.
const BYTES: f64 = 1.02;

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let size = bench.sizes.large;
    // A little less than the sixteenth part: the sixteenth cut must come before the end.
    let every = size / u64::from(CUTS) - size / 1024;
    let plan = Plan {
        cut_every: every,
        cuts: u64::from(CUTS),
        ..Plan::default()
    };
    let rounds = bench.rounds("cuts", || round(bench, &plan))?;
    let mut figures = Figures::of(&rounds);
    let all = AtLeast(f64::from(CUTS));
    figures.add("connections cut", "", all, |(_, counts)| counts.cuts as f64);
    figures.show("upstream GETs", "", |(_, counts)| counts.blob_gets as f64);
    figures.add(
        "upstream bytes over the blob's",
        "x",
        AtMost(BYTES),
        |(_, counts)| times(counts.bytes, size),
    );
    let name = "the client has the right and whole content after";
    figures.show(name, "s", |(seconds, _)| *seconds);
    let title = format!(
        "A cold blob of {} MiB, every connection cut after {} MiB, {CUTS} times",
        size / MIB,
        every / MIB,
    );
    results.section(&title, &figures.table());
    Ok(())
}

/// The client's seconds, and what the upstream was asked for.
fn round(bench: &Bench<'_>, plan: &Plan) -> Result<(f64, Counts)> {
    // A new one each time: it cuts only so often.
    let upstream = Upstream::with_blobs(&[bench.sizes.large], plan)?;
    let mirror = bench.mirror(&upstream)?;
    let seconds = clients::whole(mirror.addr(), upstream.large()?);
    Ok((
        seconds.with_context(|| mirror.log_tail())?,
        upstream.settled()?,
    ))
}
