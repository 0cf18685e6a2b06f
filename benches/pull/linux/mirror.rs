//! The mirror under test: the real binary, on a data directory of its own that goes when it goes.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::proc::{Process, cpu_seconds, settled_cpu_seconds, status_bytes};
use super::wire::get;

/// How long the binary may take until it answers `GET /v2/`.
const START: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// A running mirror with a cold cache. The process is declared first: it ends before its directory
/// is removed.
#[derive(Debug)]
pub(crate) struct Mirror {
    process: Process,
    addr: SocketAddr,
    log: PathBuf,
    _directory: TempDir,
}

impl Mirror {
    /// Starts the binary in front of `upstream` and waits until it answers.
    pub(crate) fn start(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, &serde_json::Map::new())
    }

    /// The same with more keys in the section `proxy` of its configuration.
    pub(crate) fn start_with(
        upstream: SocketAddr,
        proxy: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-bench-")?;
        let addr = free_addr()?;
        let config = directory.path().join("config.yml");
        let log = directory.path().join("log");
        fs::write(
            &config,
            config_text(&directory.path().join("data"), addr, upstream, proxy)?,
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let process = Process::spawn(&mut command)?;
        let mut mirror = Self {
            process,
            addr,
            log,
            _directory: directory,
        };
        mirror
            .wait_until_ready()
            .with_context(|| mirror.log_tail())?;
        Ok(mirror)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !get(self.addr, "/v2/").is_ok_and(|answer| answer.status() == 200) {
            ensure!(
                !self.process.ended()?,
                "the mirror ended before it was ready"
            );
            ensure!(
                started.elapsed() < START,
                "the mirror wasn't ready after {START:?}"
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.process.id())
    }

    /// CPU seconds so far, once the mirror has come to rest.
    pub(crate) fn settled_cpu_seconds(&self) -> Result<f64> {
        settled_cpu_seconds(self.process.id())
    }

    /// A size field of its `/proc/PID/status`, in bytes.
    pub(crate) fn status_bytes(&self, field: &str) -> Result<u64> {
        status_bytes(self.process.id(), field)
    }

    /// The end of its log, for an error's context.
    pub(crate) fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(LINES).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of the mirror's log:\n{}", lines.join("\n"))
    }
}

/// An address nobody listens on. Another process may take it before the mirror does; then the run
/// fails and says so.
fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// JSON is YAML, and quotes every path and address as it must be.
fn config_text(
    data: &std::path::Path,
    addr: SocketAddr,
    upstream: SocketAddr,
    more: &serde_json::Map<String, serde_json::Value>,
) -> Result<String> {
    let mut proxy = serde_json::Map::new();
    proxy.insert("remoteurl".to_owned(), format!("http://{upstream}").into());
    proxy.insert("ttl".to_owned(), "168h".into());
    proxy.extend(more.clone());
    let config = serde_json::json!({
        "version": 0.1,
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": data } },
        "http": { "addr": addr },
        "proxy": proxy,
    });
    Ok(serde_json::to_string_pretty(&config)?)
}
