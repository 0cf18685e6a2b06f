//! Runs a row: every server in turn, round by round, and what each round showed.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Sizes;
use super::common::load::{Load, Pattern, Plan};
use super::common::report::{Figure, Target};
use super::common::run::{Per, Run, table};
use super::common::scratch::write_seconds;
use super::common::server::Server;
use super::common::upstream::Upstream;
use super::common::{rounds, times};
use super::peers::{self, Peer, Sources};
use super::results::{Comparison, Results};
use super::rows::{Beside, Row, Work};

/// Upstream bytes over the blob's: one download, and not a byte twice.
const UPSTREAM_BYTES: f64 = 1.005;
/// Milliseconds to the first byte of every client of a cold blob.
const FIRST_BYTE_MS: f64 = 10.0;

/// How long other clients are served before a row's own begin, and after they have ended.
const HEAD_START: Duration = Duration::from_millis(300);

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
        }
    }

    /// Measures a row and adds it to the results.
    pub(crate) fn measure(&mut self, row: &Row, results: &mut Results) -> Result<()> {
        let mut servers = vec![Peer::Millpond];
        servers.extend(row.peers.iter().map(|versus| versus.peer));
        servers.retain(|peer| is_there(*peer, results));
        let mut runs: Vec<_> = servers.into_iter().map(|peer| (peer, Vec::new())).collect();
        rounds(row.key, self.sizes.rounds, || {
            for (peer, runs) in &mut runs {
                let run = match row.work {
                    Work::Cold => self.cold(*peer, row),
                    Work::Timed | Work::Counted(_) => self.warm(*peer, row),
                };
                runs.push(run.with_context(|| format!("{} at {peer}", row.title))?);
            }
            // What drifts during a round is charged to each in turn.
            runs.reverse();
            Ok(())
        })?;
        runs.sort_by_key(|(peer, _)| peer.name());
        self.report(row, &runs, results);
        Ok(())
    }

    fn cold(&self, peer: Peer, row: &Row) -> Result<Run> {
        write_seconds(self.sizes.large)?;
        let server = peers::start(peer, self.sources)?;
        let plan = plan(row, &server, self.sizes);
        Run::measure(&plan, Some(&server), Some(self.upstream))
    }

    fn warm(&mut self, peer: Peer, row: &Row) -> Result<Run> {
        let at = self.warm.iter().position(|warm| warm.peer == peer);
        let at = at.map_or_else(|| self.start(peer), Ok)?;
        let warm = self.warm.get_mut(at).context("it was started")?;
        let plan = plan(row, &warm.server, self.sizes);
        if !warm.rows.contains(&row.key) {
            warm.rows.push(row.key);
            // Once through all paths: fetches what isn't there, and warms what is.
            let mut once = plan.clone();
            let beside = row.beside.iter().map(|beside| beside.path.clone());
            once.paths.extend(beside);
            once.connections = 1;
            once.pattern = Pattern::Answers(once.paths.len() as u64);
            Load::send(&once).with_context(|| warm.server.log_tail())?;
            warm.server.settled_cpu()?;
        }
        match &row.beside {
            None => Run::measure(&plan, Some(&warm.server), None),
            Some(beside) => run_beside(beside, &plan, &warm.server, self.sizes),
        }
    }

    /// Starts a server that stays up; where it is.
    fn start(&mut self, peer: Peer) -> Result<usize> {
        self.warm.push(Warm {
            peer,
            server: peers::start(peer, self.sources)?,
            rows: Vec::new(),
        });
        Ok(self.warm.len() - 1)
    }

    fn report(&self, row: &Row, runs: &[(Peer, Vec<Run>)], results: &mut Results) {
        let of = |peer| {
            runs.iter()
                .find(|(of, _)| *of == peer)
                .map(|(_, runs)| runs)
        };
        let Some(ours) = of(Peer::Millpond) else {
            return;
        };
        for versus in &row.peers {
            let Some(theirs) = of(versus.peer) else {
                continue;
            };
            let mut compare = |figure: &str, target, value: fn(&Run, Per) -> f64| {
                let pairs = ours.iter().zip(theirs);
                let ratios = pairs.map(|(our, their)| value(our, row.per) / value(their, row.per));
                results.comparisons.push(Comparison {
                    row: row.title.clone(),
                    peer: versus.peer,
                    ratio: Figure::new(figure, "x", ratios).target(target).steady(),
                });
            };
            match row.work {
                Work::Cold => compare("wall time", versus.speed, |run, _| run.load.wall),
                _ if row.per == Per::Gib => compare("throughput", versus.speed, Run::rate),
                _ => compare("requests/s", versus.speed, Run::rate),
            }
            let no_worse = Target::AtMost(1.0);
            if row.beside.is_some() {
                compare("p50", Some(no_worse), |run, _| run.load.p50);
                compare("throughput beside", None, |run, _| run.beside_rate());
            }
            if row.beside.is_some() || row.fresh {
                compare("p99", Some(no_worse), |run, _| run.load.p99);
            }
            // Without a target it is in the table of the row, and no comparison.
            if versus.cpu.is_some() {
                compare("CPU", versus.cpu, Run::cost);
            }
        }
        if matches!(row.work, Work::Cold) {
            self.cold_figures(row, ours, results);
        }
        let kinds: Vec<_> = { runs.iter() }
            .map(|(peer, runs)| (peer.name(), runs.iter().collect()))
            .collect();
        results.section(&row.title, &table(row.per, &kinds));
    }

    fn cold_figures(&self, row: &Row, ours: &[Run], results: &mut Results) {
        let mut add = |name: &str, unit, most, value: &dyn Fn(&Run) -> f64| {
            let figure = Figure::new(
                format!("{}: {name}", row.title),
                unit,
                ours.iter().map(value),
            );
            results
                .figures
                .push(figure.target(Target::AtMost(most)).worst());
        };
        let bytes = |run: &Run| times(run.upstream_bytes, self.sizes.large);
        add(
            "upstream bytes over the blob's",
            "x",
            UPSTREAM_BYTES,
            &bytes,
        );
        add("upstream GETs", "", 1.0, &|run| run.upstream_gets);
        if row.connections > 1 {
            let name = "first byte of the client served last";
            let first_byte = |run: &Run| run.load.worst_first_byte * 1e3;
            add(name, "ms", FIRST_BYTE_MS, &first_byte);
        }
    }
}

