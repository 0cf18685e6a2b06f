//! What millpond needs when it does little: idle, beside idle connections, slow readers, and a large
//! cache.

use std::fs;

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest, RepoName};
use millpond::storage::LinkKind;
use serde_json::Map;

use super::Sizes;
use super::common::content::ContentDir;
use super::common::load::{Load, Pattern, Plan};
use super::common::proc::tcp_buffer_mib;
use super::common::report::Target::AtMost;
use super::common::server::{Server, millpond};
use super::common::upstream::Upstream;
use super::common::wire::get;
use super::common::{note, times};
use super::library::Library;
use super::peers::{self, Peer, Sources};
use super::results::Results;

const IDLE: f64 = 12.0;
const CONNECTIONS: usize = 1000;
const CONNECTED: f64 = 40.0;
const READERS: usize = 200;
const READING_WARM: f64 = 32.0;
const READING_COLD: f64 = 64.0;
const OBJECTS: f64 = 1e6;
const FULL: f64 = 300.0;

pub(crate) fn measure(
    library: &Library,
    sources: &Sources,
    upstream: &Upstream,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    note("memory, idle");
    let server = peers::start(Peer::Millpond, sources)?;
    server.settled_cpu()?;
    let idle = server.memory("VmRSS")?;
    results.add("resident, idle", "MiB", idle, AtMost(IDLE));
    let anonymous = server.memory("RssAnon")?;
    results.add("the same, without mapped files", "MiB", anonymous, None);

    note("memory, idle connections");
    let connections = (0..CONNECTIONS).map(|_| {
        let mut client = get(server.addr(), "/v2/")?;
        client.read_all()?;
        Ok(client)
    });
    let connections = connections.collect::<Result<Vec<_>>>()?;
    let name = format!("resident, {CONNECTIONS} idle keep-alive connections");
    results.add(&name, "MiB", server.memory("VmRSS")?, AtMost(CONNECTED));
    drop((connections, server));

    note("memory, slow readers");
    let server = peers::start(Peer::Millpond, sources)?;
    let once = Plan::once(server.addr(), library.large.clone(), 1);
    Load::send(&once).with_context(|| server.log_tail())?;
    server.settled_cpu()?;
    slow_readers(&server, "warm", library, sizes, results)?;
    let server = peers::start(Peer::Millpond, sources)?;
    let before = upstream.counts()?.bytes;
    slow_readers(&server, "cold", library, sizes, results)?;
    let bytes = times(upstream.counts()?.bytes - before, sizes.large);
    let name = "upstream bytes over the blob's, slow readers of a cold blob";
    results.add(name, "x", bytes, AtMost(1.0));
    drop(server);

    note("memory, many objects");
    let objects = many_objects(sources, sizes.objects)?;
    let share = OBJECTS / sizes.objects as f64;
    let name = format!(
        "resident, {} cached objects, after the start",
        sizes.objects
    );
    results.add(&name, "MiB", objects, None);
    let name = "resident, a million objects (what is above idle, in proportion)";
    let million = idle + (objects - idle) * share;
    results.add(name, "MiB", million, AtMost(FULL));
    Ok(())
}

/// Memory of the server and of the kernel while clients read the large blob slowly.
fn slow_readers(
    server: &Server,
    kind: &str,
    library: &Library,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    // The peak of what follows, not of a download before: 5 resets it (proc(5), clear_refs).
    fs::write(format!("/proc/{}/clear_refs", server.id()), "5")?;
    let (mut sockets, mut anonymous) = (0.0_f64, 0.0);
    let plan = Plan {
        pattern: Pattern::Slow(sizes.hold),
        ..Plan::once(server.addr(), library.large.clone(), READERS)
    };
    let load = Load::sampled(&plan, || {
        sockets = sockets.max(tcp_buffer_mib()?);
        anonymous = server.memory("RssAnon")?;
        Ok(())
    })
    .with_context(|| server.log_tail())?;
    ensure!(
        load.requests == 0 && load.bytes > 0,
        "a slow client had the whole blob, which is too small for this, or none had a byte"
    );
    let peak = server.memory("VmHWM")?;
    let most = if kind == "warm" {
        READING_WARM
    } else {
        READING_COLD
    };
    let name = format!("peak, {READERS} slow readers of a {kind} blob");
    results.add(&name, "MiB", peak, AtMost(most));
    results.add(
        "the same at the end, without mapped files",
        "MiB",
        anonymous,
        None,
    );
    results.add(
        "TCP buffers of the whole machine meanwhile",
        "MiB",
        sockets,
        None,
    );
    Ok(())
}

/// Starts on a data directory that has so many blobs, and returns what is resident at rest, in MiB.
/// The blobs are files of one byte, each linked into one of a thousand repositories. Their names aren't
/// their digests; nobody reads them.
fn many_objects(sources: &Sources, objects: u64) -> Result<f64> {
    const REPOSITORIES: u64 = 1000;
    let server = Server::start(|directory, addr| {
        let content_dir = ContentDir::new(&directory.join("data"))?;
        for n in 0..objects {
            let repo: RepoName = format!("library/application-{}", n % REPOSITORIES).parse()?;
            let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
            content_dir.place(&repo, LinkKind::Layer, digest, b"x")?;
        }
        let binary = &sources.millpond;
        Ok(millpond(
            binary,
            directory,
            addr,
            sources.upstream,
            &Map::new(),
        ))
    })?;
    server.settled_cpu()?;
    server.memory("VmRSS")
}
