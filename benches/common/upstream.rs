//! The upstream: a registry over a directory of content, in a process of its own. Files leave by
//! sendfile(2), so that it costs as little as an upstream can. It counts what it is asked for, can hold
//! each connection, or all of them together, to a rate, and can cut connections.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Uri};
use millpond::oci::range::Resolved;
use millpond::oci::{Action, ByteRange, Digest, Reference, RepoName, Requested, Route};
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::content::{self, Shelf};
use super::pace::Pace;
use super::proc::{Process, cpu_seconds};
use super::wire::{get_json, header, read_head};

/// Bytes per sendfile(2) when nothing is throttled.
const CHUNK: u64 = 4 << 20;
/// The send buffer of a connection, in bytes: left to itself, the kernel grows it to 4 MiB, and 32
/// such connections at once then cost twice the CPU (measured on loopback).
const SEND_BUFFER: usize = 512 * 1024;
/// The same when a rate is set: what waits in it was sent too early, and counts as sent when the
/// peer closes the connection.
const PACED_SEND_BUFFER: usize = 64 * 1024;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_mins(5);

/// What an upstream serves, and how.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Plan {
    /// The directory of the content.
    #[arg(long)]
    pub(crate) root: PathBuf,
    /// Milliseconds by which every response is late: the line to a registry far away.
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Bytes per second on each connection; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    /// Bytes per second on all connections together; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub(crate) total_rate: u64,
    /// Closes the connection after so many bytes of a body that is longer; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub(crate) cut_every: u64,
    /// How often it does so.
    #[arg(long, default_value_t = 0)]
    pub(crate) cuts: u64,
}

/// What the upstream has been asked for so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests of every kind.
    pub(crate) requests: u64,
    /// GETs of blobs.
    pub(crate) blob_gets: u64,
    /// GETs of manifests: what Docker Hub's limit counts.
    pub(crate) manifest_gets: u64,
    /// Body bytes of blobs handed to the kernel, whether or not a client read them.
    pub(crate) bytes: u64,
    /// Bodies of blobs that are being sent.
    pub(crate) sending: u64,
    /// Connections closed in the middle of a body.
    pub(crate) cuts: u64,
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
    process: Process,
    addr: SocketAddr,
    blobs: Vec<Blob>,
    _directory: Option<TempDir>,
}

impl Upstream {
    pub(crate) fn start(plan: &Plan) -> Result<Self> {
        let args = [
            "upstream".to_owned(),
            format!("--root={}", plan.root.display()),
            format!("--delay-ms={}", plan.delay_ms),
            format!("--rate={}", plan.rate),
            format!("--total-rate={}", plan.total_rate),
            format!("--cut-every={}", plan.cut_every),
            format!("--cuts={}", plan.cuts),
        ];
        let mut process = Process::spawn_role(&args)?;
        let addr = process
            .read_json_line()
            .context("waiting for the upstream")?;
        Ok(Self {
            process,
            addr,
            blobs: Vec::new(),
            _directory: None,
        })
    }

