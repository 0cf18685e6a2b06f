//! A replica that asks the owner, beside the upstream registry and a mirror alone: the time to the first byte, and
//! what sending to another replica costs the owner.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use millpond::oci::{Algorithm, Digest, RepoName};
use serde_json::Map;
use tempfile::TempDir;

use super::Sizes;
use super::common::content::{self, ContentDir};
use super::common::load::{Load, Plan};
use super::common::report::Target::AtMost;
use super::common::report::{Figure, Figures, Samples};
use super::common::server::{Server, millpond};
use super::common::upstream::REPOSITORY;
use super::common::wire::get;
use super::common::{GIB, MIB, note, rounds, times};
use super::library::Library;
use super::peers::{self, Peer, Sources};
use super::results::Results;

/// Blobs whose first byte is timed in each way, and their bytes.
const BLOBS: usize = 31;
const SMALL_BLOB: u64 = 64 * 1024;
/// The first byte, warm at the owner, over the upstream's own; and, cold everywhere, over that of one mirror alone.
const WARM_AT_OWNER: f64 = 0.6;
const COLD_EVERYWHERE: f64 = 1.5;
/// CPU for a GiB of the owner over that of the reference registry.
const OWNER_CPU: f64 = 0.5;

/// Measures the rows that are wanted.
pub(crate) fn measure(
    wanted: impl Fn(&str) -> bool,
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    let rows = ["replicas-first-byte", "replicas-cpu"].map(wanted);
    if !rows.contains(&true) {
        return Ok(());
    }
    if let Some(program) = Peer::Hosting
        .program()
        .filter(|program| peers::version(program).is_none())
    {
        results.missing(Peer::Hosting, program);
        return Ok(());
    }
    let [is_timed, is_counted] = rows;
    if is_timed {
        first_byte(sources, results)?;
    }
    if is_counted {
        owner_cpu(library, sources, sizes, results)?;
    }
    Ok(())
}

/// A new replica. The owner of everything is at `owner`; without it, that is this one.
fn replica(sources: &Sources, upstream: SocketAddr, owner: Option<SocketAddr>) -> Result<Server> {
    Server::start(|directory, addr| {
        let mut command = millpond(&sources.millpond, directory, addr, upstream, &Map::new());
        // As the name of one address: a replica that isn't among the members asks them.
        command.env("REGISTRY_REPLICAS_PEERS", owner.unwrap_or(addr).to_string());
        command.env("REGISTRY_REPLICAS_SECRET", "a secret of the bench");
        Ok(command)
    })
}

/// The reference registry over a directory of content.
fn registry(content: &ContentDir) -> Result<Server> {
    Server::start(|directory, addr| {
        peers::registry(
            peers::REGISTRY.as_ref(),
            directory,
            addr,
            None,
            content.root(),
        )
    })
}

/// Milliseconds to the first byte of one blob, each way.
struct Times {
    direct: f64,
    warm_at_owner: f64,
    alone: f64,
    everywhere: f64,
}

