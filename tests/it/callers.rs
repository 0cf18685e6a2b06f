//! Callers: how docker, podman, containerd and skopeo say who they are, and what bad credentials get.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millpond::renewal::INTERVAL;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Answer, Mirror, Registry, Setup, advance, put_image};

/// A mirror with the user alice, whose password is `secret`, and what keeps its file.
struct Guarded {
    up: Registry,
    m: Mirror,
    image: crate::harness::Image,
    files: tempfile::TempDir,
}

fn write_users(path: &Path, users: &[(&str, &str)]) {
    let line = |(user, password): &(&str, &str)| {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    };
    std::fs::write(path, users.iter().map(line).collect::<String>()).unwrap();
}

async fn guarded(lines: &[&str]) -> Guarded {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("htpasswd");
    write_users(&path, &[("alice", "secret")]);
    let up = Registry::start().await;
    let (image, _) = put_image(&up, 1);
    let htpasswd = format!("auth.htpasswd: {{path: '{}'}}", path.display());
    let m = Setup::new(&up).with(&[&htpasswd]).with(lines).start().await;
    Guarded {
        up,
        m,
        image,
        files,
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The parameters of a challenge.
fn parameter(answer: &Answer, name: &str) -> String {
    let challenge = answer.header("www-authenticate");
    let (_, rest) = challenge.split_once(&format!("{name}=\"")).unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// The path of the realm in a challenge.
fn realm(m: &Mirror, answer: &Answer) -> String {
    let realm = parameter(answer, "realm");
    let path = realm.strip_prefix(&format!("http://{}", m.address()));
    path.unwrap_or_else(|| panic!("{realm}")).to_owned()
}

fn bearer(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer.json();
    assert_eq!(document["token"], document["access_token"]);
    assert_eq!(document["expires_in"], 300);
    format!("Bearer {}", document["token"].as_str().unwrap())
}

async fn ask_as(m: &Mirror, line: &str, authorization: &str) -> Answer {
    m.ask(line, &[("authorization", authorization)]).await
}

#[tokio::test(start_paused = true)]
async fn docker_logs_in_and_pulls() {
    let Guarded { up, m, image, .. } = guarded(&[]).await;
    let ping = m.get("/v2/").await;
    ping.refused(401, "UNAUTHORIZED");
    assert_eq!(parameter(&ping, "service"), "millpond");
    let realm = realm(&m, &ping);
    let name = up.url().replace("http://", "").replace('/', "");
    assert_eq!(realm, format!("/token/{name}"));
    // docker login: no scope.
    let alice = basic("alice", "secret");
    let line = format!("GET {realm}?account=alice&client_id=docker&offline_token=true");
    let login = bearer(&ask_as(&m, &line, &alice).await);
    assert_eq!(ask_as(&m, "GET /v2/", &login).await.status, 200);
    // docker pull: a challenge names the scope, and the token says who it is.
    let manifest = "/v2/app/manifests/1";
    let denied = m.get(manifest).await;
    denied.refused(401, "UNAUTHORIZED");
    assert_eq!(parameter(&denied, "scope"), "repository:app:pull");
    assert_eq!(
        up.count("/v2/app"),
        0,
        "a denied request reaches no upstream"
    );
    let line = format!("GET {realm}?scope=repository:app:pull&service=millpond");
    let token = bearer(&ask_as(&m, &line, &alice).await);
    let pulled = ask_as(&m, &format!("GET {manifest}"), &token).await;
    pulled.expect(200, &image.manifest);
    // hosts.toml headers and curl -u: Basic, without any challenge.
    let pulled = ask_as(&m, &format!("GET {manifest}"), &alice).await;
    pulled.expect(200, &image.manifest);
    let token = ask_as(&m, &line, &alice).await;
    token.has("cache-control", "no-store");
    m.counted(r#"millpond_authentications_total{result="issued_user"}"#, 3)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_anonymous_docker_mirror_gets_a_token_that_names_nobody() {
    let Guarded { m, .. } = guarded(&[]).await;
    let realm = realm(&m, &m.get("/v2/").await);
    let line = format!("GET {realm}?scope=repository:app:pull");
    // skopeo without credentials, and dockerd with the upstream's.
    for authorization in ["Basic Og==", &basic("hubuser", "hubpassword")] {
        let token = bearer(&ask_as(&m, &line, authorization).await);
        assert_eq!(ask_as(&m, "GET /v2/", &token).await.status, 200);
        let denied = ask_as(&m, "GET /v2/app/manifests/1", &token).await;
        denied.refused(401, "UNAUTHORIZED");
    }
    let token = bearer(&m.get(&format!("{realm}?scope=repository:app:pull")).await);
    assert_eq!(ask_as(&m, "GET /v2/", &token).await.status, 200);
    ask_as(&m, "GET /v2/", "Basic Og==")
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn wrong_credentials_are_refused_where_they_matter() {
    let Guarded { m, .. } = guarded(&[]).await;
    let wrong = basic("alice", "wrong");
    let unknown = basic("bob", "secret");
    for authorization in [wrong.as_str(), &unknown, "Bearer abc", "Negotiate abc"] {
        for line in ["GET /v2/", "GET /v2/app/manifests/1", "GET /token"] {
            let refused = ask_as(&m, line, authorization).await;
            refused.refused(401, "UNAUTHORIZED");
            assert!(!refused.header("www-authenticate").is_empty(), "{line}");
        }
    }
    // Only pulls may be anonymous.
    let push = "GET /token?scope=repository:app:pull,push";
    ask_as(&m, push, &unknown)
        .await
        .refused(401, "UNAUTHORIZED");
    // A token isn't exchanged for another one.
    let token = bearer(&ask_as(&m, "GET /token", &basic("alice", "secret")).await);
    ask_as(&m, "GET /token", &token)
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn oauth2_forms_are_answered() {
    let Guarded { up: _up, m, .. } = guarded(&[]).await;
    let post = |form: String| {
        let kind = ("content-type", "application/x-www-form-urlencoded");
        let request = m.request("POST /token/docker.io", &[kind]).body(form);
        async { crate::harness::read(request.send().await.unwrap()).await }
    };
    let form =
        "grant_type=password&username=alice&password=secret&service=x&scope=repository:app:pull";
    let token = bearer(&post(form.to_owned()).await);
    assert_eq!(
        ask_as(&m, "GET /v2/app/manifests/1", &token).await.status,
        200
    );
    let wrong = "grant_type=password&username=alice&password=no";
    post(wrong.to_owned()).await.refused(401, "UNAUTHORIZED");
    post("grant_type=magic".to_owned())
        .await
        .refused(400, "UNSUPPORTED");
    post("a".repeat(17 * 1024))
        .await
        .refused(400, "UNSUPPORTED");
}

#[tokio::test(start_paused = true)]
async fn guessing_is_slowed_down_and_a_pull_reveals_nothing() {
    let Guarded { m, .. } = guarded(&[]).await;
    let (right, wrong) = (basic("alice", "secret"), basic("alice", "wrong"));
    for _ in 0..5 {
        ask_as(&m, "GET /v2/", &wrong)
            .await
            .refused(401, "UNAUTHORIZED");
    }
    for authorization in [&wrong, &right] {
        let throttled = ask_as(&m, "GET /v2/", authorization).await;
        throttled.refused(429, "TOOMANYREQUESTS");
        throttled.has("retry-after", 1);
    }
    // Looks the same as for an unknown user, and isn't alice's token.
    let token = bearer(&ask_as(&m, "GET /token?scope=repository:app:pull", &right).await);
    ask_as(&m, "GET /v2/app/manifests/1", &token)
        .await
        .refused(401, "UNAUTHORIZED");
    advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(ask_as(&m, "GET /v2/", &right).await.status, 200);
    m.counted(r#"millpond_authentications_total{result="throttled"}"#, 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_credentials_are_no_guesses() {
    let Guarded { m, .. } = guarded(&[]).await;
    let hub = basic("hubuser", "hubpassword");
    for _ in 0..20 {
        bearer(&ask_as(&m, "GET /token?scope=repository:app:pull", &hub).await);
    }
    ask_as(&m, "GET /v2/", &hub)
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn a_rotated_password_counts_at_once() {
    let Guarded { m, files, .. } = guarded(&[]).await;
    let (old, new) = (basic("alice", "secret"), basic("alice", "rotated"));
    assert_eq!(ask_as(&m, "GET /v2/", &old).await.status, 200);
    write_users(&files.path().join("htpasswd"), &[("alice", "rotated")]);
    advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(ask_as(&m, "GET /v2/", &new).await.status, 200);
    ask_as(&m, "GET /v2/", &old)
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn a_token_expires() {
    let Guarded { m, .. } = guarded(&[]).await;
    let token = bearer(&ask_as(&m, "GET /token", &basic("alice", "secret")).await);
    advance(std::time::Duration::from_secs(299)).await;
    assert_eq!(ask_as(&m, "GET /v2/", &token).await.status, 200);
    advance(std::time::Duration::from_secs(1)).await;
    ask_as(&m, "GET /v2/", &token)
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn the_realm_is_where_the_client_reaches_the_mirror() {
    let forwarded = [("forwarded", "for=192.0.2.1;proto=https;host=mirror.example")];
    // Nobody is believed unless trusted.
    let Guarded { m, .. } = guarded(&["http.prefix: /mirror"]).await;
    let ping = m.ask("GET /mirror/v2/", &forwarded).await;
    assert!(realm(&m, &ping).starts_with("/mirror/token/"));
    let token = ask_as(&m, "GET /mirror/token", &basic("alice", "secret")).await;
    bearer(&token);

    let Guarded { m, .. } = guarded(&["http.trustedproxies: [127.0.0.0/8]"]).await;
    let ping = m.ask("GET /v2/", &forwarded).await;
    let realm = parameter(&ping, "realm");
    assert!(
        realm.starts_with("https://mirror.example/token/"),
        "{realm}"
    );
    let contradiction = [forwarded[0], ("x-forwarded-for", "192.0.2.2")];
    m.ask("GET /v2/", &contradiction)
        .await
        .refused(400, "UNSUPPORTED");

    let Guarded { m, .. } = guarded(&["http.host: https://registry.example"]).await;
    let realm = parameter(&m.get("/v2/").await, "realm");
    assert!(
        realm.starts_with("https://registry.example/token/"),
        "{realm}"
    );
}

#[tokio::test(start_paused = true)]
async fn callers_from_a_network_need_no_password() {
    let networks = "auth.networks: [{networks: [192.0.2.0/24], user: office}]";
    let Guarded { m, .. } = guarded(&[networks, "http.trustedproxies: [127.0.0.1]"]).await;
    let from = |address: &'static str| [("x-forwarded-for", address)];
    assert_eq!(m.ask("GET /v2/", &from("192.0.2.7")).await.status, 200);
    m.ask("GET /v2/", &from("192.0.3.7"))
        .await
        .refused(401, "UNAUTHORIZED");
    // Made up by the client, before the proxy's own entry.
    m.ask("GET /v2/", &from("192.0.2.7, 192.0.3.7"))
        .await
        .refused(401, "UNAUTHORIZED");
}

#[tokio::test(start_paused = true)]
async fn where_nobody_needs_credentials_nothing_changes() {
    let (_up, m) = crate::harness::mirrored().await;
    for authorization in ["Basic dTpw", "Bearer x", "nonsense", &"x".repeat(17 * 1024)] {
        let answer = ask_as(&m, "GET /v2/", authorization).await;
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (200, "")
        );
    }
    m.get("/token").await.refused(404, "UNSUPPORTED");
    m.ask("POST /token", &[]).await.refused(404, "UNSUPPORTED");
}

#[tokio::test(start_paused = true)]
async fn malformed_and_oversized_headers_are_bad_requests() {
    let Guarded { m, .. } = guarded(&[]).await;
    let long = format!("Bearer {}", "a".repeat(17 * 1024));
    for authorization in [long.as_str(), "Basic %%%", "Basic", "Bearer a b"] {
        let answer = ask_as(&m, "GET /v2/", authorization).await;
        answer.refused(400, "UNSUPPORTED");
    }
    let twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")];
    m.ask("GET /v2/", &twice).await.refused(400, "UNSUPPORTED");
    m.counted(r#"millpond_authentications_total{result="malformed"}"#, 5)
        .await;
    // A head beyond what is read at all.
    let huge = "a".repeat(70 * 1024);
    let request = format!("GET /v2/ HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer {huge}\r\n\r\n");
    assert_eq!(status_of(&m, &request).await, "431");
}

#[tokio::test(start_paused = true)]
async fn connect_is_refused() {
    let Guarded { m, .. } = guarded(&[]).await;
    let request = "CONNECT registry.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\r\n";
    assert_eq!(status_of(&m, request).await, "404");
}

/// The status of the answer to a request that no client library would send.
async fn status_of(m: &Mirror, request: &str) -> String {
    let mut stream = TcpStream::connect(m.address()).await.unwrap();
    // The server may stop reading in the middle.
    let _broken = stream.write_all(request.as_bytes()).await.is_err();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    String::from_utf8_lossy(&head[9..]).into_owned()
}

/// The events of an audit log with their users and reasons.
async fn audited(m: &Mirror, path: &Path) -> Vec<String> {
    m.app.denials().audit().flush().await;
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        assert_eq!(field("address"), "127.0.0.1");
        [
            field("event"),
            field("user"),
            field("reason"),
            field("action"),
        ]
        .join(", ")
    });
    lines.collect()
}

#[tokio::test(start_paused = true)]
async fn failed_authentications_and_a_refused_catalog_are_in_the_audit_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.log");
    let audit = format!("root.log: {{audit: {{file: '{}'}}}}", log.display());
    let Guarded { up: _up, m, .. } = guarded(&[&audit]).await;
    let path = "GET /v2/app/manifests/1";
    let alice = basic("alice", "secret");
    assert_eq!(ask_as(&m, path, &alice).await.status, 200);
    let token = |scope: &str| format!("GET /token/any?service=millpond{scope}");
    for (line, authorization) in [
        (path, basic("alice", "hunter2")),
        (path, basic("mallory", "hunter2")),
        (path, basic("hunter2", "")),
        (path, "Bearer hunter2".to_owned()),
        (&*token(""), basic("alice", "hunter2")),
        // An answer with a token: for an anonymous caller.
        (
            &*token("&scope=repository:app:pull"),
            basic("alice", "hunter2"),
        ),
        // The upstream's credentials.
        (
            &*token("&scope=repository:app:pull"),
            basic("mallory", "hunter2"),
        ),
    ] {
        ask_as(&m, line, &authorization).await;
    }
    let anonymous = ask_as(&m, &token(""), "Basic Og==").await;
    let catalog = ask_as(&m, "GET /v2/_catalog", &bearer(&anonymous)).await;
    catalog.refused(401, "UNAUTHORIZED");
    let failed = "authentication_failed";
    assert_eq!(
        audited(&m, &log).await,
        [
            format!("{failed}, alice, wrong password, -"),
            format!("{failed}, mallory, unknown user, -"),
            format!("{failed}, -, unknown user, -"),
            format!("{failed}, -, wrong password or token, -"),
            format!("{failed}, alice, wrong password, -"),
            format!("{failed}, alice, wrong password, -"),
            "refused, -, -, catalog".to_owned(),
        ]
    );
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_changed_key_of_tokens_is_in_use_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "1".repeat(32)).unwrap();
    let line = format!("auth.key: '{}'", key.display());
    let Guarded { up: _up, m, .. } = guarded(&[&line]).await;
    let path = "GET /v2/app/manifests/1";
    let login = async || {
        let answer = ask_as(&m, "GET /token/any", &basic("alice", "secret")).await;
        bearer(&answer)
    };
    let token = login().await;
    let becomes = async |content: &str, expected: u16| {
        std::fs::write(&key, content).unwrap();
        for _ in 0..10 {
            advance(INTERVAL).await;
            if ask_as(&m, path, &token).await.status == expected {
                return true;
            }
        }
        false
    };
    assert_eq!(ask_as(&m, path, &token).await.status, 200);
    assert!(
        becomes("too short", 200).await,
        "the one before stays in use"
    );
    assert!(becomes(&"2".repeat(33), 401).await);
    assert_eq!(ask_as(&m, path, &login().await).await.status, 200);
}
