//! Where an upstream may lead. All servers are on the loopback interface, so an upstream at a public
//! address is one that has once been seen there.

use super::*;

const SECRET: &str = "secret of an internal service";

/// A client that takes the server for one at an address of this kind.
fn seen_at(server: &Server, network: Network, redirects: &[&str]) -> Upstream {
    let mut config = config(&server.url());
    config.redirects = redirects.iter().map(|host| host.parse().unwrap()).collect();
    let upstream = connect(config);
    upstream
        .endpoints
        .first
        .transport
        .guard
        .narrow(network.reach());
    upstream
}

/// URLs of a server by its address and by names and spellings of it.
fn spellings(server: &Server) -> [String; 4] {
    let port = server.address.port();
    ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"]
        .map(|host| format!("http://{host}:{port}/secret"))
}

async fn redirecting(target: &str) -> Server {
    replying(Reply::redirect(target)).await
}

#[tokio::test]
async fn a_redirect_to_an_internal_address_is_not_followed() {
    let internal = replying(Reply::new(206, SECRET)).await;
    for target in spellings(&internal) {
        for network in [Network::Public, Network::Private, Network::LinkLocal] {
            let registry = redirecting(&target).await;
            let upstream = seen_at(&registry, network, &["unrelated.example"]);
            let digest = digest_of("x");
            let range = upstream
                .get_blob(&repo(), &digest, 0, Some(10), &Arc::default())
                .await;
            let error = range.unwrap_err();
            assert_eq!(error.class(), "protocol", "{target}: {error}");
            assert!(!error.is_transient());
            let text = error.to_string();
            assert!(text.contains("loopback address"), "{text}");
            assert!(text.contains("add `redirects: [\""), "{text}");
            let head = upstream.head_blob(&repo(), &digest).await;
            assert_eq!(head.unwrap_err().class(), "protocol");
        }
    }
    assert!(internal.lines().is_empty());
}

#[tokio::test]
async fn a_token_service_at_an_internal_address_is_not_asked() {
    let internal = replying(Reply::ok(r#"{"token":"t"}"#)).await;
    for target in spellings(&internal) {
        let challenge = format!("Bearer realm=\"{target}\"");
        let registry = replying(Reply::new(401, "").with("WWW-Authenticate", challenge)).await;
        let upstream = seen_at(&registry, Network::Public, &[]);
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
    }
    assert!(internal.lines().is_empty());
}

#[tokio::test]
async fn redirects_to_hosts_that_the_operator_configured_are_followed() {
    let internal = replying(Reply::ok(MANIFEST)).await;
    for target in spellings(&internal) {
        let url = Url::parse(&target).unwrap();
        let registry = redirecting(&target).await;
        let upstream = seen_at(&registry, Network::Public, &[url.host_str().unwrap()]);
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(internal.lines().len(), 4);
}

#[tokio::test]
async fn an_upstream_on_this_machine_may_redirect_to_this_machine() {
    let other = replying(Reply::ok(MANIFEST)).await;
    for target in spellings(&other) {
        let registry = redirecting(&target).await;
        get_tag(&client(&registry)).await.unwrap();
    }
    assert_eq!(other.lines().len(), 4);
    let metadata = redirecting("http://169.254.169.254/latest").await;
    let error = get_tag(&client(&metadata)).await.unwrap_err();
    assert_eq!(error.class(), "protocol", "{error}");
}
