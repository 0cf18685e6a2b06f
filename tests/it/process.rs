//! The program as a process: a standard error that fails or stalls, and signals.
#![cfg(unix)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::ReservedPort;

use crate::harness::{ALWAYS, Gate, Registry, eventually, noise, read};

/// Characters of a path and of a client's name that make log lines long, so that few requests fill
/// buffers.
const LONG: usize = 500;
/// Most looks at the metrics for a request that has been answered to be counted.
const MAX_LOOKS: usize = 1000;

/// The running program; it is killed when dropped.
struct Server {
    dir: TempDir,
    child: Child,
    client: reqwest::Client,
    debug: ReservedPort,
}

impl Server {
    /// Starts `serve` with this standard error, and waits until it listens.
    async fn start(upstream: &Registry, stderr: impl FnOnce(&TempDir) -> Stdio) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = ReservedPort::new();
        let debug = port.address;
        let config = format!(
            "version: 0.1\nstorage: {{inmemory: {{}}}}\n\
             http:\n  net: unix\n  addr: '{0}/socket'\n  draintimeout: 24h\n  shutdowndelay: 0s\n  \
             debug: {{addr: '{debug}', prometheus: {{enabled: true, path: /metrics}}}}\n\
             proxy: {{remoteurl: '{1}'}}\n",
            dir.path().display(),
            upstream.url(),
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr(&dir))
            .spawn();
        let client = reqwest::Client::builder().tls_certs_only([]);
        let client = client.unix_socket(dir.path().join("socket"));
        let mut server = Self {
            child: child.unwrap(),
            client: client.build().unwrap(),
            debug: port,
            dir,
        };
        let socket = server.dir.path().join("socket");
        eventually("it listens", || {
            assert_eq!(server.child.try_wait().unwrap(), None, "it has ended");
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        server
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap()
    }

    async fn logged(&self, text: &str) {
        eventually(text, || self.log().contains(text)).await;
    }

    /// Sends so many requests, each of which has to be answered.
    async fn requests(&self, count: usize) {
        let long = "x".repeat(LONG);
        let url = format!("http://socket/v2/{long}");
        let send = || self.client.get(&url).header("user-agent", &long).send();
        let mut may_close = true;
        for _ in 0..count {
            let answer = match send().await {
                // The server may close a connection as idle while the next request is on its way,
                // as after a pause of both processes. One that it had read would be counted twice.
                Err(error) if may_close && error.is_request() && !error.is_connect() => {
                    may_close = false;
                    send().await
                }
                answer => answer,
            };
            assert_eq!(read(answer.unwrap()).await.error().0, 404);
        }
    }

    /// How many log lines were dropped, once `requests` requests have been counted. The end of a
    /// request is counted after its answer has been sent, and after it has been logged.
    async fn dropped_lines(&self, requests: usize) -> usize {
        let client = reqwest::Client::builder().tls_certs_only([]);
        let client = client.build().unwrap();
        let url = format!("http://{}/metrics", self.debug.address);
        for _ in 0..MAX_LOOKS {
            let answer = client.get(&url).send().await.unwrap();
            let text = String::from_utf8(read(answer).await.body.to_vec()).unwrap();
            let values = |name: &str| -> usize {
                let lines = text.lines().filter(|line| line.starts_with(name));
                let values = lines.map(|line| line.rsplit(' ').next().unwrap());
                values.map(|value| value.parse::<usize>().unwrap()).sum()
            };
            if values("millpond_requests_total{") == requests {
                return values("millpond_log_lines_dropped_total ");
            }
        }
        panic!("{requests} requests were never counted");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGTERM and waits for the end.
    async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end().await
    }

    /// Waits in real time: a process takes some to end.
    async fn end(&mut self) -> ExitStatus {
        let mut status = None;
        for _ in 0..6000 {
            status = self.child.try_wait().unwrap();
            if status.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn to_file(dir: &TempDir) -> Stdio {
    File::create(dir.path().join("log")).unwrap().into()
}

#[cfg(target_os = "linux")]
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, |_| full().into()).await;
    server.requests(1000).await;
    assert!(server.stop().await.success());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_the_start_is_an_error_whatever_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yml");
    let text = "version: 0.1\nstorage: {inmemory: {}}\nhttp: {net: unix, addr: /nowhere/socket}\n\
                proxy: {remoteurl: 'http://127.0.0.1:1'}\n";
    std::fs::write(&config, text).unwrap();
    let run = |stderr: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("serve").arg(&config).stderr(stderr);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    assert_eq!(run(full().into()).await.unwrap().status.code(), Some(1));
    let told = run(Stdio::piped()).await.unwrap();
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8(told.stderr).unwrap();
    let expected = "can't listen on the unix socket /nowhere/socket: ";
    assert!(told.lines().last().unwrap().contains(expected), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_has_gone_stops_nothing() {
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, |_| Stdio::piped()).await;
    drop(server.child.stderr.take());
    server.requests(1000).await;
    assert!(server.stop().await.success());
}

/// More than the kernel's pipe and both of the log's buffers hold.
const MANY: usize = 2500;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_costs_lines_and_no_request() {
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, |_| Stdio::piped()).await;
    server.requests(MANY).await;
    let dropped = server.dropped_lines(MANY).await;
    assert!(dropped > 0);

    // Somebody reads again: all that wasn't dropped is there, and so is the notice.
    let notice = format!(": {dropped} log lines dropped");
    let mut pipe = BufReader::new(server.child.stderr.take().unwrap());
    let (sender, mut caught_up) = tokio::sync::oneshot::channel();
    let reader = tokio::task::spawn_blocking(move || {
        let (mut log, mut line) = (String::new(), String::new());
        while pipe.read_line(&mut line).unwrap() > 0 && !line.contains(&notice) {
            log.push_str(&line);
            line.clear();
        }
        log.push_str(&line);
        sender.send(()).unwrap();
        pipe.read_to_string(&mut log).unwrap();
        log
    });
    // Before that the buffer may be full, and what the server says of its end is dropped, too.
    let has_caught_up = || caught_up.try_recv().is_ok();
    eventually("the reader has come to the notice", has_caught_up).await;
    assert!(server.stop().await.success());
    let log = reader.await.unwrap();
    assert!(log.contains(&format!(": {dropped} log lines dropped")));
    let requests = log.lines().filter(|line| line.contains("uri=\"/v2/x"));
    assert_eq!(requests.count() + dropped, MANY);
    let last = log.lines().last();
    assert!(log.trim_end().ends_with("stopped clean=true"), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_reader_that_stalls() {
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, |_| Stdio::piped()).await;
    server.requests(MANY).await;
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_do_not_stop_it_are_logged_and_ignored() {
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, to_file).await;
    for (signal, name) in [
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::QUIT, "SIGQUIT"),
    ] {
        server.signal(signal);
        server.logged(&format!("signal=\"{name}\"")).await;
    }
    server.requests(1).await;
    assert!(server.stop().await.success());
    assert_eq!(server.log().matches("ignored: ").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_to_stop_ends_the_drain() {
    let upstream = Registry::start().await;
    let digest = upstream.put_blob("app", &noise(1, 2_000_000));
    let never = Gate::default();
    upstream.on("/blobs/", ALWAYS, move |_, usual| usual.gated(1000, &never));
    let mut server = Server::start(&upstream, to_file).await;
    let url = format!("http://socket/v2/app/blobs/{digest}");
    let mut running = server.client.get(url).send().await.unwrap();
    assert!(running.chunk().await.unwrap().is_some());

    server.signal(Signal::TERM);
    server.logged("stopping signal=\"SIGTERM\"").await;
    assert!(server.stop().await.success());
    server.logged("stopped clean=false").await;
}

/// The file system of the configuration doesn't answer.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_configuration_that_is_read() {
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
    use std::os::unix::fs::OpenOptionsExt as _;
    let upstream = Registry::start().await;
    let mut server = Server::start(&upstream, to_file).await;
    let config = server.file("config.yml");
    std::fs::remove_file(&config).unwrap();
    mknodat(CWD, &config, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    server.signal(Signal::HUP);
    let mut writer = None;
    eventually("the configuration is read", || {
        let nonblocking = OFlags::NONBLOCK.bits().try_into().unwrap();
        let mut options = File::options();
        writer = options
            .write(true)
            .custom_flags(nonblocking)
            .open(&config)
            .ok();
        writer.is_some()
    })
    .await;
    server.signal(Signal::TERM);
    server.logged("stopping").await;
    drop(writer);
    assert!(server.end().await.success());
}
