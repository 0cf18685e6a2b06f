//! The upstream: a registry in this process, on a line of a given rate, that counts what it sends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use millpond::oci::range::Resolved;
use millpond::oci::{Algorithm, ByteRange, Digest, Requested};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes per second on all connections together: so few that a large layer takes longer than the
/// server lives, and that all of them don't fill a disk.
const RATE: u64 = 24 << 20;
/// Bytes sent at a time.
const PIECE: usize = 64 << 10;
/// The send buffer of a connection, in bytes: what lies in it at a kill was sent for nothing.
const SEND_BUFFER: u32 = 64 << 10;

pub(crate) struct Content {
    bytes: Bytes,
    media_type: &'static str,
    digest: Digest,
    is_blob: bool,
}

impl Content {
    pub(crate) fn new(bytes: &Bytes, media_type: &'static str, is_blob: bool) -> Self {
        Self {
            bytes: bytes.clone(),
            media_type,
            digest: Digest::of(Algorithm::Sha256, bytes),
            is_blob,
        }
    }
}

/// What there is, by path.
pub(crate) type Contents = Arc<Mutex<HashMap<String, Content>>>;

/// A running upstream; it ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) contents: Contents,
    line: Arc<Line>,
    _tasks: JoinSet<()>,
}

/// What all connections share.
struct Line {
    /// When the bytes sent so far were due.
    due: Mutex<Instant>,
    /// Bytes of blobs that were handed to the kernel.
    bytes: AtomicU64,
}

impl Line {
    /// Takes note of sent bytes and waits until the next ones are due.
    async fn spend(&self, bytes: usize) {
        let nanos = bytes as u64 * 1_000_000_000 / RATE;
        let due = {
            let mut due = self.due.lock().unwrap();
            *due = Instant::now().max(*due) + Duration::from_nanos(nanos);
            *due
        };
        tokio::time::sleep_until(due).await;
    }
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Accepted sockets inherit it.
        socket.set_send_buffer_size(SEND_BUFFER).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let contents = Contents::default();
        let line = Arc::new(Line {
            due: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
        });
        let (served, shared) = (Arc::clone(&contents), Arc::clone(&line));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (contents, line) = (Arc::clone(&served), Arc::clone(&shared));
                connections.spawn(async move {
                    // The peer is killed now and then: that is what this is about.
                    drop(converse(stream, &contents, &line).await);
                });
            }
        });
        Self {
            address,
            contents,
            line,
            _tasks: tasks,
        }
    }

    /// Bytes of blobs sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.line.bytes.load(Ordering::Relaxed)
    }
}

async fn converse(stream: TcpStream, contents: &Contents, line: &Line) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    loop {
        let (mut request, mut range) = (String::new(), None);
        if from.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            from.read_line(&mut header).await?;
            let Some((name, value)) = header.trim_end().split_once(": ") else {
                break;
            };
            if name.eq_ignore_ascii_case("range") {
                range = Requested::parse(value);
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (head, body, is_blob) = answer(&contents.lock().unwrap(), path, range.as_ref());
        to.write_all(head.as_bytes()).await?;
        if method == "HEAD" {
            continue;
        }
        for piece in body.chunks(PIECE) {
            to.write_all(piece).await?;
            if is_blob {
                let sent = piece.len() as u64;
                line.bytes.fetch_add(sent, Ordering::Relaxed);
            }
            line.spend(piece.len()).await;
        }
    }
}

/// Head, body, and whether it is a blob's.
fn answer(
    contents: &HashMap<String, Content>,
    path: &str,
    range: Option<&Requested>,
) -> (String, Bytes, bool) {
    let Some(content) = contents.get(path.split('?').next().unwrap()) else {
        let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        return (head.to_owned(), Bytes::new(), false);
    };
    let total = content.bytes.len() as u64;
    let (status, body) = match range.map(|range| range.resolve(total)) {
        Some(Resolved::One(range)) => {
            let ByteRange { start, end } = range;
            let window = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            let placed = range.content_range(total);
            let status = format!("206 Partial Content\r\nContent-Range: {placed}");
            (status, content.bytes.slice(window))
        }
        _ => ("200 OK".to_owned(), content.bytes.clone()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nDocker-Content-Digest: {}\r\n\
         Accept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n",
        content.media_type,
        content.digest,
        body.len(),
    );
    (head, body, content.is_blob)
}
