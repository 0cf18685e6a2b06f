//! Tokens, credentials, and where they must not go.

use futures_util::future::join_all;

use crate::harness::{ALWAYS, Image, Registry, Reply, Setup, noise};

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let up = Registry::start().await;
    up.protect(None);
    let image = Image::oci(1);
    up.push("app", "1", &image);
    let m = Setup::new(&up).start().await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    for blob in image.blobs() {
        let path = format!("/v2/app/blobs/{}", crate::harness::digest(blob));
        m.get(&path).await.expect(200, blob);
    }
    let tokens = up.seen("GET /token");
    assert_eq!(tokens.len(), 1);
    assert!(tokens[0].line.contains("service=scripted"), "{tokens:?}");
    assert!(
        tokens[0].line.contains("scope=repository%3Aapp%3Apull"),
        "{tokens:?}"
    );
    assert_eq!(tokens[0].header("authorization"), None);
}

#[tokio::test]
async fn many_cold_clients_cost_one_token() {
    let up = Registry::start().await;
    up.protect(None);
    let blobs: Vec<_> = (0..20).map(|seed| noise(seed, 1000)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| up.put_blob("app", blob)).collect();
    let m = Setup::new(&up).start().await;
    let paths: Vec<_> = digests
        .iter()
        .map(|digest| format!("/v2/app/blobs/{digest}"))
        .collect();
    let answers = join_all(paths.iter().map(|path| m.get(path))).await;
    for (answer, blob) in answers.iter().zip(&blobs) {
        answer.expect(200, blob);
    }
    assert_eq!(up.count("GET /token"), 1);
}

#[tokio::test]
async fn credentials_go_to_the_token_service_and_clients_need_none() {
    let up = Registry::start().await;
    up.protect(Some(("user", "s3cret")));
    let image = Image::oci(1);
    up.push("app", "1", &image);
    let m = Setup::new(&up)
        .proxy("username: user")
        .proxy("password: s3cret")
        .start()
        .await;
    let line = "GET /v2/app/manifests/1";
    let own = [("authorization", "Basic aHVibzpodWJv")];
    m.ask(line, &own).await.expect(200, &image.manifest);
    let basic: Vec<_> = up
        .seen("")
        .into_iter()
        .filter(|seen| {
            seen.header("authorization")
                .is_some_and(|value| value.starts_with("Basic"))
        })
        .collect();
    assert!(
        basic.iter().all(|seen| seen.line.starts_with("GET /token")),
        "{basic:?}"
    );
    assert_eq!(basic.len(), 1);
    let given = basic[0].header("authorization").unwrap();
    assert_eq!(given, "Basic dXNlcjpzM2NyZXQ=", "ours, never the client's");
}

#[tokio::test]
async fn wrong_credentials_are_a_401_without_a_challenge() {
    let up = Registry::start().await;
    up.protect(Some(("user", "s3cret")));
    up.push("app", "1", &Image::oci(1));
    let m = Setup::new(&up)
        .proxy("username: user")
        .proxy("password: wrong")
        .start()
        .await;
    let answer = m.get("/v2/app/manifests/1").await;
    assert_eq!(answer.error(), (401, "UNAUTHORIZED".to_owned()));
    assert_eq!(answer.header("www-authenticate"), "");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(
        !text.contains("wrong") && !text.contains("d3Jvbmc"),
        "{text}"
    );
}

#[tokio::test]
async fn basic_challenges_are_answered() {
    let up = Registry::start().await;
    let image = Image::oci(1);
    up.push("app", "1", &image);
    up.on("/v2/", ALWAYS, |seen, usual| {
        if seen.header("authorization") == Some("Basic dXNlcjpzM2NyZXQ=") {
            return usual;
        }
        Reply::error(401).with("WWW-Authenticate", "Basic realm=\"scripted\"")
    });
    let m = Setup::new(&up)
        .proxy("username: user")
        .proxy("password: s3cret")
        .start()
        .await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
}

#[tokio::test]
async fn a_redirect_to_another_host_goes_without_credentials() {
    let up = Registry::start().await;
    let cdn = Registry::at("127.0.0.2").await;
    up.protect(None);
    let blob = noise(1, 100_000);
    let digest = up.put_blob("app", &blob);
    cdn.put_blob("app", &blob);
    let target = format!("{}/v2/app/blobs/{digest}?signature=s3cret", cdn.url());
    up.on("/blobs/", ALWAYS, move |seen, usual| {
        let welcome = seen.header("authorization").is_some();
        if welcome {
            Reply::redirect(&target)
        } else {
            usual
        }
    });
    let m = Setup::new(&up).start().await;
    let path = format!("/v2/app/blobs/{digest}");
    let head = m.head(&path).await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, "100000")
    );
    m.get(&path).await.expect(200, &blob);
    let seen = cdn.seen("");
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert!(seen.line.ends_with("?signature=s3cret"));
        assert_eq!(seen.header("authorization"), None);
    }
}

#[tokio::test]
async fn another_port_is_another_host_too_and_its_refusal_is_not_the_upstreams() {
    let up = Registry::start().await;
    let cdn = Registry::start().await;
    up.protect(None);
    let blob = noise(1, 1000);
    let digest = up.put_blob("app", &blob);
    cdn.reply("", ALWAYS, Reply::error(403));
    let target = format!("{}/expired", cdn.url());
    up.on("/blobs/", ALWAYS, move |seen, usual| {
        let welcome = seen.header("authorization").is_some();
        if welcome {
            Reply::redirect(&target)
        } else {
            usual
        }
    });
    let m = Setup::new(&up).start().await;
    let answer = m.get(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(answer.error(), (502, "UNKNOWN".to_owned()));
    assert_eq!(cdn.seen("")[0].header("authorization"), None);
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let up = Registry::start().await;
    let digest = up.put_blob("app", &noise(1, 1000));
    let path = format!("/v2/app/blobs/{digest}");
    up.reply("", ALWAYS, Reply::redirect(&path));
    let m = Setup::new(&up).start().await;
    assert_eq!(m.get(&path).await.error(), (502, "UNKNOWN".to_owned()));
    assert_eq!(up.count("GET "), 6);
}

#[tokio::test]
async fn a_client_learns_no_address_that_an_upstream_may_not_lead_to() {
    let up = Registry::start().await;
    let digest = up.put_blob("app", &noise(1, 1000));
    up.on("/blobs/", ALWAYS, |_, _| {
        Reply::redirect("http://169.254.169.254/latest/meta-data")
    });
    let m = Setup::new(&up).start().await;
    let path = format!("/v2/app/blobs/{digest}");
    let range = [("range", "bytes=0-9")];
    for answer in [
        m.get(&path).await,
        m.ask(&format!("GET {path}"), &range).await,
    ] {
        assert_eq!(answer.error(), (502, "UNKNOWN".to_owned()));
        let told = format!("{answer:?}");
        assert!(!told.contains("169.254"), "{told}");
    }
}
