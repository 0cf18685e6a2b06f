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
mod server;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use frames::{Answers, MAX_WINDOW, opening};
use server::{Server, Upstream};

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

#[test]
fn more_silent_connections_than_descriptors() {
    const DESCRIPTORS: usize = 1024;
    const SILENT: usize = 1060;
    raise_own_limit();
    let upstream = Upstream::start(Vec::new());
    let server = Server::start(upstream.address, Some(DESCRIPTORS));
    let mut held = connect(server.address);
    assert_eq!(ask(&mut held, "/v2/"), "200");
    let silent: Vec<_> = (0..SILENT).map(|_| connect(server.address)).collect();
    // When the last one has been refused, so have all before it.
    assert_eq!((&silent[SILENT - 1]).read(&mut [0]).unwrap(), 0);
    assert_eq!(ask(&mut held, "/v2/"), "200", "who is connected is served");
    assert_eq!(ask(&mut connect(server.debug), "/debug/health"), "200");
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let files = files.count();
    assert!(files < DESCRIPTORS * 3 / 4, "{files} descriptors in use");
    drop(silent);
    let answered = || ask(&mut connect(server.address), "/v2/") == "200";
    server::eventually("room for new clients", answered);
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
fn with_blob() -> (Server, String) {
    raise_own_limit();
    let blob: Vec<u8> = (0..4 * MIB).map(|n| n.to_le_bytes()[0]).collect();
    let upstream = Upstream::start(blob);
    let server = Server::start(upstream.address, None);
    server.pull(&upstream.path());
    (server, upstream.path())
}

#[test]
fn three_hundred_connections_of_streams_without_a_window() {
    const CONNECTIONS: usize = 300;
    const WINDOW: u32 = 100;
    let (server, path) = with_blob();
    let before = server.resident();
    let opening = opening(WINDOW, &path, STREAMS);
    let open = |_| {
        let mut stream = connect(server.address);
        stream.write_all(&opening).unwrap();
        (stream, Answers::default())
    };
    let mut connections: Vec<_> = (0..CONNECTIONS).map(open).collect();
    for (stream, answers) in &mut connections {
        // Each stream has sent what its window takes.
        while answers.full(WINDOW) < STREAMS {
            answers.read(stream);
        }
    }
    let resident = server.resident();
    eprintln!(
        "{CONNECTIONS} connections of {STREAMS} streams without a window: {} MiB resident, {} MiB before",
        resident / MIB,
        before / MIB
    );
    assert!(resident < MOST_RESIDENT, "{} MiB", resident / MIB);
    assert_eq!(ask(&mut connect(server.address), "/v2/"), "200");
}

#[test]
fn three_hundred_connections_that_open_their_window_and_read_nothing() {
    const CONNECTIONS: usize = 300;
    let (server, path) = with_blob();
    let before = server.resident();
    let opening = opening(MAX_WINDOW, &path, STREAMS);
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = connect(server.address);
            stream.write_all(&opening).unwrap();
            stream
        })
        .collect();
    // Until the sockets are full, and what is allowed to wait behind them is read.
    let mut sent = (0, 0);
    server::eventually("nothing more is read", || {
        let now = server.sent();
        sent = if now == sent.0 {
            (now, sent.1 + 1)
        } else {
            (now, 0)
        };
        sent.0 > 0 && sent.1 == 100
    });
    let resident = server.resident();
    eprintln!(
        "{CONNECTIONS} connections that read nothing: {} MiB resident, {} MiB before",
        resident / MIB,
        before / MIB
    );
    assert!(resident < MOST_RESIDENT, "{} MiB", resident / MIB);
    assert_eq!(ask(&mut connect(server.address), "/v2/"), "200");
    drop(connections);
}
