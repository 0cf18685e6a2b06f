use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::oci::Classified as _;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn failures_that_pass_are_retried() {
    let _frozen = freeze();
    let (busy, bad) = (Reply::new(503, "busy"), Reply::new(502, ""));
    for trouble in [busy, bad, Reply::hang_up()] {
        let server = Server::in_turn([trouble.clone(), trouble, Reply::ok(MANIFEST)]).await;
        let upstream = client(&server);
        passing(get_tag(&upstream)).await.unwrap();
        assert_eq!(server.lines().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_stay_are_reported_after_three_attempts() {
    let _frozen = freeze();
    let long = Reply::new(503, "").with("Retry-After", "6");
    for (trouble, class, attempts) in [
        (Reply::new(503, ""), "unavailable", 3),
        (Reply::new(500, ""), "unavailable", 1),
        (long, "unavailable", 1),
        (Reply::hang_up(), "broken", 3),
        (Reply::new(429, ""), "rate_limited", 1),
        (Reply::new(404, ""), "not_found", 1),
    ] {
        let server = replying(trouble).await;
        let upstream = client(&server);
        let started = Instant::now();
        let error = passing(get_tag(&upstream)).await.unwrap_err();
        assert_eq!((error.class(), server.lines().len()), (class, attempts));
        assert!(started.elapsed() <= SECOND, "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_retry_after_is_waited_out() {
    let _frozen = freeze();
    let busy = Reply::new(503, "").with("Retry-After", "4");
    let server = Server::in_turn([busy, Reply::ok(MANIFEST)]).await;
    let upstream = client(&server);
    let started = Instant::now();
    passing(get_tag(&upstream)).await.unwrap();
    assert!((4 * SECOND..5 * SECOND).contains(&started.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_passes_its_retry_after_on() {
    let _frozen = freeze();
    let date = httpdate::fmt_http_date(wall() + 90 * SECOND);
    for (header, expected) in [("120", 120), (date.as_str(), 90), ("99999", 3600)] {
        let reply = Reply::new(429, "").with("Retry-After", header);
        let server = replying(reply).await;
        let upstream = client(&server);
        let error = get_tag(&upstream).await.unwrap_err();
        assert_eq!(error.class(), "rate_limited", "{error}");
        assert_eq!(error.retry_after(), Some(expected * SECOND), "{header}");
    }
}

#[track_caller]
pub(super) fn assert_timeout(error: &UpstreamError, phase: Phase) {
    let in_phase = matches!(error.failure, Failure::Timeout { phase: p, .. } if p == phase);
    assert!(in_phase && error.is_transient(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_falls_silent_fails_after_the_timeout() {
    let _frozen = freeze();
    let cut_off = Reply::new(200, "{").announcing(100).then_stall();
    for (reply, phase) in [(Reply::silence(), Phase::Header), (cut_off, Phase::Body)] {
        let server = replying(reply).await;
        let upstream = client(&server);
        let started = Instant::now();
        let error = passing(get_tag(&upstream)).await.unwrap_err();
        assert_timeout(&error, phase);
        assert!((30 * SECOND..31 * SECOND).contains(&started.elapsed()));
        assert_eq!(server.lines().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_may_stall_for_a_minute_and_no_longer() {
    let _frozen = freeze();
    let server = replying(Reply::new(200, "01234").announcing(10).then_stall()).await;
    let upstream = client(&server);
    let blob = upstream
        .get_blob(&repo(), &digest_of("x"), 0, None, &Arc::default())
        .await;
    // The reader's own slowness doesn't count.
    tokio::time::advance(600 * SECOND).await;
    let started = Instant::now();
    let (bytes, end) = passing(read_blob(blob.unwrap().body)).await;
    assert_eq!(bytes, b"01234");
    assert_timeout(&end.unwrap_err(), Phase::Stall);
    assert!((60 * SECOND..61 * SECOND).contains(&started.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_never_answered_is_a_connect_timeout() {
    let _frozen = freeze();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mut config = config(&url);
    config.insecure = true;
    let upstream = connect(config);
    let started = Instant::now();
    let error = passing(get_tag(&upstream)).await.unwrap_err();
    assert_timeout(&error, Phase::Connect);
    let (three_times, elapsed) = (30 * SECOND..32 * SECOND, started.elapsed());
    assert!(three_times.contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_port_is_unreachable() {
    let _frozen = freeze();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let upstream = connect(config(&url));
    let error = passing(get_tag(&upstream)).await.unwrap_err();
    let unreachable = matches!(error.failure, Failure::Unreachable(_));
    assert!(unreachable && error.is_transient(), "{error}");
}
