//! One measured pull: some clients, through a mirror or straight from the upstream, and what each
//! process spent on it.

use anyhow::{Context, Result, ensure};
use serde_json::Map;

use super::common::load::{Load, Plan};
use super::common::proc::{cores, machine_cpu_seconds};
use super::common::report::{median, number};
use super::common::scratch::write_seconds;
use super::common::server::Server;
use super::common::upstream::Upstream;

/// CPU seconds of one run, by process, and its wall time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall: f64,
    pub(crate) mirror: f64,
    pub(crate) upstream: f64,
    pub(crate) clients: f64,
    /// The rest of the machine: kernel threads that write files back, and everything else.
    pub(crate) others: f64,
}

impl Cost {
    /// CPU seconds of the three parts of a run.
    pub(crate) fn parts(&self) -> f64 {
        self.mirror + self.upstream + self.clients
    }
}

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
    /// CPU seconds of writing the blob to a file just before; 0 when nothing is stored.
    pub(crate) write: f64,
}

/// A new mirror with its defaults.
pub(crate) fn mirror(upstream: &Upstream) -> Result<Server> {
    Server::mirror(upstream.addr(), &Map::new())
}

/// `clients` at once fetch the first blob through a new mirror.
pub(crate) fn cold(upstream: &Upstream, clients: usize) -> Result<Pulled> {
    let write = write_seconds(upstream.large()?.bytes)?;
    let mirror = mirror(upstream)?;
    let pulled = through(&mirror, upstream, clients)?;
    Ok(Pulled { write, ..pulled })
}

/// `clients` at once fetch the first blob through `mirror`.
pub(crate) fn through(mirror: &Server, upstream: &Upstream, clients: usize) -> Result<Pulled> {
    measured(upstream, Some(mirror), clients).with_context(|| mirror.log_tail())
}

/// `clients` at once fetch the first blob from the upstream itself.
pub(crate) fn direct(upstream: &Upstream, clients: usize) -> Result<Pulled> {
    measured(upstream, None, clients)
}

fn measured(upstream: &Upstream, mirror: Option<&Server>, clients: usize) -> Result<Pulled> {
    let addr = mirror.map_or(upstream.addr(), Server::addr);
    let blob = upstream.large()?;
    let before = upstream.counts()?;
    let mirror_before = mirror.map_or(Ok(0.0), Server::cpu)?;
    let upstream_before = upstream.cpu()?;
    let machine_before = machine_cpu_seconds()?;
    let load = Load::send(&Plan::once(addr, blob.path(), clients))?;
    let mirror_after = mirror.map_or(Ok(0.0), Server::settled_cpu)?;
    let mut cost = Cost {
        wall: load.wall,
        mirror: mirror_after - mirror_before,
        upstream: upstream.cpu()? - upstream_before,
        clients: load.cpu,
        others: 0.0,
    };
    cost.others = (machine_cpu_seconds()? - machine_before - cost.parts()).max(0.0);
    let after = upstream.counts()?;
    ensure!(
        load.bytes == blob.bytes * clients as u64,
        "a client got a body of the wrong length"
    );
    Ok(Pulled {
        cost,
        worst_first_byte: load.worst_first_byte,
        gets: after.blob_gets - before.blob_gets,
        bytes: after.bytes - before.bytes,
        write: 0.0,
    })
}

/// Medians of the CPU seconds, one line for each kind of run.
pub(crate) fn cost_table(kinds: &[(&str, &[Cost])]) -> String {
    let mut text = "\n| CPU seconds of (medians) | mirror | upstream | clients | rest of the \
                    machine | wall, s | cores busy with the three parts |\n\
                    |---|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for (name, costs) in kinds {
        let middle =
            |part: fn(&Cost) -> f64| number(median(&costs.iter().map(part).collect::<Vec<_>>()));
        let row = format!(
            "| {name} | {} | {} | {} | {} | {} | {} of {} |\n",
            middle(|cost| cost.mirror),
            middle(|cost| cost.upstream),
            middle(|cost| cost.clients),
            middle(|cost| cost.others),
            middle(|cost| cost.wall),
            middle(|cost| cost.parts() / cost.wall),
            cores(),
        );
        text.push_str(&row);
    }
    text
}
