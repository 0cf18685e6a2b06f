//! A server under test: its processes, its CPU time and memory, its directory. It ends when dropped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::proc::{Process, status_bytes};
use super::wire::get;

/// How long a server may take until it answers, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Polls without CPU time after which a server is idle.
const REST: u32 = 15;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    addr: SocketAddr,
    log: PathBuf,
    _directory: TempDir,
}

impl Server {
    /// A new millpond in front of `upstream`, with more keys of the section `proxy`.
    pub(crate) fn mirror(upstream: SocketAddr, proxy: &Map<String, Value>) -> Result<Self> {
        let binary = Path::new(env!("CARGO_BIN_EXE_millpond"));
        Self::start(|directory, addr| millpond(binary, directory, addr, upstream, proxy))
    }

    /// Starts what `command` makes of a directory and an address, and waits until it answers.
    pub(crate) fn start(
        command: impl FnOnce(&Path, SocketAddr) -> Result<Command>,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-compare-")?;
        let addr = free_addr()?;
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
        while get(self.addr, "/v2/").is_err() {
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
        let (own, reaped) = times(self.process.id()).context("the server has ended")?;
        let children = self.children();
        let children = children.iter().filter_map(|pid| Some(times(*pid)?.0));
        #[expect(clippy::cast_precision_loss, reason = "ticks are far below 2^52")]
        let ticks = (own + reaped + children.sum::<u64>()) as f64;
        #[expect(clippy::cast_precision_loss, reason = "100 or so")]
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Ok(ticks / per_second)
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
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
    pub(crate) fn memory(&self, field: &str) -> Result<f64> {
        let mut bytes = status_bytes(self.process.id(), field)?;
        for pid in self.children() {
            bytes += status_bytes(pid, field).unwrap_or(0);
        }
        Ok(bytes as f64 / f64::from(1 << 20))
    }

    fn children(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| stat(*pid, 1) == Some(u64::from(self.process.id())))
            .collect()
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
        let Some(pid) = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
        else {
            return;
        };
        let started = Instant::now();
        if kill_process(pid, Signal::TERM).is_err() {
            // It has ended already.
            return;
        }
        while started.elapsed() < PATIENCE && !self.process.ended().unwrap_or(true) {
            thread::sleep(POLL);
        }
    }
}

/// Field `number` of `/proc/PID/stat`, counted from 0 after the command's name.
fn stat(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number)?.parse().ok()
}

/// User and system ticks of a process, and of those children of it that have ended.
fn times(pid: u32) -> Option<(u64, u64)> {
    let own = stat(pid, 11)? + stat(pid, 12)?;
    Some((own, stat(pid, 13)? + stat(pid, 14)?))
}

/// The command of millpond on a data directory that may have content.
pub(crate) fn millpond(
    binary: &Path,
    directory: &Path,
    addr: SocketAddr,
    upstream: SocketAddr,
    more: &Map<String, Value>,
) -> Result<Command> {
    // JSON is YAML, and quotes every path and address as it must be.
    let mut config = json!({
        "version": 0.1,
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": directory.join("data") }, "minfree": 0 },
        "http": {
            "addr": addr,
            "debug": { "addr": free_addr()?, "prometheus": { "enabled": true } },
        },
        "proxy": {
            "remoteurl": format!("http://{upstream}"),
            "ttl": "168h",
            "tags": { "ttl": "1h" },
        },
    });
    if let Some(proxy) = config.get_mut("proxy").and_then(Value::as_object_mut) {
        proxy.extend(more.clone());
    }
    let path = directory.join("config.yml");
    fs::write(&path, serde_json::to_string_pretty(&config)?)?;
    let mut command = Command::new(binary);
    command.arg("serve").arg(path);
    Ok(command)
}

/// An address without a listener. Another process may take it before the server does; then the run
/// fails and says so.
pub(crate) fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
