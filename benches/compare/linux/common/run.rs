//! One measured run: clients at a server, what they saw, and what each process spent on it.

use std::time::Instant;

use anyhow::{Context, Result};

use super::load::{Load, Plan};
use super::proc::machine_cpu_seconds;
use super::report::{Samples, number};
use super::server::Server;
use super::upstream::{Counts, Upstream};
use super::{GIB, times};

/// What CPU time and rate are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Per {
    Gib,
    Request,
}

/// What one run showed.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) load: Load,
    /// What clients beside the measured ones were sent.
    pub(crate) beside: Load,
    /// CPU seconds of the server and of the upstream.
    pub(crate) cpu: f64,
    pub(crate) upstream_cpu: f64,
    /// Cores that everything that isn't part of the run kept busy meanwhile.
    others: f64,
    /// GETs of blobs that came to the upstream, and body bytes that it sent.
    pub(crate) upstream_gets: f64,
    pub(crate) upstream_bytes: u64,
}

impl Run {
    /// Runs clients, at a server or at the upstream itself. The upstream is left out where it has
    /// nothing to do.
    pub(crate) fn measure(
        plan: &Plan,
        server: Option<&Server>,
        upstream: Option<&Upstream>,
    ) -> Result<Self> {
        let server_cpu = || server.map_or(Ok(0.0), Server::cpu);
        let upstream_cpu = || upstream.map_or(Ok(0.0), Upstream::cpu);
        let counts = || upstream.map_or(Ok(Counts::default()), Upstream::counts);
        let before = counts()?;
        let (server_before, upstream_before) = (server_cpu()?, upstream_cpu()?);
        let (machine, started) = (machine_cpu_seconds()?, Instant::now());
        let load =
            Load::send(plan).with_context(|| server.map_or(String::new(), Server::log_tail))?;
        let busy = machine_cpu_seconds()? - machine;
        let parts = server_cpu()? - server_before + upstream_cpu()? - upstream_before + load.cpu;
        let others = (busy - parts).max(0.0) / started.elapsed().as_secs_f64();
        let cpu = server.map_or(Ok(0.0), Server::settled_cpu)? - server_before;
        let upstream_cpu = upstream_cpu()? - upstream_before;
        let after = counts()?;
        Ok(Self {
            load,
            beside: Load::default(),
            cpu,
            upstream_cpu,
            others,
            upstream_gets: (after.blob_gets - before.blob_gets) as f64,
            upstream_bytes: after.bytes - before.bytes,
        })
    }

    /// CPU seconds of server, upstream and clients.
    pub(crate) fn parts(&self) -> f64 {
        self.cpu + self.upstream_cpu + self.load.cpu
    }

    /// GiB, or thousands of requests.
    fn work(&self, per: Per) -> f64 {
        match per {
            Per::Gib => times(self.load.bytes, GIB),
            Per::Request => self.load.requests as f64 / 1e3,
        }
    }

    pub(crate) fn rate(&self, per: Per) -> f64 {
        self.work(per) / self.load.wall
    }

    /// GiB a second of the clients beside the measured ones.
    pub(crate) fn beside_rate(&self) -> f64 {
        times(self.beside.bytes, GIB) / self.beside.wall
    }

    pub(crate) fn cost(&self, per: Per) -> f64 {
        self.cpu / self.work(per)
    }
}

/// Medians of runs of the same kind, one line for each kind.
pub(crate) fn table(per: Per, kinds: &[(&str, Vec<&Run>)]) -> String {
    let (rate, cost) = match per {
        Per::Gib => ("GiB/s", "s/GiB"),
        Per::Request => ("thousand requests/s", "us/request"),
    };
    // Seconds a thousand requests are milliseconds a request.
    let scale = if per == Per::Gib { 1.0 } else { 1e3 };
    let mut text = format!(
        "| server | {rate} | range | CPU, {cost} | load generator | upstream | cores busy with \
         other work | answer p50, ms | p99, ms | first byte at worst, ms | upstream GETs | GiB/s beside |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for (kind, runs) in kinds {
        let samples = |value: &dyn Fn(&Run) -> f64| Samples::new(runs.iter().map(|run| value(run)));
        let cell = |value: &dyn Fn(&Run) -> f64| number(samples(value).median());
        let each = |cpu: fn(&Run) -> f64| cell(&|run| scale * cpu(run) / run.work(per));
        text.push_str(&format!(
            "| {kind} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            cell(&|run| run.rate(per)),
            samples(&|run| run.rate(per)).range(),
            each(|run| run.cpu),
            each(|run| run.load.cpu),
            each(|run| run.upstream_cpu),
            cell(&|run| run.others),
            cell(&|run| run.load.p50 * 1e3),
            cell(&|run| run.load.p99 * 1e3),
            cell(&|run| run.load.worst_first_byte * 1e3),
            cell(&|run| run.upstream_gets),
            cell(&Run::beside_rate),
        ));
    }
    text
}
