//! `millpond doctor`: healthy setups have no warning, and each broken one is named in one line.
#![cfg(unix)]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use millpond::app::App;
use millpond::clock::Clock;
use millpond::config;
use millpond::storage::Layout;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Authority, Identity, Options};

use crate::harness::{ALWAYS, Image, Registry, Reply, eventually, log, noise, read};

/// The repository of the image that is pulled by default.
const SAMPLE: &str = "library/hello-world";

/// What the program printed.
struct Diagnosis {
    code: i32,
    text: String,
    error: String,
}

impl Diagnosis {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            text: String::from_utf8(output.stdout).unwrap(),
            error: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The lines of findings that aren't ok.
    fn complaints(&self) -> Vec<&str> {
        let lines = self.text.lines();
        lines.filter(|line| !line.starts_with("ok    ")).collect()
    }

    /// Asserts that there is nothing to complain of, and that these were checked.
    fn is_well(&self, parts: &[&str]) {
        assert_eq!(self.complaints(), [] as [&str; 0], "{}", self.error);
        assert_eq!(self.code, 0, "{}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "{part} is not in {}", self.text);
        }
    }

    /// Asserts that one line alone complains, with these parts and with a fix.
    fn complains(&self, status: &str, parts: &[&str]) {
        let complaints = self.complaints();
        let [line] = complaints[..] else {
            panic!("not one complaint: {}{}", self.text, self.error);
        };
        assert!(line.starts_with(&format!("{status}  ")), "{line}");
        assert!(line.contains(". Fix: "), "{line}");
        for part in parts {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        let code = if status == "warn" { 1 } else { 2 };
        assert_eq!(self.code, code, "{}", self.text);
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_millpond"));
    program.arg("doctor").args(arguments);
    program.env("NO_PROXY", "*").stdin(Stdio::null());
    program
}

/// Runs the program beside the runtime, so that servers continue to answer.
async fn doctor(arguments: &[&str]) -> Diagnosis {
    run(program(arguments)).await
}

async fn run(mut program: Command) -> Diagnosis {
    let ran = tokio::task::spawn_blocking(move || program.output().unwrap());
    Diagnosis::of(ran.await.unwrap())
}

/// A mirror with its directory, and the registry behind it.
struct Site {
    dir: TempDir,
    up: Registry,
}

impl Site {
    /// `proxy` and `more` are further lines of the configuration.
    async fn new(http: &str, storage: &str, proxy: &str) -> Self {
        let up = Registry::start().await;
        up.put_json("/v2/", &json!({}));
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
            up,
        };
        let url = site.up.url();
        site.configure(http, storage, &format!("remoteurl: '{url}'\n  {proxy}"));
        site
    }

    fn configure(&self, http: &str, storage: &str, proxy: &str) {
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: '{}'}}\n  {storage}\n\
             http:\n  {http}\nproxy:\n  {proxy}\n",
            self.path("data").display(),
        );
        std::fs::write(self.path("config.yml"), text).unwrap();
    }

    /// One that mirrors Docker Hub's name, without warnings.
    async fn healthy() -> Self {
        let site = Self::new(
            "addr: '127.0.0.1:0'",
            "minfree: 1MiB",
            "aliases: [docker.io]",
        )
        .await;
        site.up.push(SAMPLE, "latest", &Image::oci(1));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn serve(&self) -> App {
        log::install();
        let path = self.path("config.yml");
        let loaded = config::load(Some(Path::new(&path)), std::iter::empty()).unwrap();
        App::start(&loaded.config).await.unwrap()
    }

    /// The view of the operator.
    async fn doctor(&self, more: &[&str]) -> Diagnosis {
        let path = self.path("config.yml").display().to_string();
        doctor(&[&[path.as_str()], more].concat()).await
    }

    /// Serves TLS with a certificate of `authority` at `address`.
    async fn serve_tls(&self, address: &str, authority: &Authority, until: (i32, u8, u8)) -> App {
        let signed = authority.server_until(until);
        std::fs::write(self.path("cert.pem"), signed.certificate).unwrap();
        std::fs::write(self.path("key.pem"), signed.key).unwrap();
        std::fs::write(self.path("ca.pem"), authority.pem()).unwrap();
        let tls = format!(
            "addr: '{address}'\n  tls: {{certificate: '{}', key: '{}'}}",
            self.path("cert.pem").display(),
            self.path("key.pem").display()
        );
        let proxy = format!("remoteurl: '{}'\n  aliases: [docker.io]", self.up.url());
        self.configure(&tls, "minfree: 1MiB", &proxy);
        self.serve().await
    }
}

