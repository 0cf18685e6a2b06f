//! The real binary against clients that want too much of it: more connections than it has file
//! descriptors, and HTTP/2 streams that take no bytes. It goes on serving the others, within its
//! memory.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stderr, reason = "what was measured")]

mod frames;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Program, poll};

use frames::{Answers, MAX_WINDOW, opening};

type Upstream = testkit::Registry<String>;

const LIMIT: Duration = Duration::from_mins(1);
const MIB: u64 = 1 << 20;

/// This process needs a descriptor for each of its connections, too.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// Sends a request on an open connection; the status.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..read])
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// The server, in a directory of its own, with these limits.
fn serve(upstream: &Upstream, limits: &str) -> (Program, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_millpond");
    let path = directory.path();
    let mut server = Program::new(binary, path, upstream.address, limits, &json!({}));
    server.start();
    (server, directory)
}

/// Bytes of memory that the server uses.
fn resident(server: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// Bytes of blobs that bodies have given to connections.
fn sent(server: &Program) -> u64 {
    let metrics = String::from_utf8(server.get(server.debug, "/metrics")).unwrap();
    let series = "millpond_client_sent_bytes_total{route=\"blob\",";
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    let values = lines.filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_are_served_beside_more_silent_connections_than_descriptors() {
    const DESCRIPTORS: usize = 1024;
    const SILENT: usize = 1060;
    raise_own_limit();
    let upstream = Upstream::start().await;
    let (server, _directory) = serve(&upstream, &format!("ulimit -n {DESCRIPTORS};"));
    let mut held = connect(server.address);
    assert_eq!(ask(&mut held, "/v2/"), "200");
    let silent: Vec<_> = (0..SILENT).map(|_| connect(server.address)).collect();
    // When the last one has been refused, so have all before it.
    assert_eq!((&silent[SILENT - 1]).read(&mut [0]).unwrap(), 0);
    assert_eq!(
        ask(&mut held, "/v2/"),
        "200",
        "the connected client is served"
    );
    assert_eq!(ask(&mut connect(server.debug), "/debug/health"), "200");
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let files = files.count();
    assert!(files < DESCRIPTORS * 3 / 4, "{files} descriptors in use");
    drop(silent);
    let answered = || ask(&mut connect(server.address), "/v2/") == "200";
    poll("room for new clients", answered);
    let log = server.log();
    let lines = log.lines().count();
    eprintln!("{files} of {DESCRIPTORS} descriptors, {lines} lines of log");
    assert!(log.contains("refused client connections"), "{log}");
    assert!(lines < 60, "{lines} lines\n{log}");
}

/// As many as a connection may have.
const STREAMS: usize = 64;
const MOST_RESIDENT: u64 = 256 * MIB;

/// A server that has a blob, larger than what is read of a file at once; and the blob's path.
async fn with_blob() -> (Program, TempDir, String) {
    raise_own_limit();
    let blob: Bytes = (0..4 * MIB).map(|n| n.to_le_bytes()[0]).collect();
    let upstream = Upstream::start().await;
    let path = format!("/v2/app/blobs/{}", upstream.put_blob("app", &blob));
    let (server, directory) = serve(&upstream, "");
    assert!(
        server
            .get(server.address, &path)
            .starts_with(b"HTTP/1.1 200 ")
    );
    (server, directory, path)
}

const CONNECTIONS: usize = 300;

/// Opens connections with streams for a blob, each with this window, and calls `until`. Then the server's
/// memory is within its bound, and it serves others.
async fn memory_is_bounded(window: u32, until: impl FnOnce(&Program, &mut [TcpStream])) {
    let (server, _directory, path) = with_blob().await;
    let before = resident(&server);
    let opening = opening(window, &path, STREAMS);
    let open = |_| {
        let mut stream = connect(server.address);
        stream.write_all(&opening).unwrap();
        stream
    };
    let mut connections: Vec<_> = (0..CONNECTIONS).map(open).collect();
    until(&server, &mut connections);
    let resident = resident(&server);
    eprintln!(
        "{CONNECTIONS} connections of {STREAMS} streams: {} MiB resident, {} MiB before",
        resident / MIB,
        before / MIB
    );
    assert!(resident < MOST_RESIDENT, "{} MiB", resident / MIB);
    assert_eq!(ask(&mut connect(server.address), "/v2/"), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_without_a_window_cost_bounded_memory() {
    const WINDOW: u32 = 100;
    memory_is_bounded(WINDOW, |_, connections| {
        for stream in connections {
            // Each stream has sent what its window takes.
            let mut answers = Answers::default();
            while answers.full(WINDOW) < STREAMS {
                answers.read(stream);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_that_open_their_window_and_read_nothing_cost_bounded_memory() {
    memory_is_bounded(MAX_WINDOW, |server, _| {
        // Until the sockets are full, and what is allowed to wait behind them is read.
        let mut last = (0, 0);
        poll("nothing more is read", || {
            let now = sent(server);
            last = if now == last.0 {
                (now, last.1 + 1)
            } else {
                (now, 0)
            };
            last.0 > 0 && last.1 == 100
        });
    })
    .await;
}
