//! The log of the program as a process: both formats, in a file and on a terminal; request ids, callers
//! and sampling; levels that change while it runs.
#![cfg(unix)]

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{ALWAYS, Answer, Registry, Reply, eventually, noise, read};

/// The running program; it is killed when dropped.
struct Server {
    dir: TempDir,
    child: Child,
    up: Registry,
    client: reqwest::Client,
}

impl Server {
    /// Starts it with these sections of the configuration. It logs to the file `log`.
    async fn start(sections: &str) -> Self {
        Self::start_with(sections, None).await
    }

    /// The same with another standard error.
    async fn start_with(sections: &str, stderr: Option<Stdio>) -> Self {
        let (dir, up) = (tempfile::tempdir().unwrap(), Registry::start().await);
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{0}/data'}}, minfree: 0}}\n\
             http:\n  net: unix\n  addr: '{0}/socket'\n  draintimeout: 24h\n\
             proxy: {{remoteurl: '{1}'}}\n{sections}\n",
            dir.path().display(),
            up.url(),
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = || File::create(dir.path().join("log")).unwrap().into();
        let child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.unwrap_or_else(log))
            .spawn();
        let client = reqwest::Client::builder().tls_certs_only([]);
        let client = client.unix_socket(dir.path().join("socket"));
        let mut server = Self {
            child: child.unwrap(),
            client: client.build().unwrap(),
            up,
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

    async fn ask(&self, line: &str, headers: &[(&str, &str)]) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let method = method.parse().unwrap();
        let request = self.client.request(method, format!("http://socket{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        read(request.send().await.unwrap()).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The only line with this text, once it is there.
    async fn line(&self, text: &str) -> String {
        eventually(text, || self.log().contains(text)).await;
        let log = self.log();
        let mut lines = log.lines().filter(|line| line.contains(text));
        let line = lines.next().unwrap().to_owned();
        assert_eq!(lines.next(), None, "{text} is on several lines");
        line
    }

    /// The same of the lines of a request.
    async fn json(&self, id: &str) -> Value {
        let line = self.line(&format!("\"request\":\"{id}\"")).await;
        serde_json::from_str(&line).unwrap()
    }

    /// What a command prints.
    async fn command(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .args(arguments)
            .arg("--config")
            .arg(self.dir.path().join("config.yml"));
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = run.await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// Puts a blob into the upstream; its path.
    fn blob(&self, seed: u64) -> (Bytes, String) {
        let blob = noise(seed, 1000);
        let digest = self.up.put_blob("app", &blob);
        (blob, format!("/v2/app/blobs/{digest}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_line_says_who_got_what_from_where() {
    /// Most requests until the blob is committed.
    const MAX_REQUESTS: usize = 1000;
    let server = Server::start("log: {formatter: json, fields: {site: here}}").await;
    let (blob, path) = server.blob(1);
    let pull = async |id: &str| {
        let headers = [("x-request-id", id), ("user-agent", "agent/1 \"x\"")];
        let answer = server.ask(&format!("GET {path}"), &headers).await;
        answer.expect(200, &blob);
        answer.source() == "hit"
    };
    assert!(!pull("miss").await);
    let mut requests = 0;
    while !pull(&format!("hit-{requests}-")).await {
        requests += 1;
        assert!(requests < MAX_REQUESTS, "it is never cached");
    }
    for (id, result) in [
        ("miss".to_owned(), "miss"),
        (format!("hit-{requests}-"), "hit"),
    ] {
        let line = server.json(&id).await;
        for (key, value) in [
            ("message", Value::from("request")),
            ("target", "millpond::accesslog".into()),
            ("level", "INFO".into()),
            ("site", "here".into()),
            ("client", "unix".into()),
            ("method", "GET".into()),
            ("uri", path.as_str().into()),
            ("status", 200.into()),
            ("result", result.into()),
            ("bytes", 1000.into()),
            ("agent", "agent/1 \"x\"".into()),
        ] {
            assert_eq!(line[key], value, "{key} of {line}");
        }
        assert!(line["ms"].as_f64().unwrap() >= 0.0, "{line}");
        let waited = line["upstream_ms"].as_f64();
        assert_eq!(waited.is_some(), result == "miss", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_failed_request_has_its_id() {
    let server = Server::start("log: {level: debug, formatter: json}").await;
    server.up.reply("/blobs/", ALWAYS, Reply::error(403));
    let (_, path) = server.blob(1);
    let answer = server
        .ask(&format!("GET {path}"), &[("x-request-id", "failing")])
        .await;
    assert_eq!(answer.status, 403);
    let access = "millpond::accesslog";
    eventually("the access line", || server.log().contains(access)).await;
    let log = server.log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["request"] == "failing").collect();
    let of = |target: &str| {
        lines
            .iter()
            .filter(|line| line["target"].as_str().unwrap().starts_with(target))
            .count()
    };
    assert_eq!(of(access), 1, "{log}");
    assert!(
        of("millpond::upstream") >= 2,
        "the exchange and the failure: {log}"
    );
    assert!(of("millpond::download") >= 1, "{log}");
    let access = lines.iter().find(|line| line["target"] == access).unwrap();
    assert_eq!(access["result"], "error");
    assert!(
        access["error"].as_str().unwrap().contains("access denied"),
        "{access}"
    );
}

/// The program on TCP, with a user, behind a trusted proxy on this machine; it is killed when dropped.
struct Proxied {
    dir: TempDir,
    child: Child,
    address: std::net::SocketAddr,
    _port: testkit::ReservedPort,
}

impl Proxied {
    async fn start(up: &Registry) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), testkit::ReservedPort::new());
        let users = dir.path().join("htpasswd");
        let alice = format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap());
        std::fs::write(&users, alice).unwrap();
        let address = port.address;
        let config = format!(
            "version: 0.1\nstorage: {{inmemory: {{}}}}\nlog: {{formatter: json}}\n\
             http: {{addr: '{address}', trustedproxies: [127.0.0.1/32]}}\n\
             auth: {{htpasswd: {{path: '{}'}}}}\nproxy: {{remoteurl: '{}'}}\n",
            users.display(),
            up.url()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .arg("serve")
            .arg(&file)
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        eventually("it listens", || {
            std::net::TcpStream::connect(address).is_ok()
        })
        .await;
        Self {
            dir,
            child,
            address,
            _port: port,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The access line of a request.
    fn line(&self, id: &str) -> Value {
        let (log, request) = (self.log(), format!("\"request\":\"{id}\""));
        let mut lines = log.lines().filter(|line| line.contains("accesslog"));
        let line = lines.find(|line| line.contains(&request));
        serde_json::from_str(line.unwrap_or_else(|| panic!("no {id} in {log}"))).unwrap()
    }
}

impl Drop for Proxied {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_behind_a_trusted_proxy_is_shown_and_its_user() {
    let server = Proxied::start(&Registry::start().await).await;
    let url = format!("http://{}/v2/", server.address);
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap();
    let mut statuses = Vec::new();
    for (id, forwarded, password) in [
        ("forwarded", Some("192.0.2.7, 127.0.0.1"), Some("secret")),
        ("direct", None, Some("secret")),
        ("refused", Some("192.0.2.8"), Some("wrong")),
        ("malformed", Some("nobody"), None),
    ] {
        let mut request = client.get(&url).header("x-request-id", id);
        if let Some(forwarded) = forwarded {
            request = request.header("x-forwarded-for", forwarded);
        }
        if let Some(password) = password {
            request = request.basic_auth("alice", Some(password));
        }
        statuses.push(request.send().await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 401, 400]);
    let all = || server.log().matches("millpond::accesslog").count() == 4;
    eventually("all lines", all).await;
    let of = |id: &str| server.line(id);
    let forwarded = of("forwarded");
    assert_eq!(
        (&forwarded["client"], &forwarded["user"]),
        (&"192.0.2.7".into(), &"alice".into())
    );
    let proxy = forwarded["proxy"].as_str().unwrap();
    assert!(proxy.starts_with("127.0.0.1:"), "{forwarded}");
    let direct = of("direct");
    assert!(
        direct["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{direct}"
    );
    assert_eq!(direct["proxy"], Value::Null);
    let refused = of("refused");
    assert_eq!(
        (&refused["client"], &refused["user"]),
        (&"192.0.2.8".into(), &Value::Null)
    );
    assert_eq!(of("malformed")["status"], 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_in_a_pipe_has_no_colours() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut server = Server::start_with("", Some(writer.into())).await;
    server.ask("GET /v2/", &[("x-request-id", "a\"b")]).await;
    server.child.kill().unwrap();
    let read = move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    };
    // The line may be lost with the killed process; the first ones aren't.
    let text = tokio::task::spawn_blocking(read).await.unwrap();
    assert!(
        text.contains(" INFO millpond::cli::serve: millpond is ready version="),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_line_quotes_what_the_client_sent() {
    let server = Server::start("").await;
    server
        .ask(
            "GET /v2/?n=1",
            &[("x-request-id", "a\"b\\c=d"), ("user-agent", "")],
        )
        .await;
    let line = server.line("millpond::accesslog").await;
    let fields = line.split_once(": request ").unwrap().1;
    assert!(
        fields.starts_with(
            "client=\"unix\" method=\"GET\" uri=\"/v2/?n=1\" status=200 result=\"hit\" bytes=2 ms="
        ),
        "{line}"
    );
    assert!(
        fields.ends_with(" agent=\"\" request=\"a\\\"b\\\\c=d\""),
        "{line}"
    );
}

/// A terminal for the program, and what it is shown.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn text_on_a_terminal_is_coloured() {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut server = Server::start_with("", Some(theirs.into())).await;
    server.ask("GET /v2/", &[("x-request-id", "mine")]).await;
    let mut terminal = File::from(ours);
    let shown = tokio::task::spawn_blocking(move || {
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while !text.contains("mine") {
            let read = terminal.read(&mut piece).unwrap();
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        text
    });
    let shown = shown.await.unwrap();
    // Green, and a name in italics.
    assert!(shown.contains("\u{1b}[32m INFO\u{1b}[0m"), "{shown:?}");
    assert!(
        shown.contains("\u{1b}[3mstatus\u{1b}[0m\u{1b}[2m=\u{1b}[0m200"),
        "{shown:?}"
    );
    server.child.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_log_has_all_failures_and_slow_requests() {
    let server = Server::start("log: {accesslog: {sample: 1000000}}").await;
    for _ in 0..20 {
        assert_eq!(server.ask("GET /v2/", &[]).await.status, 200);
    }
    assert_eq!(
        server
            .ask("GET /v3", &[("x-request-id", "failure")])
            .await
            .status,
        404
    );
    server.line("request=\"failure\"").await;
    let lines = server.log().matches("millpond::accesslog").count();
    assert!(
        lines <= 2,
        "one of the others may be sampled: {}",
        server.log()
    );

    let server = Server::start("log: {accesslog: {sample: 1000000, slow: 1ns}}").await;
    server.ask("GET /v2/", &[("x-request-id", "slow")]).await;
    server.line("request=\"slow\"").await;

    let server = Server::start("log: {accesslog: {sample: 2}}").await;
    for _ in 0..200 {
        server.ask("GET /v2/", &[]).await;
    }
    server.ask("GET /v3", &[("x-request-id", "last")]).await;
    server.line("request=\"last\"").await;
    let lines = server.log().matches("millpond::accesslog").count();
    assert!((50..150).contains(&lines), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_change_while_it_runs() {
    let server = Server::start("log: {levels: {download: warn}}").await;
    let listed = server.command(&["log-level"]).await.unwrap();
    let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = listed.lines().map(row).collect();
    assert_eq!(
        rows,
        [
            "MODULE LEVEL SINCE UNTIL",
            "(all others) info configuration",
            "download warn configuration"
        ]
    );

    let exchange = "upstream request upstream=";
    let (_, path) = server.blob(1);
    server
        .ask(&format!("GET {path}"), &[("x-request-id", "quiet")])
        .await;
    server.line("request=\"quiet\"").await;
    assert!(!server.log().contains(exchange));

    let set = server
        .command(&["log-level", "upstream=debug", "--for", "10m"])
        .await
        .unwrap();
    assert!(
        set.contains("upstream      debug  changed        in 10m"),
        "{set}"
    );
    let (_, path) = server.blob(2);
    server
        .ask(&format!("GET {path}"), &[("x-request-id", "verbose")])
        .await;
    let line = server.line(exchange).await;
    assert!(
        line.contains("DEBUG millpond::upstream::transport")
            && line.contains("request=\"verbose\""),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_a_level_that_a_reset_ends() {
    let server = Server::start("").await;
    let json = server
        .command(&["log-level", "accesslog=error", "--json"])
        .await
        .unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let levels = json["levels"].as_array().unwrap();
    let access = levels
        .iter()
        .find(|level| level["module"] == "accesslog")
        .unwrap();
    assert_eq!(
        (&access["level"], &access["changed"], &access["seconds"]),
        (&"error".into(), &true.into(), &Value::Null)
    );
    server
        .ask("GET /v2/", &[("x-request-id", "unlogged")])
        .await;

    let reset = server.command(&["log-level", "reset"]).await.unwrap();
    assert!(!reset.contains("changed"), "{reset}");
    server.ask("GET /v2/", &[("x-request-id", "logged")]).await;
    server.line("request=\"logged\"").await;
    assert!(!server.log().contains("unlogged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_that_are_none_are_refused() {
    let server = Server::start("").await;
    for (arguments, complaint) in [
        (
            &["log-level", "loud"][..],
            "write error, warn, info, debug or trace",
        ),
        (&["log-level", "nothing=debug"], "write a module"),
        (&["log-level", "--for", "10m"], "required"),
        (
            &["log-level", "reset", "--for", "10m"],
            "--for belongs to a level",
        ),
    ] {
        let told = server.command(arguments).await.unwrap_err();
        assert!(told.contains(complaint), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_there_are_no_levels() {
    let mut server = Server::start("").await;
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let told = server.command(&["log-level"]).await.unwrap_err();
    assert!(told.contains("no server is running"), "{told}");
}
