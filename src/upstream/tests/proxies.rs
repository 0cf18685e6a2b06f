//! Forward proxies: what they see. A proxy is a scripted registry that gets the requests for others.

use super::*;
use crate::config::{ForwardProxy, ProxyUrl};

const BASIC: &str = "Basic dXNlcjpwYXNz";

/// A client that reaches `url` through a proxy, which has an account if one is given.
fn through(proxy: &Server, account: &str, url: &str) -> config::Upstream {
    let mut config = config(url);
    let url = format!("http://{account}{}", proxy.address);
    config.proxy = ForwardProxy::Url(ProxyUrl::parse(&url).unwrap());
    config.credentials = Some(credentials("user", "pass"));
    config
}

/// A registry, or a proxy in front of one, that wants Basic credentials.
async fn basic() -> Server {
    Server::scripted(|seen| match seen.header("authorization") {
        Some(BASIC) => Reply::ok(MANIFEST),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=r"),
    })
    .await
}

#[tokio::test]
async fn credentials_do_not_pass_through_a_proxy_in_the_clear() {
    let proxy = basic().await;
    let config = through(&proxy, "", "http://localhost:1");
    let error = get_tag(&connect(config.clone())).await.unwrap_err();
    assert_eq!(error.class(), "no_credentials", "{error}");
    assert!(error.to_string().contains("plainhttp"), "{error}");
    let line = "GET http://localhost:1/v2/library/app/manifests/latest";
    assert_eq!(proxy.lines(), [line]);
    assert_eq!(proxy.seen("")[0].header("authorization"), None);

    // Nor where they aren't required; then the answer is that to a request without.
    let mut optional = config.clone();
    optional.credentials_required = false;
    let error = get_tag(&connect(optional)).await.unwrap_err();
    assert_eq!(error.class(), "unauthorized", "{error}");
    assert_eq!(proxy.seen("")[1].header("authorization"), None);

    let mut permitted = config;
    permitted.plain_http = true;
    get_tag(&connect(permitted)).await.unwrap();
}

#[tokio::test]
async fn no_token_is_asked_for_through_a_proxy_in_the_clear() {
    // The proxy answers for the registry and for its token service.
    let proxy = Server::scripted(|seen| {
        if seen.line.contains("/token") {
            return Reply::ok(r#"{"token":"t1"}"#);
        }
        let challenge = "Bearer realm=\"http://localhost:1/token\"";
        Reply::new(401, "").with("WWW-Authenticate", challenge)
    })
    .await;
    let config = through(&proxy, "", "http://localhost:1");
    let error = get_tag(&connect(config)).await.unwrap_err();
    assert_eq!(error.class(), "no_credentials", "{error}");
    assert_eq!(proxy.count(""), 1);
}

#[tokio::test(start_paused = true)]
async fn an_https_upstream_is_reached_through_a_tunnel() {
    let _frozen = freeze();
    let proxy = replying(Reply::new(403, "")).await;
    let config = through(&proxy, "me:hunter2@", "https://registry.example");
    let error = passing(get_tag(&connect(config))).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unreachable(_)), "{error}");
    let seen = proxy.seen("");
    assert!(!seen.is_empty());
    for seen in seen {
        assert_eq!(seen.line, "CONNECT registry.example:443");
        assert_eq!(seen.header("authorization"), None);
        // Its own account: "me:hunter2".
        let own = seen.header("proxy-authorization");
        assert_eq!(own, Some("Basic bWU6aHVudGVyMg=="));
    }
    let text = crate::error_chain::on_one_line(&error);
    assert!(
        !text.contains("hunter2") && !text.contains("bWU6"),
        "{text}"
    );
}

#[tokio::test]
async fn without_a_proxy_the_upstream_itself_is_asked() {
    let server = basic().await;
    let mut config = config(&server.url());
    config.proxy = ForwardProxy::Direct;
    config.credentials = Some(credentials("user", "pass"));
    get_tag(&connect(config)).await.unwrap();
    assert_eq!(counts(&server), (0, 2));
}
