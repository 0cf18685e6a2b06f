//! An upstream that closes the connection again and again in the middle of a blob.

use anyhow::{Context, Result};

use super::common::report::{Figure, section};
use super::common::times;
use super::common::upstream::{Plan, Upstream};
use super::{Bench, MIB, clients};

/// How often the upstream cuts.
pub(crate) const CUTS: u32 = 16;
/// Bytes from upstream over the blob's.
const BYTES: f64 = 1.02;

struct Round {
    seconds: f64,
    cuts: f64,
    gets: f64,
    bytes: f64,
}

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let size = bench.sizes.cut_blob;
    // A little less than the sixteenth part: the sixteenth cut must come before the end.
    let every = size / u64::from(CUTS) - size / 1024;
    let plan = Plan {
        cut_every: every,
        cuts: u64::from(CUTS),
        ..Plan::default()
    };
    let rounds = bench.rounds("cuts", || round(bench, &plan))?;
    let each = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let figures = [
        Figure::new("connections cut", "", each(|round| round.cuts)).at_least(f64::from(CUTS)),
        Figure::new("upstream GETs", "", each(|round| round.gets)),
        Figure::new(
            "upstream bytes over the blob's",
            "x",
            each(|round| round.bytes),
        )
        .at_most(BYTES),
        Figure::new("the client has the right and whole content after", "s", {
            each(|round| round.seconds)
        }),
    ];
    let heading = format!(
        "A cold blob of {} MiB, every connection cut after {} MiB, {CUTS} times",
        size / MIB,
        every / MIB,
    );
    Ok(section(&heading, &figures))
}

#[expect(clippy::cast_precision_loss, reason = "a handful of GETs")]
fn round(bench: &Bench, plan: &Plan) -> Result<Round> {
    // A new one each time: it cuts only so often.
    let upstream = Upstream::with_blobs(&[bench.sizes.cut_blob], plan)?;
    let mirror = bench.mirror(&upstream)?;
    let pull = clients::whole(mirror.addr(), upstream.large()?);
    let seconds = pull.with_context(|| mirror.log_tail())?.total;
    let stats = upstream.settled()?;
    Ok(Round {
        seconds,
        cuts: stats.cuts as f64,
        gets: stats.blob_gets as f64,
        bytes: times(stats.bytes, bench.sizes.cut_blob),
    })
}
