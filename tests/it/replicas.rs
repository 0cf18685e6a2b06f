//! Replicas that share the work: blobs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use millpond::replicas::score;
use reqwest::Response;
use tokio::time::{Instant, timeout};

use crate::harness::replicas::{Relay, Replicas, SECRET, section};
use crate::harness::{
    ALWAYS, Mirror, Registry, Reply, Setup, digest, eventually, noise, put_blob, read,
};

const MIB: usize = 1024 * 1024;

/// Reads a body and compares it with the blob.
async fn expect(mut response: Response, blob: &Bytes) -> Result<(), String> {
    let mut at = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if blob.get(at..at + chunk.len()) == Some(&chunk[..]) => {
                at += chunk.len();
            }
            Ok(Some(_)) => return Err(format!("wrong bytes at {at}")),
            Ok(None) if at == blob.len() => return Ok(()),
            ended => return Err(format!("ended at {at}: {ended:?}")),
        }
    }
}

async fn pull(mirror: &Mirror, path: &str, blob: &Bytes) -> Result<(), String> {
    let response = mirror.open(path).await;
    match response.status().as_u16() {
        200 => expect(response, blob).await,
        status => Err(status.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_asks_the_owner_which_asks_the_upstream() {
    let replicas = Replicas::start(3, &[]).await;
    let (blob, path) = put_blob(&replicas.up, 1, 3 * MIB);
    let order = replicas.order(&digest(&blob).to_string());
    let (owner, second, last) = (order[0], order[1], order[2]);
    let answer = replicas.mirrors[last].serves(&path, &blob).await;
    let hop = replicas.relays[owner].address;
    answer.has(
        "cache-status",
        format!("\"{hop}\", millpond; fwd=uri-miss; stored"),
    );
    replicas.idle().await;
    assert_eq!(replicas.up.lines(), [format!("GET {path}")]);
    for (mirror, expected) in [(owner, true), (second, false), (last, true)] {
        assert_eq!(replicas.mirrors[mirror].is_stored(&blob).await, expected);
    }
    replicas.mirrors[owner]
        .serves(&path, &blob)
        .await
        .has("cache-status", "millpond; hit");
    replicas.mirrors[second].serves(&path, &blob).await;
    assert_eq!(replicas.up.count(""), 1);
    let asked = "millpond_source_requests_total{source=\"peer\"}";
    assert_eq!(replicas.mirrors[last].metric(asked), 1);
    assert_eq!(replicas.mirrors[owner].metric(asked), 0);
    let received = "millpond_source_received_bytes_total{source=\"peer\"}";
    assert_eq!(replicas.mirrors[last].metric(received), blob.len() as u64);
    // What the owner lacks is a final answer.
    let missing = format!("/v2/app/blobs/{}", digest(b"missing"));
    for mirror in &replicas.mirrors {
        mirror.get(&missing).await.refused(404, "BLOB_UNKNOWN");
    }
    assert_eq!(replicas.up.count(&format!("GET {missing}")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_all_replicas_cost_one_download() {
    let replicas = Replicas::start(4, &[]).await;
    let (blob, path) = put_blob(&replicas.up, 2, 256 * MIB);
    let clients = (0..40).map(|client| pull(&replicas.mirrors[client % 4], &path, &blob));
    try_join_all(clients).await.unwrap();
    replicas.idle().await;
    // Only the owner has asked; it may have opened several streams, of different parts.
    let order = replicas.order(&digest(&blob).to_string());
    for other in &order[1..] {
        let asked = "millpond_source_requests_total{source=\"upstream\"}";
        assert_eq!(replicas.mirrors[*other].metric(asked), 0);
    }
    let sent = replicas.up.blob_bytes();
    assert!(sent <= (blob.len() as u64) * 115 / 100, "{sent}");
    assert_eq!(replicas.up.count("HEAD "), 0);
}

/// The clients of each replica read while the owner stops in the middle of a blob.
async fn owner_stops_in_the_middle(stop: fn(&Relay)) {
    let replicas = Replicas::start(4, &["proxy.segments: {count: 1}"]).await;
    let (blob, path) = put_blob(&replicas.up, 3, 24 * MIB);
    let order = replicas.order(&digest(&blob).to_string());
    let gate = replicas.up.hold_body("GET ", 1, 8 * MIB);
    let others: Vec<_> = order[1..]
        .iter()
        .map(|other| &replicas.mirrors[*other])
        .collect();
    let clients = others.iter().flat_map(|mirror| [*mirror; 3]);
    let opened = join_all(clients.map(|mirror| mirror.open(&path))).await;
    let readers = try_join_all(opened.into_iter().map(|response| expect(response, &blob)));
    let received = "millpond_source_received_bytes_total{source=\"peer\"}";
    let stopping = async {
        eventually("bytes from the owner", || {
            let mut others = others.iter();
            others.all(|mirror| mirror.metric(received) > 7 * MIB as u64)
        })
        .await;
        stop(&replicas.relays[order[0]]);
        gate.open();
        Ok(())
    };
    let all = async { tokio::try_join!(readers, stopping) };
    timeout(Duration::from_secs(30), all)
        .await
        .unwrap()
        .unwrap();
    let gets = replicas.up.seen(&format!("GET {path}"));
    assert_eq!(gets.len(), 2, "{gets:?}");
    let range = gets[1].header("range").unwrap();
    assert!(
        range.starts_with("bytes=") && range != "bytes=0-",
        "{range}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_continue_when_the_owner_is_killed() {
    owner_stops_in_the_middle(Relay::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_continue_when_the_owner_falls_silent() {
    owner_stops_in_the_middle(Relay::silence).await;
}

/// The name of a member that scores less than another one.
fn outranked(other: &str, key: &str) -> String {
    let names = (1..).map(|port| format!("127.0.0.1:{port}"));
    let mut less = names.filter(|name| score(name, key) < score(other, key));
    less.next().unwrap()
}

/// Two replicas that know each other, of which each takes the other one for the owner of a key.
async fn crossed(up: &Registry, key: &str) -> [(Relay, Mirror); 2] {
    let relays = [Relay::start().await, Relay::start().await];
    let mut started = Vec::new();
    for (own, other) in [(0, 1), (1, 0)] {
        let other = relays[other].address.to_string();
        let me = outranked(&other, key);
        let section = section(&[other, me.clone()], &me, SECRET);
        let mirror = Setup::new(up).with(&[&section]).start().await;
        relays[own].lead_to(&mirror);
        started.push(mirror);
    }
    let [first, second] = relays;
    let (other, one) = (started.pop().unwrap(), started.pop().unwrap());
    [(first, one), (second, other)]
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_take_each_other_for_the_owner_both_answer() {
    let up = Registry::start().await;
    for seed in 0..8 {
        let (blob, path) = put_blob(&up, seed, 2 * MIB);
        let [(_, one), (_, other)] = &crossed(&up, &digest(&blob).to_string()).await;
        // So that both ask while the other one's answer is pending.
        up.on("GET ", ALWAYS, |_, usual| {
            usual.trickling(64 * 1024, Duration::from_millis(1))
        });
        let both = async { tokio::try_join!(pull(one, &path, &blob), pull(other, &path, &blob)) };
        timeout(Duration::from_secs(3), both)
            .await
            .unwrap()
            .unwrap();
        let gets = up.count(&format!("GET {path}"));
        assert!(gets <= 2, "{gets}");
        up.take();
        up.behave();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_costs_requests_and_no_pull() {
    for stop in [Relay::silence, Relay::kill] {
        let replicas = Replicas::start(3, &[]).await;
        let (blob, path) = put_blob(&replicas.up, 4, MIB);
        replicas.relays.iter().for_each(stop);
        let pulls = replicas
            .mirrors
            .iter()
            .map(|mirror| pull(mirror, &path, &blob));
        timeout(Duration::from_secs(10), try_join_all(pulls))
            .await
            .unwrap()
            .unwrap();
        assert!(replicas.up.count(&format!("GET {path}")) <= 3);
        // They are known to be missing, and nothing fails because of that.
        let last = &replicas.mirrors[replicas.order(&digest(&blob).to_string())[2]];
        let ready = last.debug("/readyz").await;
        assert_eq!(ready.status, 200);
        let why = ready.json()["checks"]["replicas"]["error"].to_string();
        assert!(why.contains("of 2 other replicas"), "{why}");
        assert_eq!(last.metric("millpond_replicas_skipped"), 2);
        // Skipped from then on, so that the next pull doesn't wait for them.
        let (blob, path) = put_blob(&replicas.up, 5, MIB);
        let began = Instant::now();
        pull(last, &path, &blob).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_asked_for_once_by_all() {
    let replicas = Replicas::start(4, &[]).await;
    let (_, path) = put_blob(&replicas.up, 6, MIB);
    replicas
        .up
        .reply("GET ", ALWAYS, Reply::error(429).with("retry-after", "600"));
    for mirror in replicas.mirrors.iter().chain(&replicas.mirrors) {
        let answer = mirror.get(&path).await;
        answer.refused(429, "TOOMANYREQUESTS");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((590..=600).contains(&wait), "{wait}");
    }
    assert_eq!(replicas.up.count("GET "), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lacks_the_secret_is_an_ordinary_client() {
    let up = Registry::start().await;
    let (blob, path) = put_blob(&up, 9, MIB);
    let relays = [Relay::start().await, Relay::start().await];
    let names: Vec<_> = relays
        .iter()
        .map(|relay| relay.address.to_string())
        .collect();
    let mut mirrors = Vec::new();
    for (relay, secret) in relays.iter().zip([SECRET, "a secret of nobody else"]) {
        let section = section(&names, &relay.address.to_string(), secret);
        let mirror = Setup::new(&up).with(&[&section]).start().await;
        relay.lead_to(&mirror);
        mirrors.push(mirror);
    }
    // Whoever owns it: each pulls by itself, because the other one's answers aren't marked.
    for mirror in &mirrors {
        pull(mirror, &path, &blob).await.unwrap();
    }
    assert_eq!(up.count("GET "), 2);
    let forged = [
        (
            "millpond-peer",
            "1.1800000000.00112233445566778899aabbccddeeff.00",
        ),
        ("millpond-upstream", "nowhere.example"),
    ];
    let answer = mirrors[0].ask(&format!("GET {path}"), &forged).await;
    answer.expect(200, &blob);
    assert!(answer.headers.get("millpond-peer").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_ask_for_starts_no_prefetch_there() {
    let replicas = Replicas::start(2, &[]).await;
    let layers = vec![noise(20, MIB), noise(21, MIB), noise(22, MIB)];
    let image = testkit::Image::layered(20, layers, |_, _| {});
    let manifest = replicas.up.push("app", "1", &image);
    // Both know the manifest.
    for mirror in &replicas.mirrors {
        mirror.get(&format!("/v2/app/manifests/{manifest}")).await;
    }
    let first = image.blobs().nth(1).unwrap().clone();
    let order = replicas.order(&digest(&first).to_string());
    let path = format!("/v2/app/blobs/{}", digest(&first));
    read(replicas.mirrors[order[1]].open(&path).await)
        .await
        .expect(200, &first);
    replicas.idle().await;
    let ahead = "millpond_prefetched_bytes_total";
    assert_eq!(replicas.mirrors[order[0]].metric(ahead), 0);
    // The asking one has done so for its own client: one request upstream for each layer.
    for blob in image.blobs() {
        let count = replicas
            .up
            .count(&format!("GET /v2/app/blobs/{}", digest(blob)));
        assert!(count <= 1, "{count}");
    }
}
