//! The binary, and an upstream with one blob.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millpond::oci::{Algorithm, Digest};
use serde_json::json;

/// How often is looked, and how many times at most: a minute.
const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 6000;

pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..POLLS {
        if happened() {
            return;
        }
        std::thread::sleep(POLL);
    }
    panic!("it never happened: {what}");
}

/// Answers each request with its blob.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    digest: Digest,
}

impl Upstream {
    pub(crate) fn start(blob: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let digest = Digest::of(Algorithm::Sha256, &blob);
        let blob = Arc::new(blob);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let blob = Arc::clone(&blob);
                std::thread::spawn(move || answer(stream.unwrap(), &blob));
            }
        });
        Self { address, digest }
    }

    /// Of the blob, below the mirror.
    pub(crate) fn path(&self) -> String {
        format!("/v2/app/blobs/{}", self.digest)
    }
}

fn answer(mut stream: TcpStream, blob: &[u8]) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", blob.len());
            // The mirror may hang up at any time.
            drop(stream.write_all(head.as_bytes()));
            drop(stream.write_all(blob));
        }
    }
}

/// The server, in a directory of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) debug: SocketAddr,
    child: Child,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

impl Server {
    /// Starts it, with at most so many file descriptors, and waits until it answers.
    pub(crate) fn start(upstream: SocketAddr, descriptors: Option<usize>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (address, debug) = (free_address(), free_address());
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": directory.path().join("data") } },
            "http": { "addr": address, "debug": { "addr": debug } },
            "proxy": { "remoteurl": format!("http://{upstream}") },
        });
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = directory.path().join("log");
        let limit = descriptors.map_or(String::new(), |most| format!("ulimit -n {most}; "));
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" serve \"$1\""))
            .arg(env!("CARGO_BIN_EXE_millpond"))
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn();
        let server = Self {
            address,
            debug,
            child: child.unwrap(),
            log,
            _directory: directory,
        };
        eventually("it listens", || TcpStream::connect(address).is_ok());
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory in use.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }

    /// Bytes of blobs that bodies have given for clients.
    pub(crate) fn sent(&self) -> u64 {
        let mut stream = TcpStream::connect(self.debug).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let series = "millpond_client_sent_bytes_total{kind=\"blob\"} ";
        let value = answer.lines().find_map(|line| line.strip_prefix(series));
        value.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Gets a blob, so that it is stored.
    pub(crate) fn pull(&self, path: &str) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
