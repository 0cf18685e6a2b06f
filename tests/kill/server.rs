//! The binary on its data directory: started, killed, started again, and in the end stopped.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tokio::net::TcpSocket;
use tokio::time::Instant;

/// How long a start and a graceful stop may take.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(5);

/// Keys for the section `proxy` besides `remoteurl`: so that kills find blobs that come in several
/// streams, too.
fn proxy_keys() -> Map<String, Value> {
    let mut keys = Map::new();
    keys.insert("segments".to_owned(), json!({ "minsize": "8MiB" }));
    keys
}

/// The server, which runs or doesn't.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    _reserved: Option<TcpSocket>,
    child: Option<Child>,
}

impl Server {
    /// Everything it has is below `directory`: configuration, data, log.
    pub(crate) fn new(directory: &Path, upstream: SocketAddr) -> Self {
        // Bound, so that nobody else is given the port between two starts. On Linux the server can still
        // listen there, because both sockets reuse addresses and this one doesn't listen.
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.set_reuseaddr(true).unwrap();
        reserved.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = reserved.local_addr().unwrap();
        let mut proxy = proxy_keys();
        proxy.insert("remoteurl".to_owned(), format!("http://{upstream}").into());
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": directory.join("data") } },
            "http": { "addr": address },
            "proxy": proxy,
        });
        let path = directory.join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        Self {
            address,
            config: path,
            log: directory.join("log"),
            _reserved: Some(reserved).filter(|_| cfg!(target_os = "linux")),
            child: None,
        }
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .arg("serve")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
        let started = Instant::now();
        while !self.answers().await {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            assert!(started.elapsed() < LIMIT, "no answer\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn answers(&self) -> bool {
        let answer = reqwest::get(format!("http://{}/v2/", self.address)).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; it has to end by itself, and to call that a success.
    pub(crate) async fn stop(&mut self) {
        let child = self.child.as_mut().unwrap();
        kill_process(Pid::from_child(child), Signal::TERM).unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < LIMIT, "it doesn't stop");
            tokio::time::sleep(POLL).await;
        };
        assert!(status.success(), "{status}\n{}", self.log());
        self.child = None;
    }

    /// The end of its log.
    fn log(&self) -> String {
        const LINES: usize = 20;
        let text = std::fs::read_to_string(&self.log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
