//! The upstream of a run: the reference registry where it is installed, else one of our own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::origin::Counts;
use super::peers;
use super::proc::{Process, cpu_seconds};
use super::server::Server;
use super::wire::get_json;

/// A running upstream.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// The reference registry; its access log is how its requests are counted.
    Registry(Server),
    /// See [`super::origin`].
    Ours { process: Process, addr: SocketAddr },
}

impl Upstream {
    /// The reference registry over a directory of content.
    pub(crate) fn registry(content: &Path) -> Result<Self> {
        let start = |directory: &Path, addr| peers::registry(directory, addr, None, content);
        Ok(Self::Registry(Server::start(start)?))
    }

    /// Our own over a directory of content, each answer late by so many milliseconds.
    pub(crate) fn ours(content: &Path, delay_ms: u64) -> Result<Self> {
        let args = [
            "origin".to_owned(),
            format!("--root={}", content.display()),
            format!("--delay-ms={delay_ms}"),
        ];
        let mut process = Process::spawn_role(&args)?;
        let addr = process
            .read_json_line()
            .context("waiting for the upstream")?;
        Ok(Self::Ours { process, addr })
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Registry(_) => "docker-registry",
            Self::Ours { .. } => "the bench's own",
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Self::Registry(server) => server.addr(),
            Self::Ours { addr, .. } => *addr,
        }
    }

    pub(crate) fn cpu(&self) -> Result<f64> {
        match self {
            Self::Registry(server) => server.cpu(),
            Self::Ours { process, .. } => cpu_seconds(process.id()),
        }
    }

    /// What it has been asked for, once it has come to rest: a log line follows the answer.
    pub(crate) fn counts(&self) -> Result<Counts> {
        match self {
            Self::Registry(server) => {
                server.settled_cpu()?;
                Ok(count_log(&server.log()))
            }
            Self::Ours { addr, .. } => {
                get_json(*addr, "/stats").context("asking the upstream for its counts")
            }
        }
    }
}

/// Counts lines like `127.0.0.1 - - [date zone] "GET /v2/x/blobs/sha256:... HTTP/1.1" 200 123 ...`.
fn count_log(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, _, _, _, _, method, path, _, status, bytes, ..] = fields.as_slice() else {
            continue;
        };
        counts.requests += 1;
        if *method != "\"GET" || !status.starts_with("20") {
            continue;
        }
        if path.contains("/blobs/") {
            counts.blob_gets += 1;
            counts.bytes += bytes.parse().unwrap_or(0);
        } else {
            counts.manifest_gets += u64::from(path.contains("/manifests/"));
        }
    }
    counts
}
