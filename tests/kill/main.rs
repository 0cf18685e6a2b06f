//! The real binary, killed at random moments (SIGKILL) while clients pull through it, again and
//! again. What each of them gets is right to the byte, what is stored is whole, nothing is left in
//! the spool, and what had been downloaded before a kill isn't downloaded again. The same for clients that
//! push: everything of each manifest that was acknowledged is there.
//!
//! Processes and kills happen in real time, so this test does, too; but nothing in it passes or
//! fails by the clock. `MILLPOND_KILL_SEED` repeats the choices of an earlier run, though not the
//! exact moments.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stderr, reason = "the seed, and what was seen")]

mod gallery;
mod puller;
mod pusher;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millpond::oci::{Algorithm, Digest};
use serde_json::json;
use testkit::{Options, Program};
use tokio::sync::watch;
use tokio::task::JoinSet;

use gallery::Gallery;
use puller::{Life, Puller};
use pusher::{Images, Pusher, ToPush};

type Upstream = testkit::Registry<Digest>;

/// Bytes per second from upstream: so few that a large layer takes longer than the server lives, and
/// that all of them don't fill a disk.
const RATE: u64 = 24 << 20;
const KILLS: usize = 50;
/// Those of a server that is pushed to.
const PUSH_KILLS: usize = 20;
const PUSHERS: u64 = 4;
/// What hosts repositories, as variables of the environment.
const HOSTED: &str = "export REGISTRY_HOSTED='[{name: ci, repositories: [\"ci/**\"]}]' \
                      REGISTRY_ACCESS='[{anyone: true, effect: allow}]';";
/// How long the server lives between its first answer and the next kill, in milliseconds.
const LIFE_MS: Range<u64> = 300..1_500;
const PULLERS: u64 = 4;
/// Images of which each puller takes one after the other, in an order of its own.
const BATCH: u64 = 4;
/// Bytes of blobs from upstream over the bytes of the distinct blobs. Without resuming after a
/// restart it is about 7.
const MOST_FROM_UPSTREAM: f64 = 1.3;
/// The whole test; it takes about a minute.
const LIMIT: Duration = Duration::from_mins(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_image_is_whole_after_fifty_kills() {
    let seed = seed();
    eprintln!("MILLPOND_KILL_SEED={seed}");
    tokio::time::timeout(LIMIT, story(seed)).await.unwrap();
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test's own variable, not the program's"
)]
fn seed() -> u64 {
    match std::env::var("MILLPOND_KILL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_unset) => fastrand::u64(..),
    }
}

async fn story(seed: u64) {
    let upstream = Arc::new(Upstream::with(Options::default().rate(RATE)).await);
    let gallery = Arc::new(Gallery::new(&upstream));
    let directory = tempfile::tempdir().unwrap();
    let mut server = Program::new(
        env!("CARGO_BIN_EXE_millpond"),
        directory.path(),
        upstream.address,
        "",
        // Kills meet blobs that come in several streams, too.
        &json!({ "segments": { "minsize": "8MiB" } }),
    );
    server.start();

    let (life, watched) = watch::channel(Life::default());
    let enough = Arc::new(AtomicBool::new(false));
    let mut pullers = JoinSet::new();
    for number in 0..PULLERS {
        let puller = Puller::new(server.address, watched.clone(), seed ^ (number << 8));
        let (gallery, enough) = (Arc::clone(&gallery), Arc::clone(&enough));
        pullers.spawn(async move { pull_until(&puller, &gallery, &enough).await });
    }
    kill_again_and_again(&mut server, &life, (seed, KILLS), &mut pullers).await;
    enough.store(true, Ordering::Relaxed);
    let images: BTreeSet<u64> = pullers.join_all().await.into_iter().flatten().collect();

    // A client has everything before the file is committed: after a kill in between, the blob is
    // not in the store. So everything is pulled once more, by one that nobody kills.
    let puller = Puller::new(server.address, watched, seed);
    for number in &images {
        puller.pull(&gallery.image(*number)).await;
    }
    server.stop();
    server.start();
    server.stop();

    let blobs = distinct_blobs(&gallery, &images);
    assert_stored(directory.path(), &blobs);
    assert_spool_is_empty(directory.path());
    let unique: u64 = blobs.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "two decimals are wanted")]
    let factor = upstream.blob_bytes() as f64 / unique as f64;
    eprintln!(
        "{KILLS} kills, {} images, {} blobs of {} MiB, from upstream {factor:.2} x that",
        images.len(),
        blobs.len(),
        unique >> 20,
    );
    assert!(
        factor <= MOST_FROM_UPSTREAM,
        "{factor:.2} x the blobs' bytes came from upstream"
    );
}