    /// An upstream with blobs of these sizes, the same in every run, and an image of all of them.
    pub(crate) fn with_blobs(sizes: &[u64], plan: &Plan) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-upstream-")?;
        let shelf = Shelf::new(directory.path())?;
        let repo: RepoName = REPOSITORY.parse()?;
        let (mut blobs, mut layers) = (Vec::new(), Vec::new());
        for (seed, bytes) in (0..).zip(sizes.iter().copied()) {
            let digest = shelf.blob(&repo, bytes, |number, piece| {
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
        let digest = shelf.blob(&repo, size, |_, piece| piece.copy_from_slice(config))?;
        let image = shelf.image(&repo, (digest, size), &layers)?;
        shelf.tag(&repo, &"latest".parse()?, &image)?;
        let plan = Plan {
            root: directory.path().to_owned(),
            ..plan.clone()
        };
        Ok(Self {
            blobs,
            _directory: Some(directory),
            ..Self::start(&plan)?
        })
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

    pub(crate) fn counts(&self) -> Result<Counts> {
        get_json(self.addr, "/stats").context("asking the upstream for its counts")
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
        cpu_seconds(self.process.id())
    }
}

/// Runs until standard input ends; prints its address first.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    println!("{}", serde_json::to_string(&serve(plan)?)?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Serves from threads of this process, as long as it lives. One thread for each connection: a mirror
/// opens few of them.
pub(crate) fn serve(plan: &Plan) -> Result<SocketAddr> {
    let registry = Arc::new(Registry::new(plan)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let registry = Arc::clone(&registry);
            // When a client closes its connection, the orchestrator sees that at the client.
            thread::spawn(move || drop(registry.serve(stream)));
        }
    });
    Ok(addr)
}

#[derive(Debug)]
struct Registry {
    shelf: Shelf,
    plan: Plan,
    together: Pace,
    requests: AtomicU64,
    blob_gets: AtomicU64,
    manifest_gets: AtomicU64,
    bytes: AtomicU64,
    sending: AtomicU64,
    cuts: AtomicU64,
}

impl Registry {
    fn new(plan: &Plan) -> Result<Self> {
        let counter = || AtomicU64::new(0);
        Ok(Self {
            shelf: Shelf::new(&plan.root)?,
            plan: plan.clone(),
            together: Pace::new(plan.total_rate),
            requests: counter(),
            blob_gets: counter(),
            manifest_gets: counter(),
            bytes: counter(),
            sending: counter(),
            cuts: counter(),
        })
    }

    /// Answers requests on one connection until the peer closes it.
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let paced = self.plan.rate > 0 || self.plan.total_rate > 0;
        let buffer = if paced {
            PACED_SEND_BUFFER
        } else {
            SEND_BUFFER
        };
        set_socket_send_buffer_size(&stream, buffer)?;
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
        let pace = Pace::new(self.plan.rate);
        loop {
            let (head, rest) = read_head(&mut stream)?;
            ensure!(!head.is_empty() && rest.is_empty(), "closed, or pipelined");
            let mut words = head.split(' ');
            let method: Method = words.next().unwrap_or_default().parse()?;
            let uri: Uri = words.next().unwrap_or_default().parse()?;
            if uri.path() == "/stats" {
                let counts = serde_json::to_vec(&self.counts())?;
                answer(&mut stream, "200 OK", &[], Some(&counts), counts.len())?;
                continue;
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(self.plan.delay_ms));
            let body = method != Method::HEAD;
            match Route::parse(&method, &uri).map(|route| route.action) {
                Ok(Action::Base) => answer(&mut stream, "200 OK", &[], Some(b"{}"), 2)?,
                Ok(Action::Blob { digest, .. }) => {
                    self.blob(&mut stream, &pace, &digest, body, header(&head, "range"))?;
                }
                Ok(Action::Manifest { name, reference }) => {
                    let digest = match reference {
                        Reference::Digest(digest) => Some(digest),
                        Reference::Tag(tag) => self.shelf.tagged(&name, &tag).ok(),
                    };
                    self.manifest(&mut stream, digest, body)?;
                }
                _ => not_found(&mut stream)?,
            }
        }
    }

    fn manifest(&self, stream: &mut TcpStream, digest: Option<Digest>, body: bool) -> Result<()> {
        let found =
            digest.and_then(|digest| Some((digest, fs::read(self.shelf.file(&digest)).ok()?)));
        let Some((digest, bytes)) = found else {
            return not_found(stream);
        };
        self.manifest_gets
            .fetch_add(u64::from(body), Ordering::Relaxed);
        let document: serde_json::Value = serde_json::from_slice(&bytes)?;
        let kind = document.get("mediaType").and_then(|kind| kind.as_str());
        let kind = kind.context("every manifest has a media type")?;
        let headers = [
            format!("Content-Type: {kind}"),
            format!("Docker-Content-Digest: {digest}"),
        ];
        let whole = body.then_some(bytes.as_slice());
        answer(stream, "200 OK", &headers, whole, bytes.len())
    }

