//! An upstream with a rate limit, as clients see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    ALWAYS, Image, Mirror, Registry, Reply, Setup, advance, noise, passing, put_blob,
};

const WINDOW: Duration = Duration::from_hours(6);
const SECOND: Duration = Duration::from_secs(1);

/// A registry that permits a number of pulls and answers like Docker Hub: GET requests for manifests
/// count, all responses about manifests say what is left, and one too many gets a 429 without
/// `Retry-After`.
struct Hub {
    registry: Registry,
    pulls: Arc<AtomicU64>,
}

impl Hub {
    async fn start(limit: u64) -> Self {
        let registry = Registry::start().await;
        let pulls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&pulls);
        registry.on("/manifests/", ALWAYS, move |seen, usual| {
            let is_pull = seen.line.starts_with("GET ");
            let before = if is_pull {
                counted.fetch_add(1, SeqCst)
            } else {
                counted.load(SeqCst)
            };
            let reply = if is_pull && before >= limit {
                Reply::json(&json!({"errors": [{
                    "code": "TOOMANYREQUESTS",
                    "message": "You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit",
                }]}))
                .status(429)
            } else {
                usual
            };
            let left = limit.saturating_sub(counted.load(SeqCst));
            let window = WINDOW.as_secs();
            reply
                .with("RateLimit-Limit", format!("{limit};w={window}"))
                .with("RateLimit-Remaining", format!("{left};w={window}"))
                .with("Docker-RateLimit-Source", "192.0.2.1")
        });
        Self { registry, pulls }
    }

    /// Puts images there, with the tags 1, 2, ...
    fn push(&self, images: u64) -> Vec<Image> {
        let push = |seed: u64| {
            let image = Image::oci(seed);
            self.registry.push("app", &seed.to_string(), &image);
            image
        };
        (1..=images).map(push).collect()
    }

    async fn mirror(&self, lines: &[&str]) -> Mirror {
        let lines = [&["proxy.tags: {ttl: 60s}"], lines].concat();
        Setup::new(&self.registry).with(&lines).start().await
    }

    /// The series of a metric of its account.
    fn series(&self, name: &str) -> String {
        let address = self.registry.address;
        format!("millpond_upstream_ratelimit{name}{{upstream=\"{address}\",account=\"anonymous\"}}")
    }
}

fn tag(number: usize) -> String {
    format!("/v2/app/manifests/{number}")
}