fn first_byte(sources: &Sources, results: &mut Results) -> Result<()> {
    note("replicas-first-byte");
    let directory = TempDir::with_prefix("millpond-upstream-")?;
    let content = ContentDir::new(directory.path())?;
    let repo: RepoName = REPOSITORY.parse()?;
    let blobs = (0..2 * (BLOBS as u64 + 1)).map(|seed| {
        content.blob(&repo, SMALL_BLOB, |number, piece| {
            content::fill(seed, number, piece);
        })
    });
    let blobs = blobs.collect::<Result<Vec<_>>>()?;
    let upstream = registry(&content)?;
    let alone = Server::mirror(&sources.millpond, upstream.addr(), &Map::new())?;
    let owner = replica(sources, upstream.addr(), None)?;
    let asking = replica(sources, upstream.addr(), Some(owner.addr()))?;
    let time = |blobs: &[Digest]| {
        let [warm, cold] = blobs else {
            anyhow::bail!("blobs come in pairs")
        };
        first_byte_ms(owner.addr(), warm)?;
        Ok(Times {
            direct: first_byte_ms(upstream.addr(), cold)?,
            warm_at_owner: first_byte_ms(asking.addr(), warm)?,
            alone: first_byte_ms(alone.addr(), cold)?,
            everywhere: first_byte_ms(asking.addr(), cold)?,
        })
    };
    // The first pair opens the connections between the servers.
    let timed = blobs.chunks(2).map(time).skip(1);
    let timed = timed.collect::<Result<Vec<_>>>()?;
    let mut figures = Figures::of(&timed);
    figures.show("straight from the registry", "ms", |times| times.direct);
    figures.show("warm at the owner", "ms", |times| times.warm_at_owner);
    figures.show("cold, of one mirror alone", "ms", |times| times.alone);
    figures.show("cold everywhere", "ms", |times| times.everywhere);
    let middle = |part: fn(&Times) -> f64| Samples::new(timed.iter().map(part)).median();
    let mut ratio = |name: &str, ratio: f64, target| {
        figures.push(Figure::new(name, "x", [ratio]).target(AtMost(target)));
    };
    ratio(
        "warm at the owner over the registry's own, of the medians",
        middle(|times| times.warm_at_owner) / middle(|times| times.direct),
        WARM_AT_OWNER,
    );
    ratio(
        "cold everywhere over one mirror alone, of the medians",
        middle(|times| times.everywhere) / middle(|times| times.alone),
        COLD_EVERYWHERE,
    );
    let size = SMALL_BLOB >> 10;
    let title = format!("Replicas: first byte, {BLOBS} blobs of {size} KiB each way");
    results.section(&title, &figures.table());
    Ok(())
}

/// Milliseconds from before the connection to the first byte of the body, whose digest is checked.
fn first_byte_ms(addr: SocketAddr, digest: &Digest) -> Result<f64> {
    let started = Instant::now();
    let mut answer = get(addr, &format!("/v2/{REPOSITORY}/blobs/{digest}"))?;
    answer.wait_first_byte()?;
    let first = started.elapsed().as_secs_f64() * 1e3;
    let got = Digest::of(Algorithm::Sha256, &answer.read_all()?);
    ensure!(got == *digest, "{digest} was asked for and {got} came");
    Ok(first)
}

/// CPU seconds of a GiB.
struct Costs {
    owner: f64,
    registry: f64,
}

fn owner_cpu(
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    let registry = registry(&library.content_dir)?;
    let owner = replica(sources, registry.addr(), None)?;
    let pull = |from: &Server, counted: &Server| {
        let before = counted.settled_cpu()?;
        let load = Load::send(&Plan::once(from.addr(), library.large.clone(), 1))?;
        ensure!(load.bytes == sizes.large, "a body of the wrong length");
        Ok((counted.settled_cpu()? - before) / times(load.bytes, GIB))
    };
    pull(&owner, &owner)?;
    let costs = rounds("replicas-cpu", sizes.rounds, || {
        let asking = replica(sources, registry.addr(), Some(owner.addr()))?;
        let (owner, registry) = (pull(&asking, &owner)?, pull(&registry, &registry)?);
        Ok(Costs { owner, registry })
    })?;
    let mut figures = Figures::of(&costs);
    figures.show("the owner, to another replica", "s/GiB", |costs| {
        costs.owner
    });
    figures.show("the registry, to a client", "s/GiB", |costs| costs.registry);
    let ratios = costs.iter().map(|costs| costs.owner / costs.registry);
    let ratio = Figure::new("the owner over the registry", "x", ratios);
    figures.push(ratio.target(AtMost(OWNER_CPU)).steady());
    let title = format!("Replicas: CPU of sending {} MiB", sizes.large / MIB);
    results.section(&title, &figures.table());
    Ok(())
}
