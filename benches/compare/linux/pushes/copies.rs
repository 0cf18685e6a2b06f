//! `millpond copy` beside skopeo: the same image from one reference registry to another, over loopback. The
//! registries' CPU time isn't part of a figure.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest};
use serde_json::json;
use tempfile::TempDir;

use super::super::common::content::MANIFEST;
use super::super::common::proc::{ended_children_seconds, status_mib};
use super::super::common::report::Figure;
use super::super::common::report::Target::{self, AtMost};
use super::super::common::rounds;
use super::super::common::server::Server;
use super::super::peers::{self, Peer};
use super::super::results::{Comparison, Results};
use super::wire::Pusher;
use super::{Bench, Run};

const REPO: &str = "bench/image";
/// Layers of the image.
const LAYERS: u64 = 4;
/// MiB that a copy may take.
const MEMORY: f64 = 64.0;
/// How often the memory of the running copy is read.
const SAMPLE: Duration = Duration::from_millis(20);
/// A copy that takes longer is called broken.
const PATIENCE: Duration = Duration::from_mins(10);

/// A registry with the image.
struct Copies {
    from: Server,
    home: TempDir,
}

/// Time, CPU time and peak memory (MiB) of a program.
struct Ran {
    run: Run,
    memory: f64,
}

pub(super) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let Some(program) = Peer::Skopeo
        .program()
        .filter(|program| peers::version(program).is_some())
    else {
        results.missing(Peer::Skopeo, "skopeo");
        return Ok(());
    };
    let copies = Copies::new(bench)?;
    let from = format!("{}/{REPO}:1", copies.from.addr());
    let ours = || {
        // Nothing can be mounted: skopeo remembers where blobs are.
        let to = bench.theirs()?;
        let mut copy = copies.program(bench.sources.millpond.as_os_str());
        copy.args(["copy", "--quiet", &from, &format!("{}/{REPO}:1", to.addr())]);
        ran(&mut copy)
    };
    let theirs = || {
        let to = bench.theirs()?;
        let mut copy = copies.program(program.as_ref());
        copy.args([
            "copy",
            "-q",
            "--all",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]);
        copy.arg(format!("docker://{from}"));
        ran(copy.arg(format!("docker://{}/{REPO}:1", to.addr())))
    };
    let mut is_turned = false;
    let runs = rounds("copy-large", bench.sizes.rounds, || {
        is_turned = !is_turned;
        if is_turned {
            return Ok((ours()?, theirs()?));
        }
        let theirs = theirs()?;
        Ok((ours()?, theirs))
    })?;
    let title = format!("copy of an image of {} MiB", bench.sizes.large >> 20);
    let mut compare = |figure: &str, target: Option<Target>, ratio: fn(&Ran) -> f64| {
        let ratios = runs
            .iter()
            .map(|(ours, theirs)| ratio(ours) / ratio(theirs));
        results.comparisons.push(Comparison {
            row: title.clone(),
            peer: Peer::Skopeo,
            ratio: Figure::new(figure, "x", ratios).target(target).steady(),
        });
    };
    compare("wall time", Some(AtMost(1.0)), |ran| ran.run.wall);
    compare("CPU", Some(AtMost(1.0)), |ran| ran.run.cpu);
    compare("memory", None, |ran| ran.memory);
    let memory = runs.iter().map(|(ours, _)| ours.memory);
    let figure = Figure::new(format!("peak, {title}"), "MiB", memory).target(AtMost(MEMORY));
    results.figures.push(figure);
    Ok(())
}

impl Copies {
    fn new(bench: &Bench<'_>) -> Result<Self> {
        let copies = Self {
            from: bench.theirs()?,
            home: TempDir::new()?,
        };
        let mut pusher = Pusher::connect(copies.from.addr())?;
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let mut push = |bytes| {
            let blob = bench.blob(bytes);
            pusher.put(REPO, &blob)?;
            Ok::<_, anyhow::Error>((blob.digest, blob.bytes))
        };
        let layers = (0..LAYERS).map(|_| push(bench.sizes.large / LAYERS));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        pusher.bytes(REPO, config)?;
        let described = |kind: &str, digest: &Digest, size: u64| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
        };
        let layers = layers
            .iter()
            .map(|(digest, size)| described("layer.v1.tar", digest, *size));
        let digest = Digest::of(Algorithm::Sha256, config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": described("config.v1+json", &digest, config.len() as u64),
            "layers": layers.collect::<Vec<_>>(),
        }))?;
        pusher.manifest(REPO, "1", &manifest)?;
        Ok(copies)
    }

    /// A program with a home of its own, and with what skopeo wants there.
    fn program(&self, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new(program);
        command.env("HOME", self.home.path()).stdin(Stdio::null());
        command
    }
}

/// Runs a program that has to succeed.
fn ran(command: &mut Command) -> Result<Ran> {
    let before = ended_children_seconds()?;
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let mut memory = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ensure!(started.elapsed() < PATIENCE, "{command:?} doesn't end");
        // None once it has ended.
        memory = memory.max(status_mib(child.id(), "VmHWM").unwrap_or_default());
        thread::sleep(SAMPLE);
    };
    let wall = started.elapsed().as_secs_f64();
    ensure!(status.success(), "{command:?}: {status}");
    let cpu = ended_children_seconds()? - before;
    Ok(Ran {
        run: Run { wall, cpu },
        memory,
    })
}
