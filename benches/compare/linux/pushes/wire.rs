//! As much of a pushing client as a measurement needs (distribution-spec, "Pushing blobs").

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millpond::oci::{Algorithm, Digest, Hasher};

use super::super::common::content::{MANIFEST, PIECE};
use super::super::common::wire::{header, read_head};

/// How long a server may stay silent before the run is called broken.
const SILENCE: Duration = Duration::from_mins(2);

/// A blob: one piece again and again.
pub(crate) struct Blob {
    piece: Vec<u8>,
    pub(super) bytes: u64,
    pub(crate) digest: Digest,
}

impl Blob {
    /// Another one for each seed.
    pub(crate) fn new(seed: u64, bytes: u64) -> Self {
        let mut piece = vec![0; PIECE];
        fastrand::Rng::with_seed(seed).fill(&mut piece);
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for piece in pieces(&piece, bytes) {
            hasher.update(piece);
        }
        Self {
            digest: hasher.finish(),
            piece,
            bytes,
        }
    }
}

fn pieces(piece: &[u8], bytes: u64) -> impl Iterator<Item = &[u8]> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        left -= size as u64;
        piece.get(..size).filter(|piece| !piece.is_empty())
    })
}

/// A connection to a registry.
pub(crate) struct Pusher {
    stream: TcpStream,
    addr: SocketAddr,
}

/// An answer without its body.
struct Answer {
    status: u16,
    head: String,
}

impl Answer {
    fn expect(self, status: u16, what: &str) -> Result<Self> {
        ensure!(self.status == status, "{what}: {}", self.head);
        Ok(self)
    }

    /// The path of the upload that goes on, with its query.
    fn location(&self) -> Result<String> {
        let location = header(&self.head, "location").context("no Location")?;
        let path = location.find("/v2/").and_then(|at| location.get(at..));
        Ok(path
            .context("a Location that isn't the registry's")?
            .to_owned())
    }
}

impl Pusher {
    pub(crate) fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, SILENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self { stream, addr })
    }

    /// Pushes a blob with one PUT.
    pub(crate) fn put(&mut self, repo: &str, blob: &Blob) -> Result<()> {
        let upload = self.start(repo)?;
        let length = format!("Content-Length: {}\r\n", blob.bytes);
        self.head("PUT", &closing(&upload, blob), &length)?;
        for piece in pieces(&blob.piece, blob.bytes) {
            self.stream.write_all(piece)?;
        }
        self.answer()?.expect(201, "PUT").map(drop)
    }

    /// Pushes these bytes with one PUT.
    pub(super) fn bytes(&mut self, repo: &str, bytes: &[u8]) -> Result<()> {
        self.put(
            repo,
            &Blob {
                piece: bytes.to_vec(),
                bytes: bytes.len() as u64,
                digest: Digest::of(Algorithm::Sha256, bytes),
            },
        )
    }

    /// Pushes a blob as docker does: one chunked PATCH, and a PUT without a body.
    pub(super) fn patch(&mut self, repo: &str, blob: &Blob) -> Result<()> {
        let upload = self.start(repo)?;
        self.head("PATCH", &upload, "Transfer-Encoding: chunked\r\n")?;
        // docker's chunks have 32 KiB.
        for piece in pieces(&blob.piece, blob.bytes) {
            for chunk in piece.chunks(32 << 10) {
                write!(self.stream, "{:x}\r\n", chunk.len())?;
                self.stream.write_all(chunk)?;
                self.stream.write_all(b"\r\n")?;
            }
        }
        self.stream.write_all(b"0\r\n\r\n")?;
        let upload = self.answer()?.expect(202, "PATCH")?.location()?;
        self.head("PUT", &closing(&upload, blob), "Content-Length: 0\r\n")?;
        self.answer()?.expect(201, "PUT").map(drop)
    }

    pub(super) fn manifest(&mut self, repo: &str, tag: &str, manifest: &[u8]) -> Result<()> {
        let headers = format!(
            "Content-Type: {MANIFEST}\r\nContent-Length: {}\r\n",
            manifest.len()
        );
        self.head("PUT", &format!("/v2/{repo}/manifests/{tag}"), &headers)?;
        self.stream.write_all(manifest)?;
        self.answer()?.expect(201, "PUT of a manifest").map(drop)
    }

    fn start(&mut self, repo: &str) -> Result<String> {
        let path = format!("/v2/{repo}/blobs/uploads/");
        self.head("POST", &path, "Content-Length: 0\r\n")?;
        self.answer()?.expect(202, "POST")?.location()
    }

    fn head(&mut self, method: &str, path: &str, headers: &str) -> Result<()> {
        let addr = self.addr;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\n{headers}\r\n");
        Ok(self.stream.write_all(head.as_bytes())?)
    }

    fn answer(&mut self) -> Result<Answer> {
        let (head, early) = read_head(&mut self.stream)?;
        let length = header(&head, "content-length").map_or(Ok(0), str::parse::<usize>)?;
        let left = length.checked_sub(early.len());
        let mut rest = vec![0; left.context("more than one answer")?];
        self.stream.read_exact(&mut rest)?;
        let status = head.split(' ').nth(1).context("no status line")?.parse()?;
        Ok(Answer { status, head })
    }
}

/// The upload's path with the digest.
fn closing(upload: &str, blob: &Blob) -> String {
    let separator = if upload.contains('?') { '&' } else { '?' };
    format!("{upload}{separator}digest={}", blob.digest)
}
