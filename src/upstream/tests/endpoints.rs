//! Upstreams with several endpoints.

use tokio::time::{Instant, advance};

use super::*;
use crate::config::EndpointSelection;
use crate::oci::Classified as _;
use crate::oci::manifest::media_type;
use crate::upstream::circuit::FAILURES;
use crate::upstream::hedge::REQUESTS_PER_HEDGE;
use crate::upstream::latency::{MAX_AGE, MIN_SAMPLES};

const SECOND: Duration = Duration::from_secs(1);
/// Where a body breaks off.
const CUT: usize = 1000;

/// An endpoint with its defaults.
fn endpoint(url: &str) -> config::Endpoint {
    config::Endpoint {
        registry: config(url),
        prefix: None,
        weight: 0,
        fallback_on_404: false,
    }
}

fn with_endpoints(endpoints: impl IntoIterator<Item = config::Endpoint>) -> config::Upstream {
    let mut upstream = config("http://127.0.0.1:1");
    upstream.endpoints = endpoints.into_iter().collect();
    upstream
}

/// An upstream with these endpoints.
fn at(servers: &[&Server]) -> Upstream {
    let endpoints = servers.iter().map(|server| endpoint(&server.url()));
    connect(with_endpoints(endpoints))
}

/// A server that has the manifest.
async fn good() -> Server {
    let server = Server::start().await;
    let bytes = bytes::Bytes::from_static(MANIFEST.as_bytes());
    server.put_at("library/app", "latest", media_type::OCI_INDEX, &bytes);
    server
}

/// The requests that each server has had since the last look.
fn asked<const N: usize>(servers: [&Server; N]) -> [usize; N] {
    servers.map(|server| server.take().len())
}