fn url(scheme: &str, app: &App) -> String {
    format!("{scheme}://{}", app.address())
}

/// A port that nothing listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A registry that stands where a mirror should be, with the sample image.
async fn as_mirror() -> Registry {
    let registry = Registry::start().await;
    registry.put_json("/v2/", &json!({}));
    registry.push(SAMPLE, "latest", &Image::oci(1));
    // Like millpond, it knows its registries and says what comes from its cache.
    registry.reply("ns=doctor.invalid", ALWAYS, Reply::error(404));
    registry.on("HEAD /v2/library/", ALWAYS, |_, usual| {
        usual.with("Cache-Status", "millpond; hit")
    });
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_mirror_is_well_for_clients_and_for_its_operator() {
    let site = Site::healthy().await;
    let app = site.serve().await;
    let client = doctor(&["--mirror", &url("http", &app)]).await;
    client.is_well(&[
        "/v2/ answers and asks for no login",
        "clock agrees",
        "other registries (?ns=) are refused",
        "docker.io/library/hello-world:latest has the manifest sha256:",
        "the config and a layer are verified",
        "a second pull comes from the cache",
    ]);
    let operator = site.doctor(&[]).await;
    operator.is_well(&[
        "has no problems",
        "are free",
        "the disk writes and syncs 8.0 MiB",
        "runs as process",
        "any free port",
        "open files are enough",
        "are used",
        "answers /v2/",
        "none are configured, and anonymous requests are answered",
    ]);
    assert!(!operator.text.contains('\u{1b}'), "no colours in a pipe");
    assert!(app.stop().await);
    site.doctor(&[]).await.is_well(&["no server runs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_same_findings() {
    let site = Site::healthy().await;
    let diagnosis = site.doctor(&["--json"]).await;
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);
    let lines = diagnosis.text.lines();
    let findings: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(findings.len() > 5, "{findings:?}");
    for finding in &findings {
        assert_eq!(finding["status"], "ok");
        assert_eq!(finding["fix"], Value::Null);
        assert!(finding["check"].is_string() && finding["subject"].is_string());
    }
    std::fs::write(site.path("config.yml"), "version: 0.1\nprxy: {}\n").unwrap();
    let broken = site.doctor(&["--json"]).await;
    assert_eq!(broken.code, 2, "{}", broken.text);
    let finding: Value = serde_json::from_str(broken.text.lines().next().unwrap()).unwrap();
    assert_eq!(finding["status"], "fail");
    assert_eq!(finding["check"], "configuration");
    let text = finding["finding"].as_str().unwrap();
    assert!(
        text.contains("config.yml:2: ") && text.contains("prxy"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checked_has_an_exit_code_of_its_own() {
    for arguments in [
        &["--mirror", "mirror.example"][..],
        &["--mirror", "http://user:secret@mirror.example"],
        &["--mirror", "http://mirror.example", "--user", "me"],
        &["--mirror", "http://mirror.example", "--ca", "/no/such/file"],
        &["--mirror", "http://mirror.example", "config.yml"],
        &["--timeout", "0s"],
        &["--wrong"],
    ] {
        let diagnosis = doctor(arguments).await;
        assert_eq!(diagnosis.code, 3, "{arguments:?}: {}", diagnosis.error);
        assert_eq!(diagnosis.text, "", "{arguments:?}");
    }
    let help = doctor(&["--help"]).await;
    assert_eq!(help.code, 0);
    assert!(help.text.contains("Exits with 0"), "{}", help.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve() {
    let diagnosis = doctor(&["--mirror", "http://no-such-name.invalid:5000"]).await;
    let parts = [
        "mirror http://no-such-name.invalid:5000: ",
        "doesn't resolve",
    ];
    diagnosis.complains("fail", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_nothing_listens_on() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let diagnosis = doctor(&["--mirror", &url]).await;
    diagnosis.complains("fail", &["can't connect to 127.0.0.1:", "start the mirror"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_https_are_told_apart() {
    let site = Site::healthy().await;
    let app = site.serve().await;
    let diagnosis = doctor(&["--mirror", &url("https", &app)]).await;
    let parts = [
        "speaks plain HTTP, and the URL is https",
        "use http://127.0.0.1:",
    ];
    diagnosis.complains("fail", &parts);
    assert!(app.stop().await);

    let app = site
        .serve_tls("127.0.0.1:0", &Authority::new("tests"), (4000, 1, 1))
        .await;
    let diagnosis = doctor(&["--mirror", &url("http", &app)]).await;
    let parts = ["speaks TLS, and the URL is http", "use https://127.0.0.1:"];
    diagnosis.complains("fail", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_clients_refuse() {
    let site = Site::healthy().await;
    let authority = Authority::new("tests");
    let ca = site.path("ca.pem").display().to_string();
    let app = site
        .serve_tls("127.0.0.1:0", &authority, (4000, 1, 1))
        .await;
    let address = url("https", &app);
    let trusted = doctor(&["--mirror", &address, "--ca", &ca]).await;
    trusted.is_well(&["a trusted certificate for 127.0.0.1, localhost, valid until 4000-01-01"]);
    let unknown = doctor(&["--mirror", &address]).await;
    let parts = ["issued by an unknown authority", "CN=tests", "--ca FILE"];
    unknown.complains("fail", &parts);
    assert!(app.stop().await);

    let app = site
        .serve_tls("127.0.0.2:0", &authority, (4000, 1, 1))
        .await;
    let other = doctor(&["--mirror", &url("https", &app), "--ca", &ca]).await;
    let parts = ["is for 127.0.0.1, localhost, not for 127.0.0.2"];
    other.complains("fail", &parts);
    assert!(app.stop().await);

    let app = site
        .serve_tls("127.0.0.1:0", &authority, (2020, 1, 1))
        .await;
    let expired = doctor(&["--mirror", &url("https", &app), "--ca", &ca]).await;
    expired.complains(
        "fail",
        &["has expired on 2020-01-01", "renew the certificate"],
    );
    let operator = site.doctor(&[]).await;
    operator.complains("fail", &["127.0.0.1:0 has expired on 2020-01-01"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_soon() {
    let site = Site::healthy().await;
    let soon = Clock::system().wall() + Duration::from_hours(5 * 24);
    let soon = humantime::format_rfc3339_seconds(soon).to_string();
    let fields: Vec<u16> = soon
        .split(['-', 'T'])
        .take(3)
        .map(|field| field.parse().unwrap())
        .collect();
    let day = |field: u16| u8::try_from(field).unwrap();
    let until = (i32::from(fields[0]), day(fields[1]), day(fields[2]));
    let authority = Authority::new("tests");
    let app = site.serve_tls("127.0.0.1:0", &authority, until).await;
    let ca = site.path("ca.pem").display().to_string();
    let client = doctor(&["--mirror", &url("https", &app), "--ca", &ca]).await;
    client.complains("warn", &["expires soon, on ", "renew"]);
    site.doctor(&[]).await.complains("warn", &["expires soon"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_mirrored_and_an_image_that_is_missing() {
    let site = Site::healthy().await;
    let app = site.serve().await;
    let mirror = url("http", &app);
    let other = doctor(&["--mirror", &mirror, "--image", "ghcr.io/owner/app"]).await;
    let parts = ["ghcr.io isn't mirrored", "`proxy.upstreams`"];
    other.complains("fail", &parts);
    let missing = doctor(&["--mirror", &mirror, "--image", "debian:0"]).await;
    missing.complains("fail", &["finds no docker.io/library/debian:0", "--image"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_of_their_digest() {
    let image = Image::oci(1);
    for part in [
        "GET /v2/library/hello-world/manifests/latest",
        "GET /v2/library/hello-world/blobs/",
    ] {
        let registry = as_mirror().await;
        registry.on(part, ALWAYS, |_, usual| usual.forged());
        let diagnosis = doctor(&["--mirror", &registry.url()]).await;
        diagnosis.complains("fail", &["sha256:", "millpond scrub --repair"]);
    }
    let registry = as_mirror().await;
    let path = format!("GET /v2/{SAMPLE}/manifests/{}", image.digest());
    let other = Image::oci(2).manifest;
    registry.on(&path, ALWAYS, move |_, _| {
        Reply::ok(&other).with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
    });
    let diagnosis = doctor(&["--mirror", &registry.url()]).await;
    diagnosis.complains(
        "fail",
        &["arrives with wrong content", "which is not the announced"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_disagree() {
    for (hours, status) in [(2, "fail"), (0, "warn")] {
        let registry = as_mirror().await;
        let then = Clock::system().wall() + Duration::from_hours(hours) + Duration::from_secs(90);
        let date = httpdate::fmt_http_date(then);
        registry.on("GET /v2/?ns", ALWAYS, move |_, usual| {
            usual.with("Date", &date)
        });
        let diagnosis = doctor(&["--mirror", &registry.url()]).await;
        diagnosis.complains(status, &["behind the mirror's", "synchronize the clock"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_ignores_the_registry_or_caches_nothing() {
    let registry = Registry::start().await;
    registry.put_json("/v2/", &json!({}));
    registry.push(SAMPLE, "latest", &Image::oci(1));
    registry.on("HEAD /v2/library/", ALWAYS, |_, usual| {
        usual.with("Cache-Status", "millpond; hit")
    });
    let ignores = doctor(&["--mirror", &registry.url()]).await;
    ignores.complains(
        "fail",
        &["?ns=doctor.invalid is answered", "wrong registry"],
    );

    let registry = as_mirror().await;
    registry.behave();
    registry.reply("ns=doctor.invalid", ALWAYS, Reply::error(404));
    let plain = doctor(&["--mirror", &registry.url()]).await;
    plain.complains("warn", &["have no Cache-Status"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_wants_a_login() {
    let registry = as_mirror().await;
    registry.protect(Some(("user", "secret")));
    let url = registry.url();
    let anonymous = doctor(&["--mirror", &url]).await;
    anonymous.complains("fail", &["a login is needed", "--password-stdin"]);
    for (password, is_right) in [("wrong", false), ("secret", true)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{password}\n")).unwrap();
        let mut program = program(&["--mirror", &url, "--user", "user", "--password-stdin"]);
        program.stdin(file.reopen().unwrap());
        let diagnosis = run(program).await;
        assert!(!diagnosis.text.contains(password), "{}", diagnosis.text);
        if is_right {
            diagnosis.is_well(&["accepts the login", "a second pull"]);
        } else {
            diagnosis.complains("fail", &["the login is refused", "correct --user"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_registry() {
    let registry = Registry::start().await;
    let diagnosis = doctor(&["--mirror", &registry.url()]).await;
    diagnosis.complains("fail", &["/v2/ isn't a registry's", "`http.prefix`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_an_upstream_that_are_wrong_or_missing() {
    let account = "username: user\n  password: wr0ng\n  anonymous: true";
    let site = Site::new("addr: '127.0.0.1:0'", "minfree: 1MiB", account).await;
    site.up.protect(Some(("user", "secret")));
    let wrong = site.doctor(&[]).await;
    let parts = [
        "the credentials are wrong",
        "status 401",
        "config.yml:7 (`proxy`)",
    ];
    wrong.complains("fail", &parts);
    assert!(!wrong.text.contains("wr0ng"), "{}", wrong.text);

    let remote = format!("remoteurl: '{}'", site.up.url());
    site.configure("addr: '127.0.0.1:0'", "minfree: 1MiB", &remote);
    let none = site.doctor(&[]).await;
    none.complains("warn", &["asks for credentials, and none are configured"]);
    let image = format!("{}/app", site.up.address);
    let named = site.doctor(&["--image", &image]).await;
    named.complains("fail", &["asks for credentials, and none are configured"]);

    let account = format!("{remote}\n  username: user\n  password: secret\n  anonymous: true");
    site.configure("addr: '127.0.0.1:0'", "minfree: 1MiB", &account);
    site.doctor(&[])
        .await
        .is_well(&["the credentials are accepted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_some_repositories() {
    let account = "credentials: [{repositories: [team/*], username: user, password: wr0ng}]\n  \
                   anonymous: true";
    let site = Site::new("addr: '127.0.0.1:0'", "minfree: 1MiB", account).await;
    site.up.protect(Some(("user", "secret")));
    // Nobody is needed for the others.
    site.up
        .on("repository%3Amillpond%2Fdoctor%3Apull", ALWAYS, |_, _| {
            Reply::json(&json!({"token": "scripted-token"}))
        });
    let diagnosis = site.doctor(&[]).await;
    diagnosis.complains("fail", &["the credentials for team/* are wrong"]);
    // A token service that fails says nothing of them.
    site.up
        .reply("repository%3Ateam", ALWAYS, Reply::error(503));
    let diagnosis = site.doctor(&[]).await;
    diagnosis.complains("warn", &["the credentials for team/* can't be checked"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_that_cannot_be_reached_or_trusted() {
    let identity = Identity::new();
    let secure = Registry::with(Options::default().tls(&identity)).await;
    let upstreams = format!(
        "upstreams:\n    - {{name: gone.example, remoteurl: 'http://127.0.0.1:{}'}}\n    \
         - {{name: tls.example, remoteurl: '{}'}}",
        free_port(),
        secure.url()
    );
    let site = Site::new("addr: '127.0.0.1:0'", "minfree: 1MiB", &upstreams).await;
    let diagnosis = site.doctor(&[]).await;
    assert_eq!(diagnosis.code, 2, "{}", diagnosis.text);
    let complaints = diagnosis.complaints();
    let [gone, untrusted] = complaints[..] else {
        panic!("not two complaints: {}", diagnosis.text);
    };
    assert!(
        gone.starts_with("fail  upstream gone.example: can't connect to"),
        "{gone}"
    );
    let expected = "fail  upstream tls.example: the certificate for 127.0.0.1 is self-signed";
    assert!(untrusted.starts_with(expected), "{untrusted}");
    assert!(untrusted.contains("`ca` of this upstream"), "{untrusted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_is_nearly_used_up() {
    let site = Site::healthy().await;
    for (left, is_well) in [("76;w=21600", true), ("3;w=21600", false)] {
        site.up.behave();
        site.up.on("HEAD ", ALWAYS, move |_, usual| {
            let limited = usual.with("RateLimit-Limit", "100;w=21600");
            limited.with("RateLimit-Remaining", left)
        });
        let diagnosis = site.doctor(&[]).await;
        if is_well {
            diagnosis.is_well(&["76;w=21600 of 100;w=21600 pulls are left"]);
        } else {
            diagnosis.complains("warn", &["3;w=21600 of 100", "configure an account"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_written() {
    let site = Site::healthy().await;
    std::fs::write(site.path("data"), "a file").unwrap();
    let diagnosis = site.doctor(&[]).await;
    assert_eq!(diagnosis.code, 2);
    let complaints = diagnosis.complaints();
    assert!(
        complaints[0].starts_with("fail  data "),
        "{}",
        diagnosis.text
    );
    assert!(
        complaints[0].contains("can't be used"),
        "{}",
        diagnosis.text
    );
    assert!(complaints[0].contains("storage.filesystem.rootdirectory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_that_the_disk_has_no_space_for() {
    let site = Site::new("addr: '127.0.0.1:0'", "maxsize: 8000TiB", "").await;
    let diagnosis = site.doctor(&[]).await;
    let parts = ["`storage.maxsize` is 7.8 PiB", "larger disk"];
    diagnosis.complains("fail", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_descriptors_for_the_connections() {
    let http = "addr: '127.0.0.1:0'\n  limits: {connections: 5000}";
    let site = Site::new(http, "minfree: 1MiB", "").await;
    let mut shell = Command::new("sh");
    let script = "ulimit -n 1024 && exec \"$0\" doctor \"$1\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_millpond")]);
    shell.arg(site.path("config.yml")).env("NO_PROXY", "*");
    let diagnosis = run(shell).await;
    let parts = [
        "`http.limits.connections` is 5000, and 1024 open files",
        "LimitNOFILE=",
    ];
    diagnosis.complains("warn", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_that_is_too_small_for_the_use() {
    let storage = "minfree: 1MiB\n  maxsize: 2MiB";
    let site = Site::new("addr: '127.0.0.1:0'", storage, "").await;
    let app = site.serve().await;
    for seed in 1..=4 {
        let digest = site.up.put_blob("app", &noise(seed, 500_000));
        let client = reqwest::Client::builder().tls_certs_only([]);
        let url = format!("http://{}/v2/app/blobs/{digest}", app.address());
        let answer = read(client.build().unwrap().get(url).send().await.unwrap()).await;
        assert_eq!(answer.status, 200);
        let idle = || {
            app.metrics()
                .render()
                .contains("millpond_downloads_in_flight 0")
        };
        eventually("the blob is stored", idle).await;
    }
    let diagnosis = site.doctor(&[]).await;
    let parts = [
        "the cap is too small for the use: 1.9 MiB of 2.0 MiB",
        "raise `storage.maxsize`",
    ];
    diagnosis.complains("warn", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let site = Site::new(&format!("addr: '{address}'"), "minfree: 1MiB", "").await;
    // What accepts and never answers costs a deadline.
    std::thread::spawn(move || {
        for stream in taken.incoming() {
            drop(stream);
        }
    });
    let diagnosis = site.doctor(&[]).await;
    let parts = ["another program uses ", &address, "`http.addr`"];
    diagnosis.complains("fail", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_failing_check_has_closed() {
    let site = Site::healthy().await;
    let proxy = format!("remoteurl: '{}'", site.up.url());
    let http = |address: &str| {
        let down = site.path("down").display().to_string();
        format!("addr: '{address}'\nhealth: {{file: [{{file: '{down}'}}]}}")
    };
    std::fs::write(site.path("down"), "").unwrap();
    site.configure(&http("127.0.0.1:0"), "minfree: 1MiB", &proxy);
    let app = site.serve().await;
    let client = reqwest::Client::builder().tls_certs_only([]);
    let client = client.build().unwrap();
    let base = format!("{}/v2/", url("http", &app));
    while client.get(&base).send().await.unwrap().status() != 503 {}
    site.configure(&http(&app.address().to_string()), "minfree: 1MiB", &proxy);
    let diagnosis = site.doctor(&[]).await;
    let parts = ["503", "(`http.addr`)", "a failing check of `health`"];
    diagnosis.complains("fail", &parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_address_or_socket_is_not_the_configured_one() {
    let site = Site::healthy().await;
    let app = site.serve().await;
    let own = app.address().to_string();
    let proxy = format!("remoteurl: '{}'", site.up.url());
    site.configure(&format!("addr: '{own}'"), "minfree: 1MiB", &proxy);
    let same = site.doctor(&[]).await;
    same.is_well(&["the server listens on 127.0.0.1:"]);
    let mut http = format!("addr: '{own}'");
    write!(http, "\n  debug: {{addr: '127.0.0.1:{}'}}", free_port()).unwrap();
    site.configure(&http, "minfree: 1MiB", &proxy);
    let other = site.doctor(&[]).await;
    let parts = [
        "the server runs, but nothing listens on",
        "`http.debug.addr`",
        "restart",
    ];
    other.complains("fail", &parts);
    site.configure("addr: '127.0.0.1:0'", "minfree: 1MiB", &proxy);
    std::fs::remove_file(Layout::new(site.path("data")).admin_socket()).unwrap();
    let silent = site.doctor(&[]).await;
    silent.complains(
        "fail",
        &["no server answers at its admin socket", "restart"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_costs_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let diagnosis = doctor(&["--mirror", &url, "--timeout", "300ms"]).await;
    assert_eq!(diagnosis.code, 2, "{}", diagnosis.text);
    let last = diagnosis.complaints();
    assert!(last[0].contains("300ms"), "{}", diagnosis.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_colours() {
    let millpond = env!("CARGO_BIN_EXE_millpond");
    let command = format!(
        "{millpond} doctor --mirror http://127.0.0.1:{}",
        free_port()
    );
    let on_terminal = |no_color: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]);
        script.env("NO_PROXY", "*").env("NO_COLOR", no_color);
        script.stdin(Stdio::null());
        script
    };
    let coloured = run(on_terminal("")).await;
    assert_eq!(coloured.code, 2, "{}", coloured.error);
    let start = "\u{1b}[31mfail\u{1b}[0m  mirror http://127.0.0.1:";
    assert!(coloured.text.starts_with(start), "{:?}", coloured.text);
    let plain = run(on_terminal("1")).await;
    assert!(plain.text.starts_with("fail  mirror "), "{:?}", plain.text);
}
