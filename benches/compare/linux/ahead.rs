//! Images that are fetched or carried ahead of clients: `millpond warm` beside pulls one after the other, and
//! `millpond import` beside the hash and the disk alone.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest, Hasher, RepoName};
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::Sizes;
use super::common::content::{ContentDir, PIECE, fill};
use super::common::proc::cpu_seconds;
use super::common::report::Figure;
use super::common::report::Target::{AtLeast, AtMost};
use super::common::scratch::write_seconds;
use super::common::server::{Server, millpond};
use super::common::upstream::{Plan, REPOSITORY, Upstream};
use super::common::wire::get;
use super::common::{GIB, MIB, note, rounds, times, together};
use super::results::Results;

/// Images that are warmed, and how many layers of them a client fetches at a time.
const IMAGES: u32 = 50;
const LAYERS_AT_ONCE: usize = 3;
/// Bytes a second of each of the upstream's connections.
const RATE: u64 = 20 * MIB;
/// Layers of the image that is carried.
const LAYERS: u64 = 4;

/// How many times as fast warming has to be.
const FASTER: f64 = 3.0;
/// CPU of an import, over that of hashing the bundle.
const ABOVE_HASH: f64 = 1.3;
/// Time of an import, over that of copying the bundle to the disk.
const ABOVE_COPY: f64 = 1.2;

/// Measures the rows that are wanted.
pub(crate) fn measure(
    wanted: impl Fn(&str) -> bool,
    binary: &Path,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    if wanted("warming") {
        warming(binary, sizes, results)?;
    }
    if wanted("import") {
        import(binary, sizes, results)?;
    }
    Ok(())
}

/// A new millpond, and its configuration for commands on it.
struct Mirror<'a> {
    binary: &'a Path,
    server: Server,
    config: PathBuf,
}

impl<'a> Mirror<'a> {
    fn start(binary: &'a Path, upstream: SocketAddr) -> Result<Self> {
        let mut config = PathBuf::new();
        let server = Server::start(|directory, addr| {
            config = directory.join("config.yml");
            Ok(millpond(binary, directory, addr, upstream, &Map::new()))
        })?;
        Ok(Self {
            binary,
            server,
            config,
        })
    }

    /// Runs a command on the server; the seconds that it took.
    fn run(&self, command: &str, arguments: &[String]) -> Result<f64> {
        let started = Instant::now();
        let output = Command::new(self.binary)
            .args([command, "--quiet", "--config"])
            .arg(&self.config)
            .args(arguments)
            .output()?;
        let seconds = started.elapsed().as_secs_f64();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{command}: {error}{}",
            self.server.log_tail()
        );
        Ok(seconds)
    }
}

/// Many images from an upstream that holds each connection to a rate: by one command, and pulled one after
/// the other as clients do it, three layers at a time.
fn warming(binary: &Path, sizes: &Sizes, results: &mut Results) -> Result<()> {
    let directory = TempDir::with_prefix("millpond-upstream-")?;
    let layers = [
        sizes.large >> 10,
        sizes.large >> 9,
        sizes.large >> 8,
        sizes.large >> 7,
    ];
    make_images(directory.path(), layers)?;
    let upstream = Upstream::start(Plan {
        root: directory.path().to_owned(),
        rate: RATE,
        ..Plan::default()
    })?;
    let names: Vec<_> = (0..IMAGES)
        .map(|image| format!("{REPOSITORY}:{image}"))
        .collect();
    let runs = rounds("warming", sizes.rounds, || {
        let mirror = Mirror::start(binary, upstream.addr())?;
        let started = Instant::now();
        for image in 0..IMAGES {
            pull(mirror.server.addr(), image)?;
        }
        let pulled = started.elapsed().as_secs_f64();
        drop(mirror);
        let mirror = Mirror::start(binary, upstream.addr())?;
        Ok((pulled, mirror.run("warm", &names)?))
    })?;
    let bytes: u64 = layers.iter().sum::<u64>() * u64::from(IMAGES);
    let title = format!(
        "{IMAGES} images, {} MiB, {} MiB/s a connection",
        bytes / MIB,
        RATE / MIB
    );
    let ratios = runs.iter().map(|(pulled, warmed)| pulled / warmed);
    let name = format!("{title}: warming is faster than pulling one after the other by");
    let ratio = Figure::new(name, "x", ratios).target(AtLeast(FASTER));
    results.figures.push(ratio.steady());
    let rates = runs.iter().map(|(_, warmed)| times(bytes, MIB) / warmed);
    results
        .figures
        .push(Figure::new("its rate", "MiB/s", rates));
    Ok(())
}