/// The circuits, by the operators' view.
fn circuits(upstream: &Upstream) -> Vec<String> {
    let status = upstream.status().into_iter();
    status.map(|endpoint| endpoint.circuit.unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_endpoint_are_answered_by_the_next() {
    let _frozen = freeze();
    let cut_off = Reply::new(200, "{").announcing(100);
    for (trouble, patience) in [
        (Reply::hang_up(), 0),
        (Reply::new(500, ""), 0),
        (Reply::new(503, "").with("Retry-After", "100"), 0),
        (Reply::new(429, "").with("Retry-After", "100"), 0),
        (cut_off.clone(), 0),
        (Reply::silence(), 30),
        (cut_off.then_stall(), 30),
    ] {
        let (bad, good) = (replying(trouble).await, good().await);
        let upstream = at(&[&bad, &good]);
        let started = Instant::now();
        passing(get_tag(&upstream)).await.unwrap();
        let elapsed = started.elapsed();
        assert!(
            (patience..=patience + 1).contains(&elapsed.as_secs()),
            "{elapsed:?}"
        );
        assert_eq!(asked([&bad, &good]), [1, 1], "each is asked once");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_without_a_server_is_passed_over() {
    let _frozen = freeze();
    let good = good().await;
    let endpoints = [endpoint("http://127.0.0.1:1"), endpoint(&good.url())];
    let upstream = connect(with_endpoints(endpoints));
    passing(get_tag(&upstream)).await.unwrap();
    assert_eq!(asked([&good]), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_the_upstreams_answer() {
    let _frozen = freeze();
    for (reply, class) in [
        (Reply::error(404), "not_found"),
        (Reply::error(401), "unauthorized"),
        (Reply::error(403), "denied"),
        (Reply::error(400), "rejected"),
        (Reply::error(405), "unexpected"),
        (
            Reply::ok(MANIFEST).with("Content-Encoding", "gzip"),
            "protocol",
        ),
    ] {
        let (first, second) = (replying(reply).await, good().await);
        let upstream = at(&[&first, &second]);
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.class(), class);
        assert_eq!(asked([&first, &second]), [1, 0]);
        for _ in 0..FAILURES {
            drop(get_tag(&upstream).await);
        }
        assert_eq!(circuits(&upstream), ["closed", "closed"], "{class}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_falls_through_only_where_that_is_configured() {
    let _frozen = freeze();
    let (filling, registry) = (replying(Reply::error(404)).await, good().await);
    let upstream = |falls_back| {
        let mut first = endpoint(&filling.url());
        first.fallback_on_404 = falls_back;
        connect(with_endpoints([first, endpoint(&registry.url())]))
    };
    let error = get_tag(&upstream(false)).await.unwrap_err();
    assert_eq!(
        (error.class(), asked([&filling, &registry])),
        ("not_found", [1, 0])
    );
    let two_tier = upstream(true);
    get_tag(&two_tier).await.unwrap();
    assert_eq!(asked([&filling, &registry]), [1, 1]);
    // It isn't a failure.
    for _ in 0..FAILURES {
        get_tag(&two_tier).await.unwrap();
    }
    assert_eq!(circuits(&two_tier), ["closed", "closed"]);
    // Only if all of them don't have it, the upstream doesn't.
    registry.reply("", 1, Reply::error(404));
    assert_eq!(get_tag(&two_tier).await.unwrap_err().class(), "not_found");
    registry.reply("", ALWAYS, Reply::error(500));
    for _ in 0..2 * FAILURES {
        // Also while the circuit of the one that fails is open.
        let error = get_tag(&two_tier).await.unwrap_err();
        assert_eq!(
            error.status(),
            Some(500),
            "a tag must not be taken for deleted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_that_says_most_is_returned() {
    let _frozen = freeze();
    let limited = || Reply::new(429, "").with("Retry-After", "7");
    for (one, other, class, requests) in [
        (limited(), Reply::hang_up(), "rate_limited", 1),
        (Reply::hang_up(), limited(), "rate_limited", 1),
        (limited(), Reply::new(503, ""), "rate_limited", 1),
        (Reply::new(500, ""), Reply::hang_up(), "unavailable", 1),
        // What may pass is tried again, after a pause.
        (Reply::hang_up(), Reply::hang_up(), "broken", 2),
        (Reply::new(503, ""), Reply::new(503, ""), "unavailable", 2),
    ] {
        let (one, other) = (replying(one).await, replying(other).await);
        let upstream = at(&[&one, &other]);
        let error = passing(get_tag(&upstream)).await.unwrap_err();
        assert_eq!(error.class(), class);
        assert_eq!(asked([&one, &other]), [requests, requests], "{class}");
        let retry_after = (class == "rate_limited").then_some(7 * SECOND);
        assert_eq!(error.retry_after(), retry_after);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_left_alone_until_a_probe_succeeds() {
    let _frozen = freeze();
    let (bad, good) = (replying(Reply::new(500, "")).await, good().await);
    let upstream = at(&[&bad, &good]);
    for _ in 0..10 {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(asked([&bad, &good]), [FAILURES as usize, 10]);
    assert_eq!(circuits(&upstream), ["open", "closed"]);
    let status = upstream.status().remove(0);
    assert!(
        status
            .retry_in
            .is_some_and(|pause| pause > 3.0 && pause < 7.0)
    );
    assert!(status.last_error.unwrap().error.contains("status 500"));
    advance(7 * SECOND).await;
    for _ in 0..10 {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(asked([&bad, &good]), [1, 10], "one probe");
    bad.behave();
    bad.reply("", ALWAYS, Reply::ok(MANIFEST));
    advance(13 * SECOND).await;
    for _ in 0..10 {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(asked([&bad, &good]), [10, 0], "it is preferred again");
    assert_eq!(circuits(&upstream), ["closed", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn while_no_circuit_is_closed_one_endpoint_is_asked() {
    let _frozen = freeze();
    let (one, other) = (
        replying(Reply::new(500, "")).await,
        replying(Reply::new(500, "")).await,
    );
    let upstream = at(&[&one, &other]);
    for _ in 0..FAILURES {
        get_tag(&upstream).await.unwrap_err();
    }
    assert_eq!(circuits(&upstream), ["open", "open"]);
    asked([&one, &other]);
    for _ in 0..4 {
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.status(), Some(500));
    }
    let [one_asked, other_asked] = asked([&one, &other]);
    assert_eq!(one_asked + other_asked, 4);
    assert!(
        one_asked > 0 && other_asked > 0,
        "{one_asked} {other_asked}"
    );
    other.behave();
    other.reply("", ALWAYS, Reply::ok(MANIFEST));
    drop(get_tag(&upstream).await);
    get_tag(&upstream).await.unwrap();
    assert!(circuits(&upstream).contains(&"closed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_is_sent_again() {
    let _frozen = freeze();
    let (bad, good) = (replying(Reply::new(429, "")).await, good().await);
    let upstream = at(&[&bad, &good]);
    get_tag(&upstream).await.unwrap();
    assert_eq!(circuits(&upstream), ["open", "closed"]);
    bad.behave();
    bad.reply("", 1, Reply::silence());
    bad.reply("", ALWAYS, Reply::ok(MANIFEST));
    advance(7 * SECOND).await;
    let mut probe = Box::pin(get_tag(&upstream));
    tokio::select! {
        _ = &mut probe => panic!("the endpoint is silent"),
        () = bad.wait(2, "") => {}
    }
    assert_eq!(circuits(&upstream), ["half-open", "closed"]);
    drop(probe);
    get_tag(&upstream).await.unwrap();
    assert_eq!(circuits(&upstream), ["closed", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_gets_its_own_credentials_and_prefix() {
    let _frozen = freeze();
    let challenging = |password: &'static str| {
        Server::scripted(move |seen| {
            let basic = base64(&format!("u:{password}"));
            match seen.header("authorization") {
                None => Reply::error(401).with("WWW-Authenticate", "Basic realm=\"x\""),
                Some(given) if given == basic => Reply::error(503).with("Retry-After", "60"),
                Some(_) => Reply::error(401),
            }
        })
    };
    let (one, other) = (challenging("one").await, challenging("other").await);
    let mut first = endpoint(&one.url());
    first.registry.credentials = Some(credentials("u", "one"));
    first.prefix = Some("hub/proxy".parse().unwrap());
    let mut second = endpoint(&other.url());
    second.registry.credentials = Some(credentials("u", "other"));
    let upstream = connect(with_endpoints([first, second]));
    let error = get_tag(&upstream).await.unwrap_err();
    assert_eq!(error.status(), Some(503), "both took their own: {error}");
    let path = "/library/app/manifests/latest";
    assert_eq!(one.lines(), vec![format!("GET /v2/hub/proxy{path}"); 2]);
    assert_eq!(other.lines(), vec![format!("GET /v2{path}"); 2]);
    assert!(
        one.seen("")
            .iter()
            .all(|seen| seen.header("authorization") != Some(&base64("u:other")))
    );
}

fn base64(text: &str) -> String {
    use ::base64::Engine as _;
    format!("Basic {}", ::base64::prelude::BASE64_STANDARD.encode(text))
}

#[tokio::test(start_paused = true)]
async fn tokens_are_of_their_endpoint_and_scope() {
    let _frozen = freeze();
    let one = Server::start().await;
    one.protect(None);
    let other = good().await;
    let mut first = endpoint(&one.url());
    first.prefix = Some("hub".parse().unwrap());
    first.fallback_on_404 = true;
    let upstream = connect(with_endpoints([first, endpoint(&other.url())]));
    get_tag(&upstream).await.unwrap();
    let tokens = one.seen("GET /token");
    assert_eq!(tokens.len(), 1);
    assert!(
        tokens[0]
            .line
            .contains("scope=repository%3Ahub%2Flibrary%2Fapp%3Apull"),
        "{}",
        tokens[0].line
    );
    assert_eq!(other.seen("")[0].header("authorization"), None);
    advance(3 * SECOND).await;
    let ages: Vec<_> = upstream
        .status()
        .into_iter()
        .map(|endpoint| endpoint.tokens)
        .collect();
    assert_eq!((ages[0].count, ages[0].oldest), (1, Some(3.0)));
    assert_eq!(ages[1].count, 0);
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_with_the_lowest_latency_is_asked_first() {
    let _frozen = freeze();
    let (slow, fast) = (good().await, good().await);
    let mut config = with_endpoints([endpoint(&slow.url()), endpoint(&fast.url())]);
    config.endpoint_selection = EndpointSelection::Latency;
    let upstream = connect(config);
    // Both are measured first; what takes no time at all is as good as what isn't measured.
    for (server, by) in [(&slow, 2 * SECOND), (&fast, SECOND)] {
        let gate = server.hold("", 1);
        let mut asking = Box::pin(get_tag(&upstream));
        tokio::select! {
            _ = &mut asking => panic!("it is held"),
            () = server.wait(1, "") => {}
        }
        testkit::time::advance(by).await;
        gate.open();
        asking.await.unwrap();
    }
    asked([&slow, &fast]);
    get_tag(&upstream).await.unwrap();
    get_tag(&upstream).await.unwrap();
    assert_eq!(asked([&slow, &fast]), [0, 2]);
    let latency = upstream.status()[0].latency;
    assert!(
        latency.is_some_and(|latency| (2.0..2.1).contains(&latency)),
        "{latency:?}"
    );
    // Old figures are measured again: each by one request.
    advance(MAX_AGE).await;
    for _ in 0..4 {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(asked([&slow, &fast]), [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_manifest_is_asked_for_elsewhere_too() {
    let _frozen = freeze();
    let (one, other) = (good().await, good().await);
    let upstream = at(&[&one, &other]);
    let usual = MIN_SAMPLES.max(REQUESTS_PER_HEDGE as usize);
    for _ in 0..usual {
        get_tag(&upstream).await.unwrap();
    }
    assert_eq!(asked([&one, &other]), [usual, 0]);
    one.behave();
    one.reply("", ALWAYS, Reply::silence());
    let started = Instant::now();
    passing(get_tag(&upstream)).await.unwrap();
    assert!(started.elapsed() < SECOND);
    assert_eq!(asked([&one, &other]), [1, 1]);
    // A loser is cancelled, which is no failure.
    assert_eq!(circuits(&upstream), ["closed", "closed"]);
    testkit::time::eventually("the loser's connection closes", || one.open().0 == 0).await;
    // There is no budget for another one: it takes the header timeout.
    let started = Instant::now();
    passing(get_tag(&upstream)).await.unwrap();
    assert!(started.elapsed() >= 30 * SECOND);
    assert_eq!(asked([&one, &other]), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_slow_answer_counts_if_the_hedge_fails() {
    let _frozen = freeze();
    let (one, other) = (good().await, replying(Reply::new(500, "")).await);
    let upstream = at(&[&one, &other]);
    for _ in 0..MIN_SAMPLES.max(REQUESTS_PER_HEDGE as usize) {
        get_tag(&upstream).await.unwrap();
    }
    one.behave();
    let gate = one.hold("", 1);
    one.take();
    let asking = passing(get_tag(&upstream));
    let opening = async {
        other.wait(1, "").await;
        gate.open();
    };
    let (answer, ()) = futures_util::future::join(asking, opening).await;
    answer.unwrap();
    assert_eq!(asked([&one, &other]), [1, 1]);
}

/// A blob of this many bytes on all servers, and its digest.
fn put(servers: &[&Server], size: usize) -> (bytes::Bytes, Digest) {
    let blob = testkit::noise(1, size);
    let digests = servers
        .iter()
        .map(|server| server.put_blob("library/app", &blob));
    (blob.clone(), digests.last().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_blob_goes_on_at_another_endpoint_where_it_broke_off() {
    let _frozen = freeze();
    let (one, other) = (Server::start().await, Server::start().await);
    let (blob, digest) = put(&[&one, &other], 3000);
    one.on("GET ", ALWAYS, |_, usual| usual.cut(CUT));
    let upstream = at(&[&one, &other]);
    let route = Arc::default();
    let stream = upstream
        .get_blob(&repo(), &digest, 0, None, &route)
        .await
        .unwrap();
    let (bytes, end) = read_blob(stream.body).await;
    assert_eq!((bytes.len(), end.unwrap_err().class()), (CUT, "broken"));
    let rest = upstream
        .get_blob(&repo(), &digest, CUT as u64, None, &route)
        .await
        .unwrap();
    let (rest, end) = read_blob(rest.body).await;
    end.unwrap();
    assert_eq!([bytes, rest].concat(), blob);
    assert_eq!(asked([&one, &other]), [1, 1]);
    // Another download prefers the first one until its circuit opens: bodies that break off count.
    for _ in 0..FAILURES {
        let route = Arc::default();
        let stream = upstream
            .get_blob(&repo(), &digest, 0, None, &route)
            .await
            .unwrap();
        drop(read_blob(stream.body).await);
    }
    assert_eq!(asked([&one, &other]), [FAILURES as usize - 1, 1]);
    assert_eq!(circuits(&upstream), ["open", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn streams_are_spread_by_weight() {
    let _frozen = freeze();
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let all: Vec<_> = servers.iter().collect();
    let (_, digest) = put(&all, 3000);
    for (weights, expected) in [
        ([0, 0, 0], [8, 0, 0]),
        ([1, 1, 0], [4, 4, 0]),
        ([1, 3, 0], [2, 6, 0]),
        ([0, 1, 1], [0, 4, 4]),
    ] {
        let endpoints = servers.iter().zip(weights).map(|(server, weight)| {
            let mut endpoint = endpoint(&server.url());
            endpoint.weight = weight;
            endpoint
        });
        let upstream = connect(with_endpoints(endpoints));
        let route = Arc::default();
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(
                upstream
                    .get_blob(&repo(), &digest, 0, None, &route)
                    .await
                    .unwrap(),
            );
        }
        let [a, b, c] = &servers;
        assert_eq!(asked([a, b, c]), expected, "{weights:?}");
        let streams = upstream
            .status()
            .into_iter()
            .map(|endpoint| endpoint.streams);
        assert_eq!(streams.collect::<Vec<_>>(), expected);
        drop(open);
        assert!(
            upstream
                .status()
                .iter()
                .all(|endpoint| endpoint.streams == 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_wrong_bytes_only_the_last_endpoint_is_asked() {
    let _frozen = freeze();
    let (one, other) = (Server::start().await, Server::start().await);
    let (_, digest) = put(&[&one, &other], 100);
    let upstream = at(&[&one, &other]);
    let route = Arc::default();
    assert!(upstream.distrust(&route));
    assert!(!upstream.distrust(&route), "once");
    drop(
        upstream
            .get_blob(&repo(), &digest, 0, None, &route)
            .await
            .unwrap(),
    );
    assert_eq!(asked([&one, &other]), [0, 1]);
    assert!(!client(&one).distrust(&Arc::default()), "there is no other");
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_costs_one_request_a_minute() {
    let _frozen = freeze();
    let (bad, good) = (replying(Reply::new(500, "")).await, good().await);
    let upstream = at(&[&bad, &good]);
    for _ in 0..1200 {
        get_tag(&upstream).await.unwrap();
        advance(SECOND).await;
    }
    let [bad, good] = asked([&bad, &good]);
    assert_eq!(good, 1200);
    assert!((20..=35).contains(&bad), "{bad} in 20 minutes");
}
