//! What millpond needs when it does little: idle, beside idle connections, slow readers, and a large
//! cache.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;
use std::{io::Write, path::Path};

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest, RepoName};
use millpond::storage::{Layout, Link, LinkKind};
use serde_json::Map;

use super::Sizes;
use super::common::load::{Load, Plan};
use super::common::note;
use super::common::proc::tcp_buffer_bytes;
use super::common::report::{Figure, Target};
use super::common::server::{Server, millpond};
use super::common::wire::read_head;
use super::library::Library;
use super::peers::{self, Peer, Sources};
use super::results::Results;

const IDLE: f64 = 12.0;
const CONNECTIONS: usize = 1000;
const CONNECTED: f64 = 40.0;
const READERS: usize = 200;
const READING: f64 = 32.0;
const OBJECTS: f64 = 1e6;
const FULL: f64 = 300.0;
/// How long a kept connection may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn measure(
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    note("memory, idle");
    let server = peers::start(Peer::Millpond, sources)?;
    server.settled_cpu()?;
    let mut add = |name: &str, mebibytes, most: Option<f64>| {
        let target = most.map(Target::AtMost);
        results.figure(Figure::new(name, "MiB", [mebibytes]).target(target));
    };
    let idle = server.memory("VmRSS")?;
    add("resident, idle", idle, Some(IDLE));
    add(
        "the same, without mapped files",
        server.memory("RssAnon")?,
        None,
    );

    note("memory, idle connections");
    let connections = keep_open(&server)?;
    let name = format!("resident, {CONNECTIONS} idle keep-alive connections");
    add(&name, server.memory("VmRSS")?, Some(CONNECTED));
    drop(connections);

    note("memory, slow readers");
    let (peak, sockets) = slow_readers(library, sources, sizes)?;
    let name = format!("peak, {READERS} slow readers of a warm blob");
    add(&name, peak, Some(READING));
    add("TCP buffers of the whole machine meanwhile", sockets, None);

    note("memory, many objects");
    let objects = many_objects(sources, sizes.objects)?;
    #[expect(clippy::cast_precision_loss, reason = "at most some millions")]
    let share = OBJECTS / sizes.objects as f64;
    let name = format!(
        "resident, {} cached objects, after the start",
        sizes.objects
    );
    add(&name, objects, None);
    let name = "resident, a million objects (what is above idle, in proportion)";
    add(name, idle + (objects - idle) * share, Some(FULL));
    Ok(())
}

/// Connections that have had one answer each and say nothing more.
fn keep_open(server: &Server) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(server.addr())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: mirror.example\r\n\r\n")?;
        let (head, _) = read_head(&mut stream)?;
        ensure!(head.contains(" 200 "), "an idle connection got {head}");
        connections.push(stream);
    }
    Ok(connections)
}

/// The server's peak, and the kernel's, in MiB.
#[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
fn slow_readers(library: &Library, sources: &Sources, sizes: &Sizes) -> Result<(f64, f64)> {
    let server = peers::start(Peer::Millpond, sources)?;
    let plan = |connections| Plan::once(server.addr(), library.large.clone(), connections);
    Load::send(&plan(1)).with_context(|| server.log_tail())?;
    server.settled_cpu()?;
    // The peak of what follows, not of the download: 5 resets it (proc(5), clear_refs).
    fs::write(format!("/proc/{}/clear_refs", server.id()), "5")?;
    let mut sockets = 0;
    let slow = Plan {
        millis: u64::try_from(sizes.hold.as_millis())?,
        slow: true,
        fresh: false,
        ..plan(READERS)
    };
    Load::sampled(&slow, || {
        sockets = sockets.max(tcp_buffer_bytes()?);
        Ok(())
    })
    .with_context(|| server.log_tail())?;
    let peak = server.memory("VmHWM")?;
    Ok((peak, sockets as f64 / f64::from(1 << 20)))
}

/// Starts on a data directory that has so many blobs, and returns what is resident at rest, in MiB.
fn many_objects(sources: &Sources, objects: u64) -> Result<f64> {
    let server = Server::start(|directory, addr| {
        fill(&directory.join("data"), objects)?;
        let binary = &sources.millpond;
        millpond(binary, directory, addr, sources.upstream, &Map::new())
    })?;
    server.settled_cpu()?;
    server.memory("VmRSS")
}

/// Files of one byte, each linked into one of a thousand repositories. Their names aren't their
/// digests; nobody reads them.
fn fill(data: &Path, objects: u64) -> Result<()> {
    const REPOSITORIES: u64 = 1000;
    let layout = Layout::new(data);
    for n in 0..objects {
        let repo: RepoName = format!("library/application-{}", n % REPOSITORIES).parse()?;
        let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let link = Link {
            repo,
            kind: LinkKind::Layer,
            digest,
        };
        for (path, content) in [
            (layout.blob(&digest), "x".to_owned()),
            (layout.link(&link), digest.to_string()),
        ] {
            fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            fs::write(path, content)?;
        }
    }
    Ok(())
}
