//! The upstream: a registry with one repository, whose blobs are in the page cache and leave by
//! sendfile(2), so that it costs as little as an upstream can. It counts what it is asked for and
//! can hold every connection to a given rate.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Hasher};
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde::{Deserialize, Serialize};

use super::proc::{Process, cpu_seconds};
use super::wire::{get_json, header, read_head};

/// The path of every blob, up to its digest.
pub(crate) const BLOBS: &str = "/v2/library/bench/blobs/";
/// Bytes of one small blob: several times the size of a usual image config.
pub(crate) const SMALL_BLOB: u64 = 64 * 1024;

/// Bytes per sendfile(2) when nothing is throttled.
const FULL_CHUNK: u64 = 4 << 20;
/// Chunks per second when a rate is set: often enough that the line looks steady.
const CHUNKS_PER_SECOND: u64 = 400;
/// Bytes generated and hashed at a time.
const PIECE: usize = 1 << 20;
/// The send buffer of a connection, in bytes: left to itself, the kernel grows it to 4 MiB, and 32
/// such connections at once then cost twice the CPU (measured on loopback).
const SEND_BUFFER: usize = 512 * 1024;
const IDLE: Duration = Duration::from_mins(2);

/// What an upstream is asked to hold.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Plan {
    /// Bytes of the first blob; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub(crate) blob_bytes: u64,
    /// How many small blobs there are besides.
    #[arg(long, default_value_t = 0)]
    pub(crate) small_blobs: u64,
    /// Bytes per second on each connection; 0 for as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
}

/// What the upstream says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    addr: SocketAddr,
    digests: Vec<String>,
}

/// What the upstream has been asked for so far.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// GETs of blobs.
    pub(crate) gets: u64,
    /// HEADs of blobs.
    pub(crate) heads: u64,
    /// Body bytes of blobs handed to the kernel.
    pub(crate) bytes: u64,
}

/// A running upstream, seen from the orchestrator.
#[derive(Debug)]
pub(crate) struct Upstream {
    process: Process,
    ready: Ready,
    large_bytes: u64,
}

impl Upstream {
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let args = [
            "upstream".to_owned(),
            format!("--blob-bytes={}", plan.blob_bytes),
            format!("--small-blobs={}", plan.small_blobs),
            format!("--rate={}", plan.rate),
        ];
        let mut process = Process::spawn_role(&args)?;
        let ready = process
            .read_json_line()
            .context("waiting for the upstream")?;
        Ok(Self {
            process,
            ready,
            large_bytes: plan.blob_bytes,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.ready.addr
    }

    /// The digests of the blobs, the large one first.
    pub(crate) fn digests(&self) -> &[String] {
        &self.ready.digests
    }

    /// The path of the large blob.
    pub(crate) fn large_path(&self) -> Result<String> {
        Ok(format!(
            "{BLOBS}{}",
            self.ready
                .digests
                .first()
                .context("the upstream is empty")?
        ))
    }

    /// Bytes of the large blob.
    pub(crate) fn large_bytes(&self) -> u64 {
        self.large_bytes
    }

    pub(crate) fn stats(&self) -> Result<Stats> {
        get_json(self.addr(), "/stats").context("asking the upstream for its counts")
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.process.id())
    }
}

/// A blob's place in the one file that holds them all.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    length: u64,
}

#[derive(Debug)]
struct Registry {
    file: File,
    blobs: HashMap<String, Extent>,
    rate: u64,
    gets: AtomicU64,
    heads: AtomicU64,
    bytes: AtomicU64,
}

