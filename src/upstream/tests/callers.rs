//! Accounts of callers.

use http::HeaderValue;

use super::*;
use crate::config::Authorize;

const ANN: &str = "Basic YW5uOmE=";
const BOB: &str = "Basic Ym9iOmI=";

fn login(header: &'static str) -> Arc<Login> {
    Arc::new(Login::new(HeaderValue::from_static(header)))
}

fn of_callers(url: &str) -> Arc<Upstream> {
    let mut config = config(url);
    config.caller.authorize = Authorize::Caller;
    config.credentials = Some(credentials("ours", "secret"));
    Arc::new(connect(config))
}

#[tokio::test]
async fn a_login_has_one_account_and_nobody_has_one_without_credentials() {
    let upstream = of_callers("https://registry.example");
    let ann = upstream.with_login(Some(&login(ANN)));
    assert!(Arc::ptr_eq(&ann, &upstream.with_login(Some(&login(ANN)))));
    assert_eq!(ann.caller(), upstream.caller_of(Some(&login(ANN))));
    let bob = upstream.with_login(Some(&login(BOB)));
    let nobody = upstream.with_login(None);
    let ids = [ann.caller(), bob.caller(), nobody.caller()];
    assert!(ids.iter().all(Option::is_some));
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
    assert_eq!(nobody.caller(), Some(CallerId::ANONYMOUS));
    let shown = format!("{ann:?} {:?} {:?}", ann.caller(), login(ANN));
    assert!(!shown.contains("YW5u") && !shown.contains("ann"), "{shown}");
    // Another process, or another upstream, has other ids.
    let other = of_callers("https://registry.example");
    assert_ne!(other.caller_of(Some(&login(ANN))), ann.caller());
}

#[tokio::test]
async fn where_callers_share_an_account_logins_mean_nothing() {
    let upstream = Arc::new(connect(config("https://registry.example")));
    let same = upstream.with_login(Some(&login(ANN)));
    assert!(Arc::ptr_eq(&upstream, &same));
    assert_eq!(
        (same.caller(), same.caller_of(Some(&login(ANN)))),
        (None, None)
    );
}

#[tokio::test]
async fn each_account_has_its_own_token() {
    let server = Server::scripted(|seen| {
        let given = seen.header("authorization");
        match given {
            _ if seen.is_token() => {
                let user = given.map_or("nobody", |given| given.trim_start_matches("Basic "));
                Reply::ok(format!(r#"{{"token":"{user}"}}"#))
            }
            Some("Bearer YW5uOmE=") => Reply::ok(MANIFEST),
            _ => Reply::challenge(seen, "repository:library/app:pull"),
        }
    })
    .await;
    let upstream = of_callers(&server.url());
    for _ in 0..2 {
        let ann = upstream.with_login(Some(&login(ANN)));
        get_tag(&ann).await.unwrap();
        for refused in [Some(&login(BOB)), None] {
            let error = get_tag(&upstream.with_login(refused)).await.unwrap_err();
            assert!(matches!(error.failure, Failure::Unauthorized(_)), "{error}");
        }
    }
    let asked = server.seen("/token");
    let of = |header: Option<&str>| {
        let own = asked
            .iter()
            .filter(|seen| seen.header("authorization") == header);
        own.count()
    };
    assert_eq!(of(Some(ANN)), 1);
    assert!(of(Some(BOB)) > 0 && of(None) > 0);
    assert_eq!(
        of(Some("Basic b3VyczpzZWNyZXQ=")),
        0,
        "the configured account"
    );
}

#[tokio::test]
async fn a_refused_login_is_the_callers_and_not_the_mirrors() {
    let server = Server::scripted(|seen| match seen.header("authorization") {
        Some(_) => Reply::error(401),
        None => Reply::error(401).with("WWW-Authenticate", "Basic realm=\"r\""),
    })
    .await;
    let ann = of_callers(&server.url()).with_login(Some(&login(ANN)));
    let error = get_tag(&ann).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unauthorized(_)), "{error}");
}
