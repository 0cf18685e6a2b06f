//! One client, and many at once, that ask for one blob that the mirror doesn't have.

use anyhow::{Result, ensure};
use millpond::oci::{Algorithm, Hasher};

use super::super::common::load::Plan as Clients;
use super::super::common::proc::{cores, cpu_seconds};
use super::super::common::report::{Figures, Target::AtMost};
use super::super::common::run::{Per, Run, table};
use super::super::common::scratch::write_seconds;
use super::super::common::server::Server;
use super::super::common::upstream::{Plan, Upstream};
use super::super::common::{GIB, MIB, times};
use super::super::results::Results;
use super::Bench;

/// How many clients come at once.
const CLIENTS: u32 = 32;
/// The last of them may take this many times as long as one alone.
const LAST_OVER_ALONE: f64 = 1.25;
/// CPU seconds of the mirror per GiB when nothing is throttled.
const CPU_PER_GIB: f64 = 1.8;

/// One round: the runs that its ratios compare, one right after another.
struct Round {
    direct: Run,
    alone: Run,
    storm: Run,
    direct_storm: Run,
    /// CPU seconds per GiB of the hash alone, and of writing a file.
    hashing: f64,
    writing: f64,
}

impl Round {
    fn measure(bench: &Bench<'_>, upstream: &Upstream) -> Result<Self> {
        let bytes = bench.sizes.large;
        let run = |clients, through_mirror| {
            let mirror = if through_mirror {
                Some(bench.mirror(upstream)?)
            } else {
                None
            };
            let addr = mirror.as_ref().map_or(upstream.addr(), Server::addr);
            let plan = Clients::once(addr, upstream.large()?.path(), clients as usize);
            let run = Run::measure(&plan, mirror.as_ref(), Some(upstream))?;
            let wanted = bytes * u64::from(clients);
            ensure!(run.load.bytes == wanted, "a body of the wrong length");
            Ok(run)
        };
        let direct = run(1, false)?;
        let writing = write_seconds(bytes)?;
        let alone = run(1, true)?;
        write_seconds(bytes)?;
        Ok(Self {
            direct,
            alone,
            storm: run(CLIENTS, true)?,
            direct_storm: run(CLIENTS, false)?,
            hashing: hash_seconds(bytes)? / times(bytes, GIB),
            writing: writing / times(bytes, GIB),
        })
    }

    /// The shortest time this machine's cores allow for the storm, in seconds: what one cold pull
    /// costs, and for each further client what a bare sendfile(2) and its client cost.
    fn floor(&self) -> f64 {
        let further = f64::from(CLIENTS - 1) / f64::from(CLIENTS);
        let cpu = self.alone.parts() + further * self.direct_storm.parts();
        (cpu / f64::from(cores())).max(self.alone.load.wall)
    }

    /// The storm's time without the CPU time of the further clients, spread over the cores.
    fn without_clients(&self) -> f64 {
        let clients = self.storm.load.cpu - self.alone.load.cpu;
        self.storm.load.wall - clients / f64::from(cores())
    }
}

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let bytes = bench.sizes.large;
    let upstream = Upstream::with_blobs(&[bytes], &Plan::default())?;
    let rounds = bench.rounds("storm", || Round::measure(bench, &upstream))?;
    let size = format!("{} MiB", bytes / MIB);
    results.section(
        &format!("One client, cold, {size}, nothing throttled"),
        &one(&rounds),
    );
    let title = format!("{CLIENTS} clients at once, cold, one blob of {size}");
    results.section(&title, &many(&rounds, bytes));
    Ok(())
}

fn one(rounds: &[Round]) -> String {
    let per_gib = |run: &Run, seconds: f64| seconds / times(run.load.bytes, GIB);
    let mut figures = Figures::of(rounds);
    figures.add(
        "CPU of the mirror per GiB",
        "s",
        AtMost(CPU_PER_GIB),
        |round| per_gib(&round.alone, round.alone.cpu),
    );
    figures.show("CPU of SHA-256 alone per GiB", "s", |round| round.hashing);
    figures.show("CPU of writing a file alone per GiB", "s", |round| {
        round.writing
    });
    figures.show(
        "CPU of a direct fetch per GiB, upstream and client",
        "s",
        |round| per_gib(&round.direct, round.direct.parts()),
    );
    figures.show("total over direct", "x", |round| {
        round.alone.load.wall / round.direct.load.wall
    });
    figures.table()
}

fn many(rounds: &[Round], bytes: u64) -> String {
    let mut figures = Figures::of(rounds);
    figures.add("upstream GETs", "", AtMost(1.0), |round| {
        round.storm.upstream_gets
    });
    figures.add(
        "upstream bytes over the blob's",
        "x",
        AtMost(1.0),
        |round| times(round.storm.upstream_bytes, bytes),
    );
    figures.show("one client alone", "s", |round| round.alone.load.wall);
    figures.show("the last client", "s", |round| round.storm.load.wall);
    figures.show("first byte of the client served last", "ms", |round| {
        round.storm.load.worst_first_byte * 1e3
    });
    let target = AtMost(LAST_OVER_ALONE);
    figures.add("last client over one alone", "x", target, |round| {
        round.storm.load.wall / round.alone.load.wall
    });
    let name = "the same, the further clients' own CPU taken off";
    figures.add(name, "x", target, |round| {
        round.without_clients() / round.alone.load.wall
    });
    figures.show("floor: what this machine's cores allow", "s", Round::floor);
    figures.add("last client over the floor", "x", target, |round| {
        round.storm.load.wall / round.floor()
    });
    figures.show("32 clients straight from the upstream", "s", |round| {
        round.direct_storm.load.wall
    });
    let runs = |run: fn(&Round) -> &Run| rounds.iter().map(run).collect::<Vec<_>>();
    let costs = table(
        Per::Gib,
        &[
            (
                "one client, straight from the upstream",
                runs(|round| &round.direct),
            ),
            ("one client, cold", runs(|round| &round.alone)),
            (
                "32 clients, straight from the upstream",
                runs(|round| &round.direct_storm),
            ),
            ("32 clients, cold", runs(|round| &round.storm)),
        ],
    );
    format!("{}\n{costs}", figures.table())
}

/// CPU seconds that the mirror's hash takes for `bytes` on this machine, in pieces of 256 KiB.
fn hash_seconds(bytes: u64) -> Result<f64> {
    const PIECE: u64 = 256 * 1024;
    let piece = vec![0x5a; usize::try_from(PIECE)?];
    let before = cpu_seconds(std::process::id())?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for _ in 0..bytes / PIECE {
        hasher.update(&piece);
    }
    std::hint::black_box(hasher.finish());
    Ok(cpu_seconds(std::process::id())? - before)
}
