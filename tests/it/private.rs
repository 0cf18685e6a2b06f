//! `proxy.authorize: caller`: each caller gets what the upstream gives its account, from one cache that
//! leaks nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;

use crate::harness::{
    ALWAYS, Answer, Gate, Image, Mirror, Registry, Reply, Seen, advance, blob_path, digest,
    eventually, mirrored_with, noise, passing, read,
};

/// `ann:a` and `cat:c` may read everything, `bob:b` and everybody else only `public`.
pub(crate) const ANN: &str = "Basic YW5uOmE=";
pub(crate) const CAT: &str = "Basic Y2F0OmM=";
pub(crate) const BOB: &str = "Basic Ym9iOmI=";
/// No login.
pub(crate) const NOBODY: &str = "";
pub(crate) const CALLER: &str = "proxy.authorize: caller";
const TTL: Duration = Duration::from_mins(5);
const SECOND: Duration = Duration::from_secs(1);

/// How an upstream knows users, and what it says to one that may not read a repository.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Guard {
    /// Basic, and 403.
    Basic,
    /// Basic, and 404: the repository's existence is a secret.
    Hiding,
    /// Tokens, and 401.
    Bearer,
}

const GUARDS: [Guard; 3] = [Guard::Basic, Guard::Hiding, Guard::Bearer];

pub(crate) fn guard(up: &Registry, guard: Guard) {
    up.on("", ALWAYS, move |seen, usual| answer(guard, seen, usual));
}

fn answer(guard: Guard, seen: &Seen, usual: Reply) -> Reply {
    let given = seen.header("authorization");
    if seen.is_token() {
        let user = given.map_or("nobody", |basic| basic.trim_start_matches("Basic "));
        return match given {
            Some(ANN | CAT | BOB) | None => Reply::json(&json!({"token": user})),
            Some(_) => Reply::error(401),
        };
    }
    if seen.line.contains("/v2/public/") {
        return usual;
    }
    let usual = if seen.line == "GET /v2/" {
        Reply::json(&json!({}))
    } else {
        usual
    };
    let user = given.and_then(|given| given.split_once(' '));
    let allowed = [ANN, CAT].iter().any(|one| {
        let (_, encoded) = one.split_once(' ').unwrap();
        let scheme = if guard == Guard::Bearer {
            "Bearer"
        } else {
            "Basic"
        };
        user == Some((scheme, encoded))
    });
    match (guard, given) {
        _ if allowed => usual,
        (Guard::Bearer, _) => Reply::challenge(seen, "repository:any:pull"),
        (_, None) => Reply::error(401).with("WWW-Authenticate", "Basic realm=\"scripted\""),
        (Guard::Basic, Some(_)) => Reply::error(403),
        (Guard::Hiding, Some(_)) => Reply::error(404),
    }
}

/// An upstream with an image in `private/app` and in `public/app`, and a mirror that has nothing.
pub(crate) async fn private(kind: Guard, lines: &[&str]) -> (Registry, Mirror, Image) {
    let (up, m) = mirrored_with(&[&[CALLER], lines].concat()).await;
    let image = Image::oci(1);
    for repo in ["private/app", "public/app"] {
        let manifest = up.push(repo, "1", &image);
        let base = format!("/v2/{repo}");
        up.put_json(&format!("{base}/tags/list"), &json!({"tags": ["1"]}));
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        });
        up.put_json(&format!("{base}/referrers/{manifest}"), &index);
    }
    guard(&up, kind);
    (up, m, image)
}

