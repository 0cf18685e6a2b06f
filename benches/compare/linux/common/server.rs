//! A server under test: its processes, its CPU time and memory, its directory. It ends when dropped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::{ReservedPort, configure};

use super::proc::{Process, children, cpu_seconds, status_mib};
use super::wire::Client;

/// How long a server may take until it answers, or to end; valgrind makes it some fifty times slower.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// Polls without CPU time after which a server is idle.
const REST: u32 = 15;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    addr: SocketAddr,
    log: PathBuf,
    _port: ReservedPort,
    _directory: TempDir,
}

impl Server {
    /// A new millpond in front of `upstream`, with more keys of the section `proxy`.
    pub(crate) fn mirror(
        binary: &Path,
        upstream: SocketAddr,
        proxy: &Map<String, Value>,
    ) -> Result<Self> {
        Self::start(|directory, addr| Ok(millpond(binary, directory, addr, upstream, proxy)))
    }

    /// Starts what `command` makes of a directory and an address, and waits until it answers.
    pub(crate) fn start(
        command: impl FnOnce(&Path, SocketAddr) -> Result<Command>,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-compare-")?;
        let port = ReservedPort::new();
        let addr = port.address;
        let log = directory.path().join("log");
        let output = File::create(&log)?;
        let mut command = command(directory.path(), addr)?;
        // The directory of the binary is the child's business; its own files are all in ours.
        command
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output));
        let mut server = Self {
            process: Process::spawn(&mut command)?,
            addr,
            log,
            _port: port,
            _directory: directory,
        };
        server
            .wait_until_ready()
            .with_context(|| server.log_tail())?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        // Any answer will do: a static file server has nothing at /v2/.
        let ask = || Client::connect(self.addr)?.send("GET", "/v2/", "");
        while ask().is_err() {
            ensure!(!self.process.ended()?, "ended before it was ready");
            ensure!(started.elapsed() < PATIENCE, "not ready in time");
            thread::sleep(POLL);
        }
        Ok(())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process id of the process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// User and system CPU seconds of the process and its children so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let own = cpu_seconds(self.id()).context("the server has ended")?;
        let children = children(self.id()).into_iter();
        Ok(own
            + children
                .filter_map(|pid| cpu_seconds(pid).ok())
                .sum::<f64>())
    }

    /// CPU seconds so far, once the server is idle: work after the last response (sync, rename) is
    /// counted, too.
    pub(crate) fn settled_cpu(&self) -> Result<f64> {
        let started = Instant::now();
        let (mut last, mut quiet) = (self.cpu()?, 0);
        while quiet < REST && started.elapsed() < PATIENCE {
            thread::sleep(POLL);
            let now = self.cpu()?;
            quiet = if now > last { 0 } else { quiet + 1 };
            last = now;
        }
        Ok(last)
    }

    /// A size field of `/proc/PID/status` of the process and its children, in MiB.
    pub(crate) fn memory(&self, field: &str) -> Result<f64> {
        let children = children(self.id()).into_iter();
        let children = children.filter_map(|pid| status_mib(pid, field).ok());
        Ok(status_mib(self.id(), field)? + children.sum::<f64>())
    }

    /// The end of its log, for an error's context.
    pub(crate) fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = self.log();
        let lines: Vec<_> = text.lines().rev().take(LINES).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of the server's log:\n{}", lines.join("\n"))
    }

    /// What it wrote to standard output and standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    /// By TERM first: a killed master would leave its workers behind.
    fn drop(&mut self) {
        let started = Instant::now();
        if kill_process(self.process.pid(), Signal::TERM).is_err() {
            // It has ended already.
            return;
        }
        while started.elapsed() < PATIENCE && !self.process.ended().unwrap_or(true) {
            thread::sleep(POLL);
        }
    }
}

/// The command of millpond on a data directory that may have content, with more keys of the section
/// `proxy`.
pub(crate) fn millpond(
    binary: &Path,
    directory: &Path,
    addr: SocketAddr,
    upstream: SocketAddr,
    more: &Map<String, Value>,
) -> Command {
    let mut proxy = Map::new();
    proxy.insert("ttl".to_owned(), "168h".into());
    proxy.insert("tags".to_owned(), json!({ "ttl": "1h" }));
    proxy.extend(more.clone());
    let debug = (Ipv4Addr::LOCALHOST, 0).into();
    let config = configure(directory, addr, debug, upstream, &proxy.into());
    let mut command = Command::new(binary);
    command.arg("serve").arg(config);
    command
}
