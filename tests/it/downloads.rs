//! Downloads as clients see them: far ranges, lazy pulls, an upstream that breaks off, and requests
//! for blobs that don't exist.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use millpond::storage::FsStore;
use reqwest::Client;

use crate::harness::{
    ALWAYS, Gate, Registry, Reply, Setup, blob_path, eventually, mirrored, mirrored_with, noise,
    passing, put_blob, read,
};

const MIB: usize = 1 << 20;
const SIZE: usize = 3_000_000;
/// Where the upstream breaks off.
const CUT: usize = 1_100_000;

/// The ranges that the upstream was asked for.
fn asked(up: &Registry) -> Vec<Option<String>> {
    let seen = up.seen("GET ");
    let ranges = seen.iter().map(|seen| seen.header("range"));
    ranges.map(|range| range.map(str::to_owned)).collect()
}

/// The range from there to the end.
fn from(start: usize) -> String {
    format!("bytes={start}-")
}

#[tokio::test(start_paused = true)]
async fn a_far_range_overtakes_the_first_stream() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, 20 * MIB);
    let gate = up.hold_body("GET ", 1, MIB);
    let whole = m.open(&path).await;
    let at = 15 * MIB;
    let far = passing(m.range(&path, &format!("bytes={at}-{}", at + 9))).await;
    far.expect(206, &blob[at..at + 10]);
    gate.open();
    passing(read(whole)).await.expect(200, &blob);
    passing(m.idle()).await;
    assert!(m.is_stored(&blob).await);
    let second = asked(&up)[1].clone().unwrap();
    assert!(second.starts_with(&format!("bytes={at}-")), "{second}");
}

#[tokio::test(start_paused = true)]
async fn a_lazy_puller_gets_its_ranges_and_no_more() {
    let (up, m) = mirrored_with(&["proxy.ranges: passthrough", "proxy.fillafter: 50%"]).await;
    let (blob, path) = put_blob(&up, 1, 20 * MIB);
    for _ in 0..2 {
        let answer = passing(m.range(&path, "bytes=1000000-1000099")).await;
        answer.expect(206, &blob[1_000_000..1_000_100]);
        assert_eq!(asked(&up), [Some("bytes=1000000-1000099".to_owned())]);
    }
    let answer = passing(m.range(&path, "bytes=-10")).await;
    answer.expect(206, &blob[20 * MIB - 10..]);
    let answer = passing(m.range(&path, "bytes=99999999-")).await;
    answer.refused(416, "SIZE_INVALID");
    assert_eq!(m.upstream_bytes(), 110);
    let answer = passing(m.range(&path, "bytes=5000000-99999999")).await;
    answer.expect(206, &blob[5_000_000..]);
    passing(m.idle()).await;
    assert_eq!(m.upstream_bytes(), 20 * MIB as u64);
    up.go_down();
    passing(m.get(&path)).await.expect(200, &blob);
}

