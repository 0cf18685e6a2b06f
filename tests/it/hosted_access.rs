//! Who may push, pull and delete, and what is refused before its body is read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::push::{OPEN, Pusher, SPACE};
use crate::harness::{Image, Registry, Setup, noise, passing};

/// Sends raw bytes on a connection of their own, and returns it.
async fn raw(p: &Pusher, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(p.m.address()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

/// The head of the next response.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn without_rules_nobody_pushes_over_tcp_and_the_error_says_what_to_add() {
    let up = Registry::start().await;
    let m = Setup::new(&up).with(&[SPACE]).start().await;
    let p = Pusher::over(m).await;
    let digest = p.digest(b"");
    for line in [
        "POST /v2/ci/app/blobs/uploads/".to_owned(),
        "PUT /v2/ci/app/manifests/1".to_owned(),
        "DELETE /v2/ci/app/manifests/1".to_owned(),
        format!("DELETE /v2/ci/app/blobs/{digest}"),
        format!("POST /v2/ci/app/blobs/uploads/?mount={digest}"),
    ] {
        let refused = p.ask(&line).await;
        refused.refused(403, "DENIED");
        let message = refused.json()["errors"][0]["message"].to_string();
        let action = if line.starts_with("DELETE") {
            "delete"
        } else {
            "push"
        };
        let rule = format!("repositories: [ci/app], actions: [{action}], effect: allow");
        assert!(message.contains(&rule), "{message}");
    }
    // Reading is open.
    p.m.get("/v2/ci/app/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
}

#[cfg(unix)]
#[tokio::test]
async fn a_client_on_a_unix_socket_pushes() {
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("socket");
    let up = Registry::start().await;
    let setup = Setup::new(&up).addr(socket.display());
    let m = setup.with(&[SPACE, "http.net: unix"]).start().await;
    let p = Pusher::over(m).await;
    let image = p.image(1);
    p.push("ci/app", "1", &image).await;
    p.serves("ci/app", "1", &image).await;
}

#[tokio::test]
async fn users_push_where_rules_let_them() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("htpasswd");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&path, format!("alice:{hash}\nbob:{hash}\n")).unwrap();
    let users = format!("auth.htpasswd: {{path: '{}'}}", path.display());
    let rules = "root.access: [{users: [alice], repositories: ['ci/**'], effect: allow}, \
                 {anyone: true, actions: [pull, list], effect: allow}]";
    let p = Pusher::with(&[SPACE, &users, rules]).await;
    let start = "POST /v2/ci/app/blobs/uploads/";
    let anonymous = p.ask(start).await;
    anonymous.refused(401, "UNAUTHORIZED");
    let challenge = anonymous.header("www-authenticate");
    let scope = "scope=\"repository:ci/app:pull,push\"";
    assert!(challenge.contains(scope), "{challenge}");
    let delete = p.ask("DELETE /v2/ci/app/manifests/1").await;
    let challenge = delete.header("www-authenticate");
    assert!(
        challenge.contains("repository:ci/app:delete\""),
        "{challenge}"
    );
    let as_user = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:secret")));
    let (alice, bob) = (as_user("alice"), as_user("bob"));
    let refused = p.send(start, &[("authorization", &bob)], "").await;
    refused.refused(403, "DENIED");
    let started = p.send(start, &[("authorization", &alice)], "").await;
    started.expect(202, b"");
    // Ending an upload needs no permission to delete.
    let at = started.header("location");
    let ended = p
        .send(&format!("DELETE {at}"), &[("authorization", &alice)], "")
        .await;
    ended.expect(204, b"");
    // The token service gives a token with which each request is decided again.
    let answer = p.m.get("/v2/").await;
    let challenge = answer.header("www-authenticate").to_owned();
    let realm = challenge.split('"').nth(1).unwrap();
    let path = realm
        .split_once("/token")
        .map(|(_, rest)| format!("/token{rest}"));
    let line = format!("GET {}?scope=repository:ci/app:pull,push", path.unwrap());
    let token = p.send(&line, &[("authorization", &alice)], "").await;
    let token = format!("Bearer {}", token.json()["token"].as_str().unwrap());
    let started = p.send(start, &[("authorization", &token)], "").await;
    started.expect(202, b"");
}

