//! The surface: what is answered before any upstream is asked.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{
    ALWAYS, Image, Mirror, Reply, Setup, blob_path, digest, mirrored, mirrored_with,
};

#[tokio::test]
async fn the_base_says_that_this_is_a_registry() {
    let (up, m) = mirrored().await;
    for path in ["/v2/", "/v2", "/v2/?ns=docker.io"] {
        let answer = m.serves(path, b"{}").await;
        answer.has("docker-distribution-api-version", "registry/2.0");
        let head = m.head(path).await;
        assert_eq!((head.status, head.header("content-length")), (200, "2"));
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn invalid_requests_get_the_specified_error_documents() {
    let (up, m) = mirrored().await;
    let good = digest(b"");
    let long = "a".repeat(256);
    let long_tag = "t".repeat(129);
    let after = "x".repeat(600);
    for (path, status, code) in [
        ("/v1/_ping", 404, "UNSUPPORTED"),
        ("/v2/app/nothing/x", 404, "UNSUPPORTED"),
        ("/v2/App/manifests/1", 400, "NAME_INVALID"),
        (&format!("/v2/{long}/manifests/1"), 400, "NAME_INVALID"),
        ("/v2/a%2f..%2fb/tags/list", 400, "NAME_INVALID"),
        (&format!("/v2/a%00/blobs/{good}"), 400, "NAME_INVALID"),
        ("/v2/app/manifests/-1", 400, "NAME_INVALID"),
        (
            &format!("/v2/app/manifests/{long_tag}"),
            400,
            "NAME_INVALID",
        ),
        ("/v2/app/manifests/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/latest", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/md5:00", 400, "DIGEST_INVALID"),
        ("/v2/app/referrers/sha256:x", 400, "DIGEST_INVALID"),
        ("/v2/app/tags/list?n=-1", 400, "UNSUPPORTED"),
        ("/v2/_catalog?n=ten", 400, "UNSUPPORTED"),
        (
            &format!("/v2/app/tags/list?last={after}"),
            400,
            "UNSUPPORTED",
        ),
    ] {
        let answer = m.get(path).await;
        answer.refused(status, code);
        assert_eq!(answer.header("content-type"), "application/json");
        answer.has("docker-distribution-api-version", "registry/2.0");
        let head = m.head(path).await;
        assert_eq!((head.status, head.body.len()), (status, 0), "{path}");
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn writes_are_refused_as_writes() {
    let (up, m) = mirrored().await;
    for line in [
        "POST /v2/app/blobs/uploads/",
        "PUT /v2/app/manifests/1",
        "PATCH /v2/app/blobs/uploads/1",
        "DELETE /v2/app/manifests/1",
    ] {
        let answer = m.request(line, &[]).body("a body").send().await.unwrap();
        let answer = crate::harness::read(answer).await;
        answer.refused(405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), "GET, HEAD, OPTIONS");
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn options_and_the_root_are_answered() {
    let headers = "http.headers: {Access-Control-Allow-Origin: ['https://ui.example'], \
                   Access-Control-Allow-Headers: [authorization]}";
    let (up, m) = mirrored_with(&[headers]).await;
    let origin = ("origin", "https://ui.example");
    let asked = [origin, ("access-control-request-method", "GET")];
    let blob = blob_path("app", b"");
    for path in ["/", "/v2/", "/v2/app/manifests/1", &blob] {
        let answer = m.ask(&format!("OPTIONS {path}"), &asked).await;
        answer.expect(200, b"");
        assert_eq!(answer.header("allow"), "GET, HEAD, OPTIONS", "{path}");
        answer.has("access-control-allow-origin", "https://ui.example");
        answer.has("access-control-allow-headers", "authorization");
    }
    let star = b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let star = raw(&m, star).await;
    assert!(star.starts_with("HTTP/1.1 200 OK\r\n"), "{star}");
    assert_eq!(m.ask("OPTIONS /elsewhere", &[]).await.status, 404);
    m.serves("/", b"").await;
    assert_eq!(m.head("/").await.status, 200);
    let below = Setup::new(&up).with(&["http.prefix: /some/"]).start().await;
    for path in ["/", "/some/"] {
        below.get(path).await.expect(200, b"");
    }
    assert_eq!(up.count(""), 0);
}

#[tokio::test]
async fn every_answer_says_where_it_came_from() {
    let (up, m) = mirrored().await;
    let from = async |line: &str| {
        let answer = m.ask(line, &[]).await;
        answer.source().to_owned()
    };
    let missing = digest(b"missing");
    for (line, expected) in [
        ("GET /v2/", "detail=generated"),
        ("OPTIONS /v2/", "detail=generated"),
        ("GET /v2/_catalog", "hit"),
        ("GET /v2/App/tags/list", "detail=refused"),
        ("GET /v2/app/nothing", "detail=refused"),
        ("PUT /v2/app/manifests/1", "detail=refused"),
        ("GET /v2/app/manifests/1?ns=other.example", "detail=failed"),
        ("GET /v2/app/manifests/1", "fwd=miss; fwd-status=404"),
    ] {
        assert_eq!(from(line).await, expected, "{line}");
    }
    for line in [
        format!("GET /v2/app/manifests/{missing}"),
        format!("GET /v2/app/blobs/{missing}"),
    ] {
        assert_eq!(from(&line).await, "fwd=uri-miss; fwd-status=404", "{line}");
        let again = line.replace("GET ", "HEAD ");
        assert_eq!(from(&again).await, "hit; detail=negative", "{again}");
    }
    let image = Image::oci(1);
    let digest = up.push("app", "1", &image);
    for line in [
        format!("HEAD /v2/app/manifests/{digest}"),
        format!("HEAD {}", blob_path("app", &image.layers[0])),
    ] {
        assert_eq!(from(&line).await, "fwd=uri-miss; fwd-status=200", "{line}");
    }
    let by_tag = "GET /v2/app/manifests/1";
    assert_eq!(from(by_tag).await, "fwd=miss; fwd-status=200; stored");
    assert_eq!(from(by_tag).await, "hit");
    let tags = serde_json::json!({"name": "app", "tags": ["1"]});
    up.reply("/tags/list", 1, Reply::json(&tags));
    let source = from("GET /v2/app/tags/list").await;
    assert_eq!(source, "fwd=miss; fwd-status=200");
    up.reply("", ALWAYS, Reply::hang_up());
    let source = from("GET /v2/app/manifests/2").await;
    assert_eq!(source, "fwd=miss; detail=no-usable-response");
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let (_up, m) = mirrored().await;
    for second in ["x", "y"] {
        let request =
            format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nHost: {second}\r\nConnection: close\r\n\r\n");
        let answer = raw(&m, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("UNSUPPORTED"), "{answer}");
    }
}

/// Sends raw bytes on a connection of their own, and reads what comes until it is closed.
async fn raw(m: &Mirror, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(m.address()).await.unwrap();
    // The server may close before it has read everything.
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn malformed_requests_cost_their_connection_and_nothing_else() {
    let (_up, m) = mirrored().await;
    let x = "x".repeat(200_000);
    let huge = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {x}\r\n\r\n");
    let headers = "A: b\r\n".repeat(5_000);
    let many = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let long = format!("GET /v2/{x}/tags/list HTTP/1.1\r\nHost: x\r\n\r\n");
    for (bytes, statuses) in [
        (huge.as_str(), "431"),
        (&many, "431"),
        (&long, "414 431"),
        ("GET\r\n\r\n", "400"),
        ("\0\0\0\0\r\n\r\n", "400"),
        ("GET /v2/ HTTP/9.9\r\n\r\n", "400"),
        ("GET /v2/\u{1}x HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        ("GET /v2/ HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        ("GET /v2/ HTTP/1.1\r\nContent-Length: x\r\n\r\n", "400"),
    ] {
        let answer = raw(&m, bytes.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or("none");
        let shown: String = bytes.chars().take(40).collect();
        assert!(statuses.contains(status), "{shown:?}: {answer:?}");
        m.serves("/v2/", b"{}").await;
    }
}

#[tokio::test]
async fn a_request_in_absolute_form_and_one_without_host_are_answered() {
    let (_up, m) = mirrored().await;
    for request in [
        "GET http://mirror.example/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /v2/ HTTP/1.0\r\n\r\n",
    ] {
        let answer = raw(&m, request.as_bytes()).await;
        let right = answer.contains(" 200 ") && answer.ends_with("\r\n\r\n{}");
        assert!(right, "{answer}");
    }
}
