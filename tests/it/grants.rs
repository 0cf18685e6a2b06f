//! What the token of an external token service permits.

use millpond::renewal::INTERVAL;
use serde_json::json;

use crate::harness::{Registry, Setup, advance, put_image};
use crate::oidc::Issuer;

#[tokio::test(start_paused = true)]
async fn a_grant_is_for_one_repository_of_one_upstream() {
    let issuer = Issuer::start().await;
    let files = tempfile::tempdir().unwrap();
    let jwks = files.path().join("jwks.json");
    std::fs::write(&jwks, issuer.keys().to_string()).unwrap();
    let (up, other) = (Registry::start().await, Registry::start().await);
    let (image, _) = put_image(&up, 1);
    let (others, _) = put_image(&other, 2);
    let token = format!(
        "auth.token: {{realm: 'https://auth.example/token', service: mirror, issuer: '{}', jwks: '{}'}}",
        issuer.server.url(),
        jwks.display()
    );
    let setup = Setup::new(&up).upstream("other.example", &other, "");
    let m = setup.with(&[&token]).start().await;
    let bearer = |repository: &str| {
        let access = json!([{"type": "repository", "name": repository, "actions": ["pull"]}]);
        format!("Bearer {}", issuer.token(&json!({"access": access})))
    };
    let of_default = bearer("app");
    let authorized = [("authorization", of_default.as_str())];
    m.ask("GET /v2/app/manifests/1", &authorized)
        .await
        .expect(200, &image.manifest);
    // However the client selects the other upstream.
    let by_host = [authorized[0], ("host", "other.example")];
    for (path, headers) in [
        ("/v2/app/manifests/1?ns=other.example", &authorized[..]),
        ("/v2/app/manifests/1", &by_host[..]),
        ("/v2/other.example/app/manifests/1", &authorized[..]),
    ] {
        let refused = m.ask(&format!("GET {path}"), headers).await;
        assert_eq!(refused.status, 401, "{path}");
        let challenge = refused.header("www-authenticate");
        let scope = "scope=\"repository:other.example/app:pull\"";
        assert!(challenge.contains(scope), "{path}: {challenge}");
    }
    assert_eq!(other.count(""), 0);
    let of_other = bearer("other.example/app");
    let authorized = [("authorization", of_other.as_str())];
    m.ask("GET /v2/app/manifests/1?ns=other.example", &authorized)
        .await
        .expect(200, &others.manifest);
}

#[tokio::test(start_paused = true)]
async fn changed_keys_of_a_token_service_are_in_use_without_a_restart() {
    let (issuer, next) = (Issuer::start().await, Issuer::start().await);
    let files = tempfile::tempdir().unwrap();
    let jwks = files.path().join("jwks.json");
    std::fs::write(&jwks, issuer.keys().to_string()).unwrap();
    let up = Registry::start().await;
    put_image(&up, 1);
    let token = format!(
        "auth.token: {{realm: 'https://auth.example/token', service: mirror, issuer: '{}', jwks: '{}'}}",
        issuer.server.url(),
        jwks.display()
    );
    let m = Setup::new(&up).with(&[&token]).start().await;
    let access = json!([{"type": "repository", "name": "app", "actions": ["pull"]}]);
    let bearer = |signer: &Issuer| {
        let claims = json!({"access": access, "iss": issuer.server.url()});
        format!("Bearer {}", signer.token(&claims))
    };
    let (old, new) = (bearer(&issuer), bearer(&next));
    let statuses = async || {
        let mut statuses = Vec::new();
        for token in [&old, &new] {
            let headers = [("authorization", token.as_str())];
            let answer = m.ask("GET /v2/app/manifests/1", &headers).await;
            statuses.push(answer.status);
        }
        statuses
    };
    let becomes = async |content: &str, expected: [u16; 2]| {
        std::fs::write(&jwks, content).unwrap();
        for _ in 0..10 {
            advance(INTERVAL).await;
            if statuses().await == expected {
                return true;
            }
        }
        false
    };
    assert_eq!(statuses().await, [200, 401]);
    assert!(
        becomes("{broken", [200, 401]).await,
        "the keys before stay in use"
    );
    // Also where a token's verification is remembered.
    assert!(becomes(&next.keys().to_string(), [401, 200]).await);
}
