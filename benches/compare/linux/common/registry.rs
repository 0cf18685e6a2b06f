//! What the upstream's process does: it serves a directory of content, as a registry and as a bucket, and
//! counts.

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
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio_rustls::rustls::ServerConfig;

use super::content::ContentDir;
use super::line::{self, Line};
use super::objects::{self, Request};
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
    tls: Option<Arc<ServerConfig>>,
    together: Pace,
    counts: Mutex<Counts>,
}

/// Which bytes of a file are asked for, and whether they are wanted or only described.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    range: Option<&'a str>,
    body: bool,
}

impl Registry {
    fn new(plan: Plan) -> Result<Self> {
        Ok(Self {
            content_dir: ContentDir::new(&plan.root)?,
            tls: plan.tls.as_deref().map(line::tls).transpose()?,
            together: Pace::new(plan.total_rate),
            counts: Mutex::default(),
            plan,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers requests on one connection until the peer closes it.
    fn serve(&self, stream: TcpStream) -> Result<()> {
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
        let mut line = Line::accept(stream, self.tls.as_ref())?;
        loop {
            let (head, rest) = read_head(&mut line)?;
            ensure!(!head.is_empty(), "closed");
            let mut words = head.split(' ');
            let method: Method = words.next().unwrap_or_default().parse()?;
            let uri: Uri = words.next().unwrap_or_default().parse()?;
            if uri.path() == "/stats" {
                let counts = serde_json::to_vec(&*self.counts())?;
                answer(&mut line, "200 OK", &[], Some(&counts), counts.len())?;
                continue;
            }
            self.counts().requests += 1;
            thread::sleep(Duration::from_millis(self.plan.delay_ms));
            let body = method != Method::HEAD;
            let asked = Asked {
                range: header(&head, "range"),
                body,
            };
            if let Some(request) = objects::parse(&method, uri.path(), uri.query()) {
                let length = header(&head, "content-length").map_or(Ok(0), str::parse)?;
                let left = u64::checked_sub(length, rest.len() as u64);
                line.discard(left.context("pipelined")?)?;
                self.object(&mut line, &pace, request, (asked, length))?;
                continue;
            }
            ensure!(rest.is_empty(), "pipelined");
            match Route::parse(&method, &uri).map(|route| route.action) {
                Ok(Action::Base) => answer(&mut line, "200 OK", &[], Some(b"{}"), 2)?,
                Ok(Action::Blob { digest, .. }) => {
                    self.blob(&mut line, &pace, &digest, asked)?;
                }
                Ok(Action::Manifest { name, reference }) => {
                    let digest = match reference {
                        Reference::Digest(digest) => Some(digest),
                        Reference::Tag(tag) => self.content_dir.tagged(&name, &tag).ok(),
                    };
                    self.manifest(&mut line, digest, body)?;
                }
                _ => not_found(&mut line)?,
            }
        }
    }

    fn manifest(&self, line: &mut Line, digest: Option<Digest>, body: bool) -> Result<()> {
        let found = digest
            .and_then(|digest| Some((digest, fs::read(self.content_dir.file(&digest)).ok()?)));
        let Some((digest, bytes)) = found else {
            return not_found(line);
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
        answer(line, "200 OK", &headers, whole, bytes.len())
    }

    fn blob(&self, line: &mut Line, pace: &Pace, digest: &Digest, asked: Asked<'_>) -> Result<()> {
        let Ok(file) = File::open(self.content_dir.file(digest)) else {
            return not_found(line);
        };
        self.counts().blob_gets += u64::from(asked.body);
        let digest = format!("Docker-Content-Digest: {digest}");
        self.file(line, pace, &file, (vec![digest], asked))
    }

    /// Answers as a bucket a request whose body had so many bytes.
    fn object(
        &self,
        line: &mut Line,
        pace: &Pace,
        request: Request<'_>,
        (asked, length): (Asked<'_>, u64),
    ) -> Result<()> {
        let document = |line: &mut Line, status, headers: &[String], text: &str| {
            answer(line, status, headers, Some(text.as_bytes()), text.len())
        };
        let etag = "ETag: \"made\"".to_owned();
        match request {
            Request::List => document(line, "200 OK", &[], objects::EMPTY_LIST),
            Request::Delete => document(line, "204 No Content", &[], ""),
            Request::Write(text) => {
                self.counts().received += length;
                document(line, "200 OK", &[etag], text)
            }
            Request::Read(key) => {
                let Ok(file) = File::open(self.content_dir.root().join(key)) else {
                    let body = if asked.body { objects::NOTHING } else { "" };
                    return document(line, "404 Not Found", &[], body);
                };
                let is_blob = key.contains("/blobs/");
                self.counts().object_gets += u64::from(asked.body && is_blob);
                let modified = httpdate::fmt_http_date(file.metadata()?.modified()?);
                let headers = vec![etag, format!("Last-Modified: {modified}")];
                self.file(line, pace, &file, (headers, asked))
            }
        }
    }

    /// Answers with a file.
    fn file(
        &self,
        line: &mut Line,
        pace: &Pace,
        file: &File,
        (mut headers, asked): (Vec<String>, Asked<'_>),
    ) -> Result<()> {
        let length = file.metadata()?.len();
        headers.push("Content-Type: application/octet-stream".to_owned());
        headers.push("Accept-Ranges: bytes".to_owned());
        let requested = asked.range.and_then(Requested::parse);
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
        if !asked.body {
            return answer(line, status, &headers, None, announced);
        }
        // Before the head: a client that has it must find the body counted.
        self.counts().sending += 1;
        let sent = answer(line, status, &headers, None, announced)
            .and_then(|()| self.send(line, pace, file, range));
        self.counts().sending -= 1;
        sent
    }

    fn send(&self, line: &mut Line, pace: &Pace, file: &File, range: ByteRange) -> Result<()> {
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
            let sent = line.send_file(file, offset, count)?;
            offset += sent;
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

fn not_found(line: &mut Line) -> Result<()> {
    answer(line, "404 Not Found", &[], Some(b"{\"errors\":[]}"), 13)
}

/// Writes a head, and the body where it is given.
fn answer(
    line: &mut Line,
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
    line.write_all(&message)?;
    Ok(line.flush()?)
}
