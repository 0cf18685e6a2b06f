use std::cell::Cell;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::*;
use crate::upstream::Failure;

const SECOND: Duration = Duration::from_secs(1);

fn key() -> TokenKey {
    TokenKey {
        request: Arc::new(TokenRequest {
            realm: Url::parse("https://auth.example/token?keep=1").unwrap(),
            service: Some("registry example".into()),
            scope: "repository:a/b:pull repository:c:pull".into(),
        }),
        account: None,
    }
}

fn token(text: &str, seconds: u64) -> Token {
    let body = format!(r#"{{"token":"{text}","expires_in":{seconds}}}"#);
    Token::parse(body.as_bytes(), Instant::now()).unwrap()
}

fn refused() -> UpstreamError {
    UpstreamError::new(&key().request.realm, Failure::Denied(None))
}

#[test]
fn the_request_is_written_into_the_realms_query() {
    assert_eq!(
        key().request.url().as_str(),
        "https://auth.example/token?keep=1&service=registry+example\
         &scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull"
    );
}

#[test]
fn a_refresh_token_is_sent_in_a_form_of_oauth2() {
    assert_eq!(
        key().request.refresh_form("a&b=+ c"),
        "grant_type=refresh_token&service=registry+example&client_id=millpond\
         &scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull&refresh_token=a%26b%3D%2B+c"
    );
}

#[tokio::test(start_paused = true)]
async fn a_tokens_lifetime_is_bounded_and_other_answers_are_refused() {
    let now = Instant::now();
    for (body, lifetime) in [
        (r#"{"token":"t"}"#, 54),
        (r#"{"access_token":"t","expires_in":300}"#, 270),
        (
            r#"{"token":"","access_token":"t","expires_in":3600,"issued_at":"2001"}"#,
            3570,
        ),
        (r#"{"token":"t","expires_in":99999999999}"#, 24 * 3600 - 30),
        (
            r#"{"token":"t","access_token":null,"expires_in":"soon"}"#,
            54,
        ),
        (r#"{"token":"t","expires_in":-5}"#, 54),
    ] {
        let token = Token::parse(body.as_bytes(), now).unwrap();
        assert_eq!(token.header, "Bearer t");
        assert_eq!(token.renew_at - now, lifetime * SECOND, "{body}");
    }
    let shortest = Token::parse(br#"{"token":"t","expires_in":0}"#, now).unwrap();
    assert_eq!(shortest.renew_at - now, Duration::from_millis(4500));
    let line_break = r#"{"token":"a\nb"}"#;
    for body in [
        "",
        "[]",
        "{}",
        r#"{"token":""}"#,
        line_break,
        r#"{"token":1}"#,
    ] {
        assert!(Token::parse(body.as_bytes(), now).is_none(), "{body}");
    }
    assert!(!format!("{:?}", token("s3cret", 60)).contains("s3cret"));
}

#[tokio::test(start_paused = true)]
async fn requests_refused_with_one_token_share_the_next() {
    let tokens = Tokens::new();
    let asked = Cell::new(0);
    let ask = || async {
        sleep(SECOND).await;
        asked.set(asked.get() + 1);
        Ok(token(&format!("t{}", asked.get()), 300))
    };
    let first = tokens.get(&key(), None, ask).await.unwrap().token;
    let same = key();
    let renewals = (0..20).map(|_| tokens.get(&same, Some(&first.header), ask));
    for grant in join_all(renewals).await {
        let grant = grant.unwrap();
        assert_eq!(grant.token.header, "Bearer t2");
        assert!(grant.fresh);
    }
    // A late request with the old token gets the new one without a request to the token service.
    let late = tokens.get(&key(), Some(&first.header), ask).await.unwrap();
    assert_eq!(late.token.header, "Bearer t2");
    assert!(!late.fresh);
    assert_eq!(asked.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_with_the_waiting_requests_only() {
    let tokens = Tokens::new();
    let asked = Cell::new(0);
    let ask = || async {
        sleep(SECOND).await;
        asked.set(asked.get() + 1);
        Err(refused())
    };
    let same = key();
    let all = join_all((0..20).map(|_| tokens.get(&same, None, ask))).await;
    let mut errors = all.into_iter().map(Result::unwrap_err);
    assert!(errors.all(|error| error.class() == "denied"));
    assert_eq!(asked.get(), 1);
    assert!(tokens.get(&key(), None, ask).await.is_err());
    assert_eq!(asked.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_leaves_the_next_one_to_the_next_in_line() {
    let tokens = Tokens::new();
    let (first, second) = (key(), key());
    let leader = tokens.get(&first, None, std::future::pending);
    let follower = tokens.get(&second, None, || async { Ok(token("second", 60)) });
    let mut follower = std::pin::pin!(follower);
    {
        let mut leader = std::pin::pin!(leader);
        assert!(futures_util::poll!(leader.as_mut()).is_pending());
        assert!(futures_util::poll!(follower.as_mut()).is_pending());
    }
    assert_eq!(follower.await.unwrap().token.header, "Bearer second");
}
