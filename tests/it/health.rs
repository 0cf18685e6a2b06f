//! The checks that the operator configured, readiness, and `millpond health`.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use testkit::time::{advance, passing};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Mirror, Registry, Reply, Setup, eventually, put_blob, read, settle};

/// Between two tries of the checks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most looks for a change.
const MAX_LOOKS: usize = 1000;

async fn checked(up: &Registry, checks: &str) -> Mirror {
    let line = format!("root.health: {{{checks}}}");
    Setup::new(up).with(&[&line]).start().await
}

/// Waits until `/v2/` has this status: a try takes a while.
async fn has_status(m: &Mirror, status: u16) {
    for _ in 0..MAX_LOOKS {
        if m.get("/v2/").await.status == status {
            return;
        }
        settle().await;
    }
    panic!("the status is never {status}");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_the_expected_status_closes_the_api() {
    let up = Registry::start().await;
    up.reply("/healthy", 1, Reply::new(204, ""));
    let uri = format!("{}/healthy", up.url());
    let check = "statuscode: 204, threshold: 2, headers: {X-A: [b]}";
    let m = checked(&up, &format!("http: [{{uri: '{uri}', {check}}}]")).await;
    let (blob, path) = put_blob(&up, 1, 1000);
    eventually("the first try", || up.count("/healthy") == 1).await;
    let [seen] = &up.seen("/healthy")[..] else {
        panic!("one try");
    };
    assert_eq!(
        (&*seen.line, seen.header("x-a")),
        ("HEAD /healthy", Some("b"))
    );
    m.pull(&path, &blob).await;
    m.debug("/readyz").await.expect(
        200,
        format!(
            r#"{{"checks":{{"{uri}":{{"ok":true}},"index":{{"ok":true}},"server":{{"ok":true}},"store":{{"ok":true}}}},"ready":true}}"#
        )
        .as_bytes(),
    );

    // One failure is less than the threshold.
    up.reply("/healthy", 2, Reply::error(500));
    advance(INTERVAL).await;
    eventually("the second try", || up.count("/healthy") == 2).await;
    settle().await;
    m.serves("/v2/", b"{}").await;
    advance(INTERVAL).await;
    has_status(&m, 503).await;
    for path in ["/", "/v2/", "/v2/_catalog", "/v2/app/manifests/1", &path] {
        m.get(path).await.refused(503, "UNAVAILABLE");
    }
    let reason = format!(r#"{{"{uri}":"status 500 instead of 204"}}"#);
    m.debug("/debug/health")
        .await
        .expect(503, reason.as_bytes());
    let ready = m.debug("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &false.into()));
    assert_eq!(ready.json()["checks"]["store"]["ok"], true);
    m.debug("/healthz").await.expect(200, b"ok\n");

    up.reply("/healthy", 1, Reply::new(204, ""));
    advance(INTERVAL).await;
    has_status(&m, 200).await;
    m.serves(&path, &blob).await;
    m.debug("/debug/health").await.expect(200, b"{}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_or_gone_fails_the_check() {
    let up = Registry::start().await;
    let uri = format!("{}/healthy", up.url());
    up.reply("/healthy", 1, Reply::silence());
    let m = checked(
        &up,
        &format!("http: [{{uri: '{uri}', statuscode: 404, timeout: 3s}}]"),
    )
    .await;
    eventually("the first try", || up.count("/healthy") == 1).await;
    m.serves("/v2/", b"{}").await;
    advance(Duration::from_secs(3)).await;
    has_status(&m, 503).await;
    let failing = m.debug("/debug/health").await.json();
    assert_eq!(failing[&uri], "no answer within 3s");
    advance(INTERVAL).await;
    has_status(&m, 200).await;
    up.reply("/healthy", 1, Reply::hang_up());
    advance(INTERVAL).await;
    has_status(&m, 503).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_accepts_no_connection_fails_the_check() {
    let up = Registry::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let m = checked(&up, &format!("tcp: [{{addr: '{address}'}}]")).await;
    drop(listener.accept().await.unwrap());
    m.serves("/v2/", b"{}").await;
    drop(listener);
    advance(INTERVAL).await;
    has_status(&m, 503).await;
    let failing = m.debug("/debug/health").await.json();
    let reason = failing[&address].as_str().unwrap();
    assert!(reason.starts_with("connection failed: "), "{reason}");
    let _listener = TcpListener::bind(&address).await.unwrap();
    advance(INTERVAL).await;
    has_status(&m, 200).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_takes_the_mirror_out_of_service() {
    let (up, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("down");
    let shown = file.display().to_string();
    let m = checked(&up, &format!("file: [{{file: '{shown}'}}]")).await;
    m.serves("/v2/", b"{}").await;
    std::fs::write(&file, "").unwrap();
    advance(INTERVAL).await;
    has_status(&m, 503).await;
    let failing = m.debug("/debug/health").await.json();
    assert_eq!(failing[&shown], "file exists");
    std::fs::remove_file(&file).unwrap();
    advance(INTERVAL).await;
    has_status(&m, 200).await;
}

/// What a load balancer sees at a stop: first that the server isn't ready, then a closed port.
#[tokio::test(start_paused = true)]
async fn readiness_fails_before_connections_are_refused() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .with(&["http.shutdowndelay: 5s"])
        .start()
        .await;
    let (blob, path) = put_blob(&up, 1, 1000);
    m.pull(&path, &blob).await;
    let (api, debug) = (m.address(), m.app.debug_address().unwrap().to_string());
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap();
    let get = async |address: &str, path: &str| {
        read(
            client
                .get(format!("http://{address}{path}"))
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    get(&debug, "/readyz")
        .await
        .expect(200, &m.debug("/readyz").await.body);
    let watching = async {
        while get(&debug, "/readyz").await.status == 200 {
            settle().await;
        }
        get(&debug, "/healthz").await.expect(200, b"ok\n");
        let ready = get(&debug, "/readyz").await.json();
        assert_eq!(ready["checks"]["server"]["error"], "it is stopping");
        advance(Duration::from_secs(4)).await;
        get(&api, "/").await.refused(503, "UNAVAILABLE");
        get(&api, &path).await.expect(200, &blob);
        advance(Duration::from_secs(1)).await;
    };
    // Connections end a second after that.
    let stopping = async {
        let (clean, ()) = tokio::join!(m.app.stop(), watching);
        clean
    };
    let clean = passing(stopping).await;
    assert!(clean);
    assert!(TcpStream::connect(&api).await.is_err());
    assert!(TcpStream::connect(&debug).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_delay() {
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .with(&["http.shutdowndelay: 5m"])
        .start()
        .await;
    let address = m.address();
    // Paused time stands still: this would never end.
    m.app.stop_unless(std::future::ready(())).await;
    assert!(TcpStream::connect(&address).await.is_err());
}

/// The program as a process; it is killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn millpond(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test]
async fn the_health_command_asks_the_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (config, down) = (path("c.yml"), path("down"));
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}, minfree: 0}}\n\
         http: {{net: unix, addr: '{}'}}\n\
         health: {{file: [{{file: '{down}', interval: 100ms}}]}}\n\
         proxy: {{remoteurl: 'http://127.0.0.1:9'}}\n",
        path("data"),
        path("socket"),
    );
    std::fs::write(&config, text).unwrap();
    let ask = |more: &[&str]| {
        let output = millpond(&["health", "--config", &config])
            .args(more)
            .output();
        said(&output.unwrap())
    };
    let (code, out, error) = ask(&[]);
    assert_eq!((code, &*out), (Some(1), ""));
    let expected = "millpond: the server isn't there: can't connect to ";
    assert!(error.starts_with(expected), "{error}");

    let serve = millpond(&["serve", &config]).stderr(Stdio::null()).spawn();
    let _server = Server(serve.unwrap());
    eventually("it is ready", || ask(&[]).0 == Some(0)).await;
    let fine = |text: &str| (Some(0), text.to_owned(), String::new());
    assert_eq!(ask(&[]), fine("ready\n"));
    assert_eq!(ask(&["--live"]), fine("alive\n"));
    let socket = format!("unix:{}", path("data/millpond/admin.sock"));
    let there = millpond(&["health", "--url", &socket]).output().unwrap();
    assert_eq!(said(&there), fine("ready\n"));
    // The registry API isn't for operators.
    let (code, _, error) = ask(&["--url", &format!("unix:{}", path("socket"))]);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("isn't a place where millpond answers"),
        "{error}"
    );

    std::fs::write(&down, "").unwrap();
    eventually("it isn't ready", || ask(&[]).0 == Some(1)).await;
    let expected = format!("millpond: not ready: {down}: file exists\n");
    assert_eq!(ask(&[]), (Some(1), String::new(), expected));
    assert_eq!(ask(&["--live"]), fine("alive\n"));
    std::fs::remove_file(&down).unwrap();
    eventually("it is ready again", || ask(&[]).0 == Some(0)).await;
}
