//! Long uptime: the trace again and again through one mirror whose cache is smaller than the content,
//! and what of the process grows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Map;

use super::super::common::note;
use super::super::common::report::{Target, number};
use super::super::common::server::{Server, millpond};
use super::super::results::Results;
use super::nodes::Seen;
use super::{Scale, prepare};

/// Small layers, so that most of the time goes into requests.
const SCALE: Scale = Scale {
    images: 100,
    largest: 10_500_000,
    sessions: 20_000,
    workers: 16,
    storms: 2,
    joiners: 100,
    join_ms: 2000,
};
/// The cap of the cache: about a third of the content.
const CAP: &str = "300MiB";
/// Memory at the end over memory after the first tenth.
const GROWTH: f64 = 1.05;

/// The process at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    after: Duration,
    requests: u64,
    /// Resident, in MiB.
    memory: f64,
    descriptors: usize,
}

/// Replays the trace for so long.
pub(crate) fn measure(length: Duration, binary: &Path, results: &mut Results) -> Result<()> {
    note("soak: making the content");
    let prepared = prepare(SCALE)?;
    let server = Server::start(|directory, own| {
        let mut command = millpond(
            binary,
            directory,
            own,
            prepared.upstream.addr(),
            &Map::new(),
        );
        command.env("REGISTRY_STORAGE_MAXSIZE", CAP);
        Ok(command)
    })?;
    let started = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    let mut requests = 0;
    while started.elapsed() < length {
        let seen = Seen::send(server.addr(), &prepared.file).with_context(|| server.log_tail())?;
        requests += seen.requests;
        server.settled_cpu()?;
        let sample = Sample {
            after: started.elapsed(),
            requests,
            memory: server.memory("VmRSS")?,
            descriptors: fs::read_dir(format!("/proc/{}/fd", server.id()))?.count(),
        };
        note(&format!("soak: {sample:?}"));
        samples.push(sample);
    }
    report(&samples, results);
    Ok(())
}

fn report(samples: &[Sample], results: &mut Results) {
    let (Some(first), Some(last)) = (
        samples.get(samples.len() / 10),
        samples.last().filter(|_| samples.len() > 1),
    ) else {
        return;
    };
    let name = "soak: memory at the end over the first tenth's";
    let growth = last.memory / first.memory;
    results.add(name, "x", growth, Target::AtMost(GROWTH));
    let name = "soak: descriptors more than after the first tenth";
    let opened = last.descriptors as f64 - first.descriptors as f64;
    results.add(name, "", opened, Target::AtMost(0.0));
    let mut text =
        "| minutes | million requests | resident, MiB | descriptors |\n|---:|---:|---:|---:|\n"
            .to_owned();
    for sample in samples {
        text.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            number(sample.after.as_secs_f64() / 60.0),
            number(sample.requests as f64 / 1e6),
            number(sample.memory),
            sample.descriptors,
        ));
    }
    results.section("Long uptime", &text);
}
