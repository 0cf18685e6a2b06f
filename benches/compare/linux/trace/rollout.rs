//! The nodes of a rollout: all pull one new image of many layers within five seconds, from an upstream
//! that is far away and slow on each connection.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Map;
use tempfile::TempDir;

use super::super::common::content::ContentDir;
use super::super::common::report::{Figures, Samples, Target};
use super::super::common::server::Server;
use super::super::common::upstream::{Plan, Upstream};
use super::super::common::{MIB, note, rounds, times};
use super::super::results::Results;
use super::Scale;
use super::nodes::Seen;
use super::world::World;

/// Layers besides those of the base.
const LAYERS: usize = 38;
const NODES: usize = 200;
/// Milliseconds within which they begin.
const JOIN_MS: u64 = 5000;
const NODES_QUICK: usize = 20;
/// Milliseconds by which the upstream's responses are late.
const DELAY_MS: u64 = 50;
/// Bytes a second on each connection of the upstream.
const RATE: u64 = 20 << 20;

/// The first node's pull over a pull from the upstream.
const FIRST: f64 = 0.8;
/// The last node's pull over that of the same rollout when the image is cached, which shows what the
/// network of this machine allows.
const LAST: f64 = 1.3;
/// Nodes that begin so many milliseconds after the first find all manifests cached.
const LATER_MS: u64 = 1000;
/// Milliseconds of a small request, of 99 %.
const SMALL_MS: f64 = 20.0;
/// Upstream bytes over the image's.
const BYTES: f64 = 1.005;

/// One round.
struct Round {
    direct_ms: f64,
    cold: Seen,
    warm: Seen,
    upstream_bytes: u64,
}

/// Rolls an image out, in every round through a new mirror.
pub(crate) fn measure(quick: bool, count: u32, binary: &Path, results: &mut Results) -> Result<()> {
    note("rollout: making the content");
    let directory = TempDir::with_prefix("millpond-rollout-")?;
    let content_dir = ContentDir::new(&directory.path().join("content"))?;
    let nodes = if quick { NODES_QUICK } else { NODES };
    let world = |name: &str, joiners, join_ms| -> Result<_> {
        let scale = Scale {
            images: 0,
            largest: 20_000_000,
            sessions: 0,
            workers: 0,
            storms: 1,
            joiners,
            join_ms,
        };
        let path = directory.path().join(name);
        // The same seed makes the same image.
        let world = World::rollout(&content_dir, scale, LAYERS)?;
        fs::write(&path, serde_json::to_vec(&world)?)?;
        Ok(path)
    };
    let (one, all) = (world("one.json", 1, 0)?, world("all.json", nodes, JOIN_MS)?);
    let upstream = Upstream::start(Plan {
        root: content_dir.root().to_owned(),
        delay_ms: DELAY_MS,
        rate: RATE,
        ..Plan::default()
    })?;
    let all = rounds("rollout", count, || {
        let direct = Seen::send(upstream.addr(), &one).context("pulling from the upstream")?;
        let before = upstream.counts()?;
        let server = Server::mirror(binary, upstream.addr(), &Map::new())?;
        let cold = Seen::send(server.addr(), &all).with_context(|| server.log_tail())?;
        let upstream_bytes = upstream.settled()?.bytes - before.bytes;
        let warm = Seen::send(server.addr(), &all).with_context(|| server.log_tail())?;
        Ok(Round {
            direct_ms: first(&direct),
            cold,
            warm,
            upstream_bytes,
        })
    })?;
    let title = format!("Rollout to {nodes} nodes");
    results.section(&title, &figures(&all));
    Ok(())
}

/// A small request, of 99 %, of the nodes for which nothing has to be asked upstream any more.
fn small(seen: &Seen) -> f64 {
    let later = { seen.joined.iter() }.filter(|joined| joined.late >= LATER_MS);
    Samples::new(later.flat_map(|joined| joined.small.iter().copied())).percentile(99)
}

fn first(seen: &Seen) -> f64 {
    seen.joined.first().map_or(f64::NAN, |joined| joined.pull)
}

fn last(seen: &Seen) -> f64 {
    seen.joined.last().map_or(f64::NAN, |joined| joined.pull)
}

fn figures(rounds: &[Round]) -> String {
    let mut figures = Figures::of(rounds);
    figures.add(
        "first node's pull over a direct one",
        "x",
        Target::AtMost(FIRST),
        |round| first(&round.cold) / round.direct_ms,
    );
    figures.add(
        "last node's pull over the cached image's",
        "x",
        Target::AtMost(LAST),
        |round| last(&round.cold) / last(&round.warm),
    );
    figures.add(
        "small requests, p99",
        "ms",
        Target::AtMost(SMALL_MS),
        |round| small(&round.cold),
    );
    figures.add(
        "upstream bytes over the image's",
        "x",
        Target::AtMost(BYTES),
        |round| times(round.upstream_bytes, round.cold.unique_bytes),
    );
    figures.show("direct pull", "ms", |round| round.direct_ms);
    figures.show("first node's pull", "ms", |round| first(&round.cold));
    figures.show("last node's pull, cached", "ms", |round| last(&round.warm));
    figures.show("small requests, cached, p99", "ms", |round| {
        small(&round.warm)
    });
    figures.show("the image", "MiB", |round| {
        times(round.cold.unique_bytes, MIB)
    });
    figures.table()
}
