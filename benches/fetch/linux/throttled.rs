//! An upstream that holds every connection to a rate, as content networks do: is a cold pull
//! through the mirror faster than one without?

use anyhow::{Context, Result};

use super::common::report::{Figure, section};
use super::common::upstream::{Plan, Upstream};
use super::{Bench, MIB, STEADY, clients};

/// How many times as fast as direct a large blob has to come.
const BLOB_FASTER: f64 = 3.5;
/// The same for an image whose layers a client fetches three at a time.
const IMAGE_FASTER: f64 = 2.0;

/// Seconds of one pull each way.
struct Pair {
    direct: f64,
    through: f64,
}

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let sizes = &bench.sizes;
    let blob = [sizes.throttled_blob];
    let blob = pairs(bench, "throttled, a blob", &blob, |addr, upstream| {
        Ok(clients::whole(addr, upstream.large()?)?.total)
    })?;
    let image = pairs(bench, "throttled, an image", &sizes.layers, clients::image)?;
    let rate = sizes.throttled_rate / MIB;
    let blob_heading = format!(
        "A cold blob of {} MiB, {rate} MiB/s a connection",
        sizes.throttled_blob / MIB
    );
    let image_heading = format!(
        "A cold image of {} layers, {} MiB, three at a time, {rate} MiB/s a connection",
        sizes.layers.len(),
        sizes.layers.iter().sum::<u64>() / MIB,
    );
    Ok(report(&blob_heading, &blob, BLOB_FASTER) + &report(&image_heading, &image, IMAGE_FASTER))
}

/// Pulls straight from the upstream and through a new mirror, one right after the other.
fn pairs(
    bench: &Bench,
    what: &str,
    blobs: &[u64],
    pull: impl Fn(std::net::SocketAddr, &Upstream) -> Result<f64>,
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

fn report(heading: &str, pairs: &[Pair], faster: f64) -> String {
    let each = |figure: fn(&Pair) -> f64| pairs.iter().map(figure).collect::<Vec<_>>();
    let figures = [
        Figure::new("straight from the upstream", "s", each(|pair| pair.direct)),
        Figure::new("through the mirror", "s", each(|pair| pair.through)),
        Figure::new("the mirror is faster by", "x", {
            each(|pair| pair.direct / pair.through)
        })
        .at_least(faster)
        .steady(STEADY),
    ];
    section(heading, &figures)
}