#[tokio::test(start_paused = true)]
async fn lazy_ranges_of_blobs_of_every_kind() {
    let (up, m) = mirrored_with(&["proxy.ranges: passthrough"]).await;
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
            let (blob, path) = put_blob(&up, seed, size);
            let answer = passing(m.range(&path, &asked)).await;
            answer.expect(206, &blob[start..]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_body_goes_on_by_range_where_it_broke() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    up.on("GET ", 2, |_, usual| usual.cut(CUT));
    passing(m.get(&path)).await.expect(200, &blob);
    assert_eq!(asked(&up), [None, Some(from(CUT)), Some(from(2 * CUT))]);
    assert_eq!(m.metric("millpond_downloads_resumed_total"), 2);
    m.idle().await;
    m.serves(&path, &blob).await;
    assert_eq!(up.count("GET "), 3);
}

#[tokio::test(start_paused = true)]
async fn a_cut_body_is_completed_without_a_length_and_without_ranges() {
    for chunked in [true, false] {
        let (up, m) = mirrored().await;
        let (blob, path) = put_blob(&up, 1, SIZE);
        if chunked {
            up.on("GET ", 1, |_, usual| usual.chunked().cut(CUT));
        } else {
            let whole = blob.clone();
            up.on("GET ", 1, |_, usual| usual.cut(CUT));
            up.on("GET ", ALWAYS, move |_, _| Reply::ok(&whole));
        }
        passing(m.get(&path)).await.expect(200, &blob);
        assert_eq!(up.count("GET "), 2, "chunked: {chunked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stays_broken_breaks_the_clients() {
    let (up, m) = mirrored().await;
    let shorter = format!("bytes {CUT}-{}/{}", SIZE - 2, SIZE - 1);
    for (seed, (after, requests)) in [
        (Reply::error(404), 1),
        (Reply::error(403), 1),
        (Reply::error(416), 1),
        (Reply::error(500), 5),
        (Reply::new(206, "x").with("Content-Range", "bytes 7-7/9"), 1),
        (Reply::new(200, "shorter"), 1),
        (
            Reply::new(206, noise(9, SIZE - 1 - CUT)).with("Content-Range", shorter),
            1,
        ),
        // Other bytes than the first time.
        (Reply::new(200, noise(9, SIZE)), 1),
    ]
    .into_iter()
    .enumerate()
    {
        let (blob, path) = put_blob(&up, seed as u64, SIZE);
        up.take();
        up.on("GET ", 1, |_, usual| usual.cut(CUT));
        up.reply("GET ", ALWAYS, after);
        let answer = passing(m.get(&path)).await;
        assert_eq!((answer.status, answer.broken), (200, true));
        assert!(blob.starts_with(&answer.body) && answer.body.len() <= CUT);
        assert_eq!(up.count("GET "), 1 + requests);
        passing(m.idle()).await;
        assert!(!m.is_stored(&blob).await);
        up.behave();
        passing(m.get(&path)).await.expect(200, &blob);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_taken_up_again() {
    let (up, m) = mirrored_with(&["proxy.stalltimeout: 20s"]).await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    let _never = up.hold_body("GET ", 1, CUT);
    let started = tokio::time::Instant::now();
    passing(m.get(&path)).await.expect(200, &blob);
    let waited = started.elapsed().as_secs();
    assert!((20..22).contains(&waited), "{waited}");
    assert_eq!(asked(&up), [None, Some(from(CUT))]);
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_in_the_middle_are_waited_out() {
    let (up, m) = mirrored().await;
    let (blob, path) = put_blob(&up, 1, SIZE);
    up.on("GET ", 1, |_, usual| usual.cut(CUT));
    up.reply("GET ", 1, Reply::error(429).with("Retry-After", 9));
    let started = tokio::time::Instant::now();
    passing(m.get(&path)).await.expect(200, &blob);
    assert!((9..12).contains(&started.elapsed().as_secs()));
    assert_eq!(asked(&up), [None, Some(from(CUT)), Some(from(CUT))]);
}

#[tokio::test(start_paused = true)]
async fn the_next_pull_finishes_an_interrupted_download() {
    for on_disk in [false, true] {
        let up = Registry::start().await;
        let root = tempfile::tempdir().unwrap();
        let mut setup = Setup::new(&up);
        if on_disk {
            setup = setup.store(Arc::new(FsStore::open(root.path()).await.unwrap()));
        }
        let m = setup.start().await;
        let (blob, path) = put_blob(&up, 1, 5 * MIB);
        up.on("GET ", 1, |_, usual| usual.cut(3 * MIB));
        up.reply("GET ", 1, Reply::error(403));
        let answer = passing(m.get(&path)).await;
        assert!(answer.broken && blob.starts_with(&answer.body));
        passing(m.idle()).await;
        up.take();
        passing(m.get(&path)).await.expect(200, &blob);
        assert_eq!(asked(&up), [Some(from(3 * MIB))]);
        passing(m.idle()).await;
        up.go_down();
        passing(m.get(&path)).await.expect(200, &blob);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_nothing_is_a_gateway_timeout() {
    let (up, m) = mirrored_with(&["proxy.headertimeout: 7s"]).await;
    let (_, path) = put_blob(&up, 1, 10);
    up.reply("GET ", ALWAYS, Reply::silence());
    let started = tokio::time::Instant::now();
    let answer = passing(m.get(&path)).await;
    answer.refused(504, "UNAVAILABLE");
    assert!((7..8).contains(&started.elapsed().as_secs()));
}

/// Requests that the upstream doesn't answer take no stream from a blob that exists: neither some from
/// the same address, nor a flood from another one.
#[tokio::test]
async fn bogus_digests_do_not_delay_a_blob() {
    for (bogus, sent, address) in [(40, 40, [127, 0, 0, 1]), (100, 48, [127, 0, 0, 2])] {
        let (up, m) = mirrored().await;
        let (blob, path) = put_blob(&up, 1, 100_000);
        let gate = Gate::default();
        let bogus: Vec<_> = (0..bogus).map(|n: u8| blob_path("app", &[n])).collect();
        for path in &bogus {
            let closed = gate.clone();
            up.on(path, ALWAYS, move |_, usual| usual.held(&closed));
        }
        let client = Client::builder().tls_certs_only([]);
        let client = client.local_address(IpAddr::from(address)).build().unwrap();
        let pulling = async {
            eventually("as many as allowed", || up.count("GET ") == sent).await;
            let request = client.get(format!("http://{}{path}", m.address()));
            read(request.send().await.unwrap()).await.expect(200, &blob);
            gate.open();
        };
        let (answers, ()) = tokio::join!(join_all(bogus.iter().map(|path| m.get(path))), pulling);
        assert!(answers.iter().all(|answer| answer.status == 404));
    }
}
