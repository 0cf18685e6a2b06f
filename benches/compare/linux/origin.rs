//! An upstream of our own: a registry over a directory of content. Files leave by sendfile(2), so
//! that it costs as little as an upstream can; it counts what it is asked for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, Uri};
use millpond::oci::Action;
use millpond::oci::range::Resolved;
use millpond::oci::{ByteRange, Digest, Reference, Requested, Route};
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde::{Deserialize, Serialize};

use super::content::Shelf;
use super::wire::{header, read_head};

/// Bytes per sendfile(2).
const CHUNK: u64 = 4 << 20;
/// The send buffer of a connection, in bytes; see the upstream of `benches/pull`.
const SEND_BUFFER: usize = 512 * 1024;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_mins(5);

/// What an upstream serves.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// The directory of the content.
    #[arg(long)]
    pub(crate) root: PathBuf,
    /// Milliseconds that every answer is late: the line to a registry far away.
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
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
    /// Body bytes of blobs.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Origin {
    shelf: Shelf,
    delay: Duration,
    requests: AtomicU64,
    blob_gets: AtomicU64,
    manifest_gets: AtomicU64,
    bytes: AtomicU64,
}

/// Runs until standard input ends; says its address first.
pub(crate) fn run(plan: &Plan, report: impl FnOnce(&str)) -> Result<()> {
    let addr = start(plan)?;
    report(&serde_json::to_string(&addr)?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Serves from threads of this process, as long as it lives. One thread a connection: a mirror
/// opens few of them.
pub(crate) fn start(plan: &Plan) -> Result<SocketAddr> {
    let counter = || AtomicU64::new(0);
    let origin = Arc::new(Origin {
        shelf: Shelf::new(&plan.root)?,
        delay: Duration::from_millis(plan.delay_ms),
        requests: counter(),
        blob_gets: counter(),
        manifest_gets: counter(),
        bytes: counter(),
    });
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let origin = Arc::clone(&origin);
            // A client that hangs up is the client's business: the orchestrator sees both sides.
            thread::spawn(move || drop(origin.converse(stream)));
        }
    });
    Ok(addr)
}

impl Origin {
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
            let method: Method = words.next().unwrap_or_default().parse()?;
            let uri: Uri = words.next().unwrap_or_default().parse()?;
            if uri.path() == "/stats" {
                let counts = serde_json::to_vec(&self.counts())?;
                answer(&mut stream, "200 OK", &[], Some(&counts), counts.len())?;
                continue;
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            thread::sleep(self.delay);
            let body = method != Method::HEAD;
            match Route::parse(&method, &uri).map(|route| route.action) {
                Ok(Action::Base) => answer(&mut stream, "200 OK", &[], Some(b"{}"), 2)?,
                Ok(Action::Blob { digest, .. }) => {
                    self.blob(&mut stream, &digest, body, header(&head, "range"))?;
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
        let headers = [
            format!(
                "Content-Type: {}",
                kind.context("every manifest says its type")?
            ),
            format!("Docker-Content-Digest: {digest}"),
        ];
        answer(
            stream,
            "200 OK",
            &headers,
            body.then_some(&bytes),
            bytes.len(),
        )
    }

    fn blob(
        &self,
        stream: &mut TcpStream,
        digest: &Digest,
        body: bool,
        range: Option<&str>,
    ) -> Result<()> {
        let Ok(file) = File::open(self.shelf.file(digest)) else {
            return not_found(stream);
        };
        let length = file.metadata()?.len();
        let range = match range
            .and_then(Requested::parse)
            .map(|asked| asked.resolve(length))
        {
            Some(Resolved::One(range)) => Some(range),
            _ => None,
        };
        let mut headers = vec![
            "Content-Type: application/octet-stream".to_owned(),
            "Accept-Ranges: bytes".to_owned(),
            format!("Docker-Content-Digest: {digest}"),
        ];
        headers
            .extend(range.map(|range| format!("Content-Range: {}", range.content_range(length))));
        let status = if range.is_some() {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        let range = range.unwrap_or(ByteRange {
            start: 0,
            end: length,
        });
        answer(
            stream,
            status,
            &headers,
            None,
            usize::try_from(range.len())?,
        )?;
        if !body {
            return Ok(());
        }
        self.blob_gets.fetch_add(1, Ordering::Relaxed);
        let mut offset = range.start;
        while offset < range.end {
            let count = usize::try_from(CHUNK.min(range.end - offset))?;
            let sent = sendfile(&*stream, &file, Some(&mut offset), count)? as u64;
            ensure!(sent > 0, "the blob got shorter");
            self.bytes.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }

    fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            blob_gets: self.blob_gets.load(Ordering::Relaxed),
            manifest_gets: self.manifest_gets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

fn not_found(stream: &mut TcpStream) -> Result<()> {
    answer(stream, "404 Not Found", &[], Some(b"{\"errors\":[]}"), 13)
}

/// Writes a head, and the body when there is one at hand.
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