#[tokio::test]
async fn a_hidden_repository_is_like_one_that_does_not_exist() {
    let rules = "root.access: [{repositories: ['ci/secret/**'], networks: [10.0.0.0/8], effect: allow}, \
                 {repositories: ['ci/secret/**'], effect: deny, hide: true}, {anyone: true, effect: allow}]";
    let p = Pusher::with(&[SPACE, rules]).await;
    let digest = p.digest(b"");
    for path in [
        "manifests/1".to_owned(),
        format!("blobs/{digest}"),
        "tags/list".to_owned(),
    ] {
        let hidden = p.m.get(&format!("/v2/ci/secret/app/{path}")).await;
        let missing = p.m.get(&format!("/v2/ci/nobody/app/{path}")).await;
        let text = |body: &Bytes| String::from_utf8_lossy(body).replace("ci/nobody", "ci/secret");
        assert_eq!(hidden.status, 404);
        assert_eq!(text(&hidden.body), text(&missing.body), "{path}");
    }
    let referrers = format!("/v2/ci/secret/app/referrers/{digest}");
    let referrers = p.m.get(&referrers).await.json()["manifests"].clone();
    assert_eq!(referrers, Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_body_is_not_asked_for_when_the_request_is_refused() {
    let p = Pusher::with(&[
        SPACE,
        "root.access: [{anyone: true, actions: [pull], effect: allow}]",
    ])
    .await;
    let digest = p.digest(b"");
    for line in [
        format!("POST /v2/ci/app/blobs/uploads/?digest={digest}"),
        "PUT /v2/ci/app/manifests/1".to_owned(),
        "PUT /v2/library/app/manifests/1".to_owned(),
    ] {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        );
        let answer = rest(raw(&p, &request).await).await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
    }
    // Too large, as its length says.
    let open = Pusher::with(&[SPACE, OPEN]).await;
    let request = "PUT /v2/ci/app/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\
                   Expect: 100-continue\r\n\r\n";
    let answer = rest(raw(&open, request).await).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_waits_is_told_to_continue() {
    let p = Pusher::with(&[SPACE]).await;
    let digest = p.digest(b"12345");
    let request = format!(
        "POST /v2/ci/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\
         Expect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    let mut stream = raw(&p, &request).await;
    assert_eq!(head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"12345").await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

/// The response must arrive although the client is still sending.
#[tokio::test]
async fn a_refused_body_does_not_cost_the_response() {
    let p = Pusher::with(&[
        SPACE,
        "root.access: [{anyone: true, actions: [pull], effect: allow}]",
    ])
    .await;
    let digest = p.digest(b"");
    let line = format!("POST /v2/ci/app/blobs/uploads/?digest={digest}");
    for _ in 0..5 {
        let refused = p.send(&line, &[], noise(1, 8 << 20)).await;
        refused.refused(403, "DENIED");
    }
}

#[tokio::test]
async fn only_callers_who_may_push_learn_of_mirrored_blobs() {
    let rules = "root.access: [{users: [alice], effect: allow}, \
                 {anyone: true, actions: [pull, list], effect: allow}]";
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("htpasswd");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&path, format!("alice:{hash}\n")).unwrap();
    let users = format!("auth.htpasswd: {{path: '{}'}}", path.display());
    let p = Pusher::with(&[SPACE, &users, rules]).await;
    let image = Image::oci(1);
    p.up.push("app", "1", &image);
    let layer = &image.layers[1];
    let mirrored = format!("/v2/app/blobs/{}", p.digest(layer));
    p.m.pull(&mirrored, layer).await;
    let path = format!("/v2/ci/app/blobs/{}", p.digest(layer));
    assert_eq!(p.m.head(&path).await.status, 404);
    let alice = format!("Basic {}", STANDARD.encode("alice:secret"));
    let authorized = [("authorization", alice.as_str())];
    let head = p.m.ask(&format!("HEAD {path}"), &authorized).await;
    assert_eq!(head.status, 200);
    // It is only held for a push, and can't be pulled from here.
    assert_eq!(
        p.m.ask(&format!("GET {path}"), &authorized).await.status,
        404
    );
}

#[tokio::test(start_paused = true)]
async fn manifests_that_are_received_at_the_same_time_are_bounded() {
    let p = Pusher::with(&[SPACE]).await;
    let slow = "PUT /v2/ci/app/manifests/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
                Expect: 100-continue\r\n\r\n";
    let mut senders = Vec::new();
    // Each may become 4 MiB.
    for _ in 0..64 {
        let mut sender = raw(&p, slow).await;
        // Its body is asked for.
        let answer = head(&mut sender).await;
        assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
        senders.push(sender);
    }
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let index = Bytes::from_static(index.as_bytes());
    let push = async || p.manifest("ci/app", "1", &index).await;
    passing(push()).await.refused(503, "UNAVAILABLE");
    senders.pop();
    push().await.expect(201, b"");
}