/// Requests for everything of a repository: `GET path`, and a range.
fn requests(repo: &str, image: &Image) -> Vec<(String, Option<&'static str>)> {
    let (manifest, blob) = (digest(&image.manifest), blob_path(repo, &image.layers[1]));
    let manifests = format!("/v2/{repo}/manifests");
    vec![
        (format!("GET {manifests}/1"), None),
        (format!("HEAD {manifests}/1"), None),
        (format!("GET {manifests}/{manifest}"), None),
        (format!("HEAD {manifests}/{manifest}"), None),
        (format!("HEAD {blob}"), None),
        (format!("GET {blob}"), Some("bytes=10-19")),
        (format!("GET {blob}"), Some("bytes=999999-")),
        (format!("GET {blob}"), Some("bytes=5-4")),
        (format!("GET {blob}"), None),
        (format!("GET {}", blob_path(repo, &image.config)), None),
        (format!("GET /v2/{repo}/tags/list"), None),
        (format!("GET /v2/{repo}/tags/list?n=1&last=0"), None),
        (format!("GET /v2/{repo}/referrers/{manifest}"), None),
    ]
}

pub(crate) async fn ask(m: &Mirror, login: &str, line: &str, range: Option<&str>) -> Answer {
    let mut headers = Vec::new();
    if login != NOBODY {
        headers.push(("authorization", login));
    }
    headers.extend(range.map(|range| ("range", range)));
    passing(m.ask(line, &headers)).await
}

pub(crate) async fn get(m: &Mirror, login: &str, path: &str) -> Answer {
    ask(m, login, &format!("GET {path}"), None).await
}

/// Everything of the image is cached, and its permission for ANN is valid.
pub(crate) async fn pull(m: &Mirror, image: &Image) {
    for (line, range) in requests("private/app", image) {
        let status = ask(m, ANN, &line, range).await.status;
        assert!([200, 206, 416].contains(&status), "{line}: {status}");
    }
    passing(m.idle()).await;
}

pub(crate) const TAG: &str = "/v2/private/app/manifests/1";