    fn blob(
        &self,
        stream: &mut TcpStream,
        pace: &Pace,
        digest: &Digest,
        body: bool,
        range: Option<&str>,
    ) -> Result<()> {
        let Ok(file) = File::open(self.shelf.file(digest)) else {
            return not_found(stream);
        };
        let length = file.metadata()?.len();
        let requested = range.and_then(Requested::parse);
        let mut headers = vec![
            "Content-Type: application/octet-stream".to_owned(),
            "Accept-Ranges: bytes".to_owned(),
            format!("Docker-Content-Digest: {digest}"),
        ];
        let (status, range) = match requested.map(|requested| requested.resolve(length)) {
            Some(Resolved::One(range)) => {
                headers.push(format!("Content-Range: {}", range.content_range(length)));
                ("206 Partial Content", range)
            }
            _ => (
                "200 OK",
                ByteRange {
                    start: 0,
                    end: length,
                },
            ),
        };
        let announced = usize::try_from(range.len())?;
        if !body {
            return answer(stream, status, &headers, None, announced);
        }
        self.blob_gets.fetch_add(1, Ordering::Relaxed);
        // Before the head: a client that has it must find the body counted.
        self.sending.fetch_add(1, Ordering::SeqCst);
        let sent = answer(stream, status, &headers, None, announced)
            .and_then(|()| self.send(stream, pace, &file, range));
        self.sending.fetch_sub(1, Ordering::SeqCst);
        sent
    }

    fn send(&self, stream: &TcpStream, pace: &Pace, file: &File, range: ByteRange) -> Result<()> {
        let pieces = [pace.piece(), self.together.piece()];
        let chunk = pieces.into_iter().flatten().min().unwrap_or(CHUNK);
        let cut = self.takes_a_cut(range.len());
        let mut offset = range.start;
        let end = if cut {
            range.start + self.plan.cut_every
        } else {
            range.end
        };
        while offset < end {
            let count = usize::try_from(chunk.min(end - offset))?;
            let sent = sendfile(stream, file, Some(&mut offset), count)? as u64;
            ensure!(sent > 0, "the blob has become shorter");
            self.bytes.fetch_add(sent, Ordering::SeqCst);
            self.together.spend(sent);
            pace.spend(sent);
        }
        if cut {
            // The caller drops the stream.
            bail!("cut, as planned");
        }
        Ok(())
    }

    /// Whether a body of this length is to be cut; counts the cut.
    fn takes_a_cut(&self, length: u64) -> bool {
        let left = |done: u64| (done < self.plan.cuts).then_some(done + 1);
        self.plan.cut_every > 0
            && length > self.plan.cut_every
            && self
                .cuts
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok()
    }

    fn counts(&self) -> Counts {
        Counts {
            // First: when nothing is being sent, all bytes are counted.
            sending: self.sending.load(Ordering::SeqCst),
            requests: self.requests.load(Ordering::Relaxed),
            blob_gets: self.blob_gets.load(Ordering::Relaxed),
            manifest_gets: self.manifest_gets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::SeqCst),
            cuts: self.cuts.load(Ordering::Relaxed),
        }
    }
}

fn not_found(stream: &mut TcpStream) -> Result<()> {
    answer(stream, "404 Not Found", &[], Some(b"{\"errors\":[]}"), 13)
}

/// Writes a head, and the body where it is given.
fn answer(
    stream: &mut TcpStream,
    status: &str,
    headers: &[String],
    body: Option<&[u8]>,
    length: usize,
) -> Result<()> {
    let mut message = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
    for header in headers {
        message.push_str(header);
        message.push_str("\r\n");
    }
    message.push_str("\r\n");
    let mut message = message.into_bytes();
    message.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&message)?;
    Ok(())
}
