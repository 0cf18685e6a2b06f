//! The program as a process, with files of its own. It is killed when dropped.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

/// Time between two checks of a condition, and the most of them: a minute.
const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 6000;

/// Waits, in real time, until a condition of another process is true.
pub fn poll(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..POLLS {
        if happened() {
            return;
        }
        std::thread::sleep(POLL);
    }
    panic!("it never happened: {what}");
}

/// A port of this machine for a server that hasn't started. A socket is bound to it, so that no other
/// process gets it: on Linux a server that sets `SO_REUSEADDR`, too, can still listen there, because
/// this socket doesn't.
#[derive(Debug)]
pub struct ReservedPort {
    pub address: SocketAddr,
    _socket: Option<TcpSocket>,
}

impl ReservedPort {
    /// One of 127.0.0.1.
    pub fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST)
    }

    /// One of an address of the loopback network.
    pub fn at(host: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((host, 0).into()).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            _socket: Some(socket).filter(|_| cfg!(target_os = "linux")),
        }
    }
}

impl Default for ReservedPort {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes the configuration of `millpond serve` with data below `directory`, and returns its path. `proxy`
/// has more keys of that section.
pub fn configure(
    directory: &Path,
    address: SocketAddr,
    debug: SocketAddr,
    upstream: SocketAddr,
    proxy: &Value,
) -> PathBuf {
    // JSON is YAML, and quotes every path and address as it must be.
    let mut config = json!({
        "version": 0.1,
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        // What is free on this machine is not the subject of a test or a bench.
        "storage": { "filesystem": { "rootdirectory": directory.join("data") }, "minfree": 0 },
        "http": { "addr": address, "debug": { "addr": debug } },
        "proxy": proxy,
    });
    config["proxy"]["remoteurl"] = format!("http://{upstream}").into();
    let path = directory.join("config.yml");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// `millpond serve`, which runs or doesn't.
pub struct Program {
    pub address: SocketAddr,
    /// Where metrics and health are served.
    pub debug: SocketAddr,
    /// What the shell runs: the limits of the process, then the program.
    command: String,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    _reserved: [ReservedPort; 2],
}

impl Program {
    /// `binary` with its configuration, data and log below `directory`. `limits` are shell commands
    /// that precede it; `proxy` has more keys of that section.
    pub fn new(
        binary: &str,
        directory: &Path,
        upstream: SocketAddr,
        limits: &str,
        proxy: &Value,
    ) -> Self {
        let reserved = [ReservedPort::new(), ReservedPort::new()];
        Self::on(reserved, binary, directory, upstream, limits, proxy)
    }

    /// The same on these ports: the registry's, and that of metrics and health.
    pub fn on(
        reserved: [ReservedPort; 2],
        binary: &str,
        directory: &Path,
        upstream: SocketAddr,
        limits: &str,
        proxy: &Value,
    ) -> Self {
        let [address, debug] = [reserved[0].address, reserved[1].address];
        let config = configure(directory, address, debug, upstream, proxy);
        Self {
            address,
            debug,
            command: format!("{limits} exec '{binary}' serve \"$0\""),
            config,
            log: directory.join("log"),
            child: None,
            _reserved: reserved,
        }
    }

    /// Starts it and waits until it answers. The log is appended to.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log);
        let child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        let mut child = child.unwrap();
        poll("the program answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            let answer = TcpStream::connect(self.address).and_then(|stream| get(stream, "/v2/"));
            answer.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 "))
        });
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Head and body of the response to a GET at one of its addresses.
    pub fn get(&self, address: SocketAddr, path: &str) -> Vec<u8> {
        get(TcpStream::connect(address).unwrap(), path).unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal to the running program.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.process(), signal).unwrap();
    }

    /// Sends SIGSTOP or SIGKILL, and waits until not a single instruction follows.
    pub fn halt(&self, signal: Signal) {
        self.signal(signal);
        let halted = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.process()), halted).unwrap();
    }

    fn process(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// SIGTERM. It has to end by itself, with success.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().unwrap();
        let mut status = None;
        poll("the program ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{status:?}\n{}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn get(mut stream: TcpStream, path: &str) -> std::io::Result<Vec<u8>> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
