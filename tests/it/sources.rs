//! Several repositories and several upstreams that have, or lack, or falsify the same blob.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::harness::{
    ALWAYS, Gate, Mirror, Registry, Reply, Setup, blob_path, mirrored, noise, passing, put_blob,
    read,
};

const SIZE: usize = 3_000_000;

#[tokio::test(start_paused = true)]
async fn a_repository_that_lacks_the_blob_makes_no_other_pull_fail() {
    let (up, m) = mirrored().await;
    for seed in 0..6 {
        let (blob, having) = put_blob(&up, seed, SIZE);
        let lacking = blob_path("other", &blob);
        // The upstream takes its time to say no, so that the others join that download.
        let gate = Gate::default();
        let held = gate.clone();
        up.on("GET /v2/other/", 1, move |_, _| {
            Reply::error(404).held(&held)
        });
        let refused = m.get(&lacking);
        let pulls = async {
            up.wait(1, &format!("GET {lacking}")).await;
            let first = m.get(&having);
            let second = async {
                up.wait(1, &format!("HEAD {having}")).await;
                gate.open();
                m.get(&having).await
            };
            tokio::join!(first, second)
        };
        let (refused, (first, second)) = passing(async { tokio::join!(refused, pulls) }).await;
        refused.refused(404, "BLOB_UNKNOWN");
        first.expect(200, &blob);
        second.expect(200, &blob);
        // It continues to send requests while others pull, and afterwards.
        passing(m.idle()).await;
        assert_eq!(passing(m.get(&lacking)).await.status, 404);
        passing(m.get(&having)).await.expect(200, &blob);
        up.take();
    }
}

/// A blob that two repositories of an upstream have.
async fn forked() -> (Registry, Mirror, Bytes) {
    let (up, m) = mirrored().await;
    let (blob, _) = put_blob(&up, 1, SIZE);
    up.put_blob("fork", &blob);
    (up, m, blob)
}

#[tokio::test(start_paused = true)]
async fn one_fetch_serves_the_clients_of_all_repositories_that_have_the_blob() {
    let (up, m, blob) = forked().await;
    let gate = up.hold_body("GET ", 1, 1_000_000);
    let first = m.open(&blob_path("app", &blob)).await;
    let clients = (0..12).map(|number| {
        let repo = if number % 2 == 0 { "app" } else { "fork" };
        let path = blob_path(repo, &blob);
        let m = &m;
        async move { m.open(&path).await }
    });
    let opened = passing(join_all(clients)).await;
    gate.open();
    for response in [first].into_iter().chain(opened) {
        passing(read(response)).await.expect(200, &blob);
    }
    assert_eq!(up.count("GET "), 1);
    // One question for all clients of the repository that joined, and none for the other.
    assert_eq!(up.count("HEAD /v2/fork/"), 1);
    assert_eq!(up.count("HEAD /v2/app/"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lying_upstream_deceives_only_its_own_clients() {
    let (good, liar) = (Registry::start().await, Registry::start().await);
    let m = Setup::new(&good)
        .upstream("liar", &liar, "")
        .with(&["proxy.ranges: passthrough"])
        .start()
        .await;
    let blob = noise(1, SIZE);
    good.put_blob("app", &blob);
    liar.put_blob("app", &blob);
    let wrong = Bytes::from(vec![0xEE; SIZE]);
    let gate = Gate::default();
    let (held, false_content) = (gate.clone(), wrong.clone());
    liar.on("GET ", ALWAYS, move |_, _| {
        Reply::new(200, false_content.clone()).gated(1_000_000, &held)
    });
    let deceived = m.open(&blob_path("liar/app", &blob)).await;
    let path = blob_path("app", &blob);
    let range = m.range(&path, "bytes=500000-500099");
    passing(range).await.expect(206, &blob[500_000..500_100]);
    passing(m.get(&path)).await.expect(200, &blob);
    gate.open();
    let deceived = passing(read(deceived)).await;
    assert!(deceived.broken, "a wrong body must not end well");
    passing(m.idle()).await;
    passing(m.get(&path)).await.expect(200, &blob);
}

#[tokio::test(start_paused = true)]
async fn a_partial_download_is_resumed_at_its_own_upstream_only() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let m = Setup::new(&one).upstream("two", &two, "").start().await;
    let blob = noise(1, SIZE);
    one.put_blob("app", &blob);
    two.put_blob("app", &blob);
    one.on("GET ", 1, |_, usual| usual.cut(1_100_000));
    one.reply("GET ", 1, Reply::error(403));
    let path = blob_path("app", &blob);
    assert!(passing(m.get(&path)).await.broken);
    passing(m.idle()).await;
    let other = passing(m.get(&blob_path("two/app", &blob))).await;
    other.expect(200, &blob);
    assert_eq!(two.seen("GET ")[0].header("range"), None);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_breaks_is_replaced_by_another_repositorys() {
    let (up, m, blob) = forked().await;
    let gate = Gate::default();
    let held = gate.clone();
    up.on("GET /v2/app/", 1, move |_, usual| {
        usual.gated(1_000_000, &held).cut(1_100_000)
    });
    up.reply("GET /v2/app/", ALWAYS, Reply::error(403));
    let first = m.open(&blob_path("app", &blob)).await;
    let second = passing(m.open(&blob_path("fork", &blob))).await;
    gate.open();
    passing(read(first)).await.expect(200, &blob);
    passing(read(second)).await.expect(200, &blob);
    let seen = up.seen("GET /v2/fork/");
    let range = seen[0].header("range").unwrap();
    assert!(range.starts_with("bytes=1100000-"), "{range}");
    assert_eq!(m.metric("millpond_download_sources_changed_total"), 1);
}
