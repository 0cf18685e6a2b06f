//! Limits that an upstream sets, and those of the operator.

use tokio::time::{Instant, advance};

use super::*;
use crate::config::{RateLimit, Reserve};
use crate::oci::{Classified as _, ErrorKind};
use crate::upstream::AccountStatus;

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: u64 = 21_600;
const MIB: usize = 1 << 20;

/// As Docker Hub says what is left.
fn with_left(reply: Reply, remaining: u64) -> Reply {
    let reply = reply.with("RateLimit-Limit", format!("100;w={WINDOW}"));
    reply.with("RateLimit-Remaining", format!("{remaining};w={WINDOW}"))
}

/// The accounts, by the operators' view.
fn accounts(upstream: &Upstream) -> Vec<AccountStatus> {
    let status = upstream.status().into_iter();
    status.flat_map(|endpoint| endpoint.limits).collect()
}

/// What is left, as far as it is known.
fn left(upstream: &Upstream) -> Vec<Option<u64>> {
    let accounts = accounts(upstream).into_iter();
    accounts.map(|account| account.remaining).collect()
}

async fn head_tag(upstream: &Upstream) -> Result<(), UpstreamError> {
    let (repo, tag, accept) = (repo(), tag(), Accept::everything());
    let head = upstream.head_manifest(&repo, &tag, &accept, None).await;
    head.map(|_head| ())
}

