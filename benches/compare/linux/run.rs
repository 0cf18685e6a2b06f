//! Runs a row: every server in turn, round by round, and what each round showed.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Sizes;
use super::common::load::{Load, Plan};
use super::common::note;
use super::common::proc::machine_cpu_seconds;
use super::common::report::{Figure, Samples, Target, number};
use super::common::scratch::write_seconds;
use super::common::server::Server;
use super::common::upstream::Counts;
use super::peers::{self, Peer, Sources};
use super::results::Results;
use super::rows::{Beside, Per, Row, Work};
use super::stats::Comparison;
use super::upstream::Upstream;

/// Upstream bytes over the blob's: one download, and not a byte twice.
const UPSTREAM_BYTES: f64 = 1.005;
/// Milliseconds to the first byte of every client of a cold blob.
const FIRST_BYTE_MS: f64 = 10.0;

/// How long other clients are served before a row's own begin, and after they have ended.
const HEAD_START: Duration = Duration::from_millis(300);

/// What one run of one server showed.
#[derive(Debug, Clone, Default)]
struct Run {
    load: Load,
    /// What clients beside the measured ones were sent.
    beside: Load,
    /// CPU seconds of the server and of the upstream.
    cpu: f64,
    upstream_cpu: f64,
    /// Cores that everything that isn't part of the run kept busy meanwhile.
    others: f64,
    upstream_gets: u64,
    upstream_bytes: u64,
}

/// A server that stays up, and the rows whose content it has.
struct Warm {
    peer: Peer,
    server: Server,
    rows: Vec<&'static str>,
}

/// The servers that are up, and where they come from.
pub(crate) struct Runner<'a> {
    sources: &'a Sources,
    upstream: &'a Upstream,
    sizes: &'a Sizes,
    warm: Vec<Warm>,
    missing: Vec<Peer>,
}

