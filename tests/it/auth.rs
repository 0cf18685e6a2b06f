//! Tokens, credentials, and where they must not go.

use futures_util::future::join_all;

use crate::harness::{
    ALWAYS, Image, Registry, Reply, blob_path, mirrored, mirrored_with, put_blob, put_image,
};

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let (up, m) = mirrored().await;
    up.protect(None);
    let (image, _) = put_image(&up, 1);
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    for blob in image.blobs() {
        m.serves(&blob_path("app", blob), blob).await;
    }
    let tokens = up.seen("GET /token");
    assert_eq!(tokens.len(), 1);
    for part in ["service=scripted", "scope=repository%3Aapp%3Apull"] {
        assert!(tokens[0].line.contains(part), "{tokens:?}");
    }
    assert_eq!(tokens[0].header("authorization"), None);
}

#[tokio::test]
async fn many_cold_clients_cost_one_token() {
    let (up, m) = mirrored().await;
    up.protect(None);
    let blobs: Vec<_> = (0..20).map(|seed| put_blob(&up, seed, 1000)).collect();
    join_all(blobs.iter().map(|(blob, path)| m.serves(path, blob))).await;
    assert_eq!(up.count("GET /token"), 1);
}

#[tokio::test]
async fn credentials_go_to_the_token_service_and_clients_need_none() {
    let (up, m) = mirrored_with(&["proxy.username: user", "proxy.password: s3cret"]).await;
    up.protect(Some(("user", "s3cret")));
    let (image, _) = put_image(&up, 1);
    let line = "GET /v2/app/manifests/1";
    let own = [("authorization", "Basic aHVibzpodWJv")];
    m.ask(line, &own).await.expect(200, &image.manifest);
    let mut basic = up.seen("");
    basic.retain(|seen| {
        let value = seen.header("authorization");
        value.is_some_and(|value| value.starts_with("Basic"))
    });
    assert_eq!(basic.len(), 1, "{basic:?}");
    assert!(basic[0].line.starts_with("GET /token"), "{basic:?}");
    let given = basic[0].header("authorization").unwrap();
    assert_eq!(given, "Basic dXNlcjpzM2NyZXQ=", "ours, never the client's");
}

#[tokio::test]
async fn wrong_credentials_are_a_401_without_a_challenge() {
    let (up, m) = mirrored_with(&["proxy.username: user", "proxy.password: wrong"]).await;
    up.protect(Some(("user", "s3cret")));
    up.push("app", "1", &Image::oci(1));
    let answer = m.get("/v2/app/manifests/1").await;
    answer.refused(401, "UNAUTHORIZED");
    assert_eq!(answer.header("www-authenticate"), "");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let secret = text.contains("wrong") || text.contains("d3Jvbmc");
    assert!(!secret, "{text}");
}

#[tokio::test]
async fn basic_challenges_are_answered() {
    let (up, m) = mirrored_with(&["proxy.username: user", "proxy.password: s3cret"]).await;
    let (image, _) = put_image(&up, 1);
    up.on("/v2/", ALWAYS, |seen, usual| {
        if seen.header("authorization") == Some("Basic dXNlcjpzM2NyZXQ=") {
            return usual;
        }
        Reply::error(401).with("WWW-Authenticate", "Basic realm=\"scripted\"")
    });
    m.serves("/v2/app/manifests/1", &image.manifest).await;
}

/// Redirects requests for blobs that have a token.
fn redirect(up: &Registry, target: String) {
    up.protect(None);
    up.on("/blobs/", ALWAYS, move |seen, usual| {
        match seen.header("authorization") {
            Some(_) => Reply::redirect(&target),
            None => usual,
        }
    });
}

#[tokio::test]
async fn a_redirect_to_another_host_is_followed_without_credentials() {
    let (up, m) = mirrored().await;
    let cdn = Registry::at("127.0.0.2").await;
    let (blob, path) = put_blob(&up, 1, 100_000);
    cdn.put_blob("app", &blob);
    redirect(&up, format!("{}{path}?signature=s3cret", cdn.url()));
    let head = m.head(&path).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), "100000");
    m.serves(&path, &blob).await;
    let seen = cdn.seen("");
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert!(seen.line.ends_with("?signature=s3cret"));
        assert_eq!(seen.header("authorization"), None);
    }
}

#[tokio::test]
async fn another_port_is_another_host_and_its_403_is_not_the_upstreams() {
    let (up, m) = mirrored().await;
    let cdn = Registry::start().await;
    let (_, path) = put_blob(&up, 1, 1000);
    cdn.reply("", ALWAYS, Reply::error(403));
    redirect(&up, format!("{}/expired", cdn.url()));
    m.get(&path).await.refused(502, "UNKNOWN");
    assert_eq!(cdn.seen("")[0].header("authorization"), None);
}

#[tokio::test]
async fn endless_redirects_are_given_up() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, 1000);
    up.reply("", ALWAYS, Reply::redirect(&path));
    m.get(&path).await.refused(502, "UNKNOWN");
    assert_eq!(up.count("GET "), 6);
}

#[tokio::test]
async fn a_client_learns_no_address_that_an_upstream_may_not_lead_to() {
    let (up, m) = mirrored().await;
    let (_, path) = put_blob(&up, 1, 1000);
    let forbidden = Reply::redirect("http://169.254.169.254/latest/meta-data");
    up.reply("/blobs/", ALWAYS, forbidden);
    for answer in [m.get(&path).await, m.range(&path, "bytes=0-9").await] {
        answer.refused(502, "UNKNOWN");
        let told = format!("{answer:?}");
        assert!(!told.contains("169.254"), "{told}");
    }
}