#[track_caller]
fn retry_after(error: &UpstreamError) -> Duration {
    assert_eq!(error.class(), "rate_limited", "{error}");
    error.retry_after().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_known_for_as_long_as_its_window() {
    let server = Server::start().await;
    let upstream = client(&server);
    assert_eq!(left(&upstream), [None]);
    server.reply("GET ", 1, with_left(Reply::ok(MANIFEST), 76));
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    get_tag(&upstream).await.unwrap();
    let [account] = &*accounts(&upstream) else {
        panic!("one account");
    };
    assert_eq!((account.limit, account.remaining), (Some(100), Some(76)));
    assert_eq!(account.window, Some(21_600.0));
    assert_eq!(account.account, "anonymous");
    // A pull that isn't told of counts, a question doesn't.
    get_tag(&upstream).await.unwrap();
    head_tag(&upstream).await.unwrap();
    assert_eq!(left(&upstream), [Some(75)]);
    advance(Duration::from_secs(WINDOW)).await;
    assert_eq!(left(&upstream), [None]);
}

#[tokio::test(start_paused = true)]
async fn known_answers_are_used_for_longer_when_little_is_left() {
    for (reserve, remaining, stretch) in [
        (Reserve::Percent(20), 100, 1),
        (Reserve::Percent(20), 20, 1),
        (Reserve::Percent(20), 10, 2),
        (Reserve::Percent(20), 1, 20),
        (Reserve::Percent(20), 0, 60),
        (Reserve::Requests(50), 10, 5),
        (Reserve::Requests(1000), 1, 60),
        (Reserve::Percent(0), 0, 1),
    ] {
        let server = replying(with_left(Reply::ok(MANIFEST), remaining)).await;
        let mut config = config(&server.url());
        config.rate_limit.reserve = reserve;
        let upstream = connect(config);
        assert_eq!(upstream.stretch(), 1, "nothing is known yet");
        get_tag(&upstream).await.unwrap();
        assert_eq!(upstream.stretch(), stretch, "{reserve:?} {remaining}");
        advance(Duration::from_secs(WINDOW)).await;
        assert_eq!(upstream.stretch(), 1, "nothing is known any more");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_until_the_retry_after_is_over_and_then_one_request() {
    let _frozen = freeze();
    let server = Server::start().await;
    server.reply("", 1, Reply::new(429, "").with("Retry-After", 100));
    let upstream = client(&server);
    let told = retry_after(&get_tag(&upstream).await.unwrap_err());
    assert_eq!(told, 100 * SECOND);
    for (waited, next) in [(0, 40), (40, 59), (99, 3)] {
        let least = Duration::from_secs(100 - waited);
        let told = retry_after(&get_tag(&upstream).await.unwrap_err());
        assert!((least..=least + SECOND).contains(&told), "{told:?}");
        assert!(retry_after(&head_tag(&upstream).await.unwrap_err()) >= least);
        advance(Duration::from_secs(next)).await;
    }
    assert_eq!(server.take().len(), 1);
    assert_eq!(accounts(&upstream)[0].paused_for, None);
    // Ten wait for the one that finds out.
    let gate = Gate::default();
    server.reply("", 1, Reply::ok(MANIFEST).held(&gate));
    server.reply("", ALWAYS, Reply::ok(MANIFEST));
    let all = futures_util::future::join_all((0..10).map(|_| get_tag(&upstream)));
    let probed = async {
        testkit::time::settle().await;
        let sent = server.count("");
        gate.open();
        sent
    };
    let (answers, sent) = passing(async { tokio::join!(all, probed) }).await;
    assert_eq!(sent, 1);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(server.count(""), 10);
}

#[tokio::test(start_paused = true)]
async fn without_a_retry_after_the_pauses_grow_up_to_a_minute() {
    let _frozen = freeze();
    let server = replying(Reply::new(429, "")).await;
    let upstream = client(&server);
    let started = Instant::now();
    let mut pauses = Vec::new();
    while started.elapsed() < Duration::from_mins(20) {
        let _error = get_tag(&upstream).await.unwrap_err();
        if let Some(pause) = accounts(&upstream)[0].paused_for {
            pauses.push(pause);
            advance(Duration::from_secs_f64(pause)).await;
        }
    }
    assert!((3.75..=6.25).contains(&pauses[0]), "{pauses:?}");
    assert!(pauses[1] > pauses[0] && pauses[2] > pauses[1], "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= 75.0), "{pauses:?}");
    assert!(server.count("") < 40, "{}", server.count(""));
}

#[tokio::test(start_paused = true)]
async fn a_429_for_manifests_says_nothing_of_blobs() {
    let _frozen = freeze();
    let server = Server::start().await;
    let blob = server.put_blob("library/app", &testkit::noise(1, 1000));
    server.reply("/manifests/", 1, Reply::new(429, ""));
    let upstream = client(&server);
    get_tag(&upstream).await.unwrap_err();
    get_tag(&upstream).await.unwrap_err();
    let (repo, route) = (repo(), Arc::default());
    let stream = upstream.get_blob(&repo, &blob, 0, None, &route).await;
    read_blob(stream.unwrap().body).await.1.unwrap();
    assert_eq!(server.count("/manifests/"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_challenge_does_not_end_a_pause() {
    let _frozen = freeze();
    let server = Server::start().await;
    let limited = || Reply::new(429, "").with("Retry-After", 10);
    let challenge = || Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\"");
    server.on("", ALWAYS, move |seen, _usual| {
        if seen.header("authorization").is_some() {
            limited()
        } else {
            challenge()
        }
    });
    let mut config = config(&server.url());
    config.plain_http = true;
    config.credentials = Some(credentials("u", "p"));
    let upstream = connect(config);
    get_tag(&upstream).await.unwrap_err();
    advance(12 * SECOND).await;
    server.take();
    let told = retry_after(&passing(get_tag(&upstream)).await.unwrap_err());
    assert!(told >= 10 * SECOND, "{told:?}");
    let sent = server.take().len();
    assert!((1..=2).contains(&sent), "{sent}");
    retry_after(&get_tag(&upstream).await.unwrap_err());
    assert_eq!(server.take().len(), 0);
}

/// An upstream with three accounts, u1 to u3, whose server calls `reply` with the number of the account.
async fn with_accounts(reply: fn(usize, &Server) -> Reply) -> (Arc<Server>, Upstream) {
    let server = Arc::new(Server::start().await);
    let own = Arc::downgrade(&server);
    server.on("", ALWAYS, move |seen, _usual| {
        let logins =
            [1, 2, 3].map(|n| format!("Basic {}", ["dTE6cA==", "dTI6cA==", "dTM6cA=="][n - 1]));
        let login = seen.header("authorization").map(str::to_owned);
        let number = login.and_then(|login| logins.iter().position(|one| *one == login));
        match (number, own.upgrade()) {
            (Some(number), Some(server)) => reply(number + 1, &server),
            _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
        }
    });
    let mut config = config(&server.url());
    config.plain_http = true;
    config.credentials = Some(credentials("u1", "p"));
    config.accounts = vec![credentials("u2", "p"), credentials("u3", "p")];
    let upstream = connect(config);
    (server, upstream)
}

#[tokio::test(start_paused = true)]
async fn several_accounts_share_the_requests() {
    let (_server, upstream) =
        with_accounts(|account, _| with_left(Reply::ok(MANIFEST), 10 * account as u64)).await;
    for _ in 0..3 {
        get_tag(&upstream).await.unwrap();
    }
    // Each was asked once, because nothing was known of it; from then on the one with most left.
    assert_eq!(left(&upstream), [Some(10), Some(20), Some(30)]);
    let names: Vec<_> = accounts(&upstream)
        .into_iter()
        .map(|one| one.account)
        .collect();
    assert_eq!(names, ["u1", "u2", "u3"]);
    assert_eq!(upstream.stretch(), 1, "one has enough");
}

#[tokio::test(start_paused = true)]
async fn accounts_that_are_limited_or_refused_leave_the_requests_to_the_others() {
    let _frozen = freeze();
    let (server, upstream) = with_accounts(|account, _| match account {
        1 => Reply::new(429, "").with("Retry-After", 1000),
        2 => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
        _ => with_left(Reply::ok(MANIFEST), 9),
    })
    .await;
    for _ in 0..20 {
        get_tag(&upstream).await.unwrap();
    }
    let of_first = server.seen("").into_iter();
    let of_first = of_first.filter(|seen| seen.header("authorization") == Some("Basic dTE6cA=="));
    assert_eq!(of_first.count(), 1, "it isn't asked again");
}

#[tokio::test(start_paused = true)]
async fn when_all_accounts_are_limited_the_answer_is_a_429() {
    let _frozen = freeze();
    let (server, upstream) =
        with_accounts(|account, _| Reply::new(429, "").with("Retry-After", 100 * account)).await;
    for _ in 0..5 {
        let told = retry_after(&get_tag(&upstream).await.unwrap_err());
        assert!((100 * SECOND..=302 * SECOND).contains(&told), "{told:?}");
    }
    let limited = server.seen("").into_iter();
    let limited = limited.filter(|seen| seen.header("authorization").is_some());
    assert_eq!(limited.count(), 3);
}

// --- The operator's limits --------------------------------------------------------------------------

fn limited(url: &str, limit: RateLimit) -> Upstream {
    let mut config = config(url);
    config.rate_limit = limit;
    connect(config)
}

#[tokio::test(start_paused = true)]
async fn requests_are_spread_over_time_after_a_burst() {
    let _frozen = freeze();
    let server = replying(Reply::ok(MANIFEST)).await;
    let limit = RateLimit {
        requests: 2,
        burst: 4,
        ..RateLimit::default()
    };
    let upstream = limited(&server.url(), limit);
    let started = Instant::now();
    let all = (0..10).map(|_| async {
        get_tag(&upstream).await.unwrap();
        started.elapsed()
    });
    let mut times = passing(futures_util::future::join_all(all)).await;
    times.sort();
    for (n, time) in times.iter().enumerate() {
        let due = SECOND * u32::try_from(n.saturating_sub(3)).unwrap() / 2;
        let slack = Duration::from_millis(300);
        assert!((due..due + slack).contains(time), "{n}: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_wait_too_long_is_refused_at_once() {
    let _frozen = freeze();
    let server = replying(Reply::ok(MANIFEST)).await;
    let limit = RateLimit {
        requests: 1,
        burst: 1,
        ..RateLimit::default()
    };
    let upstream = limited(&server.url(), limit);
    // 30 s is as long as an answer may take.
    let mut waiting: Vec<_> = (0..31).map(|_| Box::pin(get_tag(&upstream))).collect();
    for request in &mut waiting {
        assert!(futures_util::poll!(request).is_pending());
    }
    let error = get_tag(&upstream).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Busy), "{error}");
    // One that is cancelled gives its turn back.
    drop(waiting);
    let started = Instant::now();
    passing(get_tag(&upstream)).await.unwrap();
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn bytes_are_limited_and_clients_come_before_background_work() {
    let _frozen = freeze();
    let server = Server::start().await;
    let blob = server.put_blob("library/app", &testkit::noise(1, 4 * MIB));
    let limit = RateLimit {
        bandwidth: MIB as u64,
        ..RateLimit::default()
    };
    let upstream = limited(&server.url(), limit);
    let started = Instant::now();
    let fetch = |route: Arc<BlobRoute>| {
        let (upstream, blob) = (&upstream, &blob);
        async move {
            let stream = upstream.get_blob(&repo(), blob, 0, None, &route).await;
            read_blob(stream.unwrap().body).await.1.unwrap();
            started.elapsed()
        }
    };
    let ahead: Arc<BlobRoute> = Arc::default();
    ahead.set_urgent(false);
    let both = async { tokio::join!(fetch(Arc::clone(&ahead)), fetch(Arc::default())) };
    let (background, client) = passing(both).await;
    // A second's worth is there at the beginning.
    let close = |time: Duration, seconds: u64| {
        let due = Duration::from_secs(seconds);
        (due.saturating_sub(SECOND)..=due + SECOND).contains(&time)
    };
    assert!(close(client, 3), "{client:?}");
    assert!(close(background, 7), "{background:?}");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_a_months_bytes_no_blob_is_asked_for() {
    let _frozen = freeze();
    let server = Server::start().await;
    let blob = server.put_blob("library/app", &testkit::noise(1, 1000));
    server.reply("/manifests/", ALWAYS, Reply::ok(MANIFEST));
    let limit = RateLimit {
        monthly: 2000,
        ..RateLimit::default()
    };
    let upstream = limited(&server.url(), limit);
    let fetch = async |urgent| {
        let (repo, route) = (repo(), Arc::<BlobRoute>::default());
        route.set_urgent(urgent);
        let stream = upstream.get_blob(&repo, &blob, 0, None, &route).await?;
        read_blob(stream.body).await.1
    };
    fetch(false).await.unwrap();
    fetch(true).await.unwrap();
    server.take();
    for urgent in [true, false] {
        let error = fetch(urgent).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.retry_after(), Some(Duration::from_hours(1)));
        // Not the upstream's limit: nothing was sent.
        assert_eq!(error.status(), None);
        assert!(error.reason().contains("operator"), "{}", error.reason());
    }
    assert_eq!(server.count(""), 0);
    get_tag(&upstream).await.unwrap();
    let status = &upstream.status()[0];
    let month = (status.month_bytes, status.month_limit);
    assert_eq!(month, (Some(2000), Some(2000)));
    // Another client of the same upstream continues the count.
    let next = limited(&server.url(), limit);
    next.restore_usage(&upstream.monthly_usage().unwrap());
    assert_eq!(next.monthly_usage(), upstream.monthly_usage());
}
