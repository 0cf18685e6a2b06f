use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::future::join_all;

use super::*;

const SCOPE: &str = "repository:library/app:pull";
const TOKEN: &str = r#"{"token":"t1","expires_in":300}"#;
const BASIC: &str = "Basic dXNlcjpwYXNz";
const PULL: &str = "scope=repository%3Alibrary%2Fapp%3Apull";

fn with_credentials(server: &Server) -> Upstream {
    let mut config = config(&server.url());
    config.credentials = Some(credentials("user", "pass"));
    connect(config)
}

/// A registry that wants `Bearer t1`, and its token service.
fn guarded(seen: &Seen) -> Reply {
    guarded_by(seen, |seen| Reply::challenge(seen, SCOPE))
}

/// The same with another challenge.
fn guarded_by(seen: &Seen, challenge: impl Fn(&Seen) -> Reply) -> Reply {
    if seen.is_token() {
        Reply::ok(TOKEN)
    } else if seen.header("authorization") == Some("Bearer t1") {
        Reply::ok(MANIFEST)
    } else {
        challenge(seen)
    }
}

fn unauthorized(challenge: &str) -> Reply {
    Reply::new(401, "").with("WWW-Authenticate", challenge)
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_then_sent_at_once() {
    let server = Server::scripted(guarded).await;
    let upstream = client(&server);
    for _ in 0..2 {
        assert_eq!(get_tag(&upstream).await.unwrap().bytes, MANIFEST);
    }
    let manifest = "GET /v2/library/app/manifests/latest";
    let token = "GET /token?service=registry&scope=repository%3Alibrary%2Fapp%3Apull";
    assert_eq!(server.lines(), [manifest, token, manifest, manifest]);
    let authorizations: Vec<_> = server
        .seen("")
        .iter()
        .map(|seen| seen.header("authorization").map(str::to_owned))
        .collect();
    let bearer = Some("Bearer t1".to_owned());
    assert_eq!(authorizations, [None, None, bearer.clone(), bearer]);
}

#[tokio::test]
async fn credentials_go_to_the_token_service_alone() {
    let server = Server::scripted(|seen| {
        if seen.is_token() && seen.header("authorization") != Some(BASIC) {
            return Reply::new(401, "");
        }
        guarded(seen)
    })
    .await;
    get_tag(&with_credentials(&server)).await.unwrap();
    let basic = server
        .seen("")
        .into_iter()
        .filter(|seen| seen.header("authorization") == Some(BASIC));
    assert!(basic.map(|seen| seen.is_token()).eq([true]));
    let refused = get_tag(&client(&server)).await.unwrap_err();
    assert_eq!(refused.class(), "unauthorized", "{refused}");
    assert!(refused.to_string().contains("/token"), "{refused}");
}

#[tokio::test]
async fn twenty_requests_at_once_share_one_token_request() {
    // The token is given only when all twenty have been challenged.
    let gate = Gate::default();
    let challenged = AtomicUsize::new(0);
    let server = Server::scripted(move |seen| {
        if seen.is_token() {
            return Reply::ok(TOKEN).held(&gate);
        }
        if seen.header("authorization").is_none() && challenged.fetch_add(1, SeqCst) == 19 {
            gate.open();
        }
        guarded(seen)
    })
    .await;
    let upstream = client(&server);
    let all = join_all((0..20).map(|_| get_tag(&upstream))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(counts(&server), (1, 40));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_about_to_expire_is_renewed_before_it_is_refused() {
    let _frozen = freeze();
    let server = Server::scripted(guarded).await;
    let upstream = client(&server);
    get_tag(&upstream).await.unwrap();
    tokio::time::advance(Duration::from_secs(269)).await;
    get_tag(&upstream).await.unwrap();
    assert_eq!(counts(&server), (1, 3));
    tokio::time::advance(Duration::from_secs(1)).await;
    get_tag(&upstream).await.unwrap();
    // Renewed, and no request was refused.
    assert_eq!(counts(&server), (2, 4));
}

#[tokio::test]
async fn a_valid_token_that_is_refused_is_renewed_once_for_all() {
    let issued = Arc::new(AtomicUsize::new(0));
    let revoked = Arc::new(AtomicUsize::new(0));
    let (issue, revoke) = (Arc::clone(&issued), Arc::clone(&revoked));
    let server = Server::scripted(move |seen| {
        if seen.is_token() {
            let number = issue.fetch_add(1, SeqCst) + 1;
            return Reply::ok(format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        let valid = format!("Bearer t{}", revoke.load(SeqCst) + 1);
        if seen.header("authorization") == Some(&valid) {
            return Reply::ok(MANIFEST);
        }
        Reply::challenge(seen, SCOPE)
    })
    .await;
    let upstream = client(&server);
    get_tag(&upstream).await.unwrap();
    revoked.store(1, SeqCst);
    let all = join_all((0..10).map(|_| get_tag(&upstream))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(issued.load(SeqCst), 2);
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_not_renewed() {
    let server = Server::scripted(|seen| {
        if seen.is_token() {
            Reply::ok(TOKEN)
        } else {
            Reply::challenge(seen, SCOPE)
        }
    })
    .await;
    let upstream = client(&server);
    let error = get_tag(&upstream).await.unwrap_err();
    assert!(!error.is_transient());
    let Failure::Unauthorized(message) = &error.failure else {
        panic!("{error}");
    };
    assert_eq!(message.as_deref(), Some("UNAUTHORIZED: who?"));
    assert_eq!(counts(&server), (1, 2));
    // Again: a kept token is refused, one renewal, and no loop.
    assert!(get_tag(&upstream).await.is_err());
    assert_eq!(counts(&server), (2, 5));
}

#[tokio::test]
async fn basic_credentials_are_sent_when_they_are_asked_for() {
    let server = Server::scripted(|seen| match seen.header("authorization") {
        Some(BASIC) => Reply::ok(MANIFEST),
        _ => unauthorized("Basic realm=\"registry\""),
    })
    .await;
    let upstream = with_credentials(&server);
    get_tag(&upstream).await.unwrap();
    get_tag(&upstream).await.unwrap();
    assert_eq!(counts(&server), (0, 3));
    let without = get_tag(&client(&server)).await.unwrap_err();
    assert_eq!(without.class(), "unauthorized", "{without}");
}

#[tokio::test]
async fn each_error_of_the_token_service_is_kept_apart() {
    for (status, class) in [
        (400, "unexpected"),
        (401, "credentials_refused"),
        (403, "credentials_refused"),
        (404, "unexpected"),
        (429, "rate_limited"),
        (500, "unavailable"),
        (307, "unexpected"),
        (200, "protocol"),
    ] {
        let server = Server::scripted(move |seen| {
            if seen.is_token() {
                let elsewhere = format!("{}/other", seen.base());
                return Reply::redirect(&elsewhere)
                    .status(status)
                    .with("Retry-After", "9");
            }
            guarded(seen)
        })
        .await;
        let error = get_tag(&with_credentials(&server)).await.unwrap_err();
        assert_eq!(error.class(), class, "{status}");
        assert!(error.to_string().contains("/token"), "{error}");
        assert_eq!(error.is_transient(), status >= 429, "{status}");
        assert_eq!(counts(&server), (1, 1), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_service_that_moved_is_found_by_the_next_challenge() {
    let _frozen = freeze();
    let moved = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&moved);
    let server = Server::scripted(move |seen| {
        if now.load(SeqCst) == 0 {
            return guarded(seen);
        }
        if seen.line.starts_with("GET /new") {
            return Reply::ok(r#"{"token":"t2"}"#);
        }
        match seen.header("authorization") {
            _ if seen.is_token() => Reply::new(404, ""),
            Some("Bearer t2") => Reply::ok(MANIFEST),
            _ => unauthorized(&format!("Bearer realm=\"{}/new\"", seen.base())),
        }
    })
    .await;
    let upstream = client(&server);
    get_tag(&upstream).await.unwrap();
    tokio::time::advance(Duration::from_mins(5)).await;
    moved.store(1, SeqCst);
    let error = get_tag(&upstream).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unexpected(404)), "{error}");
    get_tag(&upstream).await.unwrap();
}

#[tokio::test]
async fn an_unusable_realm_is_refused() {
    for realm in ["/token", "ftp://auth.example/", "http://u:p@auth.example/"] {
        let server = replying(unauthorized(&format!("Bearer realm=\"{realm}\""))).await;
        let error = get_tag(&client(&server)).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
        assert!(!error.to_string().contains("u:p"), "{error}");
    }
}

/// The token requests that came, by their scopes.
fn scopes(server: &Server) -> Vec<String> {
    let lines = server.lines().into_iter();
    let tokens = lines.filter_map(|line| Some(line.strip_prefix("GET /token?")?.to_owned()));
    tokens
        .map(|query| query.replace("service=registry&", ""))
        .collect()
}

#[tokio::test]
async fn each_challenge_is_answered_with_a_request_for_the_permitted_scope() {
    let greedy = "repository:library/app:pull,push,delete repository:other:pull registry:catalog:*";
    let greedy = format!(r#"Bearer realm="$/token",service="registry",scope="{greedy}""#);
    let list = r#"Bearer realm="$/token",service="registry",scope="repository:library/app:list""#;
    let mirrored = "scope=repository%3Amirror%2Flibrary%2Fapp%3Apull";
    for (challenge, configured, scope) in [
        // Bearer is answered before Basic.
        (
            r#"Basic realm="a, b", bearer REALM=$/token,scope=x"#,
            None,
            PULL,
        ),
        ("Bearer realm=\"$/token\"", None, PULL),
        (&greedy, None, PULL),
        (list, Some("repository:mirror/{name}:pull"), mirrored),
    ] {
        let challenge = challenge.to_owned();
        let server = Server::scripted(move |seen| {
            guarded_by(seen, |seen| {
                unauthorized(&challenge.replace('$', &seen.base()))
            })
        })
        .await;
        let mut config = config(&server.url());
        config.credentials = Some(credentials("user", "pass"));
        config.scope = configured.map(str::to_owned);
        get_tag(&connect(config)).await.unwrap();
        assert_eq!(scopes(&server), [scope]);
    }
}

/// A registry of the kind that wants `metadata_read`, and refuses `pull` at one place or the other.
fn particular(seen: &Seen, by_token_service: bool) -> Reply {
    let wide = seen.line.contains("pull%2Cmetadata_read");
    if seen.is_token() {
        return match (wide, by_token_service) {
            (true, _) => Reply::ok(r#"{"token":"wide","expires_in":300}"#),
            (false, true) => Reply::new(401, ""),
            (false, false) => Reply::ok(TOKEN),
        };
    }
    match seen.header("authorization") {
        Some("Bearer wide") => Reply::ok(MANIFEST),
        _ => Reply::challenge(seen, "repository:library/app:metadata_read,push"),
    }
}

#[tokio::test]
async fn a_refused_pull_is_followed_by_the_read_only_actions_once() {
    for by_token_service in [true, false] {
        let server = Server::scripted(move |seen| particular(seen, by_token_service)).await;
        let upstream = client(&server);
        get_tag(&upstream).await.unwrap();
        let wide = format!("{PULL}%2Cmetadata_read");
        assert_eq!(scopes(&server), [PULL.to_owned(), wide.clone()]);
        // What worked is remembered.
        let before = counts(&server);
        get_tag(&upstream).await.unwrap();
        assert_eq!(counts(&server), (before.0, before.1 + 1));
    }
    // And once is once.
    let server = Server::scripted(|seen| {
        if seen.is_token() {
            return Reply::new(403, "");
        }
        Reply::challenge(seen, "repository:library/app:metadata_read,push")
    })
    .await;
    let error = get_tag(&client(&server)).await.unwrap_err();
    assert_eq!(error.class(), "denied");
    assert_eq!(counts(&server), (2, 1));
}

/// A registry at 127.0.0.1 whose token service is the same server under the name `localhost`: another
/// host, which belongs to another site.
fn with_foreign_realm(seen: &Seen) -> Reply {
    guarded_by(seen, |seen| {
        let realm = seen.base().replace("127.0.0.1", "localhost");
        unauthorized(&format!(r#"Bearer realm="{realm}/token""#))
    })
}

#[tokio::test]
async fn a_token_service_of_another_site_is_asked_anonymously_unless_it_was_named() {
    for (port_offset, given) in [(None, false), (Some(1), false), (Some(0), true)] {
        let server = Server::scripted(with_foreign_realm).await;
        let mut named = config(&server.url());
        named.credentials = Some(credentials("user", "pass"));
        named.realm = port_offset.map(|offset| {
            let port = server.address.port() ^ offset;
            Url::parse(&format!("http://localhost:{port}/anything")).unwrap()
        });
        get_tag(&connect(named)).await.unwrap();
        let seen = server.seen("");
        let basic = seen
            .iter()
            .map(|seen| seen.header("authorization") == Some(BASIC));
        assert!(basic.eq([false, given, false]), "{port_offset:?}");
    }
}

#[tokio::test]
async fn refused_basic_credentials_have_an_error_of_their_own() {
    for status in [401, 403] {
        let server = Server::scripted(move |seen| match seen.header("authorization") {
            Some(_) => unauthorized("Basic realm=r").status(status),
            None => unauthorized("Basic realm=r"),
        })
        .await;
        let error = get_tag(&with_credentials(&server)).await.unwrap_err();
        // A registry's 403 may be about the repository alone.
        let class = if status == 401 {
            "credentials_refused"
        } else {
            "denied"
        };
        assert_eq!(error.class(), class);
        assert_eq!(counts(&server), (0, 2));
    }
}
