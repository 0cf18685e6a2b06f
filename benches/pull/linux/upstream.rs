//! The upstream, seen from the orchestrator: what it is to hold, how it is to behave, and what it
//! has been asked for. The registry itself runs in a process of its own.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::proc::{Process, cpu_seconds};
use super::registry::{BLOBS, Registry};
use super::wire::get_json;

/// Bytes of one small blob: several times the size of a usual image config.
pub(crate) const SMALL_BLOB: u64 = 64 * 1024;

/// What an upstream is asked to hold, and how to send it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Plan {
    /// Bytes of the first blob; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub(crate) blob_bytes: u64,
    /// How many small blobs there are besides.
    #[arg(long, default_value_t = 0)]
    pub(crate) small_blobs: u64,
    /// Bytes of each layer of an image, which also has a config and a tag; none for no image.
    #[arg(long, value_delimiter = ',')]
    pub(crate) layers: Vec<u64>,
    /// Bytes per second on each connection; 0 for as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    /// Bytes per second on all connections together; 0 for as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub(crate) total_rate: u64,
    /// Closes the connection after so many bytes of a body that is longer; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub(crate) cut_every: u64,
    /// How often it does so before it behaves.
    #[arg(long, default_value_t = 0)]
    pub(crate) cuts: u64,
}

impl Plan {
    fn args(&self) -> Vec<String> {
        let mut args = vec![
            "upstream".to_owned(),
            format!("--blob-bytes={}", self.blob_bytes),
            format!("--small-blobs={}", self.small_blobs),
            format!("--rate={}", self.rate),
            format!("--total-rate={}", self.total_rate),
            format!("--cut-every={}", self.cut_every),
            format!("--cuts={}", self.cuts),
        ];
        args.extend(self.layers.iter().map(|bytes| format!("--layers={bytes}")));
        args
    }

    /// Bytes of the generated blobs, in order: the large one, the small ones, the layers.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = u64> {
        let large = (self.blob_bytes > 0).then_some(self.blob_bytes);
        let small = (0..self.small_blobs).map(|_| SMALL_BLOB);
        large
            .into_iter()
            .chain(small)
            .chain(self.layers.iter().copied())
    }
}

/// A generated blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: u64,
    /// Says what its content is, see [`super::content`].
    pub(crate) seed: u64,
}

impl Blob {
    /// Where it is asked for.
    pub(crate) fn path(&self) -> String {
        format!("{BLOBS}{}", self.digest)
    }
}

/// What the upstream says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    addr: SocketAddr,
    blobs: Vec<Blob>,
}

/// What the upstream has been asked for so far.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// GETs of blobs.
    pub(crate) gets: u64,
    /// HEADs of blobs.
    pub(crate) heads: u64,
    /// Body bytes of blobs handed to the kernel, whether or not anybody read them.
    pub(crate) bytes: u64,
    /// Bodies of blobs that are being sent right now.
    pub(crate) sending: u64,
    /// How often a connection was closed in the middle of a body, on purpose.
    pub(crate) cuts: u64,
}

/// A running upstream, seen from the orchestrator.
#[derive(Debug)]
pub(crate) struct Upstream {
    process: Process,
    ready: Ready,
}

impl Upstream {
    pub(crate) fn start(plan: &Plan) -> Result<Self> {
        let mut process = Process::spawn_role(&plan.args())?;
        let ready = process
            .read_json_line()
            .context("waiting for the upstream")?;
        Ok(Self { process, ready })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.ready.addr
    }

    /// The generated blobs, the large one first.
    pub(crate) fn blobs(&self) -> &[Blob] {
        &self.ready.blobs
    }

    /// The large blob, or whatever comes first.
    pub(crate) fn large(&self) -> Result<&Blob> {
        self.blobs().first().context("the upstream is empty")
    }

    pub(crate) fn stats(&self) -> Result<Stats> {
        get_json(self.addr(), "/stats").context("asking the upstream for its counts")
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.process.id())
    }
}

/// Runs the registry until standard input ends. One thread a connection: a run opens few of them.
pub(crate) fn run(plan: &Plan, report: impl FnOnce(&str)) -> Result<()> {
    let (registry, blobs) = Registry::generate(plan)?;
    let registry = Arc::new(registry);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ready = Ready {
        addr: listener.local_addr()?,
        blobs,
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let registry = Arc::clone(&registry);
            // A client that hangs up is the client's business: the orchestrator sees both sides.
            thread::spawn(move || drop(registry.converse(stream)));
        }
    });
    report(&serde_json::to_string(&ready)?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