/// Whether a peer can be started; says so when it can't.
fn is_there(peer: Peer, results: &mut Results) -> bool {
    let missing = peer
        .program()
        .filter(|program| peers::version(program).is_none());
    if let Some(program) = missing {
        results.missing(peer, program);
    }
    missing.is_none()
}

fn plan(row: &Row, server: &Server, sizes: &Sizes) -> Plan {
    Plan {
        addr: server.addr(),
        paths: row.paths.clone(),
        method: row.method.to_owned(),
        connections: row.connections,
        pattern: match row.work {
            Work::Timed => Pattern::Lasting(sizes.timed),
            Work::Counted(count) => Pattern::Answers(count),
            Work::Cold => Pattern::Answers(1),
        },
        fresh: row.fresh,
    }
}

/// Runs a row while other clients are sent large blobs.
fn run_beside(beside: &Beside, plan: &Plan, server: &Server, sizes: &Sizes) -> Result<Run> {
    if beside.uncached {
        rustix::fs::sync();
        // Drops pages that are on disk, too (proc(5)).
        let dropped = fs::write("/proc/sys/vm/drop_caches", "1");
        dropped.context("dropping the page cache needs root")?;
    }
    let around = Load::start(&Plan {
        pattern: Pattern::Lasting(sizes.timed + 2 * HEAD_START),
        ..Plan::once(server.addr(), beside.path.clone(), beside.connections)
    })?;
    thread::sleep(HEAD_START);
    let mut run = Run::measure(plan, Some(server), None)?;
    run.beside = Load::end(around)?;
    Ok(run)
}
