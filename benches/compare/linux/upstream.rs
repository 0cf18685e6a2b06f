//! The upstream of a run: the reference registry where it is installed, else the benches' own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::common::server::Server;
use super::common::upstream::{self, Counts, Plan};
use super::peers;

/// A running upstream.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// The reference registry; its access log is how its requests are counted.
    Registry(Server),
    Ours(upstream::Upstream),
}

impl Upstream {
    /// The reference registry over a directory of content.
    pub(crate) fn registry(content: &Path) -> Result<Self> {
        let start = |directory: &Path, addr| peers::registry(directory, addr, None, content);
        Ok(Self::Registry(Server::start(start)?))
    }

    /// The benches' own over a directory of content, each response late by so many milliseconds.
    pub(crate) fn ours(content: &Path, delay_ms: u64) -> Result<Self> {
        Ok(Self::Ours(upstream::Upstream::start(&Plan {
            root: content.to_owned(),
            delay_ms,
            ..Plan::default()
        })?))
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Registry(_) => "docker-registry",
            Self::Ours(_) => "the bench's own",
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Self::Registry(server) => server.addr(),
            Self::Ours(upstream) => upstream.addr(),
        }
    }

    pub(crate) fn cpu(&self) -> Result<f64> {
        match self {
            Self::Registry(server) => server.cpu(),
            Self::Ours(upstream) => upstream.cpu(),
        }
    }

    /// What it has been asked for, once it is idle: a log line follows the response.
    pub(crate) fn counts(&self) -> Result<Counts> {
        match self {
            Self::Registry(server) => {
                server.settled_cpu()?;
                Ok(count_log(&server.log()))
            }
            Self::Ours(upstream) => upstream.counts(),
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
