//! The upstream: a registry over a directory of content, in a process of its own. Files leave by
//! sendfile(2), so that it costs as little as an upstream can. It counts what it is asked for, can hold
//! each connection, or all of them together, to a rate, and can cut connections. The reference registry
//! may stand in for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond::oci::RepoName;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::Role;
use super::content::{self, ContentDir};
use super::proc::{Process, cpu_seconds};
use super::server::Server;
use super::wire::get;

/// What an upstream serves, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The directory of the content.
    pub(crate) root: PathBuf,
    /// Milliseconds by which every response is late: the line to a registry far away.
    pub(crate) delay_ms: u64,
    /// Bytes per second on each connection; 0 for no limit.
    pub(crate) rate: u64,
    /// Bytes per second on all connections together; 0 for no limit.
    pub(crate) total_rate: u64,
    /// Closes the connection after so many bytes of a body that is longer; 0 for never.
    pub(crate) cut_every: u64,
    /// How often it does so.
    pub(crate) cuts: u64,
    /// Where the files `cert.pem` and `key.pem` are, for clients that begin with TLS.
    pub(crate) tls: Option<PathBuf>,
}

/// What the upstream has been asked for so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests of every kind.
    pub(crate) requests: u64,
    /// GETs of blobs.
    pub(crate) blob_gets: u64,
    /// The same, of the bucket.
    pub(crate) object_gets: u64,
    /// GETs of manifests: what Docker Hub's limit counts.
    pub(crate) manifest_gets: u64,
    /// Body bytes of blobs handed to the kernel, whether or not a client read them.
    pub(crate) bytes: u64,
    /// Bodies of blobs that are being sent.
    pub(crate) sending: u64,
    /// Body bytes of what was put into the bucket.
    pub(crate) received: u64,
    /// Connections closed in the middle of a body.
    pub(crate) cuts: u64,
}

impl Counts {
    /// Counts lines like `127.0.0.1 - - [date zone] "GET /v2/x/blobs/sha256:... HTTP/1.1" 200 123 ...`.
    fn in_log(log: &str) -> Self {
        let mut counts = Self::default();
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
}

/// A blob that was made for a run.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: u64,
    /// Determines its content, see [`content::fill`].
    pub(crate) seed: u64,
}

impl Blob {
    pub(crate) fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.digest)
    }
}

/// Where made blobs are.
pub(crate) const REPOSITORY: &str = "library/bench";

/// A running upstream, seen from the orchestrator.
#[derive(Debug)]
pub(crate) struct Upstream {
    program: Program,
    addr: SocketAddr,
    blobs: Vec<Blob>,
    _directory: Option<TempDir>,
}

#[derive(Debug)]
enum Program {
    Ours(Process),
    /// The reference registry; its access log is how its requests are counted.
    Registry(Server),
}

impl Upstream {
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let mut process = Role::Upstream(plan).spawn()?;
        let addr = process
            .read_json_line()
            .context("waiting for the upstream")?;
        Ok(Self::new(Program::Ours(process), addr))
    }

    /// The benches' own upstream over a directory of content.
    pub(crate) fn ours(content: &Path) -> Result<Self> {
        Self::start(Plan {
            root: content.to_owned(),
            ..Plan::default()
        })
    }

    /// The reference registry, which has been started.
    pub(crate) fn registry(server: Server) -> Self {
        let addr = server.addr();
        Self::new(Program::Registry(server), addr)
    }

    fn new(program: Program, addr: SocketAddr) -> Self {
        Self {
            program,
            addr,
            blobs: Vec::new(),
            _directory: None,
        }
    }

    /// An upstream with blobs of these sizes, the same in every run, and an image of all of them.
    pub(crate) fn with_blobs(sizes: &[u64], plan: &Plan) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-upstream-")?;
        let content_dir = ContentDir::new(directory.path())?;
        let repo: RepoName = REPOSITORY.parse()?;
        let (mut blobs, mut layers) = (Vec::new(), Vec::new());
        for (seed, bytes) in (0..).zip(sizes.iter().copied()) {
            let digest = content_dir.blob(&repo, bytes, |number, piece| {
                content::fill(seed, number, piece);
            })?;
            layers.push((digest, bytes));
            let digest = digest.to_string();
            blobs.push(Blob {
                digest,
                bytes,
                seed,
            });
        }
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}"#;
        let size = config.len() as u64;
        let digest = content_dir.blob(&repo, size, |_, piece| piece.copy_from_slice(config))?;
        let image = content_dir.image(&repo, (digest, size), &layers)?;
        content_dir.tag(&repo, &"latest".parse()?, &image)?;
        let plan = Plan {
            root: directory.path().to_owned(),
            ..plan.clone()
        };
        Ok(Self {
            blobs,
            _directory: Some(directory),
            ..Self::start(plan)?
        })
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self.program {
            Program::Ours(_) => "the bench's own",
            Program::Registry(_) => "docker-registry",
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The first blob.
    pub(crate) fn large(&self) -> Result<&Blob> {
        self.blobs.first().context("the upstream is empty")
    }

    /// What it has been asked for; a log line of the reference registry follows the response, so that
    /// it has to come to rest first.
    pub(crate) fn counts(&self) -> Result<Counts> {
        match &self.program {
            Program::Ours(_) => {
                let counts = get(self.addr, "/stats")?.read_all()?;
                Ok(serde_json::from_slice(&counts)?)
            }
            Program::Registry(server) => {
                server.settled_cpu()?;
                Ok(Counts::in_log(&server.log()))
            }
        }
    }

    /// The counts once it has sent nothing for a while: a download may outlive its clients.
    pub(crate) fn settled(&self) -> Result<Counts> {
        const POLL: Duration = Duration::from_millis(20);
        const QUIET_POLLS: u32 = 20;
        const LIMIT: Duration = Duration::from_mins(2);
        let started = Instant::now();
        let (mut last, mut quiet) = (self.counts()?, 0);
        while quiet < QUIET_POLLS {
            ensure!(started.elapsed() < LIMIT, "the upstream doesn't settle");
            thread::sleep(POLL);
            let now = self.counts()?;
            let busy = now.sending > 0 || now.bytes > last.bytes;
            quiet = if busy { 0 } else { quiet + 1 };
            last = now;
        }
        Ok(last)
    }

    /// CPU seconds so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        match &self.program {
            Program::Ours(process) => cpu_seconds(process.id()),
            Program::Registry(server) => server.cpu(),
        }
    }
}
