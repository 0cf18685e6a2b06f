//! An upstream that breaks off in the middle of a blob.

use crate::harness::{ALWAYS, Registry, Reply, Setup, freeze, mirrored, noise, passing};

const SIZE: usize = 3_000_000;

#[tokio::test(start_paused = true)]
async fn a_cut_body_goes_on_by_range_where_it_broke() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, SIZE);
    let digest = up.put_blob("app", &blob);
    up.on("GET ", 2, |_, usual| usual.cut(1_100_000));
    let path = format!("/v2/app/blobs/{digest}");
    passing(m.get(&path)).await.expect(200, &blob);
    let seen = up.seen("GET ");
    let ranges: Vec<_> = seen.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(
        ranges,
        [None, Some("bytes=1100000-"), Some("bytes=2200000-")]
    );
    assert_eq!(m.metric("millpond_downloads_resumed_total"), 2);
    m.idle().await;
    m.get(&path).await.expect(200, &blob);
    assert_eq!(up.count("GET "), 3);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_ignores_ranges_is_read_from_the_start_again() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, SIZE);
    let digest = up.put_blob("app", &blob);
    let whole = blob.clone();
    up.on("GET ", 1, |_, usual| usual.cut(1_100_000));
    up.on("GET ", ALWAYS, move |_, _| Reply::new(200, whole.clone()));
    passing(m.get(&format!("/v2/app/blobs/{digest}")))
        .await
        .expect(200, &blob);
    assert_eq!(up.count("GET "), 2);
}

#[tokio::test(start_paused = true)]
async fn a_chunked_body_that_is_cut_goes_on_too() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, SIZE);
    let digest = up.put_blob("app", &blob);
    up.on("GET ", 1, |_, usual| usual.chunked().cut(1_100_000));
    passing(m.get(&format!("/v2/app/blobs/{digest}")))
        .await
        .expect(200, &blob);
    assert_eq!(up.count("GET "), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stays_broken_breaks_the_clients() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    for (seed, (after, status)) in [
        (Reply::error(404), 1),
        (Reply::error(403), 1),
        (Reply::error(416), 1),
        (Reply::error(500), 5),
        (Reply::new(206, "x").with("Content-Range", "bytes 7-7/9"), 1),
        (Reply::new(200, "shorter"), 1),
    ]
    .into_iter()
    .enumerate()
    {
        let blob = noise(seed as u64, SIZE);
        let digest = up.put_blob("app", &blob);
        up.take();
        up.on("GET ", 1, |_, usual| usual.cut(1_100_000));
        up.reply("GET ", ALWAYS, after);
        let answer = passing(m.get(&format!("/v2/app/blobs/{digest}"))).await;
        assert_eq!((answer.status, answer.broken), (200, true));
        assert!(blob.starts_with(&answer.body) && answer.body.len() <= 1_100_000);
        assert_eq!(up.count("GET "), 1 + status);
        passing(m.idle()).await;
        assert_eq!(m.store.size(&digest).await.unwrap(), None);
        up.behave();
    }
}

#[tokio::test(start_paused = true)]
async fn another_length_after_the_break_is_another_content() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, SIZE);
    let digest = up.put_blob("app", &blob);
    up.on("GET ", 1, |_, usual| usual.cut(1_100_000));
    let rest = blob.slice(1_100_000..SIZE - 1);
    let placed = format!("bytes 1100000-{}/{}", SIZE - 2, SIZE - 1);
    up.reply(
        "GET ",
        1,
        Reply::new(206, rest).with("Content-Range", placed),
    );
    let answer = passing(m.get(&format!("/v2/app/blobs/{digest}"))).await;
    assert!(answer.broken);
    assert_eq!(up.count("GET "), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_taken_up_again() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("stalltimeout: 20s").start().await;
    let blob = noise(1, SIZE);
    let digest = up.put_blob("app", &blob);
    let never = crate::harness::Gate::default();
    up.on("GET ", 1, move |_, usual| usual.gated(1_100_000, &never));
    let started = tokio::time::Instant::now();
    passing(m.get(&format!("/v2/app/blobs/{digest}")))
        .await
        .expect(200, &blob);
    let waited = started.elapsed().as_secs();
    assert!((20..22).contains(&waited), "{waited}");
    assert_eq!(up.seen("GET ")[1].header("range"), Some("bytes=1100000-"));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_nothing_is_a_gateway_timeout() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("headertimeout: 7s").start().await;
    let digest = up.put_blob("app", &noise(1, 10));
    up.reply("GET ", ALWAYS, Reply::silence());
    let started = tokio::time::Instant::now();
    let answer = passing(m.get(&format!("/v2/app/blobs/{digest}"))).await;
    assert_eq!(answer.error(), (504, "UNAVAILABLE".to_owned()));
    assert!((7..8).contains(&started.elapsed().as_secs()));
}