/// Runs until standard input ends. One thread a connection: a run opens few of them.
pub(crate) fn run(plan: Plan, report: impl FnOnce(&str)) -> Result<()> {
    let (registry, digests) = Registry::generate(plan)?;
    let registry = Arc::new(registry);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ready = Ready {
        addr: listener.local_addr()?,
        digests,
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

impl Registry {
    fn generate(plan: Plan) -> Result<(Self, Vec<String>)> {
        // A real file, not a memfd: large folios make sendfile(2) cheaper.
        let mut file = tempfile::tempfile()?;
        let large = (plan.blob_bytes > 0).then_some(plan.blob_bytes);
        let lengths = large
            .into_iter()
            .chain((0..plan.small_blobs).map(|_| SMALL_BLOB));
        let (mut blobs, mut digests, mut offset) = (HashMap::new(), Vec::new(), 0);
        // The same bytes in every run; pseudo-random, so that nothing can compress them.
        let mut random = fastrand::Rng::with_seed(0x6d69_6c6c);
        let mut piece = vec![0; PIECE];
        for length in lengths {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut left = length;
            while left > 0 {
                let size = usize::try_from(left)?.min(PIECE);
                let part = piece
                    .get_mut(..size)
                    .context("a piece shorter than PIECE")?;
                random.fill(part);
                hasher.update(part);
                file.write_all(part)?;
                left -= size as u64;
            }
            let digest = hasher.finish().to_string();
            blobs.insert(digest.clone(), Extent { offset, length });
            digests.push(digest);
            offset += length;
        }
        // Written back now, not during a measurement.
        file.sync_data()?;
        let counter = || AtomicU64::new(0);
        let (gets, heads, bytes) = (counter(), counter(), counter());
        Ok((
            Self {
                file,
                blobs,
                rate: plan.rate,
                gets,
                heads,
                bytes,
            },
            digests,
        ))
    }

    /// Answers requests on one connection until the peer closes it.
    fn converse(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        set_socket_send_buffer_size(&stream, SEND_BUFFER)?;
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
        loop {
            let (head, rest) = read_head(&mut stream)?;
            ensure!(!head.is_empty() && rest.is_empty(), "closed, or pipelined");
            let mut words = head.split(' ');
            let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let path = path.split('?').next().unwrap_or("");
            if path == "/stats" {
                answer(&mut stream, "200 OK", &serde_json::to_vec(&self.stats())?)?;
            } else if path == "/v2/" {
                answer(&mut stream, "200 OK", b"{}")?;
            } else if let Some(blob) = path.strip_prefix(BLOBS).and_then(|d| self.blobs.get(d)) {
                self.answer_blob(&mut stream, method, *blob, header(&head, "range"))?;
            } else {
                answer(&mut stream, "404 Not Found", b"{\"errors\":[]}")?;
            }
        }
    }

    fn answer_blob(
        &self,
        stream: &mut TcpStream,
        method: &str,
        blob: Extent,
        range: Option<&str>,
    ) -> Result<()> {
        let range = range.and_then(|text| parse_range(text, blob.length));
        let (first, last) = range.unwrap_or((0, blob.length - 1));
        let length = last - first + 1;
        let status = if range.is_some() {
            format!(
                "206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}",
                blob.length
            )
        } else {
            "200 OK".to_owned()
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n\
             Accept-Ranges: bytes\r\nContent-Length: {length}\r\n\r\n"
        );
        let counter = if method == "HEAD" {
            &self.heads
        } else {
            &self.gets
        };
        counter.fetch_add(1, Ordering::Relaxed);
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            self.send(
                stream,
                Extent {
                    offset: blob.offset + first,
                    length,
                },
            )?;
        }
        Ok(())
    }

    fn send(&self, stream: &TcpStream, extent: Extent) -> Result<()> {
        let throttled = self.rate > 0;
        let chunk = if throttled {
            (self.rate / CHUNKS_PER_SECOND).max(1)
        } else {
            FULL_CHUNK
        };
        let started = Instant::now();
        let mut offset = extent.offset;
        let end = extent.offset + extent.length;
        while offset < end {
            let count = usize::try_from(chunk.min(end - offset))?;
            let sent = sendfile(stream, &self.file, Some(&mut offset), count)? as u64;
            ensure!(sent > 0, "the blob is shorter than its extent");
            self.bytes.fetch_add(sent, Ordering::Relaxed);
            if throttled {
                let micros = (offset - extent.offset).saturating_mul(1_000_000) / self.rate;
                let due = started + Duration::from_micros(micros);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats {
            gets: self.gets.load(Ordering::Relaxed),
            heads: self.heads.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

fn answer(stream: &mut TcpStream, status: &str, body: &[u8]) -> Result<()> {
    let length = body.len();
    let mut message = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    message.extend_from_slice(body);
    stream.write_all(&message)?;
    Ok(())
}

/// The one range of `bytes=N-` or `bytes=N-M`; anything else is answered in full (RFC 9110, 14.2).
fn parse_range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok().filter(|first| *first < length)?;
    let last = if last.is_empty() {
        length - 1
    } else {
        last.parse().ok()?
    };
    (first <= last).then(|| (first, last.min(length - 1)))
}
