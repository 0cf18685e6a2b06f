//! An upstream that holds every connection to a rate, as content networks do: is a cold pull
//! through the mirror faster than one without?

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::super::common::MIB;
use super::super::common::report::{Figure, Figures, Target::AtLeast};
use super::super::common::upstream::{Plan, Upstream};
use super::super::results::Results;
use super::{Bench, clients};

/// How many times as fast as direct a large blob has to come.
const BLOB_FASTER: f64 = 3.5;
/// The same for an image whose layers a client fetches three at a time.
const IMAGE_FASTER: f64 = 2.0;

/// Seconds of one pull each way.
struct Pair {
    direct: f64,
    through: f64,
}

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let sizes = &bench.sizes;
    let rate = format!("{} MiB/s a connection", sizes.throttled_rate / MIB);
    let title = format!("A cold blob of {} MiB, {rate}", sizes.medium / MIB);
    let blob = |addr, upstream: &Upstream| clients::whole(addr, upstream.large()?);
    let pairs = pull(bench, "throttled, a blob", &[sizes.medium], blob)?;
    results.section(&title, &report(&pairs, BLOB_FASTER));
    let title = format!(
        "A cold image of {} layers, {} MiB, three at a time, {rate}",
        sizes.layers.len(),
        sizes.layers.iter().sum::<u64>() / MIB,
    );
    let pairs = pull(bench, "throttled, an image", &sizes.layers, clients::image)?;
    results.section(&title, &report(&pairs, IMAGE_FASTER));
    Ok(())
}

/// Pulls straight from the upstream and through a new mirror, one right after the other.
fn pull(
    bench: &Bench<'_>,
    what: &str,
    blobs: &[u64],
    pull: impl Fn(SocketAddr, &Upstream) -> Result<f64>,
) -> Result<Vec<Pair>> {
    let plan = Plan {
        rate: bench.sizes.throttled_rate,
        ..Plan::default()
    };
    let upstream = Upstream::with_blobs(blobs, &plan)?;
    bench.rounds(what, || {
        let direct = pull(upstream.addr(), &upstream)?;
        let mirror = bench.mirror(&upstream)?;
        let through = pull(mirror.addr(), &upstream).with_context(|| mirror.log_tail())?;
        Ok(Pair { direct, through })
    })
}

fn report(pairs: &[Pair], faster: f64) -> String {
    let mut figures = Figures::of(pairs);
    figures.show("straight from the upstream", "s", |pair| pair.direct);
    figures.show("through the mirror", "s", |pair| pair.through);
    let ratios = pairs.iter().map(|pair| pair.direct / pair.through);
    let ratio = Figure::new("the mirror is faster by", "x", ratios);
    figures.push(ratio.target(AtLeast(faster)).steady());
    figures.table()
}
