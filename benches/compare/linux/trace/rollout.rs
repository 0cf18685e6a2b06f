//! The nodes of a rollout: all pull one new image of many layers within five seconds, from an upstream
//! that is far away and slow on each connection.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Map;
use tempfile::TempDir;

use super::super::common::content::Shelf;
use super::super::common::note;
use super::super::common::report::{Figure, Samples};
use super::super::common::server::{Server, millpond};
use super::super::common::upstream::{Plan, Upstream};
use super::super::results::Results;
use super::nodes::Seen;
use super::world::World;
use super::{Scale, replay};

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
pub(crate) fn measure(
    quick: bool,
    rounds: u32,
    binary: &Path,
    results: &mut Results,
) -> Result<()> {
    note("rollout: making the content");
    let directory = TempDir::with_prefix("millpond-rollout-")?;
    let shelf = Shelf::new(&directory.path().join("content"))?;
    let nodes = if quick { NODES_QUICK } else { NODES };
    let scale = |joiners, join_ms| Scale {
        images: 0,
        largest: 20_000_000,
        sessions: 0,
        workers: 0,
        storms: 1,
        joiners,
        join_ms,
    };
    // The same seed makes the same image.
    let one = World::rollout(&shelf, scale(1, 0), LAYERS)?;
    let all = World::rollout(&shelf, scale(nodes, JOIN_MS), LAYERS)?;
    let file = |name: &str, world: &World| -> Result<_> {
        let path = directory.path().join(name);
        fs::write(&path, serde_json::to_vec(world)?)?;
        Ok(path)
    };
    let (one, all) = (file("one.json", &one)?, file("all.json", &all)?);
    let upstream = Upstream::start(&Plan {
        root: shelf.root().to_owned(),
        delay_ms: DELAY_MS,
        rate: RATE,
        ..Plan::default()
    })?;
    let mut all_rounds = Vec::new();
    for round in 1..=rounds {
        note(&format!("rollout, round {round} of {rounds}"));
        let direct = Seen::send(upstream.addr(), &one).context("pulling from the upstream")?;
        let before = upstream.counts()?;
        let server = Server::start(|directory, own| {
            millpond(binary, directory, own, upstream.addr(), &Map::new())
        })?;
        let cold = replay(&server, &all)?;
        server.settled_cpu()?;
        let upstream_bytes = upstream.counts()?.bytes - before.bytes;
        let warm = replay(&server, &all)?;
        all_rounds.push(Round {
            direct_ms: first(&direct),
            cold,
            warm,
            upstream_bytes,
        });
    }
    report(nodes, &all_rounds, results);
    Ok(())
}

/// A small request, of 99 %, of the nodes for which nothing has to be asked upstream any more.
fn small(seen: &Seen) -> f64 {
    let later = seen
        .joined
        .iter()
        .filter(|joined| joined.late_ms >= LATER_MS);
    let samples = Samples::new(later.flat_map(|joined| joined.small_ms.iter().copied()));
    let at = samples.values().len() * 99 / 100;
    samples.values().get(at).copied().unwrap_or(f64::NAN)
}

fn first(seen: &Seen) -> f64 {
    seen.joined
        .first()
        .map_or(f64::NAN, |joined| joined.pull_ms)
}

fn last(seen: &Seen) -> f64 {
    seen.joined.last().map_or(f64::NAN, |joined| joined.pull_ms)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of one run")]
fn report(nodes: usize, rounds: &[Round], results: &mut Results) {
    let mut add = |name: &str, unit, most, value: &dyn Fn(&Round) -> f64| {
        let name = format!("rollout to {nodes} nodes: {name}");
        let figure = Figure::new(name, unit, rounds.iter().map(value));
        results.figure(match most {
            Some(most) => figure.at_most(most),
            None => figure,
        });
    };
    add(
        "first node's pull over a direct one",
        "x",
        Some(FIRST),
        &|round| first(&round.cold) / round.direct_ms,
    );
    add(
        "last node's pull over the cached image's",
        "x",
        Some(LAST),
        &|round| last(&round.cold) / last(&round.warm),
    );
    add("small requests, p99", "ms", Some(SMALL_MS), &|round| {
        small(&round.cold)
    });
    add("the same, cached", "ms", None, &|round| small(&round.warm));
    add(
        "upstream bytes over the image's",
        "x",
        Some(BYTES),
        &|round| round.upstream_bytes as f64 / round.cold.unique_bytes as f64,
    );
    add("direct pull", "ms", None, &|round| round.direct_ms);
    add("first node's pull", "ms", None, &|round| first(&round.cold));
    add("last node's pull, cached", "ms", None, &|round| {
        last(&round.warm)
    });
    add("the image", "MiB", None, &|round| {
        round.cold.unique_bytes as f64 / f64::from(1 << 20)
    });
}
