//! Identity tokens: a CI job logs in with the token that its own system gave it.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::harness::{Mirror, Registry, Setup, advance, put_image};

/// The wall time at the start of each test (seconds since 1970).
const NOW: u64 = 500_000 * 3600;

/// An issuer: its addresses are served by a scripted server, and its key changes.
pub(crate) struct Issuer {
    pub(crate) server: Registry,
    key: EcdsaKeyPair,
    kid: &'static str,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let server = Registry::start().await;
        let url = server.url();
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        server.put_json("/.well-known/openid-configuration", &discovery);
        let mut issuer = Self {
            server,
            key: generate(),
            kid: "",
        };
        issuer.rotate("one");
        issuer
    }

    fn rotate(&mut self, kid: &'static str) {
        (self.key, self.kid) = (generate(), kid);
        self.server.put_json("/keys", &self.keys());
    }

    /// The public key (RFC 7517).
    pub(crate) fn keys(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let kid = self.kid;
        let key = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256"});
        json!({"keys": [key]})
    }

    /// A good token with some claims changed.
    pub(crate) fn token(&self, changes: &Value) -> String {
        let mut claims = json!({
            "iss": self.server.url(), "aud": "mirror", "sub": "repo:acme/app", "exp": NOW + 600,
            "repository_owner": "acme", "teams": ["ci"],
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "kid": self.kid})),
            part(&claims)
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn generate() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

async fn mirror(issuer: &Issuer) -> (Registry, Mirror) {
    let up = Registry::start().await;
    let oidc = format!(
        "auth.oidc: [{{issuer: '{}', audience: mirror, groups: teams, required: {{repository_owner: acme}}}}]",
        issuer.server.url()
    );
    let m = Setup::new(&up).with(&[&oidc]).start().await;
    (up, m)
}

async fn status(m: &Mirror, authorization: &str) -> u16 {
    m.ask("GET /v2/", &[("authorization", authorization)])
        .await
        .status
}

#[tokio::test(start_paused = true)]
async fn a_job_pulls_with_its_identity_token() {
    let issuer = Issuer::start().await;
    let (up, m) = mirror(&issuer).await;
    let (image, _) = put_image(&up, 1);
    let token = issuer.token(&json!({}));
    assert_eq!(status(&m, &format!("Bearer {token}")).await, 200);
    // docker login -u anything: the token is the password, and is exchanged for one of ours.
    let basic = format!("Basic {}", STANDARD.encode(format!("job:{token}")));
    let answer = m.ask("GET /token", &[("authorization", &basic)]).await;
    let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
    let pulled = m
        .ask("GET /v2/app/manifests/1", &[("authorization", &bearer)])
        .await;
    pulled.expect(200, &image.manifest);
    assert_eq!(issuer.server.count("GET /keys"), 1);
}

#[tokio::test(start_paused = true)]
async fn bad_identity_tokens_are_refused() {
    let issuer = Issuer::start().await;
    let (_up, m) = mirror(&issuer).await;
    for changes in [
        json!({"aud": "other"}),
        json!({"exp": NOW - 60}),
        json!({"nbf": NOW + 61}),
        json!({"sub": ""}),
        json!({"sub": null}),
        json!({"repository_owner": "evil"}),
        json!({"repository_owner": null}),
        json!({"iss": "https://other.example"}),
    ] {
        let token = issuer.token(&changes);
        assert_eq!(
            status(&m, &format!("Bearer {token}")).await,
            401,
            "{changes}"
        );
    }
    let other = Issuer::start().await;
    let forged = other.token(&json!({"iss": issuer.server.url()}));
    assert_eq!(status(&m, &format!("Bearer {forged}")).await, 401);
}

#[tokio::test(start_paused = true)]
async fn changed_keys_are_fetched_at_most_every_half_minute() {
    let mut issuer = Issuer::start().await;
    let (_up, m) = mirror(&issuer).await;
    let old = issuer.token(&json!({}));
    assert_eq!(status(&m, &format!("Bearer {old}")).await, 200);
    issuer.rotate("two");
    let new = format!("Bearer {}", issuer.token(&json!({})));
    for _ in 0..3 {
        assert_eq!(status(&m, &new).await, 401);
    }
    assert_eq!(issuer.server.count("GET /keys"), 1);
    advance(Duration::from_secs(30)).await;
    assert_eq!(status(&m, &new).await, 200);
    assert_eq!(issuer.server.count("GET /keys"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_is_no_refusal() {
    let issuer = Issuer::start().await;
    let (_up, m) = mirror(&issuer).await;
    issuer.server.go_down();
    let token = format!("Bearer {}", issuer.token(&json!({})));
    assert_eq!(status(&m, &token).await, 502);
    issuer.server.behave();
    advance(Duration::from_secs(30)).await;
    assert_eq!(status(&m, &token).await, 200);
}
