//! Downloads as clients see them: ranges of what isn't there, several streams, and a restart.

use std::sync::Arc;

use millpond::oci::Digest;
use millpond::storage::FsStore;

use crate::harness::{
    ALWAYS, Answer, Gate, Mirror, Registry, Reply, Setup, digest, eventually, freeze, mirrored,
    noise, passing, read,
};

const MIB: usize = 1 << 20;

async fn range(m: &Mirror, digest: &Digest, range: &str) -> Answer {
    let line = format!("GET /v2/app/blobs/{digest}");
    m.ask(&line, &[("range", range)]).await
}

/// The ranges that the upstream was asked for.
fn asked(up: &Registry) -> Vec<Option<String>> {
    let seen = up.seen("GET ");
    let ranges = seen.iter().map(|seen| seen.header("range"));
    ranges.map(|range| range.map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_far_range_overtakes_the_first_stream() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, 20 * MIB);
    let digest = up.put_blob("app", &blob);
    let gate = up.hold_body("GET ", 1, MIB);
    let whole = m.open(&format!("/v2/app/blobs/{digest}")).await;
    let at = 15 * MIB;
    let far = passing(range(&m, &digest, &format!("bytes={at}-{}", at + 9))).await;
    far.expect(206, &blob[at..at + 10]);
    gate.open();
    passing(read(whole)).await.expect(200, &blob);
    passing(m.idle()).await;
    assert_eq!(
        m.store.size(&digest).await.unwrap(),
        Some(blob.len() as u64)
    );
    let ranges = asked(&up);
    assert!(
        ranges[1]
            .as_deref()
            .unwrap()
            .starts_with(&format!("bytes={at}-")),
        "{ranges:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lazy_puller_gets_its_ranges_and_no_more() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up)
        .proxy("ranges: passthrough")
        .proxy("fillafter: 50%")
        .start()
        .await;
    let blob = noise(1, 20 * MIB);
    let digest = up.put_blob("app", &blob);
    for _ in 0..2 {
        let answer = passing(range(&m, &digest, "bytes=1000000-1000099")).await;
        answer.expect(206, &blob[1_000_000..1_000_100]);
        assert_eq!(asked(&up), [Some("bytes=1000000-1000099".to_owned())]);
    }
    let answer = passing(range(&m, &digest, "bytes=-10")).await;
    answer.expect(206, &blob[20 * MIB - 10..]);
    let answer = passing(range(&m, &digest, "bytes=99999999-")).await;
    assert_eq!(answer.error(), (416, "RANGE_INVALID".to_owned()));
    assert_eq!(m.upstream_bytes(), 110);
    let answer = passing(range(&m, &digest, "bytes=5000000-99999999")).await;
    answer.expect(206, &blob[5_000_000..]);
    passing(m.idle()).await;
    assert_eq!(m.upstream_bytes(), 20 * MIB as u64);
    up.go_down();
    let path = format!("/v2/app/blobs/{digest}");
    passing(m.get(&path)).await.expect(200, &blob);
}

#[tokio::test(start_paused = true)]
async fn lazy_ranges_of_blobs_of_every_kind() {
    let _frozen = freeze();
    let up = Registry::start().await;
    let m = Setup::new(&up).proxy("ranges: passthrough").start().await;
    let mut seed = 0;
    for size in [1, 100, 20_000, 70_000] {
        let last = size - 1;
        for (asked, start) in [
            (format!("bytes=0-{last}"), 0),
            (format!("bytes={}-{last}", size / 2), size / 2),
            (format!("bytes={last}-"), last),
            ("bytes=-1".to_owned(), last),
            ("bytes=0-".to_owned(), 0),
        ] {
            seed += 1;
            let blob = noise(seed, size);
            let digest = up.put_blob("app", &blob);
            let answer = passing(range(&m, &digest, &asked)).await;
            answer.expect(206, &blob[start..]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_pull_finishes_an_interrupted_download() {
    let _frozen = freeze();
    for on_disk in [false, true] {
        let up = Registry::start().await;
        let root = tempfile::tempdir().unwrap();
        let mut setup = Setup::new(&up);
        if on_disk {
            setup = setup.store(Arc::new(FsStore::open(root.path()).await.unwrap()));
        }
        let m = setup.start().await;
        let blob = noise(1, 5 * MIB);
        let digest = up.put_blob("app", &blob);
        let path = format!("/v2/app/blobs/{digest}");
        up.on("GET ", 1, |_, usual| usual.cut(3 * MIB));
        up.reply("GET ", 1, Reply::error(403));
        let answer = passing(m.get(&path)).await;
        assert!(answer.broken && blob.starts_with(&answer.body));
        passing(m.idle()).await;
        up.take();
        passing(m.get(&path)).await.expect(200, &blob);
        assert_eq!(asked(&up), [Some(format!("bytes={}-", 3 * MIB))]);
        passing(m.idle()).await;
        up.go_down();
        passing(m.get(&path)).await.expect(200, &blob);
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_in_the_middle_are_waited_out() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, 3 * MIB);
    let digest = up.put_blob("app", &blob);
    up.on("GET ", 1, |_, usual| usual.cut(MIB));
    up.reply("GET ", 1, Reply::error(429).with("Retry-After", 9));
    let started = tokio::time::Instant::now();
    passing(m.get(&format!("/v2/app/blobs/{digest}")))
        .await
        .expect(200, &blob);
    assert!((9..12).contains(&started.elapsed().as_secs()));
    let rest = Some(format!("bytes={MIB}-"));
    assert_eq!(asked(&up), [None, rest.clone(), rest]);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_sends_other_bytes_the_second_time_breaks_the_pull() {
    let _frozen = freeze();
    let (up, m) = mirrored().await;
    let blob = noise(1, 3 * MIB);
    let digest = up.put_blob("app", &blob);
    let other = noise(2, 3 * MIB);
    up.on("GET ", 1, |_, usual| usual.cut(MIB));
    up.on("GET ", ALWAYS, move |_, _| Reply::new(200, other.clone()));
    let path = format!("/v2/app/blobs/{digest}");
    let answer = passing(m.get(&path)).await;
    assert!(answer.broken && blob.starts_with(&answer.body));
    passing(m.idle()).await;
    up.behave();
    passing(m.get(&path)).await.expect(200, &blob);
}

/// Paths of blobs that don't exist, which the upstream says once the gate is open.
fn held_blobs(up: &Registry, count: u8, gate: &Gate) -> Vec<String> {
    let path = |n| format!("/v2/app/blobs/{}", digest(&[n]));
    let paths: Vec<_> = (0..count).map(path).collect();
    for path in &paths {
        let closed = gate.clone();
        up.on(path, ALWAYS, move |_, usual| usual.held(&closed));
    }
    paths
}

/// Requests that the upstream doesn't answer take no stream from a blob that exists.
#[tokio::test]
async fn bogus_digests_do_not_delay_a_blob() {
    let (up, m) = mirrored().await;
    let blob = noise(1, 100_000);
    let real = up.put_blob("app", &blob);
    let gate = Gate::default();
    let bogus = held_blobs(&up, 40, &gate);
    let asking = bogus.iter().map(|path| m.get(path));
    let pulling = async {
        eventually("all have been sent", || up.count("GET ") == 40).await;
        let answer = m.get(&format!("/v2/app/blobs/{real}")).await;
        answer.expect(200, &blob);
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(asking), pulling);
    for answer in answers {
        assert_eq!(answer.status, 404);
    }
}

/// One client's flood leaves places for the others.
#[tokio::test]
async fn a_flood_from_one_address_does_not_delay_another() {
    let (up, m) = mirrored().await;
    let blob = noise(1, 100_000);
    let real = up.put_blob("app", &blob);
    let gate = Gate::default();
    let bogus = held_blobs(&up, 100, &gate);
    let asking = bogus.iter().map(|path| m.get(path));
    let pulling = async {
        eventually("as many as one may have", || up.count("GET ") == 48).await;
        let other = reqwest::Client::builder()
            .tls_certs_only([])
            .local_address(std::net::IpAddr::from([127, 0, 0, 2]));
        let url = format!("http://{}/v2/app/blobs/{real}", m.address());
        let request = other.build().unwrap().get(url);
        read(request.send().await.unwrap()).await.expect(200, &blob);
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(asking), pulling);
    for answer in answers {
        assert_eq!(answer.status, 404);
    }
}
