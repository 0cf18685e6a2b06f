//! Clients that come while a download runs.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::super::common::report::{
    Figure, Figures, Samples,
    Target::{AtLeast, AtMost},
};
use super::super::common::upstream::{Plan, Upstream};
use super::super::common::{MIB, times, together};
use super::super::results::Results;
use super::{Bench, clients};

/// Bytes per second of the line, and of each client that joins.
const RATE: u64 = 32 * MIB;
/// Bytes from upstream over the blob's.
const BYTES: f64 = 1.005;
/// Milliseconds until a joiner's first byte.
const FIRST_BYTE_MS: f64 = 5.0;
/// The first client's rate over what it is alone.
const FIRST_OVER_ALONE: f64 = 0.9;

struct Round {
    /// Seconds of a client that nobody joins.
    alone: f64,
    /// Seconds of the first client, when others join.
    first: f64,
    /// Milliseconds until each joiner's first byte.
    first_bytes: Samples,
    /// Milliseconds that the upstream took for an empty answer just before each of them.
    pings: Samples,
    /// Bytes from upstream over the blob's, when others join.
    bytes: f64,
}

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let plan = Plan {
        total_rate: RATE,
        ..Plan::default()
    };
    let upstream = Upstream::with_blobs(&[bench.sizes.large], &plan)?;
    let rounds = bench.rounds("joins", || round(bench, &upstream))?;
    let mut figures = Figures::of(&rounds);
    let name = "upstream bytes over the blob's";
    figures.add(name, "x", AtMost(BYTES), |round| round.bytes);
    let (name, soon) = ("first byte of a joiner", AtMost(FIRST_BYTE_MS));
    figures.add(&format!("{name}, median"), "ms", soon, |round| {
        round.first_bytes.median()
    });
    figures.add(&format!("{name}, 95th percentile"), "ms", soon, |round| {
        round.first_bytes.percentile(95)
    });
    figures.add(&format!("{name}, worst"), "ms", soon, |round| {
        round.first_bytes.high()
    });
    let name = "an empty answer from upstream just before each, worst";
    figures.show(name, "ms", |round| round.pings.high());
    figures.show("one client alone", "s", |round| round.alone);
    figures.show("the first client, joined by the others", "s", |round| {
        round.first
    });
    let ratios = rounds.iter().map(|round| round.alone / round.first);
    let ratio = Figure::new("its rate over that of one alone", "x", ratios);
    figures.push(ratio.target(AtLeast(FIRST_OVER_ALONE)).steady());
    let title = format!(
        "{} clients that join over the first half of {} MiB, the line and each of them held to {} \
         MiB/s",
        bench.sizes.joiners,
        bench.sizes.large / MIB,
        RATE / MIB,
    );
    results.section(&title, &figures.table());
    Ok(())
}

fn round(bench: &Bench<'_>, upstream: &Upstream) -> Result<Round> {
    let blob = upstream.large()?;
    let mirror = bench.mirror(upstream)?;
    let alone = clients::whole(mirror.addr(), blob).with_context(|| mirror.log_tail())?;
    drop(mirror);
    let before = upstream.settled()?.bytes;
    let mirror = bench.mirror(upstream)?;
    let (first, joins) =
        joined(bench, mirror.addr(), upstream, alone).with_context(|| mirror.log_tail())?;
    let bytes = upstream.settled()?.bytes - before;
    Ok(Round {
        alone,
        first,
        first_bytes: Samples::new(joins.iter().map(|join| join.first_byte * 1e3)),
        pings: Samples::new(joins.iter().map(|join| join.ping * 1e3)),
        bytes: times(bytes, blob.bytes),
    })
}

/// What one that joins saw, in seconds.
struct Join {
    ping: f64,
    first_byte: f64,
}

/// The first client's seconds, and what the clients saw that joined during the first half of its pull.
fn joined(
    bench: &Bench<'_>,
    addr: SocketAddr,
    upstream: &Upstream,
    alone: f64,
) -> Result<(f64, Vec<Join>)> {
    let blob = upstream.large()?;
    let joiners = bench.sizes.joiners;
    let half = Duration::from_secs_f64(alone / 2.0);
    let started = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| clients::whole(addr, blob));
        let joins = together((1..=joiners).map(|number| {
            let due = started + half * number / joiners;
            move || {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let ping = clients::ping(upstream.addr())?;
                let first_byte = clients::discarded(addr, blob, RATE)?;
                Ok(Join { ping, first_byte })
            }
        }));
        let Ok(first) = first.join() else {
            bail!("the first client panicked")
        };
        Ok((
            first.context("the first client")?,
            joins.context("a client that joined")?,
        ))
    })
}
