//! The server under callgrind, its one client, and what callgrind wrote.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

use super::common::wire::{header, read_head};

/// How long the server may take to start or to stop; callgrind makes it some fifty times slower.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// Between two requests, so that the server goes to sleep after each: whether it did or found the
/// next one already there was chance, and a tenth of the count.
const REST: Duration = Duration::from_millis(1);

/// A running server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    addr: SocketAddr,
    out: PathBuf,
    log: PathBuf,
    _reserved: Socket,
}

/// A port on which only the server will listen. The socket stays bound to it, and doesn't listen: so
/// the kernel gives the port to nobody else, and not to a client as its own either. Such a client would
/// connect to itself while the server isn't there yet.
fn reserve_port() -> Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let addr = socket.local_addr()?.as_socket();
    Ok((socket, addr.context("not an IP socket")?))
}

impl Server {
    pub(crate) fn start(binary: &Path, directory: &Path, upstream: SocketAddr) -> Result<Self> {
        let (reserved, addr) = reserve_port()?;
        let config = directory.join("config.yml");
        let log = directory.join("log");
        let out = directory.join("callgrind.out");
        let text = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": directory.join("data") } },
            "http": {
                "addr": addr,
                "debug": { "addr": "127.0.0.1:0", "prometheus": { "enabled": true } },
            },
            "proxy": {
                "remoteurl": format!("http://{upstream}"),
                "ttl": "168h",
                "tags": { "ttl": "1h" },
            },
        });
        fs::write(&config, serde_json::to_string_pretty(&text)?)?;
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet", "--fair-sched=try"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(binary)
            .arg("serve")
            .arg(&config)
            // One worker: nothing is stolen from it, and nothing waits for a lock.
            .env("TOKIO_WORKER_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting valgrind")?;
        Ok(Self {
            child,
            addr,
            out,
            log,
            _reserved: reserved,
        })
    }

    /// Connects as soon as the server listens.
    pub(crate) fn connect(&mut self) -> Result<Client> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the server has ended: {status}; its log: {log}");
            }
            match TcpStream::connect(self.addr) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    return Ok(Client { stream });
                }
                Err(error) if started.elapsed() > PATIENCE => {
                    let log = fs::read_to_string(&self.log).unwrap_or_default();
                    bail!("the server doesn't listen: {error}; its log: {log}")
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// Ends the server as an operator does, and returns callgrind's file.
    pub(crate) fn stop(mut self) -> Result<PathBuf> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(started.elapsed() < PATIENCE, "the server doesn't stop");
            thread::sleep(POLL);
        }
        Ok(self.out.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already, and then there is nothing left to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    /// Sends `GET path` so often, one request after the answer to another.
    pub(crate) fn get(&mut self, path: &str, times: u64) -> Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: mirror.example\r\nUser-Agent: bench/1\r\nAccept: {}, {}\r\n\r\n",
            super::common::content::INDEX,
            super::common::content::MANIFEST,
        );
        for _ in 0..times {
            self.stream.write_all(request.as_bytes())?;
            let (head, early) = read_head(&mut self.stream)?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
            let length: usize = header(&head, "content-length")
                .context("no Content-Length")?
                .parse()?;
            let rest = length.checked_sub(early.len()).context("too long a body")?;
            self.stream.read_exact(&mut vec![0; rest])?;
            thread::sleep(REST);
        }
        Ok(())
    }
}

/// All instructions of all threads.
pub(crate) fn total(out: &Path) -> Result<u64> {
    let text = fs::read_to_string(out)?;
    let totals = text
        .lines()
        .filter_map(|line| line.strip_prefix("totals: "))
        .map(|count| count.trim().parse::<u64>());
    let total = totals.sum::<Result<u64, _>>()?;
    ensure!(total > 0, "callgrind counted nothing");
    Ok(total)
}
