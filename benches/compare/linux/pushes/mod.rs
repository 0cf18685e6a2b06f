//! Pushes beside the reference registry, on the same disk: both make durable what they confirm. The
//! clients are threads of this process, whose CPU time isn't part of a figure.

mod copies;
mod floor;
mod many;
mod wire;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use millpond::oci::{Algorithm, Digest};
use serde_json::{Map, Value, json};

use super::Sizes;
use super::common::load::{Load, Pattern, Plan};
use super::common::proc::cpu_seconds;
use super::common::report::Figure;
use super::common::report::Target::{self, AtLeast, AtMost};
use super::common::server::{Server, millpond};
use super::common::{GIB, MIB, note, rounds, times, together};
use super::library::Library;
use super::peers::{self, Peer, REGISTRY, Sources};
use super::results::{Comparison, Results};
pub(super) use wire::{Blob, Pusher};

/// What everybody pushes into.
const REPO: &str = "pushed/bench";
/// Small layers of one push, and the connections that share them.
const LAYERS: u64 = 100;
const LAYER: u64 = 64 << 10;
const CONNECTIONS: u64 = 8;
/// Manifests of one run, and the layers of each.
const MANIFESTS: u64 = 200;
const LAYERS_OF_MANIFEST: u64 = 10;
/// Clients that push at the same time, for the memory.
const CLIENTS: u64 = 64;

/// CPU seconds above those of the hash, for a GiB.
const ABOVE_HASH: f64 = 0.55;
/// MiB above the idle server: of one client, and of each of many.
const MEMORY: f64 = 16.0;
const MEMORY_EACH: f64 = 4.0;

/// The rows, by their names on the command line, and whether each has a peer.
const ROWS: [(&str, Measure, bool); 7] = [
    ("push-large", large, true),
    ("push-layers", layers, true),
    ("push-manifests", manifests, true),
    ("push-memory", memory, false),
    ("push-beside", beside, false),
    ("push-many", many::measure, false),
    ("copy-large", copies::measure, true),
];

type Measure = fn(&Bench<'_>, &mut Results) -> Result<()>;

struct Bench<'a> {
    library: &'a Library,
    sources: &'a Sources,
    sizes: &'a Sizes,
    /// No two blobs are equal.
    seed: AtomicU64,
}

/// Measures the rows that are wanted.
pub(crate) fn measure(
    wanted: impl Fn(&str) -> bool,
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    let bench = Bench {
        library,
        sources,
        sizes,
        seed: AtomicU64::new(1),
    };
    let has_peer = peers::version(REGISTRY).is_some();
    for (key, measure, needs_peer) in ROWS {
        if !wanted(key) {
            continue;
        }
        if needs_peer && !has_peer {
            results.missing(Peer::Hosting, REGISTRY);
            continue;
        }
        measure(&bench, results)?;
    }
    Ok(())
}

impl Bench<'_> {
    fn blob(&self, bytes: u64) -> Blob {
        Blob::new(self.seed.fetch_add(1, Ordering::Relaxed), bytes)
    }

    /// millpond with hosted repositories, beside what it mirrors.
    fn ours(&self) -> Result<Server> {
        let Sources {
            millpond: binary,
            upstream,
            ..
        } = self.sources;
        Server::start(|directory, addr| {
            let command = millpond(binary, directory, addr, *upstream, &Map::new());
            host(&directory.join("config.yml"))?;
            Ok(command)
        })
    }

    fn theirs(&self) -> Result<Server> {
        peers::start(Peer::Hosting, self.sources)
    }
}

/// Adds hosted repositories, into which everybody may push.
pub(super) fn host(config: &Path) -> Result<()> {
    let mut document: Map<String, Value> = serde_json::from_str(&fs::read_to_string(config)?)?;
    let hosted = json!([{ "name": "pushed", "repositories": ["pushed/**"] }]);
    document.insert("hosted".to_owned(), hosted);
    let access = json!([{ "anyone": true, "effect": "allow" }]);
    document.insert("access".to_owned(), access);
    Ok(fs::write(config, serde_json::to_string(&document)?)?)
}

/// Seconds and CPU seconds of one run.
struct Run {
    wall: f64,
    cpu: f64,
}

impl Run {
    fn of(server: &Server, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let before = server.settled_cpu()?;
        let started = Instant::now();
        work().with_context(|| server.log_tail())?;
        let wall = started.elapsed().as_secs_f64();
        let cpu = server.settled_cpu()? - before;
        Ok(Self { wall, cpu })
    }
}