#[tokio::test(start_paused = true)]
async fn a_used_up_limit_refuses_what_is_not_cached_and_nothing_else() {
    let hub = Hub::start(3).await;
    let images = hub.push(4);
    let m = hub.mirror(&[]).await;
    for (number, image) in (1..=3).zip(&images) {
        m.serves(&tag(number), &image.manifest).await;
    }
    assert_eq!(m.metric(&hub.series("_remaining")), 0);
    assert_eq!(m.metric(&hub.series("")), 3);
    for _ in 0..20 {
        let answer = m.get(&tag(4)).await;
        answer.refused(429, "TOOMANYREQUESTS");
        // Also the first time, when the upstream doesn't say it.
        assert_ne!(answer.header("retry-after"), "");
    }
    assert_eq!(hub.pulls.load(SeqCst), 4, "it isn't asked again and again");
    let retry_after: u64 = m.get(&tag(4)).await.header("retry-after").parse().unwrap();
    assert!((1..=7).contains(&retry_after), "{retry_after}");
    assert_eq!(m.metric(&hub.series("_paused")), 1);
    assert_eq!(m.metric(&hub.series("_withheld_total")), 20);
    // What is cached is served, without a question, although the time to live is over.
    advance(61 * SECOND).await;
    hub.registry.take();
    for (number, image) in (1..=3).zip(&images) {
        m.serves(&tag(number), &image.manifest).await;
        m.serves(
            &format!("/v2/app/manifests/{}", image.digest()),
            &image.manifest,
        )
        .await;
    }
    assert_eq!(hub.registry.count(""), 0);
    // Later there is something left again.
    advance(WINDOW).await;
    hub.pulls.store(0, SeqCst);
    m.serves(&tag(4), &images[3].manifest).await;
    m.serves(&tag(1), &images[0].manifest).await;
    assert!(hub.registry.count("HEAD ") > 0);
    assert_eq!(m.metric(&hub.series("_paused")), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_of_the_limit_costs_few_requests() {
    let hub = Hub::start(0).await;
    hub.push(1);
    let m = hub.mirror(&[]).await;
    // A client that tries every second for an hour.
    for _ in 0..3600 {
        m.get(&tag(1)).await.refused(429, "TOOMANYREQUESTS");
        advance(SECOND).await;
    }
    let asked = hub.registry.count("");
    assert!((40..=90).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn tags_are_revalidated_less_often_when_little_is_left() {
    for (reserve, minutes, questions) in [("0", 10, 10), ("50%", 10, 5), ("100%", 10, 2)] {
        let hub = Hub::start(8).await;
        let images = hub.push(6);
        let m = hub
            .mirror(&[&format!("proxy.ratelimit: {{reserve: {reserve}}}")])
            .await;
        for (number, image) in (1..=6).zip(&images) {
            m.serves(&tag(number), &image.manifest).await;
        }
        // 2 of 8 are left: half of 50 %, a quarter of 100 %.
        hub.registry.take();
        for _ in 0..minutes {
            advance(61 * SECOND).await;
            m.serves(&tag(1), &images[0].manifest).await;
        }
        assert_eq!(hub.registry.count("HEAD "), questions, "{reserve}");
        assert_eq!(hub.registry.count("GET "), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_with_pulls_left_is_used_when_another_has_none() {
    let registry = Registry::start().await;
    registry.on("/manifests/", ALWAYS, |seen, usual| {
        match seen.header("authorization") {
            None => Reply::error(401).with("WWW-Authenticate", "Basic realm=\"r\""),
            // a:p
            Some("Basic YTpw") => Reply::error(429).with("Retry-After", 600),
            Some(_) => usual,
        }
    });
    let accounts = [
        "proxy.username: a",
        "proxy.password: p",
        "proxy.accounts: [{username: b, password: p}]",
        "proxy.plainhttp: true",
        "proxy.anonymous: true",
    ];
    let m = Setup::new(&registry).with(&accounts).start().await;
    for seed in 1..=5 {
        let image = Image::oci(seed);
        registry.push("app", &seed.to_string(), &image);
        m.serves(&format!("/v2/app/manifests/{seed}"), &image.manifest)
            .await;
    }
    let refused = registry.seen("").into_iter();
    let refused = refused.filter(|seen| seen.header("authorization") == Some("Basic YTpw"));
    assert_eq!(refused.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clients_download_is_not_delayed_by_what_is_fetched_ahead() {
    const MIB: usize = 1 << 20;
    let registry = Registry::start().await;
    let layers = [noise(1, MIB), noise(2, 4 * MIB), noise(3, 4 * MIB)];
    let image = Image::layered(1, layers.to_vec(), |_, _| {});
    registry.push("app", "1", &image);
    let (other, path) = put_blob(&registry, 9, 2 * MIB);
    let lines = ["proxy.ratelimit: {bandwidth: 1MiB}"];
    let m = Setup::new(&registry).with(&lines).start().await;
    m.serves("/v2/app/manifests/1", &image.manifest).await;
    let started = tokio::time::Instant::now();
    // The first layer makes the mirror fetch the others ahead.
    let first = format!("/v2/app/blobs/{}", crate::harness::digest(&layers[0]));
    passing(m.get(&first)).await.expect(200, &layers[0]);
    passing(m.get(&path)).await.expect(200, &other);
    let elapsed = started.elapsed();
    // 3 MiB for the client, of which the first was there, and what was ahead may have taken one more.
    assert!(elapsed <= 5 * SECOND, "{elapsed:?}");
}