/// Images with tags from 0 on, which share nothing.
fn make_images(root: &Path, layers: [u64; 4]) -> Result<()> {
    let content = ContentDir::new(root)?;
    let repo: RepoName = REPOSITORY.parse()?;
    let mut seed = 0;
    for image in 0..IMAGES {
        let mut blob = |bytes| {
            seed += 1;
            let digest = content.blob(&repo, bytes, |number, piece| fill(seed, number, piece));
            digest.map(|digest| (digest, bytes))
        };
        let layers = layers
            .map(&mut blob)
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let image_digest = content.image(&repo, blob(2048)?, &layers)?;
        content.tag(&repo, &image.to_string().parse()?, &image_digest)?;
    }
    Ok(())
}

fn pull(addr: SocketAddr, image: u32) -> Result<()> {
    let manifest = get(addr, &format!("/v2/{REPOSITORY}/manifests/{image}"))?.read_all()?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let blob = |descriptor: &Value| {
        let digest = descriptor.get("digest").and_then(Value::as_str);
        let digest = digest.context("a descriptor has a digest")?;
        let mut answer = get(addr, &format!("/v2/{REPOSITORY}/blobs/{digest}"))?;
        while answer.left() > 0 {
            answer.discard(MIB)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    blob(manifest.get("config").context("no config")?)?;
    let layers = manifest.get("layers").and_then(Value::as_array);
    let layers = layers.context("no layers")?;
    let next = AtomicUsize::new(0);
    let fetch = || {
        while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            blob(layer)?;
        }
        Ok(())
    };
    together([&fetch; LAYERS_AT_ONCE]).map(drop)
}

/// What one import took, and what else was done with the bundle.
struct Import {
    wall: f64,
    /// CPU seconds of the command and the server.
    cpu: f64,
    /// CPU seconds of reading and hashing the bundle.
    hash: f64,
    /// Seconds of copying it to the disk.
    copy: f64,
    /// CPU seconds of writing as many bytes.
    write: f64,
    /// CPU seconds of the program sha256sum.
    program: f64,
}

/// An image, in a bundle, imported into a running server.
fn import(binary: &Path, sizes: &Sizes, results: &mut Results) -> Result<()> {
    let layer = sizes.large / LAYERS;
    let upstream = Upstream::with_blobs(&[layer; LAYERS as usize], &Plan::default())?;
    let directory = TempDir::with_prefix("millpond-bundle-")?;
    let bundle = directory.path().join("bundle.tar");
    note("making the bundle");
    let mirror = Mirror::start(binary, upstream.addr())?;
    let file = bundle.display().to_string();
    mirror.run("export", &[format!("{REPOSITORY}:latest"), file.clone()])?;
    drop(mirror);
    let own = std::process::id();
    let runs = rounds("import", sizes.rounds, || {
        let write = write_seconds(sizes.large)?;
        let started = Instant::now();
        copy(&bundle, &directory.path().join("copy"))?;
        let copy = started.elapsed().as_secs_f64();
        let before = cpu_seconds(own)?;
        hash(&bundle)?;
        let hash = cpu_seconds(own)? - before;
        let before = cpu_seconds(own)?;
        let output = Command::new("sha256sum").arg(&bundle).output()?;
        ensure!(output.status.success(), "sha256sum failed");
        let program = cpu_seconds(own)? - before;
        let mirror = Mirror::start(binary, upstream.addr())?;
        let before = mirror.server.settled_cpu()? + cpu_seconds(own)?;
        let wall = mirror.run("import", std::slice::from_ref(&file))?;
        let cpu = mirror.server.settled_cpu()? + cpu_seconds(own)? - before;
        Ok(Import {
            wall,
            cpu,
            hash,
            copy,
            write,
            program,
        })
    })?;
    report(&runs, sizes, results);
    Ok(())
}

fn report(runs: &[Import], sizes: &Sizes, results: &mut Results) {
    let title = format!("import of {} MiB", sizes.large / MIB);
    let mut add = |what: &str, value: fn(&Import) -> f64, target| {
        let figure = Figure::new(format!("{title}: {what}"), "x", runs.iter().map(value));
        results.figures.push(figure.target(target));
    };
    let target = Some(AtMost(ABOVE_HASH));
    add(
        "CPU over that of its sha256",
        |run| run.cpu / run.hash,
        target,
    );
    let what = "the same, of its sha256 and of writing as many bytes";
    add(what, |run| run.cpu / (run.hash + run.write), None);
    let what = "the same, of the program sha256sum";
    add(what, |run| run.cpu / run.program, None);
    let target = Some(AtMost(ABOVE_COPY));
    add(
        "time over that of copying the file",
        |run| run.wall / run.copy,
        target,
    );
    let scale = times(sizes.large, GIB);
    let each = runs.iter().map(|run| run.cpu / scale);
    results
        .figures
        .push(Figure::new("its CPU for a GiB", "s", each));
}

fn hash(file: &Path) -> Result<Digest> {
    let mut file = File::open(file)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(piece.get(..read).unwrap_or_default());
    }
}

/// Copies a file, and waits until the copy is on the disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(fs::remove_file(to)?)
}