fn compare(
    results: &mut Results,
    row: &str,
    figure: &str,
    target: impl Into<Option<Target>>,
    ratios: impl Iterator<Item = f64>,
) {
    results.comparisons.push(Comparison {
        row: row.to_owned(),
        peer: Peer::Hosting,
        ratio: Figure::new(figure, "x", ratios).target(target).steady(),
    });
}

/// A blob of a GiB by one PUT, and by docker's chunked PATCH.
fn large(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let (ours, theirs) = (bench.ours()?, bench.theirs()?);
    let bytes = bench.sizes.large;
    let runs = rounds("push-large", bench.sizes.rounds, || {
        let push = |server: &Server, push: fn(&mut Pusher, &str, &Blob) -> Result<()>| {
            let blob = bench.blob(bytes);
            let mut pusher = Pusher::connect(server.addr())?;
            Run::of(server, || push(&mut pusher, REPO, &blob))
        };
        let hash = hash_seconds(bytes)?;
        let floor = floor::seconds(bytes)?;
        let put = push(&ours, Pusher::put)?;
        let other = push(&theirs, Pusher::put)?;
        let patch = push(&ours, Pusher::patch)?;
        Ok(((hash, floor), put, other, patch))
    })?;
    let title = format!("push of {} MiB", bytes >> 20);
    let each = || runs.iter();
    let ratios = each().map(|(_, put, other, _)| put.wall / other.wall);
    compare(
        results,
        &format!("{title}, PUT"),
        "wall time",
        AtMost(0.8),
        ratios,
    );
    let ratios = each().map(|(_, put, other, _)| put.cpu / other.cpu);
    compare(results, &format!("{title}, PUT"), "CPU", None, ratios);
    let above = each().map(|((hash, _), put, ..)| (put.cpu - hash) / times(bytes, GIB));
    let name = format!("{title}, PUT: CPU above that of its sha256, for a GiB");
    results
        .figures
        .push(Figure::new(&name, "s", above).target(AtMost(ABOVE_HASH)));
    let above = each().map(|((hash, floor), ..)| (floor - hash) / times(bytes, GIB));
    let name = "the same of a loop that receives, hashes and writes";
    results.figures.push(Figure::new(name, "s", above));
    let ratios = each().map(|((_, floor), put, ..)| put.cpu / floor);
    let name = format!("{title}, PUT: CPU over that of such a loop");
    results
        .figures
        .push(Figure::new(&name, "x", ratios).steady());
    let ratios = each().map(|(_, put, _, patch)| patch.wall / put.wall);
    let name = format!("{title}, chunked PATCH over PUT, wall time");
    results.figures.push(
        Figure::new(&name, "x", ratios)
            .target(AtMost(1.15))
            .steady(),
    );
    Ok(())
}

/// CPU seconds of hashing so many bytes, as the server does it.
fn hash_seconds(bytes: u64) -> Result<f64> {
    let before = cpu_seconds(std::process::id())?;
    drop(Blob::new(0, bytes));
    Ok(cpu_seconds(std::process::id())? - before)
}

/// Small layers over some connections.
fn layers(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let (ours, theirs) = (bench.ours()?, bench.theirs()?);
    let runs = rounds("push-layers", bench.sizes.rounds, || {
        let run = |server: &Server| Run::of(server, || push_layers(bench, server).map(drop));
        Ok((run(&ours)?, run(&theirs)?))
    })?;
    let title = format!("push of {LAYERS} layers of 64 KiB, {CONNECTIONS} connections");
    let ratios = runs.iter().map(|(ours, theirs)| theirs.wall / ours.wall);
    compare(results, &title, "layers/s", AtLeast(2.0), ratios);
    let ratios = runs.iter().map(|(ours, theirs)| ours.cpu / theirs.cpu);
    compare(results, &title, "CPU", None, ratios);
    Ok(())
}

/// Pushes the layers; returns their digests.
fn push_layers(bench: &Bench<'_>, server: &Server) -> Result<Vec<Digest>> {
    let clients = (0..CONNECTIONS).map(|client| {
        let share = LAYERS / CONNECTIONS + u64::from(client < LAYERS % CONNECTIONS);
        let blobs: Vec<_> = (0..share).map(|_| bench.blob(LAYER)).collect();
        let addr = server.addr();
        move || {
            let mut pusher = Pusher::connect(addr)?;
            blobs.iter().try_for_each(|blob| pusher.put(REPO, blob))?;
            Ok(blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>())
        }
    });
    Ok(together(clients)?.into_iter().flatten().collect())
}

