//! `millpond serve` with a listening socket of this process's, which outlives it.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::poll;

use crate::Upstream;

const BINARY: &str = env!("CARGO_BIN_EXE_millpond");
/// Takes the socket from standard input, where Rust can put it, to where systemd's protocol has it. The
/// shell's process is the program's.
const HAND_OVER: &str =
    "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve \"$1\"";

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) name_of_socket: &'static str,
    listener: TcpListener,
    dir: TempDir,
    upstream: SocketAddr,
    configured: String,
    http: String,
    proxy: String,
    notify: bool,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn new(upstream: &Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self {
            address,
            name_of_socket: "millpond.socket",
            listener,
            dir: tempfile::tempdir().unwrap(),
            upstream: upstream.address,
            configured: address.to_string(),
            http: String::new(),
            proxy: String::new(),
            notify: false,
            child: None,
        };
        server.write();
        server
    }

    fn write(&self) {
        let Self {
            upstream,
            configured,
            http,
            proxy,
            ..
        } = self;
        let data = self.dir.path().join("data");
        let config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, minfree: 0}}\n\
             http: {{addr: '{configured}', {http}}}\n\
             proxy: {{remoteurl: 'http://{upstream}', {proxy}}}\n",
            data.display(),
        );
        // As an editor does: no reader sees a half.
        let draft = self.dir.path().join("draft");
        std::fs::write(&draft, config).unwrap();
        std::fs::rename(draft, self.config()).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yml")
    }

    /// Other keys of `proxy`.
    pub(crate) fn configure(&mut self, proxy: &str) {
        proxy.clone_into(&mut self.proxy);
        self.write();
    }

    /// Other keys of `http`.
    pub(crate) fn configure_http(&mut self, http: &str) {
        http.clone_into(&mut self.http);
        self.write();
    }

    /// Another `http.addr` than the socket's.
    pub(crate) fn move_configured_address(&mut self, address: &str) {
        address.clone_into(&mut self.configured);
        self.write();
    }

    /// Where the service manager would listen. To be called before the start.
    pub(crate) fn listen_for_notifications(&mut self) -> UnixDatagram {
        self.notify = true;
        let socket = UnixDatagram::bind(self.dir.path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_mins(1)))
            .unwrap();
        socket
    }

    fn spawn(&self, stderr: Stdio) -> Child {
        let socket: OwnedFd = self.listener.try_clone().unwrap().into();
        let mut command = Command::new("sh");
        command.args(["-c", HAND_OVER, BINARY]).arg(self.config());
        command.env("LISTEN_FDNAMES", self.name_of_socket);
        if self.notify {
            command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
            command.env("WATCHDOG_USEC", "200000");
        }
        command.stdin(socket).stdout(Stdio::null()).stderr(stderr);
        command.spawn().unwrap()
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(&mut self) {
        let path = self.dir.path().join("log");
        let before = self.log().matches("millpond is ready").count();
        let log = File::options().create(true).append(true).open(path);
        let mut child = self.spawn(log.unwrap().into());
        poll("it is ready", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            self.log().matches("millpond is ready").count() > before
        });
        self.child = Some(child);
    }

    /// Starts it, and returns what it says of why it ends.
    pub(crate) fn fails(&self) -> String {
        let mut child = self.spawn(Stdio::piped());
        let mut error = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut error).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{error}");
        error
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits for its end, which has to be a success.
    pub(crate) fn has_ended(&mut self) {
        let mut child = self.child.take().unwrap();
        let mut status: Option<ExitStatus> = None;
        poll("it ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{status:?}\n{}", self.log());
    }

    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.has_ended();
    }

    /// `millpond reload`: its code, and what it prints.
    pub(crate) fn reload(&self) -> (Option<i32>, String, String) {
        let mut command = Command::new(BINARY);
        let output = command
            .arg("reload")
            .arg("--config")
            .arg(self.config())
            .output();
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn logged(&self, text: &str) {
        poll(text, || self.log().contains(text));
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

/// The next notification.
pub(crate) fn heard(socket: &UnixDatagram) -> String {
    let mut text = [0; 1024];
    let length = socket.recv(&mut text).unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}
