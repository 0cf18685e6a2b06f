//! Many hosted manifests: how the server starts with them, and how fast it lists referrers.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use millpond::oci::{Digest, RepoName};
use serde_json::{Map, json};

use super::super::common::content::{ContentDir, MANIFEST};
use super::super::common::note;
use super::super::common::report::Target::AtMost;
use super::super::common::server::{Server, millpond};
use super::super::common::wire::Client;
use super::super::results::Results;
use super::{Bench, host};

const REPOSITORIES: u64 = 1000;
/// Lists of referrers that are asked for.
const LISTS: usize = 1000;
/// Of a start, over one with the same content in mirrored repositories.
const START: f64 = 1.05;
/// Milliseconds.
const LIST: f64 = 2.0;

/// Every second manifest refers to the one before it.
pub(super) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let count = bench.sizes.objects;
    note("push-many, the same content mirrored");
    let (mirrored, server, _) = start(bench, count, false)?;
    let mirrored_cpu = server.settled_cpu()?;
    drop(server);
    note("push-many");
    let (hosted, server, subjects) = start(bench, count, true)?;
    let hosted_cpu = server.settled_cpu()?;
    let name = format!("start with {count} hosted manifests until it listens");
    results.add(&name, "s", hosted, None);
    let name = "the same, over that with mirrored ones";
    results.add(name, "x", hosted / mirrored, AtMost(START));
    let name = "CPU until the index is complete, over that with mirrored ones";
    results.add(name, "x", hosted_cpu / mirrored_cpu, None);
    let memory = server.memory("VmRSS")?;
    let name = format!("resident, {count} hosted manifests, after the start");
    results.add(&name, "MiB", memory, None);
    let mut times = lists(&server, &subjects).with_context(|| server.log_tail())?;
    times.sort_by(f64::total_cmp);
    for (name, at) in [("median", LISTS / 2), ("99th of 100", LISTS * 99 / 100)] {
        let time = times.get(at).copied().context("no list was asked for")?;
        let name = format!("list of referrers among {count} manifests, {name}");
        results.add(&name, "ms", time, AtMost(LIST));
    }
    Ok(())
}

/// Starts with many manifests. Returns how many seconds pass until the server answers.
fn start(bench: &Bench<'_>, count: u64, hosted: bool) -> Result<(f64, Server, Vec<String>)> {
    let (begun, subjects) = (Cell::new(Instant::now()), Cell::new(Vec::new()));
    let server = Server::start(|directory, addr| {
        subjects.set(fill(&directory.join("data"), count)?);
        let (binary, upstream) = (&bench.sources.millpond, bench.sources.upstream);
        let command = millpond(binary, directory, addr, upstream, &Map::new());
        if hosted {
            host(&directory.join("config.yml"))?;
        }
        begun.set(Instant::now());
        Ok(command)
    })?;
    Ok((begun.get().elapsed().as_secs_f64(), server, subjects.take()))
}

/// Makes the manifests. Returns the paths of lists that have one referrer.
fn fill(data: &Path, count: u64) -> Result<Vec<String>> {
    let content = ContentDir::new(data)?;
    let mut paths = Vec::new();
    for pair in 0..count / 2 {
        let repo: RepoName = format!("pushed/application-{}", pair % REPOSITORIES).parse()?;
        let subject = content.manifest(&repo, &manifest(pair, None))?;
        content.manifest(&repo, &manifest(pair, Some(subject)))?;
        paths.push(format!("/v2/{repo}/referrers/{subject}"));
    }
    Ok(paths)
}

fn manifest(number: u64, subject: Option<Digest>) -> serde_json::Value {
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.note",
        "config": empty,
        "layers": [empty],
        "annotations": { "number": number.to_string() },
    });
    if let (Some(subject), Some(fields)) = (subject, manifest.as_object_mut()) {
        let subject = json!({ "mediaType": MANIFEST, "digest": subject.to_string(), "size": 500 });
        fields.insert("subject".to_owned(), subject);
    }
    manifest
}

/// Asks for lists of referrers, one after the other. Returns how many milliseconds each takes.
fn lists(server: &Server, paths: &[String]) -> Result<Vec<f64>> {
    let mut client = Client::connect(server.addr())?;
    let step = (paths.len() / LISTS).max(1);
    let mut times = Vec::with_capacity(LISTS);
    for path in paths.iter().step_by(step).cycle().take(LISTS) {
        let begun = Instant::now();
        client.request("GET", path)?;
        client.read_all()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}
