//! What the upstream's process does: it serves a directory of content and counts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Uri};
use millpond::oci::range::Resolved;
use millpond::oci::{Action, ByteRange, Digest, Reference, Requested, Route};
use rustix::fs::sendfile;
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::content::ContentDir;
use super::pace::Pace;
use super::upstream::{Counts, Plan};
use super::wire::{header, read_head};

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

/// Runs until standard input ends; prints its address first.
pub(crate) fn run(plan: Plan) -> Result<()> {
    let registry = Arc::new(Registry::new(plan)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", serde_json::to_string(&listener.local_addr()?)?);
    // One thread for each connection: a mirror opens few of them.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let registry = Arc::clone(&registry);
            // When a client closes its connection, the orchestrator sees that at the client.
            thread::spawn(move || drop(registry.serve(stream)));
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[derive(Debug)]
struct Registry {
    content_dir: ContentDir,
    plan: Plan,
    together: Pace,
    counts: Mutex<Counts>,
}

impl Registry {
    fn new(plan: Plan) -> Result<Self> {
        Ok(Self {
            content_dir: ContentDir::new(&plan.root)?,
            together: Pace::new(plan.total_rate),
            counts: Mutex::default(),
            plan,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
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
                let counts = serde_json::to_vec(&*self.counts())?;
                answer(&mut stream, "200 OK", &[], Some(&counts), counts.len())?;
                continue;
            }
            self.counts().requests += 1;
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
                        Reference::Tag(tag) => self.content_dir.tagged(&name, &tag).ok(),
                    };
                    self.manifest(&mut stream, digest, body)?;
                }
                _ => not_found(&mut stream)?,
            }
        }
    }

    fn manifest(&self, stream: &mut TcpStream, digest: Option<Digest>, body: bool) -> Result<()> {
        let found = digest
            .and_then(|digest| Some((digest, fs::read(self.content_dir.file(&digest)).ok()?)));
        let Some((digest, bytes)) = found else {
            return not_found(stream);
        };
        self.counts().manifest_gets += u64::from(body);
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
        let Ok(file) = File::open(self.content_dir.file(digest)) else {
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
        self.counts().blob_gets += 1;
        // Before the head: a client that has it must find the body counted.
        self.counts().sending += 1;
        let sent = answer(stream, status, &headers, None, announced)
            .and_then(|()| self.send(stream, pace, &file, range));
        self.counts().sending -= 1;
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
            self.counts().bytes += sent;
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
        let Plan {
            cut_every, cuts, ..
        } = self.plan;
        let mut counts = self.counts();
        let cut = cut_every > 0 && length > cut_every && counts.cuts < cuts;
        counts.cuts += u64::from(cut);
        cut
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
