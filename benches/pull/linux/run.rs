//! One measured pull: some clients, through a mirror or straight from the upstream, and what each
//! process spent on it.

use anyhow::{Context, Result, ensure};

use super::clients::{Herd, Plan};
use super::mirror::Mirror;
use super::proc::machine_cpu_seconds;
use super::report::Cost;
use super::scratch::write_seconds;
use super::upstream::{Stats, Upstream};

/// What a pull showed.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) cost: Cost,
    /// When the last client had its first byte, in seconds.
    pub(crate) worst_first_byte: f64,
    /// GETs that the upstream saw.
    pub(crate) gets: u64,
    /// Body bytes that the upstream sent.
    pub(crate) bytes: u64,
    /// CPU seconds that writing the blob to a file took right before; 0 when nothing is stored.
    pub(crate) write: f64,
}

/// `clients` at once fetch the large blob through a mirror that has just been started.
pub(crate) fn cold(upstream: &Upstream, clients: usize) -> Result<Pulled> {
    let write = write_seconds(upstream.large()?.bytes)?;
    let mirror = Mirror::start(upstream.addr())?;
    let pulled = through(&mirror, upstream, clients)?;
    Ok(Pulled { write, ..pulled })
}

/// `clients` at once fetch the large blob through `mirror`.
pub(crate) fn through(mirror: &Mirror, upstream: &Upstream, clients: usize) -> Result<Pulled> {
    measured(upstream, Some(mirror), clients).with_context(|| mirror.log_tail())
}

/// `clients` at once fetch the large blob from the upstream itself.
pub(crate) fn direct(upstream: &Upstream, clients: usize) -> Result<Pulled> {
    measured(upstream, None, clients)
}

fn measured(upstream: &Upstream, mirror: Option<&Mirror>, clients: usize) -> Result<Pulled> {
    let addr = mirror.map_or(upstream.addr(), Mirror::addr);
    let plan = Plan {
        addr,
        path: upstream.large()?.path(),
        clients,
        slow_ms: 0,
    };
    let before = upstream.stats()?;
    let mirror_before = mirror.map_or(Ok(0.0), Mirror::cpu_seconds)?;
    let upstream_before = upstream.cpu_seconds()?;
    let machine_before = machine_cpu_seconds()?;
    let herd = Herd::send(&plan, || Ok(()))?;
    let mirror_after = mirror.map_or(Ok(0.0), Mirror::settled_cpu_seconds)?;
    let mut cost = Cost {
        wall: herd.last(),
        mirror: mirror_after - mirror_before,
        upstream: upstream.cpu_seconds()? - upstream_before,
        clients: herd.cpu,
        others: 0.0,
    };
    cost.others = (machine_cpu_seconds()? - machine_before - cost.parts()).max(0.0);
    let Stats { gets, bytes, .. } = upstream.stats()?;
    let length = upstream.large()?.bytes;
    ensure!(
        herd.pulls.iter().all(|pull| pull.bytes == length),
        "a client got a body of the wrong length"
    );
    Ok(Pulled {
        cost,
        worst_first_byte: herd.worst_first_byte(),
        gets: gets - before.gets,
        bytes: bytes - before.bytes,
        write: 0.0,
    })
}