#[tokio::test(start_paused = true)]
async fn each_caller_gets_what_the_upstream_gives_it() {
    for kind in GUARDS {
        let (_up, m, image) = private(kind, &[]).await;
        let refused = match kind {
            Guard::Basic => 403,
            Guard::Hiding => 404,
            Guard::Bearer => 401,
        };
        // Before and after it is cached.
        for _ in 0..2 {
            for (line, range) in requests("private/app", &image) {
                let to_bob = ask(&m, BOB, &line, range).await;
                // Where the referrers API and the subject are unknown, nothing refers to it.
                let nothing = line.contains("referrers") && kind == Guard::Hiding;
                let expected = if nothing { 200 } else { refused };
                assert_eq!(to_bob.status, expected, "{kind:?} {line} {to_bob:?}");
                let to_nobody = ask(&m, NOBODY, &line, range).await;
                assert_eq!(to_nobody.status, 401, "{kind:?} {line}");
                let challenge = to_nobody.header("www-authenticate");
                assert!(
                    challenge.starts_with("Bearer realm=\"http://"),
                    "{challenge}"
                );
            }
            pull(&m, &image).await;
            passing(m.ask(&format!("GET {TAG}"), &[("authorization", CAT)]))
                .await
                .expect(200, &image.manifest);
        }
        for (line, range) in requests("public/app", &image) {
            for login in [NOBODY, BOB, ANN] {
                let status = ask(&m, login, &line, range).await.status;
                assert!([200, 206, 416].contains(&status), "{line}: {status}");
            }
        }
        let metrics = m.app.metrics().render();
        assert!(!metrics.contains("private"), "{metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_logins_and_those_of_nobody() {
    let (_up, m, image) = private(Guard::Bearer, &[]).await;
    pull(&m, &image).await;
    let wrong = "Basic YW5uOndyb25n";
    get(&m, wrong, TAG).await.refused(401, "UNAUTHORIZED");
    // An empty user is nobody (skopeo sends it).
    get(&m, "Basic Og==", TAG)
        .await
        .refused(401, "UNAUTHORIZED");
    let public = "/v2/public/app/manifests/1";
    assert_eq!(get(&m, "Basic Og==", public).await.status, 200);
    // What isn't valid is refused, also where nobody needs credentials.
    for path in [TAG, public] {
        get(&m, "Bearer abc", path)
            .await
            .refused(401, "UNAUTHORIZED");
        for malformed in ["Basic", "Basic !!"] {
            assert_eq!(get(&m, malformed, path).await.status, 400, "{malformed}");
        }
    }
    assert_eq!(get(&m, "basic YW5uOmE=", TAG).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_configured_account_is_never_used_for_a_caller() {
    let lines = ["proxy.username: ann", "proxy.password: a"];
    let (up, m, image) = private(Guard::Basic, &lines).await;
    get(&m, NOBODY, TAG).await.refused(401, "UNAUTHORIZED");
    get(&m, BOB, TAG).await.refused(403, "DENIED");
    let used = up.seen("").into_iter();
    let used = used.filter(|seen| seen.header("authorization") == Some(ANN));
    assert_eq!(used.count(), 0);
    get(&m, ANN, TAG).await.expect(200, &image.manifest);
}

#[tokio::test(start_paused = true)]
async fn a_permission_is_asked_for_once_in_its_time() {
    let (up, m, image) = private(Guard::Bearer, &[]).await;
    pull(&m, &image).await;
    assert_eq!(
        up.count("/token"),
        1,
        "the upstream's token stays on the mirror"
    );
    let blob = blob_path("private/app", &image.layers[1]);
    up.take();
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    assert_eq!(up.take(), [""; 0]);
    advance(TTL + SECOND).await;
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    assert_eq!(up.count("HEAD "), 1);
    assert_eq!(up.count("GET /v2/"), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_time_each_request_is_asked_for() {
    let (up, m, image) = private(Guard::Basic, &["proxy.accessttl: 0s"]).await;
    let blob = blob_path("private/app", &image.layers[1]);
    for _ in 0..3 {
        get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
        passing(m.idle()).await;
    }
    assert_eq!(up.count(&format!("GET {blob}")), 1);
    assert!(up.count("HEAD ") >= 3);
}

#[tokio::test(start_paused = true)]
async fn permissions_outlive_an_outage_for_a_while() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let image = Image::oci(1);
    up.push("private/app", "1", &image);
    let blob = blob_path("private/app", &image.layers[1]);
    let switch = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&switch);
    up.on("", ALWAYS, move |seen, usual| {
        if is_down.load(SeqCst) {
            return Reply::error(503);
        }
        answer(Guard::Basic, seen, usual)
    });
    get(&m, ANN, TAG).await.expect(200, &image.manifest);
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    passing(m.idle()).await;
    switch.store(true, SeqCst);
    advance(TTL + SECOND).await;
    get(&m, ANN, TAG).await.expect(200, &image.manifest);
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    for login in [BOB, CAT, NOBODY] {
        assert_eq!(get(&m, login, &blob).await.status, 503);
    }
    advance(Duration::from_hours(1)).await;
    assert_eq!(get(&m, ANN, &blob).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn who_may_only_list_gets_no_content() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let image = Image::oci(1);
    let manifest = up.push("private/app", "1", &image);
    let tags = "/v2/private/app/tags/list";
    up.put_json(tags, &json!({"tags": ["1"]}));
    let referrers = format!("/v2/private/app/referrers/{manifest}");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    });
    up.put_json(&referrers, &index);
    up.on("", ALWAYS, |seen, usual| {
        let is_list = seen.line.contains("/tags/") || seen.line.contains("/referrers/");
        if is_list {
            return usual;
        }
        answer(Guard::Basic, seen, usual)
    });
    let blob = blob_path("private/app", &image.layers[1]);
    get(&m, ANN, TAG).await.expect(200, &image.manifest);
    get(&m, ANN, &blob).await.expect(200, &image.layers[1]);
    passing(m.idle()).await;
    for _ in 0..2 {
        for path in [TAG, &blob, &referrers] {
            assert_eq!(get(&m, BOB, tags).await.status, 200);
            assert_eq!(get(&m, BOB, path).await.status, 403, "{path}");
            advance(11 * SECOND).await;
        }
    }
    get(&m, BOB, tags)
        .await
        .expect(200, br#"{"name":"private/app","tags":["1"]}"#);
    let catalog = get(&m, BOB, "/v2/_catalog").await;
    assert_eq!(catalog.json()["repositories"], json!([]));
}

/// A guard that answers everybody with this status, unless it is 0.
fn with_outages(up: &Registry) -> Arc<AtomicU16> {
    let outage = Arc::new(AtomicU16::new(0));
    let status = Arc::clone(&outage);
    up.on("", ALWAYS, move |seen, usual| match status.load(SeqCst) {
        0 => answer(Guard::Basic, seen, usual),
        status => Reply::error(status),
    });
    outage
}

#[tokio::test(start_paused = true)]
async fn no_manifest_vouches_for_a_blob_during_an_outage() {
    let (up, m) = mirrored_with(&[CALLER, "proxy.prefetch: {downloads: 0}"]).await;
    let image = Image::oci(1);
    up.push("private/app", "1", &image);
    // The registry takes it although the repository lacks the layer, which the caller only names.
    up.push("public/app", "1", &image);
    let outage = with_outages(&up);
    let secret = blob_path("private/app", &image.layers[1]);
    get(&m, ANN, &secret).await.expect(200, &image.layers[1]);
    passing(m.idle()).await;
    let manifest = "/v2/public/app/manifests/1";
    get(&m, BOB, manifest).await.expect(200, &image.manifest);
    for status in [503, 429] {
        outage.store(status, SeqCst);
        let named = blob_path("public/app", &image.layers[1]);
        assert_ne!(get(&m, BOB, &named).await.status, 200, "{status}");
        assert_ne!(
            ask(&m, BOB, &format!("HEAD {named}"), None).await.status,
            200
        );
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_may_have_it_share_one_download() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let blob = noise(1, 3_000_000);
    up.put_blob("private/app", &blob);
    let path = blob_path("private/app", &blob);
    let gate = up.hold_body(&format!("GET {path}"), 1, 1_000_000);
    guard(&up, Guard::Basic);
    let open = |login| {
        m.request(&format!("GET {path}"), &[("authorization", login)])
            .send()
    };
    let first = passing(open(ANN)).await.unwrap();
    let others = (0..12).map(|n| open(if n % 2 == 0 { ANN } else { CAT }));
    let others = passing(join_all(others)).await;
    // Whoever may not have it doesn't learn that a download runs.
    assert_eq!(get(&m, BOB, &path).await.status, 403);
    assert_eq!(
        ask(&m, BOB, &format!("HEAD {path}"), None).await.status,
        403
    );
    gate.open();
    passing(read(first)).await.expect(200, &blob);
    for other in others {
        passing(read(other.unwrap())).await.expect(200, &blob);
    }
    assert_eq!(up.count(&format!("GET {path}")), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_refused_stops_nobody_else() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let blob = noise(1, 3_000_000);
    up.put_blob("private/app", &blob);
    let path = blob_path("private/app", &blob);
    let gate = Gate::default();
    let held = gate.clone();
    up.on(&format!("GET {path}"), 1, move |_, usual| {
        usual.cut(2_000_000).gated(1_000_000, &held)
    });
    up.on(
        &format!("GET {path}"),
        ALWAYS,
        move |seen, usual| match seen.header("authorization") {
            Some(CAT) => usual,
            _ => Reply::error(403),
        },
    );
    guard(&up, Guard::Basic);
    let open = |login| {
        m.request(&format!("GET {path}"), &[("authorization", login)])
            .send()
    };
    let leader = passing(open(ANN)).await.unwrap();
    let follower = passing(open(CAT)).await.unwrap();
    gate.open();
    let (_leader, follower) = passing(async { tokio::join!(read(leader), read(follower)) }).await;
    follower.expect(200, &blob);
    passing(m.idle()).await;
    get(&m, CAT, &path).await.expect(200, &blob);
}

#[tokio::test(start_paused = true)]
async fn one_callers_answer_changes_nothing_for_the_others() {
    let (up, m) = mirrored_with(&[CALLER, "proxy.tags: {ttl: 0s}"]).await;
    let image = Image::oci(1);
    up.push("private/app", "1", &image);
    up.put_json("/v2/private/app/tags/list", &json!({"tags": ["1"]}));
    let gone = Arc::new(AtomicU16::new(0));
    let status = Arc::clone(&gone);
    up.on("", ALWAYS, move |seen, usual| {
        let status = status.load(SeqCst);
        match seen.header("authorization") {
            Some(CAT) if [404, 401, 403].contains(&status) => Reply::error(status),
            _ if status == 503 => Reply::error(503),
            _ => answer(Guard::Basic, seen, usual),
        }
    });
    let tags = "/v2/private/app/tags/list";
    for answered in [404, 401, 403] {
        gone.store(0, SeqCst);
        advance(11 * SECOND).await;
        for login in [ANN, CAT] {
            get(&m, login, TAG).await.expect(200, &image.manifest);
            assert_eq!(get(&m, login, tags).await.status, 200);
        }
        gone.store(answered, SeqCst);
        advance(31 * SECOND).await;
        assert_eq!(get(&m, CAT, TAG).await.status, answered);
        assert_eq!(get(&m, CAT, tags).await.status, answered);
        get(&m, ANN, TAG).await.expect(200, &image.manifest);
        // The tag and the list are still known while the upstream can't answer.
        gone.store(503, SeqCst);
        advance(31 * SECOND).await;
        get(&m, ANN, TAG).await.expect(200, &image.manifest);
        assert_eq!(get(&m, ANN, tags).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn one_callers_limit_keeps_nothing_old_for_the_others() {
    let (up, m) = mirrored_with(&[CALLER, "proxy.tags: {ttl: 0s}"]).await;
    let (old, new) = (Image::oci(1), Image::oci(2));
    up.push("private/app", "1", &old);
    let tags = "/v2/private/app/tags/list";
    up.put_json(tags, &json!({"tags": ["1"]}));
    let limit = Arc::new(AtomicBool::new(false));
    let limited = Arc::clone(&limit);
    up.on("", ALWAYS, move |seen, usual| {
        let is_cat = seen.header("authorization") == Some(CAT);
        if is_cat && limited.load(SeqCst) {
            return Reply::error(429);
        }
        answer(Guard::Basic, seen, usual)
    });
    for login in [ANN, CAT] {
        get(&m, login, TAG).await.expect(200, &old.manifest);
        assert_eq!(get(&m, login, tags).await.status, 200);
    }
    up.push("private/app", "1", &new);
    up.put_json(tags, &json!({"tags": ["1", "2"]}));
    limit.store(true, SeqCst);
    advance(31 * SECOND).await;
    get(&m, CAT, TAG).await.expect(200, &old.manifest);
    get(&m, ANN, TAG).await.expect(200, &new.manifest);
    let listed = async |login| get(&m, login, tags).await.json()["tags"].clone();
    assert_eq!(listed(CAT).await, json!(["1"]));
    assert_eq!(listed(ANN).await, json!(["1", "2"]));
}

#[tokio::test(start_paused = true)]
async fn one_callers_missing_tag_hides_no_referrers_from_the_others() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let image = Image::oci(1);
    let subject = up.push("private/app", "1", &image).to_string();
    let index = "application/vnd.oci.image.index.v1+json";
    let one = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(b"signature"),
        "size": 9,
    });
    let list = json!({"schemaVersion": 2, "mediaType": index, "manifests": [one]});
    let tag = subject.replace(':', "-");
    up.tag("private/app", &tag, index, &list.to_string().into());
    let hidden = tag.clone();
    up.on("", ALWAYS, move |seen, usual| {
        let is_cat = seen.header("authorization") == Some(CAT);
        if seen.line.contains("/referrers/") || (is_cat && seen.line.contains(&hidden)) {
            return Reply::error(404);
        }
        answer(Guard::Basic, seen, usual)
    });
    let path = format!("/v2/private/app/referrers/{subject}");
    let found = async |login| {
        let answer = get(&m, login, &path).await;
        assert_eq!(answer.status, 200);
        answer.json()["manifests"].as_array().unwrap().len()
    };
    assert_eq!(found(CAT).await, 0);
    assert_eq!(found(ANN).await, 1);
}

#[tokio::test(start_paused = true)]
async fn no_cache_in_front_gives_an_answer_to_another_caller() {
    let (_up, m, image) = private(Guard::Basic, &[]).await;
    for (line, range) in requests("private/app", &image) {
        let answer = ask(&m, ANN, &line, range).await;
        let control = answer.header("cache-control");
        let is_private = control.starts_with("private") || control == "no-store";
        assert!(is_private, "{line}: {control}");
    }
    get(&m, ANN, "/v2/_catalog")
        .await
        .has("cache-control", "private");
}

/// What tells two answers apart, and the number of requests that the upstream got for it.
type Observed = (u16, Vec<(String, String)>, Bytes, usize);

async fn observe(
    up: &Registry,
    m: &Mirror,
    login: &str,
    request: &(String, Option<&str>),
) -> Observed {
    up.take();
    let answer = ask(m, login, &request.0, request.1).await;
    let headers = answer.headers.iter();
    let headers = headers.filter(|(name, _)| *name != "date" && *name != "x-request-id");
    let headers = headers.map(|(name, value)| {
        let value = value
            .to_str()
            .unwrap()
            .replace("private/xyz", "private/app");
        (name.to_string(), value)
    });
    let mut headers: Vec<_> = headers.collect();
    headers.sort();
    let body = String::from_utf8_lossy(&answer.body).replace("private/xyz", "private/app");
    (answer.status, headers, body.into(), up.take().len())
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_is_denied_looks_like_one_that_does_not_exist() {
    for kind in GUARDS {
        let (up, m, image) = private(kind, &["proxy.prefetch: {downloads: 0}"]).await;
        pull(&m, &image).await;
        for login in [BOB, NOBODY] {
            let there = requests("private/app", &image);
            let nowhere = requests("private/xyz", &image);
            for (there, nowhere) in there.iter().zip(&nowhere) {
                // Both without and with a remembered verdict.
                for _ in 0..2 {
                    let one = observe(&up, &m, login, there).await;
                    let other = observe(&up, &m, login, nowhere).await;
                    assert_eq!(one, other, "{kind:?} {login} {there:?}");
                }
                advance(11 * SECOND).await;
            }
            let catalog = get(&m, login, "/v2/_catalog").await;
            assert_eq!(catalog.json()["repositories"], json!([]));
        }
        get(&m, ANN, TAG).await.expect(200, &image.manifest);
        let catalog = get(&m, ANN, "/v2/_catalog").await;
        assert_eq!(catalog.json()["repositories"], json!(["private/app"]));
    }
}

/// Remembered refusals come at once; a hidden name must not be answered as fast as they.
#[tokio::test(start_paused = true)]
async fn remembered_refusals_say_nothing_of_how_long_a_missing_name_takes() {
    let hide = "root.access: [{repositories: [secret/**], effect: deny, hide: true}, {anyone: true, \
                effect: allow}]";
    let (up, m) = mirrored_with(&[CALLER, hide]).await;
    // The upstream takes its time once.
    let gate = Gate::default();
    let closed = gate.clone();
    up.on(TAG, 1, move |_, _| Reply::error(401).held(&closed));
    guard(&up, Guard::Basic);
    let took = async |path: &str| {
        let started = tokio::time::Instant::now();
        assert_eq!(get(&m, NOBODY, path).await.status, 404, "{path}");
        started.elapsed()
    };
    let started = tokio::time::Instant::now();
    let first = get(&m, NOBODY, TAG);
    let opening = async {
        eventually("the upstream is asked", || up.count(TAG) == 1).await;
        advance(2 * SECOND).await;
        gate.open();
    };
    assert_eq!(tokio::join!(first, opening).0.status, 404);
    assert!(started.elapsed() >= 2 * SECOND);
    for _ in 0..2 {
        assert!(took(TAG).await >= 2 * SECOND, "as if it were asked");
    }
    assert_eq!(up.count(TAG), 1);
    assert!(took("/v2/secret/app/manifests/1").await >= 2 * SECOND);
}

/// `docker login` names no repository: it gets a token, and checks it.
#[tokio::test(start_paused = true)]
async fn a_login_to_the_mirrors_own_name_is_checked_with_the_upstream() {
    for kind in [Guard::Basic, Guard::Bearer] {
        let (up, m, image) = private(kind, &[]).await;
        let ping = m.get("/v2/").await;
        assert_eq!(ping.status, 401);
        let (_, realm) = ping
            .header("www-authenticate")
            .split_once("/token/")
            .unwrap();
        let (name, _) = realm.split_once('"').unwrap();
        let line = format!("GET /token/{name}?account=ann&client_id=docker&offline_token=true");
        let login = async |line: &str, login: &str| {
            let answer = m.ask(line, &[("authorization", login)]).await;
            let token = (answer.status == 200).then(|| answer.json()["token"].clone());
            let token = token.map(|token| format!("Bearer {}", token.as_str().unwrap()));
            (answer.status, token)
        };
        for _ in 0..2 {
            let (status, token) = login(&line, ANN).await;
            assert_eq!(status, 200, "{kind:?}");
            let token = token.unwrap();
            assert_eq!(get(&m, &token, "/v2/").await.status, 200);
            get(&m, &token, TAG).await.expect(200, &image.manifest);
        }
        let asked = up.lines().len();
        assert_eq!(login(&line, ANN).await.0, 200);
        assert_eq!(up.lines().len(), asked, "the answer is remembered");
        // Nobody guesses passwords through the mirror.
        let mut statuses = Vec::new();
        for guess in 0..7 {
            let wrong = STANDARD.encode(format!("ann:{guess}"));
            let wrong = format!("Basic {wrong}");
            statuses.push(login(&line, &wrong).await.0);
        }
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429], "{kind:?}");
        advance(2 * SECOND).await;
        let other = line.replace(name, "other.example");
        assert_eq!(login(&other, CAT).await.0, 200, "the default upstream");
        up.go_down();
        let (status, token) = passing(login(&line, BOB)).await;
        assert_eq!((status, token), (502, None));
    }
}

/// A client that joins a question which another one has asked needs no place for a question of its own.
#[tokio::test(start_paused = true)]
async fn many_logins_at_once_are_bounded_and_equal_ones_are_one() {
    let (up, m) = mirrored_with(&[CALLER]).await;
    let gate = up.hold("GET /v2/", ALWAYS);
    let ping = m.get("/v2/").await;
    let (_, realm) = ping
        .header("www-authenticate")
        .split_once("/token/")
        .unwrap();
    let (name, _) = realm.split_once('"').unwrap();
    let line = format!("GET /token/{name}?account=x");
    let login = |user: usize| {
        let login = format!("Basic {}", STANDARD.encode(format!("user{user}:x")));
        m.request(&line, &[("authorization", &login)]).send()
    };
    let tasks = tokio_util::task::TaskTracker::new();
    let mut asking: Vec<_> = (0..16).map(|user| tasks.spawn(login(user))).collect();
    up.wait(16, "GET /v2/").await;
    assert_eq!(login(16).await.unwrap().status(), 503);
    let joined = tasks.spawn(login(0));
    for _ in 0..100 {
        crate::harness::settle().await;
    }
    asking.push(joined);
    gate.open();
    for answer in join_all(asking).await {
        assert_ne!(answer.unwrap().unwrap().status(), 503);
    }
}
