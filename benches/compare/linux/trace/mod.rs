//! A made-up day of a mirror: sessions of many nodes, most of which only check a manifest, images
//! by Zipf's law, and storms of nodes that join one new image within seconds. The shape is that of
//! production registries (65 % of layers under 1 MB, 80 % under 10 MB, a tail; 90 to 95 % pulls);
//! the sizes of the tail and the numbers are scaled down to one machine. Every run is the same.

pub(crate) mod nodes;
pub(crate) mod rollout;
pub(crate) mod soak;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Map;
use tempfile::TempDir;

use super::common::content::ContentDir;
use super::common::report::{Samples, Target, number};
use super::common::server::Server;
use super::common::upstream::{Counts, Plan, Upstream};
use super::common::{GIB, note, times};
use super::results::Results;
use nodes::Seen;
use world::World;

/// Milliseconds that the upstream's answers are late.
const DELAY_MS: u64 = 20;

/// How large a trace is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Images that sessions choose from.
    pub(crate) images: usize,
    /// Bytes of the largest layer.
    pub(crate) largest: u64,
    /// Sessions of nodes that come by themselves.
    pub(crate) sessions: usize,
    /// Nodes that pull at the same time, outside of storms.
    pub(crate) workers: usize,
    /// Storms, each of a new image.
    pub(crate) storms: usize,
    /// Nodes of a storm.
    pub(crate) joiners: usize,
    /// Milliseconds within which they come.
    pub(crate) join_ms: u64,
}

const QUICK: Scale = Scale {
    images: 12,
    largest: 20_000_000,
    sessions: 100,
    workers: 8,
    storms: 2,
    joiners: 32,
    join_ms: 500,
};

const FULL: Scale = Scale {
    images: 60,
    largest: 100_000_000,
    sessions: 1500,
    workers: 16,
    storms: 2,
    joiners: 100,
    join_ms: 2000,
};

/// Replays the trace through a new mirror.
pub(crate) fn measure(quick: bool, binary: &Path, results: &mut Results) -> Result<()> {
    let scale = if quick { QUICK } else { FULL };
    note("trace: making the content");
    let prepared = prepare(scale)?;
    let Prepared {
        world,
        file,
        upstream,
        ..
    } = &prepared;
    let server = Server::mirror(binary, upstream.addr(), &Map::new())?;
    note("trace: replaying it");
    let seen = Seen::send(server.addr(), file).with_context(|| server.log_tail())?;
    let counts = upstream.counts()?;
    let cost = Cost {
        cpu: server.settled_cpu()?,
        upstream: upstream.cpu()?,
        peak: server.memory("VmHWM")?,
    };
    report(&seen, counts, &cost, results);
    results.section("The trace", &describe(scale, &seen, world, &cost));
    Ok(())
}

/// A trace, the file that nodes read it from, and the upstream that has its content.
struct Prepared {
    world: World,
    file: PathBuf,
    upstream: Upstream,
    /// Removed with everything in it when this is dropped.
    _directory: TempDir,
}

fn prepare(scale: Scale) -> Result<Prepared> {
    let directory = TempDir::with_prefix("millpond-trace-")?;
    let content_dir = ContentDir::new(&directory.path().join("content"))?;
    let world = World::make(&content_dir, scale)?;
    let file = directory.path().join("world.json");
    fs::write(&file, serde_json::to_vec(&world)?)?;
    let upstream = Upstream::start(Plan {
        root: content_dir.root().to_owned(),
        delay_ms: DELAY_MS,
        ..Plan::default()
    })?;
    Ok(Prepared {
        world,
        file,
        upstream,
        _directory: directory,
    })
}

/// What the trace cost, in CPU seconds and MiB.
struct Cost {
    cpu: f64,
    upstream: f64,
    peak: f64,
}

fn report(seen: &Seen, counts: Counts, cost: &Cost, results: &mut Results) {
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let gibibytes = times(seen.bytes, GIB);
    let joiners = Samples::new(seen.joiners_ms.iter().copied());
    let whole = Samples::new(seen.joined.iter().map(|joined| joined.pull));
    let mut add = |name: &str, unit, value, target: Option<Target>| {
        results.add(&format!("trace: {name}"), unit, value, target);
    };
    let hits = 100.0 * (1.0 - share(counts.blob_gets, seen.blobs));
    add("blob requests that needed no upstream GET", "%", hits, None);
    let bytes = 100.0 * (1.0 - share(counts.bytes, seen.bytes));
    add("bytes that needed no upstream", "%", bytes, None);
    let twice = share(counts.bytes, seen.unique_bytes);
    let once = Some(Target::AtMost(1.0));
    add("upstream bytes over unique bytes", "x", twice, once);
    let requests = share(counts.requests, seen.sessions);
    add("upstream requests a session", "", requests, None);
    let pulls = share(counts.requests, seen.pulls);
    add("upstream requests a whole pull", "", pulls, None);
    let manifests = share(counts.manifest_gets, seen.pulls);
    add("upstream manifest GETs a whole pull", "", manifests, None);
    let name = |percent| format!("joiner's first byte of a layer, p{percent}");
    add(&name(50), "ms", joiners.percentile(50), None);
    add(&name(99), "ms", joiners.percentile(99), None);
    add("joiner's whole pull, p50", "ms", whole.median(), None);
    add("peak memory", "MiB", cost.peak, None);
    add("CPU a GiB", "s", cost.cpu / gibibytes, None);
}

fn describe(scale: Scale, seen: &Seen, world: &World, cost: &Cost) -> String {
    format!(
        "{} sessions over {} images by Zipf(1.0), {} of them whole pulls; {} storms of {} nodes \
         within {} ms, each of a new image. {} distinct layers, {} % under 1 MB and {} % under \
         10 MB, the largest {} MB. The upstream's answers come {DELAY_MS} ms late. {} requests and \
         {} GiB in {} s; CPU seconds: {} of the mirror, {} of the nodes, {} of the upstream.\n",
        seen.sessions,
        scale.images,
        seen.pulls,
        scale.storms,
        scale.joiners,
        scale.join_ms,
        world.sizes().len(),
        number(world.share_below(1_000_000).round()),
        number(world.share_below(10_000_000).round()),
        scale.largest / 1_000_000,
        seen.requests,
        number(times(seen.bytes, GIB)),
        number(seen.wall),
        number(cost.cpu),
        number(seen.cpu),
        number(cost.upstream),
    )
}