impl<'a> Runner<'a> {
    pub(crate) const fn new(
        sources: &'a Sources,
        upstream: &'a Upstream,
        sizes: &'a Sizes,
    ) -> Self {
        Self {
            sources,
            upstream,
            sizes,
            warm: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Measures a row and adds it to the results.
    pub(crate) fn measure(&mut self, row: &Row, results: &mut Results) -> Result<()> {
        let mut servers = vec![Peer::Millpond];
        servers.extend(row.peers.iter().map(|versus| versus.peer));
        servers.retain(|peer| self.is_there(*peer, results));
        let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
        for round in 1..=self.sizes.rounds {
            note(&format!(
                "{}, round {round} of {}",
                row.key, self.sizes.rounds
            ));
            for peer in &servers {
                let run = match row.work {
                    Work::Cold => self.cold(*peer, row),
                    Work::Timed | Work::Counted(_) => self.warm(*peer, row),
                };
                let run = run.with_context(|| format!("{} at {peer}", row.title))?;
                runs.entry(peer.name()).or_default().push(run);
            }
            // What drifts during a round is charged to each in turn.
            servers.reverse();
        }
        self.report(row, &runs, results);
        Ok(())
    }

    /// Whether a peer can be started; says so once when it can't.
    fn is_there(&mut self, peer: Peer, results: &mut Results) -> bool {
        let Some(program) = peer.program() else {
            return true;
        };
        if self.missing.contains(&peer) {
            return false;
        }
        let version = peers::version(program);
        if version.is_none() {
            results.missing(peer, program);
            self.missing.push(peer);
        }
        version.is_some()
    }

    fn cold(&self, peer: Peer, row: &Row) -> Result<Run> {
        write_seconds(self.sizes.large)?;
        let server = peers::start(peer, self.sources)?;
        self.run(&server, row)
    }

    fn warm(&mut self, peer: Peer, row: &Row) -> Result<Run> {
        if !self.warm.iter().any(|warm| warm.peer == peer) {
            let server = peers::start(peer, self.sources)?;
            self.warm.push(Warm {
                peer,
                server,
                rows: Vec::new(),
            });
        }
        let found = self.warm.iter_mut().find(|warm| warm.peer == peer);
        let warm = found.context("it was started")?;
        if !warm.rows.contains(&row.key) {
            warm.rows.push(row.key);
            // Once through all paths: fetches what isn't there, and warms what is.
            let mut plan = Plan {
                connections: 1,
                millis: 0,
                ..plan(row, &warm.server, self.sizes)
            };
            plan.paths
                .extend(row.beside.iter().map(|beside| beside.path.clone()));
            plan.count = plan.paths.len() as u64;
            Load::send(&plan).with_context(|| warm.server.log_tail())?;
            warm.server.settled_cpu()?;
        }
        let found = self.warm.iter().find(|warm| warm.peer == peer);
        self.run(&found.context("it was started")?.server, row)
    }

    fn run(&self, server: &Server, row: &Row) -> Result<Run> {
        let counts = || match row.work {
            Work::Cold => self.upstream.counts(),
            Work::Timed | Work::Counted(_) => Ok(Counts::default()),
        };
        let before = counts()?;
        let (cpu, upstream_cpu) = (server.cpu()?, self.upstream.cpu()?);
        let (machine, started) = (machine_cpu_seconds()?, Instant::now());
        let (load, beside) = self.load(row, server).with_context(|| server.log_tail())?;
        let busy = machine_cpu_seconds()? - machine;
        let parts =
            server.cpu()? - cpu + self.upstream.cpu()? - upstream_cpu + load.cpu + beside.cpu;
        let others = (busy - parts).max(0.0) / started.elapsed().as_secs_f64();
        let cpu = server.settled_cpu()? - cpu;
        let upstream_cpu = self.upstream.cpu()? - upstream_cpu;
        let after = counts()?;
        Ok(Run {
            load,
            beside,
            cpu,
            upstream_cpu,
            others,
            upstream_gets: after.blob_gets - before.blob_gets,
            upstream_bytes: after.bytes - before.bytes,
        })
    }

    /// The row's load, and what other clients are sent around it.
    fn load(&self, row: &Row, server: &Server) -> Result<(Load, Load)> {
        let plan = plan(row, server, self.sizes);
        let Some(Beside {
            path,
            connections,
            uncached,
        }) = &row.beside
        else {
            return Ok((Load::send(&plan)?, Load::default()));
        };
        if *uncached {
            drop_page_cache()?;
        }
        let around = Plan {
            millis: plan.millis + 2 * u64::try_from(HEAD_START.as_millis())?,
            ..Plan::once(server.addr(), path.clone(), *connections)
        };
        let around = Load::start(&around)?;
        thread::sleep(HEAD_START);
        let load = Load::send(&plan)?;
        Ok((load, Load::end(around)?))
    }

    fn report(&self, row: &Row, runs: &BTreeMap<&str, Vec<Run>>, results: &mut Results) {
        let Some(ours) = runs.get(Peer::Millpond.name()) else {
            return;
        };
        for versus in &row.peers {
            let Some(theirs) = runs.get(versus.peer.name()) else {
                continue;
            };
            let mut compare = |figure, target, value: fn(&Run, Per) -> f64| {
                let pairs = ours.iter().zip(theirs);
                let ratios = pairs.map(|(our, their)| value(our, row.per) / value(their, row.per));
                results.compare(Comparison {
                    row: row.title.clone(),
                    peer: versus.peer,
                    figure,
                    ratios: Samples::new(ratios),
                    target,
                });
            };
            match row.work {
                Work::Cold => compare("wall time", versus.speed, |run, _| run.load.wall),
                _ if row.per == Per::Gib => compare("throughput", versus.speed, Run::rate),
                _ => compare("requests/s", versus.speed, Run::rate),
            }
            if row.beside.is_some() {
                compare("p50", Some(Target::AtMost(1.0)), |run, _| run.load.p50);
                compare("p99", Some(Target::AtMost(1.0)), |run, _| run.load.p99);
                compare("throughput beside", None, |run, _| run.beside_rate());
            }
            if row.fresh {
                compare("p99", Some(Target::AtMost(1.0)), |run, _| run.load.p99);
            }
            // Without a target it is in the table of the row, and no comparison.
            if versus.cpu.is_some() {
                compare("CPU", versus.cpu, Run::cost);
            }
        }
        if matches!(row.work, Work::Cold) {
            self.cold_figures(row, ours, results);
        }
        results.section(&row.title, &table(row, runs));
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes and counts")]
    fn cold_figures(&self, row: &Row, ours: &[Run], results: &mut Results) {
        let large = self.sizes.large as f64;
        let mut add = |name: &str, unit, most, value: &dyn Fn(&Run) -> f64| {
            let name = format!("{}: {name}", row.title);
            let samples = ours.iter().map(value);
            results.figure(Figure::new(name, unit, samples).at_most(most).worst());
        };
        add(
            "upstream bytes over the blob's",
            "x",
            UPSTREAM_BYTES,
            &|run| run.upstream_bytes as f64 / large,
        );
        add("upstream GETs", "", 1.0, &|run| run.upstream_gets as f64);
        if row.connections > 1 {
            add(
                "first byte of the client served last",
                "ms",
                FIRST_BYTE_MS,
                &|run| run.load.worst_first_byte * 1e3,
            );
        }
    }
}

impl Run {
    /// GiB, or thousands of requests.
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    fn work(&self, per: Per) -> f64 {
        match per {
            Per::Gib => self.load.bytes as f64 / f64::from(1 << 30),
            Per::Request => self.load.requests as f64 / 1e3,
        }
    }

    /// Bytes a second of the clients beside the measured ones.
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    fn beside_rate(&self) -> f64 {
        self.beside.bytes as f64 / self.beside.wall
    }

    fn rate(&self, per: Per) -> f64 {
        self.work(per) / self.load.wall
    }

    fn cost(&self, per: Per) -> f64 {
        self.cpu / self.work(per)
    }
}

fn plan(row: &Row, server: &Server, sizes: &Sizes) -> Plan {
    let (millis, count) = match row.work {
        Work::Timed => (
            u64::try_from(sizes.timed.as_millis()).unwrap_or(u64::MAX),
            0,
        ),
        Work::Counted(count) => (0, count),
        Work::Cold => (0, 1),
    };
    Plan {
        addr: server.addr(),
        paths: row.paths.clone(),
        method: row.method.to_owned(),
        connections: row.connections,
        millis,
        count,
        slow: false,
        fresh: row.fresh,
    }
}

/// Drops the pages of files that are in memory and on disk (proc(5)).
fn drop_page_cache() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1").context("dropping the page cache needs root")
}

/// Medians of what each server did and cost.
fn table(row: &Row, runs: &BTreeMap<&str, Vec<Run>>) -> String {
    let (rate, cost) = match row.per {
        Per::Gib => ("GiB/s", "s/GiB"),
        Per::Request => ("thousand requests/s", "us/request"),
    };
    // Seconds a thousand requests are milliseconds a request.
    let scale = if row.per == Per::Gib { 1.0 } else { 1e3 };
    let mut text = format!(
        "| server | {rate} | range | CPU, {cost} | load generator | upstream | cores busy with \
         other work | answer p50, ms | p99, ms | first byte at worst, ms | upstream GETs | GiB/s beside |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for (peer, runs) in runs {
        let samples = |value: &dyn Fn(&Run) -> f64| Samples::new(runs.iter().map(value));
        let cell = |value: &dyn Fn(&Run) -> f64| number(samples(value).median());
        let per = |cpu: fn(&Run) -> f64| cell(&|run| scale * cpu(run) / run.work(row.per));
        #[expect(clippy::cast_precision_loss, reason = "a handful of GETs")]
        let gets = cell(&|run| run.upstream_gets as f64);
        text.push_str(&format!(
            "| {peer} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {gets} | {} |\n",
            cell(&|run| run.rate(row.per)),
            samples(&|run| run.rate(row.per)).range(),
            per(|run| run.cpu),
            per(|run| run.load.cpu),
            per(|run| run.upstream_cpu),
            cell(&|run| run.others),
            cell(&|run| run.load.p50 * 1e3),
            cell(&|run| run.load.p99 * 1e3),
            cell(&|run| run.load.worst_first_byte * 1e3),
            cell(&|run| run.beside_rate() / f64::from(1 << 30)),
        ));
    }
    text
}
