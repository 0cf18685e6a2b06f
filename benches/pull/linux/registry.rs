//! The upstream's own part: a registry with one repository, whose blobs are in the page cache and
//! leave by sendfile(2), so that it costs as little as an upstream can. It counts what it is asked
//! for, and can hold every connection, or all of them together, to a given rate.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millpond::oci::manifest::media_type;
use millpond::oci::{Algorithm, Digest, Hasher};
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde_json::json;

use super::content::{self, PIECE};
use super::pace::Pace;
use super::upstream::{Blob, Plan, Stats};
use super::wire::{header, read_head};

/// The path of every blob, up to its digest.
pub(crate) const BLOBS: &str = "/v2/library/bench/blobs/";
/// The path of every manifest, up to its tag or digest.
const MANIFESTS: &str = "/v2/library/bench/manifests/";

/// Bytes per sendfile(2) when nothing is throttled.
const FULL_CHUNK: u64 = 4 << 20;
/// The send buffer of a connection, in bytes: left to itself, the kernel grows it to 4 MiB, and 32
/// such connections at once then cost twice the CPU (measured on loopback).
const SEND_BUFFER: usize = 512 * 1024;
/// The same when a rate is set: what waits in it was sent too early, and counts as sent when the
/// peer hangs up.
const PACED_SEND_BUFFER: usize = 64 * 1024;
const IDLE: Duration = Duration::from_mins(2);

/// A blob's place in the one file that holds them all.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    length: u64,
}

#[derive(Debug)]
pub(crate) struct Registry {
    file: File,
    blobs: HashMap<String, Extent>,
    /// The image's manifest, if there is one.
    manifest: Option<(Digest, Vec<u8>)>,
    plan: Plan,
    together: Pace,
    gets: AtomicU64,
    heads: AtomicU64,
    bytes: AtomicU64,
    sending: AtomicU64,
    cuts: AtomicU64,
}

impl Registry {
    /// Makes the blobs, which are the same in every run, and the image of them.
    pub(crate) fn generate(plan: &Plan) -> Result<(Self, Vec<Blob>)> {
        // A real file, not a memfd: large folios make sendfile(2) cheaper.
        let mut file = tempfile::tempfile()?;
        let (mut extents, mut blobs, mut offset) = (HashMap::new(), Vec::new(), 0);
        for (seed, bytes) in (0..).zip(plan.lengths()) {
            let digest = write_blob(&mut file, seed, bytes)?;
            let length = bytes;
            extents.insert(digest.clone(), Extent { offset, length });
            blobs.push(Blob {
                digest,
                bytes,
                seed,
            });
            offset += length;
        }
        let layers = blobs.split_at(blobs.len() - plan.layers.len()).1;
        let manifest = if layers.is_empty() {
            None
        } else {
            let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}"#;
            file.write_all(config)?;
            let digest = Digest::of(Algorithm::Sha256, config);
            let length = config.len() as u64;
            extents.insert(digest.to_string(), Extent { offset, length });
            Some(manifest(&digest, length, layers)?)
        };
        // Written back now, not during a measurement.
        file.sync_data()?;
        let counter = || AtomicU64::new(0);
        let registry = Self {
            file,
            blobs: extents,
            manifest,
            plan: plan.clone(),
            together: Pace::new(plan.total_rate),
            gets: counter(),
            heads: counter(),
            bytes: counter(),
            sending: counter(),
            cuts: counter(),
        };
        Ok((registry, blobs))
    }

    /// Answers requests on one connection until the peer closes it.
    pub(crate) fn converse(&self, mut stream: TcpStream) -> Result<()> {
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
            let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let path = path.split('?').next().unwrap_or("");
            if path == "/stats" {
                answer(&mut stream, "200 OK", &serde_json::to_vec(&self.stats())?)?;
            } else if path == "/v2/" {
                answer(&mut stream, "200 OK", b"{}")?;
            } else if let Some(blob) = path.strip_prefix(BLOBS).and_then(|d| self.blobs.get(d)) {
                let range = header(&head, "range");
                self.answer_blob(&mut stream, &pace, method, *blob, range)?;
            } else if path.starts_with(MANIFESTS) && self.manifest.is_some() {
                self.answer_manifest(&mut stream, method)?;
            } else {
                answer(&mut stream, "404 Not Found", b"{\"errors\":[]}")?;
            }
        }
    }

    fn answer_manifest(&self, stream: &mut TcpStream, method: &str) -> Result<()> {
        let (digest, body) = self.manifest.as_ref().context("there is no image")?;
        let mut message = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nDocker-Content-Digest: {digest}\r\n\
             Content-Length: {}\r\n\r\n",
            media_type::OCI_MANIFEST,
            body.len(),
        )
        .into_bytes();
        if method != "HEAD" {
            message.extend_from_slice(body);
        }
        stream.write_all(&message)?;
        Ok(())
    }

    fn answer_blob(
        &self,
        stream: &mut TcpStream,
        pace: &Pace,
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
        if method == "HEAD" {
            stream.write_all(head.as_bytes())?;
            return Ok(());
        }
        // Before the head: whoever has it must find the body counted.
        self.sending.fetch_add(1, Ordering::SeqCst);
        let offset = blob.offset + first;
        let sent = stream
            .write_all(head.as_bytes())
            .context("sending a head")
            .and_then(|()| self.send(stream, pace, Extent { offset, length }));
        self.sending.fetch_sub(1, Ordering::SeqCst);
        sent
    }

    fn send(&self, stream: &TcpStream, pace: &Pace, extent: Extent) -> Result<()> {
        let pieces = [pace.piece(), self.together.piece()];
        let chunk = pieces.into_iter().flatten().min().unwrap_or(FULL_CHUNK);
        let cut = self.takes_a_cut(extent.length);
        let length = if cut {
            self.plan.cut_every
        } else {
            extent.length
        };
        let mut offset = extent.offset;
        let end = extent.offset + length;
        while offset < end {
            let count = usize::try_from(chunk.min(end - offset))?;
            let sent = sendfile(stream, &self.file, Some(&mut offset), count)? as u64;
            ensure!(sent > 0, "the blob is shorter than its extent");
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

    fn stats(&self) -> Stats {
        Stats {
            // First: when nothing is being sent, the bytes are all there.
            sending: self.sending.load(Ordering::SeqCst),
            gets: self.gets.load(Ordering::Relaxed),
            heads: self.heads.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::SeqCst),
            cuts: self.cuts.load(Ordering::Relaxed),
        }
    }
}

/// Appends a generated blob and returns its digest.
fn write_blob(file: &mut File, seed: u64, bytes: u64) -> Result<String> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    let mut number = 0;
    while left > 0 {
        let size = usize::try_from(left)?.min(PIECE);
        let part = piece
            .get_mut(..size)
            .context("a piece shorter than PIECE")?;
        content::fill(seed, number, part);
        hasher.update(part);
        file.write_all(part)?;
        left -= size as u64;
        number += 1;
    }
    Ok(hasher.finish().to_string())
}

fn manifest(config: &Digest, config_bytes: u64, layers: &[Blob]) -> Result<(Digest, Vec<u8>)> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.digest,
                "size": layer.bytes,
            })
        })
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": config_bytes,
        },
        "layers": layers,
    }))?;
    Ok((Digest::of(Algorithm::Sha256, &manifest), manifest))
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
