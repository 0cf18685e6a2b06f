//! Clients that come while a download runs.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::clients::{discarded, ping};
use super::common::report::{Figure, median, section};
use super::common::times;
use super::common::upstream::{Plan, Upstream};
use super::{Bench, MIB, STEADY, clients};

/// Milliseconds until a joiner's first byte.
const FIRST_BYTE_MS: f64 = 5.0;
/// The first client's rate over what it is alone.
const FIRST_OVER_ALONE: f64 = 0.9;

struct Round {
    /// Seconds of a client that nobody joins.
    alone: f64,
    /// Seconds of the first client, when others join.
    first: f64,
    /// Milliseconds until each joiner's first byte, sorted.
    first_bytes: Vec<f64>,
    /// The most milliseconds that the upstream took for an empty answer just before one of them.
    worst_ping: f64,
    /// Bytes from upstream over the blob's, when others join.
    bytes: f64,
}

impl Round {
    /// The joiner that so many percent of them weren't later than.
    fn percentile(&self, percent: usize) -> f64 {
        let at = (self.first_bytes.len() * percent).div_ceil(100);
        let value = self.first_bytes.get(at.saturating_sub(1));
        value.copied().unwrap_or(f64::NAN)
    }
}

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let sizes = &bench.sizes;
    let plan = Plan {
        total_rate: sizes.join_rate,
        ..Plan::default()
    };
    let upstream = Upstream::with_blobs(&[sizes.join_blob], &plan)?;
    let rounds = bench.rounds("joins", || round(bench, &upstream))?;
    let each = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let figures = [
        Figure::new(
            "upstream bytes over the blob's",
            "x",
            each(|round| round.bytes),
        )
        .at_most(1.005),
        Figure::new("first byte of a joiner, median", "ms", {
            each(|round| median(&round.first_bytes))
        })
        .at_most(FIRST_BYTE_MS),
        Figure::new("first byte of a joiner, 95th percentile", "ms", {
            each(|round| round.percentile(95))
        })
        .at_most(FIRST_BYTE_MS),
        Figure::new("first byte of a joiner, worst", "ms", {
            each(|round| round.percentile(100))
        })
        .at_most(FIRST_BYTE_MS),
        Figure::new(
            "an empty answer from upstream just before each, worst",
            "ms",
            each(|round| round.worst_ping),
        ),
        Figure::new("one client alone", "s", each(|round| round.alone)),
        Figure::new("the first client, joined by the others", "s", {
            each(|round| round.first)
        }),
        Figure::new("its rate over that of one alone", "x", {
            each(|round| round.alone / round.first)
        })
        .at_least(FIRST_OVER_ALONE)
        .steady(STEADY),
    ];
    let heading = format!(
        "{} clients that join over the first half of {} MiB, the line and each of them held to {} \
         MiB/s",
        sizes.joiners,
        sizes.join_blob / MIB,
        sizes.join_rate / MIB,
    );
    Ok(section(&heading, &figures))
}

fn round(bench: &Bench, upstream: &Upstream) -> Result<Round> {
    let mirror = bench.mirror(upstream)?;
    let alone = clients::whole(mirror.addr(), upstream.large()?);
    let alone = alone.with_context(|| mirror.log_tail())?.total;
    drop(mirror);
    let before = upstream.settled()?.bytes;
    let mirror = bench.mirror(upstream)?;
    let (first, joins) =
        joined(bench, mirror.addr(), upstream, alone).with_context(|| mirror.log_tail())?;
    let bytes = upstream.settled()?.bytes - before;
    let mut first_bytes: Vec<_> = joins.iter().map(|join| join.first_byte * 1e3).collect();
    first_bytes.sort_by(f64::total_cmp);
    Ok(Round {
        alone,
        first,
        first_bytes,
        worst_ping: joins.iter().map(|join| join.ping * 1e3).fold(0.0, f64::max),
        bytes: times(bytes, upstream.large()?.bytes),
    })
}

/// What one that joins saw, in seconds.
struct Join {
    ping: f64,
    first_byte: f64,
}

/// The first client's seconds, and what the clients saw that joined during the first half of its pull.
fn joined(
    bench: &Bench,
    addr: SocketAddr,
    upstream: &Upstream,
    alone: f64,
) -> Result<(f64, Vec<Join>)> {
    let blob = upstream.large()?;
    let (joiners, rate) = (bench.sizes.joiners, bench.sizes.join_rate);
    let half = Duration::from_secs_f64(alone / 2.0);
    let started = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| clients::whole(addr, blob));
        let threads: Vec<_> = (1..=joiners)
            .map(|number| {
                let due = started + half * number / joiners;
                scope.spawn(move || {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let ping = ping(upstream.addr())?;
                    let first_byte = discarded(addr, blob, rate)?.first_byte;
                    Ok(Join { ping, first_byte })
                })
            })
            .collect();
        let mut joins = Vec::with_capacity(threads.len());
        for thread in threads {
            let Ok(join) = thread.join() else {
                bail!("a client panicked")
            };
            let join: Result<_> = join;
            joins.push(join.context("a client that joined")?);
        }
        let Ok(first) = first.join() else {
            bail!("the first client panicked")
        };
        Ok((first.context("the first client")?.total, joins))
    })
}