/// Pulls images until told that it is enough, batch by batch, so that the pullers are never far
/// from each other and often in the same downloads. Returns the images.
async fn pull_until(puller: &Puller, gallery: &Gallery, enough: &AtomicBool) -> Vec<u64> {
    let mut images = Vec::new();
    for batch in 0.. {
        let mut numbers: Vec<_> = (batch * BATCH..(batch + 1) * BATCH).collect();
        puller.shuffle(&mut numbers);
        for number in numbers {
            if enough.load(Ordering::Relaxed) {
                return images;
            }
            puller.pull(&gallery.image(number)).await;
            images.push(number);
        }
    }
    images
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_push_is_whole_after_twenty_kills() {
    let seed = seed();
    eprintln!("MILLPOND_KILL_SEED={seed}");
    tokio::time::timeout(LIMIT, pushes(seed)).await.unwrap();
}

async fn pushes(seed: u64) {
    let upstream = Upstream::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut server = Program::new(
        env!("CARGO_BIN_EXE_millpond"),
        directory.path(),
        upstream.address,
        HOSTED,
        &json!({}),
    );
    server.start();
    let (life, watched) = watch::channel(Life::default());
    let enough = Arc::new(AtomicBool::new(false));
    let images = Arc::new(Images::new(seed));
    let mut clients = JoinSet::new();
    for number in 0..PUSHERS {
        let pusher = Pusher::new(server.address, watched.clone(), seed ^ (number << 8));
        let (images, enough) = (Arc::clone(&images), Arc::clone(&enough));
        clients.spawn(async move { push_until(&pusher, &images, number, &enough).await });
    }
    kill_again_and_again(&mut server, &life, (seed, PUSH_KILLS), &mut clients).await;
    enough.store(true, Ordering::Relaxed);
    let acknowledged: Vec<ToPush> = clients.join_all().await.into_iter().flatten().collect();
    eprintln!("{PUSH_KILLS} kills, {} images pushed", acknowledged.len());
    // What the process has in memory proves nothing.
    server.kill();
    server.start();
    let pusher = Pusher::new(server.address, watched, seed);
    for image in &acknowledged {
        pusher.verify(image).await;
    }
    server.stop();
    assert_stored(directory.path(), &BTreeMap::new());
}

/// Pushes images until told that it is enough. Returns those whose manifest was acknowledged.
async fn push_until(
    pusher: &Pusher,
    images: &Images,
    number: u64,
    enough: &AtomicBool,
) -> Vec<ToPush> {
    let mut acknowledged = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        // Two of them push into each repository.
        let image = images.make(&format!("ci/app-{}", number / 2));
        pusher.push(&image).await;
        acknowledged.push(image);
    }
    acknowledged
}

async fn kill_again_and_again<T: std::fmt::Debug + 'static>(
    server: &mut Program,
    life: &watch::Sender<Life>,
    (seed, kills): (u64, usize),
    clients: &mut JoinSet<T>,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    life.send_modify(Life::begin);
    for _ in 0..kills {
        let moment = Duration::from_millis(random.u64(LIFE_MS));
        tokio::select! {
            () = tokio::time::sleep(moment) => {}
            // None ends before it is told to, save by failing.
            ended = clients.join_next() => panic!("a client failed: {ended:?}"),
        }
        // Before the kill, so that whoever sees a connection break knows why.
        life.send_modify(Life::end);
        server.kill();
        server.start();
        life.send_modify(Life::begin);
    }
}

/// Digests and sizes.
fn distinct_blobs(gallery: &Gallery, images: &BTreeSet<u64>) -> BTreeMap<Digest, u64> {
    images
        .iter()
        .flat_map(|number| gallery.image(*number).blobs.clone())
        .map(|(digest, bytes)| (digest, bytes.len() as u64))
        .collect()
}

/// Every blob's file is what its name says, and all of these are there.
fn assert_stored(root: &Path, wanted: &BTreeMap<Digest, u64>) {
    let mut stored = BTreeSet::new();
    let blobs = root.join("data/docker/registry/v2/blobs/sha256");
    for prefix in std::fs::read_dir(&blobs).unwrap() {
        for blob in std::fs::read_dir(prefix.unwrap().path()).unwrap() {
            let blob = blob.unwrap();
            let content = std::fs::read(blob.path().join("data")).unwrap();
            let digest = Digest::of(Algorithm::Sha256, &content);
            let name = format!("sha256:{}", blob.file_name().to_str().unwrap());
            assert_eq!(digest.to_string(), name, "a blob that isn't whole");
            stored.insert(digest);
        }
    }
    let missing: Vec<_> = wanted.keys().filter(|key| !stored.contains(key)).collect();
    assert!(missing.is_empty(), "not in the store: {missing:?}");
}

/// Everything was pulled to its end, so nothing partial is of use to anybody any more.
fn assert_spool_is_empty(root: &Path) {
    let files = std::fs::read_dir(root.join("data/millpond/spool")).unwrap();
    let left: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left in the spool: {left:?}");
}
