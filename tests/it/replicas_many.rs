//! Ten replicas and hundreds of clients, with every request to the upstream counted. The same with 10,000
//! clients, a bucket and no sockets is simulated in `src/mirror/simulation`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use millpond::oci::Manifest;

use crate::harness::replicas::Replicas;
use crate::harness::{Image, Registry, advance, noise};

const REPLICAS: usize = 10;
const CLIENTS: usize = 200;
const APPS: usize = 12;
const TTL: Duration = Duration::from_mins(1);
/// The time between two checks of all clients, and how many there are.
const STEP: Duration = Duration::from_secs(20);
const STEPS: u64 = 15;
/// Clients that ask at the same time.
const AT_ONCE: usize = 48;

/// The tag of a repository names another image, which has two layers in common with the one before.
fn release(up: &Registry, app: usize, number: usize) {
    let seed = app as u64 * 1_000;
    let own = noise(seed + 10 + number as u64, 40_000);
    let layers = vec![noise(seed, 200_000), noise(seed + 1, 5_000), own];
    let image = Image::layered(seed + number as u64, layers, |_, _| ());
    up.push(&format!("app/{app}"), "main", &image);
}

/// Looks whether it runs what a tag names, and pulls that if it doesn't: each request from any replica.
async fn check(replicas: &Replicas, has: &mut HashSet<String>, random: &mut fastrand::Rng) {
    let repo = format!("/v2/app/{}", random.usize(..APPS));
    let mut any = || &replicas.mirrors[random.usize(..REPLICAS)];
    let head = any().head(&format!("{repo}/manifests/main")).await;
    assert_eq!(head.status, 200);
    let digest = head.header("docker-content-digest").to_owned();
    let manifest = format!("{repo}/manifests/{digest}");
    if !has.insert(manifest.clone()) {
        return;
    }
    let answer = any().get(&manifest).await;
    assert_eq!(answer.status, 200);
    let image = Manifest::parse(&answer.body).unwrap();
    for blob in image.config.iter().chain(&image.blobs) {
        let path = format!("{repo}/blobs/{}", blob.digest);
        if has.insert(path.clone()) {
            let answer = any().get(&path).await;
            assert_eq!(crate::harness::digest(&answer.body), blob.digest);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_clients_of_ten_replicas_cost_what_one_mirror_would() {
    let replicas = Replicas::start(REPLICAS, &["proxy.tags: {ttl: 1m}"]).await;
    let mut random = fastrand::Rng::with_seed(1);
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| (random.fork(), HashSet::new()))
        .collect();
    let mut releases = [0; APPS];
    for step in 0..STEPS {
        for (app, released) in releases.iter_mut().enumerate() {
            if *released == 0 || (step + app as u64).is_multiple_of(8) {
                release(&replicas.up, app, *released);
                *released += 1;
            }
        }
        let checks = stream::iter(&mut clients);
        let checks = checks.map(|(random, has)| check(&replicas, has, random));
        checks.buffer_unordered(AT_ONCE).collect::<()>().await;
        advance(STEP).await;
    }
    replicas.idle().await;
    let pulled: HashSet<_> = clients.into_iter().flat_map(|(_, has)| has).collect();
    let (mut downloads, mut questions) = (BTreeMap::<_, usize>::new(), 0);
    for line in replicas.up.lines() {
        let (method, path) = line.split_once(' ').unwrap();
        if path.ends_with("/manifests/main") {
            questions += 1;
        } else {
            assert_eq!(method, "GET", "{line}");
            *downloads.entry(path.to_owned()).or_default() += 1;
        }
    }
    let twice: Vec<_> = downloads.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let downloads: HashSet<_> = downloads.into_keys().collect();
    assert_eq!(downloads, pulled);
    let most = APPS as u64 * (STEP.as_secs() * STEPS) / TTL.as_secs();
    assert!(questions <= most, "{questions} of at most {most}");
}
