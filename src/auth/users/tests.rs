use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::*;
use crate::config::{Auth, OidcIssuer};

/// Remembers nothing.
#[derive(Debug, Default)]
struct Failures;

impl AuthFailureLog for Failures {
    fn failed(&self, _: &AuthFailure<'_>) {}
}

const START: u64 = 1_000_000;

fn users(htpasswd: Option<PathBuf>) -> Users {
    let issuer = OidcIssuer {
        issuer: "https://i.example".to_owned(),
        audience: "mirror".to_owned(),
        algorithms: vec!["ES256".to_owned()],
        user: "sub".to_owned(),
        groups: None,
        required: BTreeMap::new(),
        ca: None,
    };
    let config = Auth {
        htpasswd,
        token: None,
        certificates: Vec::new(),
        oidc: vec![issuer],
        networks: Vec::new(),
        groups: BTreeMap::new(),
        key: None,
        token_ttl: Duration::from_mins(5),
    };
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(START);
    Users::open(AuthenticatorOptions {
        config,
        origin: None,
        prefix: String::new(),
        trusted_proxies: Vec::new(),
        key: None,
        logins: None,
        failures: Arc::<Failures>::default(),
        clock: Clock::starting_at(wall),
        metrics: Arc::default(),
    })
    .unwrap()
}

/// What the token service answers to a password, for a pull.
async fn token(users: &Users, user: &str, password: &str) -> Result<Claims, AuthError> {
    let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, basic.parse().unwrap());
    let presented = Presented {
        headers: &headers,
        address: None,
        certificate: None,
        secure: false,
        authority: None,
    };
    let request = TokenRequest {
        upstream: None,
        scopes: vec!["repository:a/b:pull".to_owned()],
        grant: None,
    };
    let document = users.token(&presented, None, &request).await?;
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let sealed = document["token"].as_str().unwrap();
    let claims = users.sealer().open(sealed, START).unwrap();
    assert_eq!(document["expires_in"], claims.expires - claims.issued);
    Ok(claims)
}

#[tokio::test(start_paused = true)]
async fn an_identity_tokens_end_is_that_of_the_token_made_of_it() {
    let users = users(None);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"iss": "https://i.example"}"#);
    for (index, (expires, expected)) in [(10, 10), (1000, 300)].into_iter().enumerate() {
        let (name, groups) = ("job".to_owned(), Vec::new());
        let identity_token = format!("ey.{claims}.{index}");
        let identity = User { name, groups }.into();
        users.remember(
            &identity_token,
            identity,
            START + expires,
            users.generation(),
        );
        let claims = token(&users, "any", &identity_token).await.unwrap();
        assert_eq!(claims.user.as_deref(), Some("job"));
        assert_eq!(claims.expires, START + expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_user_costs_as_much_as_an_unknown_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("htpasswd");
    let line = format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap());
    std::fs::write(&path, line).unwrap();
    let users = users(Some(path));
    for _ in 0..6 {
        let claims = token(&users, "alice", "wrong").await.unwrap();
        assert_eq!(claims.user, None);
    }
    let key = Throttle::key(None, "alice");
    let next = Attempt::new(&users.throttle, key, false).check();
    assert!(matches!(next, Err(AuthError::Throttled(_))), "{next:?}");
    // While no hash can be computed, neither gets an answer.
    let _held = users.htpasswd.as_ref().unwrap().hold_all().await;
    for user in ["alice", "bob"] {
        let refused = token(&users, user, "wrong").await;
        assert!(
            matches!(refused, Err(AuthError::Busy)),
            "{user}: {refused:?}"
        );
    }
}

#[test]
fn a_token_ends_with_the_identity_token_that_it_is_issued_for() {
    let ttl = Duration::from_mins(5);
    for (until, expected) in [(u64::MAX, 300), (1301, 300), (1010, 10), (1000, 0), (1, 0)] {
        assert_eq!(lifetime(ttl, 1000, until), expected, "until {until}");
    }
}