/// Manifests of layers that are there, each with a tag, over some connections.
fn manifests(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let (ours, theirs) = (bench.ours()?, bench.theirs()?);
    let layers = |server: &Server| push_layers(bench, server);
    let (our_layers, their_layers) = (layers(&ours)?, layers(&theirs)?);
    let mut round = 0;
    let runs = rounds("push-manifests", bench.sizes.rounds, || {
        round += 1;
        let run = |server: &Server, layers: &[Digest]| {
            Run::of(server, || push_manifests(server, round, layers))
        };
        Ok((run(&ours, &our_layers)?, run(&theirs, &their_layers)?))
    })?;
    let title = format!(
        "push of {MANIFESTS} manifests of {LAYERS_OF_MANIFEST} layers, {CONNECTIONS} connections"
    );
    let ratios = runs.iter().map(|(ours, theirs)| theirs.wall / ours.wall);
    compare(results, &title, "manifests/s", AtLeast(2.0), ratios);
    let ratios = runs.iter().map(|(ours, theirs)| ours.cpu / theirs.cpu);
    compare(results, &title, "CPU", None, ratios);
    Ok(())
}

fn push_manifests(server: &Server, round: u32, layers: &[Digest]) -> Result<()> {
    let clients = (0..CONNECTIONS).map(|client| {
        let addr = server.addr();
        move || {
            let mut pusher = Pusher::connect(addr)?;
            for number in 0..MANIFESTS / CONNECTIONS {
                let tag = format!("r{round}-{client}-{number}");
                let manifest = manifest(&tag, layers)?;
                pusher.manifest(REPO, &tag, &manifest)?;
            }
            Ok(())
        }
    });
    together(clients).map(drop)
}

/// A manifest of some of the layers, which no other one equals.
fn manifest(name: &str, layers: &[Digest]) -> Result<Vec<u8>> {
    let descriptor = |kind: &str, digest: &Digest| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest.to_string(),
            "size": LAYER,
        })
    };
    let start = Digest::of(Algorithm::Sha256, name.as_bytes());
    let start = usize::from_str_radix(start.hex().get(..4).unwrap_or_default(), 16)?;
    let mut chosen = layers.iter().cycle().skip(start % layers.len().max(1));
    let config = chosen.next().context("there are layers")?;
    let chosen = chosen.take(usize::try_from(LAYERS_OF_MANIFEST)?);
    let chosen: Vec<_> = chosen
        .map(|layer| descriptor("layer.v1.tar+gzip", layer))
        .collect();
    Ok(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": super::common::content::MANIFEST,
        "config": descriptor("config.v1+json", config),
        "layers": chosen,
        "annotations": { "name": name },
    }))?)
}

/// Resident memory at its peak, above the idle server.
fn memory(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let bytes = bench.sizes.large;
    let mut peak = |name: String, clients: u64, bytes: u64, most: f64| -> Result<()> {
        note(&name);
        let server = bench.ours()?;
        server.settled_cpu()?;
        let idle = server.memory("VmRSS")?;
        let pushes = (0..clients).map(|_| {
            let (blob, addr) = (bench.blob(bytes), server.addr());
            move || Pusher::connect(addr)?.put(REPO, &blob)
        });
        together(pushes).with_context(|| server.log_tail())?;
        let above = (server.memory("VmHWM")? - idle) / clients as f64;
        results.add(&name, "MiB", above, AtMost(most));
        Ok(())
    };
    let name = format!("peak above idle, a push of {} MiB", bytes >> 20);
    peak(name, 1, bytes, MEMORY)?;
    let share = (bytes / CLIENTS).max(4 * MIB);
    let name = format!(
        "the same, {CLIENTS} clients that push {} MiB, each",
        share >> 20
    );
    peak(name, CLIENTS, share, MEMORY_EACH)
}

/// Small warm pulls while a large blob is pushed.
fn beside(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let server = bench.ours()?;
    let plan = Plan {
        addr: server.addr(),
        paths: bench.library.small.clone(),
        method: "GET".to_owned(),
        connections: 16,
        pattern: Pattern::Lasting(bench.sizes.timed),
        fresh: false,
    };
    Load::send(&plan)?;
    let ratios = rounds("push-beside", bench.sizes.rounds, || {
        let alone = Load::send(&plan)?;
        let blob = bench.blob(bench.sizes.large);
        let addr = server.addr();
        let load = Load::start(&plan)?;
        let pushed = together([move || Pusher::connect(addr)?.put(REPO, &blob)]);
        let load = Load::end(load)?;
        pushed.with_context(|| server.log_tail())?;
        Ok(load.p99 / alone.p99)
    })?;
    let name = format!(
        "p99 of warm 1 KiB beside a push of {} MiB, over that without",
        bench.sizes.large >> 20
    );
    let figure = Figure::new(&name, "x", ratios).target(AtMost(2.0));
    results.figures.push(figure.steady());
    Ok(())
}
