//! Whole pulls by several clients over a store whose calls fail by chance, across restarts: each body
//! is right or broken off, never wrong, and each request ends.
//!
//! A run is made again by its seed: `MILLPOND_CHAOS_SEED=<seed>`. `MILLPOND_CHAOS_RUNS` makes more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::join_all;
use millpond::storage::{self, FsStore, MemoryStore, Store};

use crate::harness::{
    Answer, FaultyStore, Image, Mirror, Operation, Registry, Setup, digest, noise, passing, read,
};

const RUNS: u64 = 8;
/// Processes in a run, one after the other.
const RESTARTS: usize = 3;
const CLIENTS: usize = 4;
const REQUESTS: usize = 5;
/// Per mille of the calls that fail.
const RATES: [u32; 4] = [2, 10, 50, 300];
const OPERATIONS: [Operation; 15] = [
    Operation::Open,
    Operation::Read,
    Operation::Size,
    Operation::Stage,
    Operation::Write,
    Operation::Checkpoint,
    Operation::Commit,
    Operation::Resume,
    Operation::Discard,
    Operation::Remove,
    Operation::Quarantine,
    Operation::Linked,
    Operation::Link,
    Operation::Tag,
    Operation::SetTag,
];

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    broken: usize,
    refused: usize,
}

struct Run {
    store: Arc<FaultyStore>,
    up: Registry,
    image: Image,
    /// What a byte of a range may be wrong in: damaged blobs that nobody has verified.
    damaged: Vec<Bytes>,
    _root: tempfile::TempDir,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = if seed.is_multiple_of(2) {
            Arc::new(MemoryStore::new())
        } else {
            Arc::new(FsStore::open(root.path()).await.unwrap())
        };
        let up = Registry::start().await;
        let sizes = [1, 5_000, 300_000, 1_048_576, 1_048_577, 1_700_003];
        let layers = sizes.map(|size| noise(seed * 100 + size as u64 % 97, size));
        let image = Image::layered(seed, layers.to_vec(), |_, _| ());
        up.push("app", "1", &image);
        Self {
            store: Arc::new(FaultyStore::new(store)),
            up,
            image,
            damaged: Vec::new(),
            _root: root,
        }
    }

    /// Damages a layer that is there, as a disk or an operator does.
    async fn damage(&mut self, random: &mut Rng) {
        let layer = random.choice(&self.image.layers).unwrap().clone();
        let digest = digest(&layer);
        if !self.store.remove(&digest).await.unwrap() {
            return;
        }
        let mut wrong = layer.to_vec();
        let at = random.usize(..wrong.len());
        match random.u8(..3) {
            0 => wrong[at] ^= 1,
            1 => wrong.truncate(at),
            _ => wrong[at..].fill(0),
        }
        storage::put(&*self.store, &digest, wrong.into())
            .await
            .unwrap();
        self.damaged.push(layer);
    }

    async fn client(&self, m: &Mirror, seed: u64) -> Tally {
        let mut random = Rng::with_seed(seed);
        let mut tally = Tally::default();
        for _ in 0..REQUESTS {
            let (answer, expected, excused) = self.request(m, &mut random).await;
            // Broken off before its head.
            let Some(answer) = answer else {
                tally.broken += 1;
                continue;
            };
            match answer.status {
                200 | 206 if answer.broken => tally.broken += 1,
                200 | 206 => {
                    let right = answer.body == expected || excused;
                    assert!(right, "a wrong body: {:?}", answer.headers);
                    tally.right += 1;
                }
                _ => {
                    assert!(answer.status >= 500, "{answer:?}");
                    tally.refused += 1;
                }
            }
        }
        tally
    }

    /// An answer, what it should be, and whether it may be wrong: a range of a damaged blob that
    /// says that it isn't to be kept.
    async fn request(&self, m: &Mirror, random: &mut Rng) -> (Option<Answer>, Bytes, bool) {
        if random.u8(..5) == 0 {
            let by_digest = format!("/v2/app/manifests/{}", self.image.digest());
            let path = if random.bool() {
                "/v2/app/manifests/1"
            } else {
                &by_digest
            };
            return (ask(m, path, None).await, self.image.manifest.clone(), false);
        }
        let blobs: Vec<_> = self.image.blobs().collect();
        let blob = (*random.choice(&blobs).unwrap()).clone();
        let path = format!("/v2/app/blobs/{}", digest(&blob));
        if random.u8(..3) > 0 {
            return (ask(m, &path, None).await, blob, false);
        }
        let start = random.usize(..blob.len());
        let end = random.usize(start..blob.len()) + 1;
        let range = format!("bytes={start}-{}", end - 1);
        let answer = ask(m, &path, Some(&range)).await;
        let no_store = |answer: &Answer| answer.header("cache-control") == "no-store";
        let excused = answer.as_ref().is_some_and(no_store) && self.damaged.contains(&blob);
        (answer, blob.slice(start..end), excused)
    }
}

/// An answer; none when the connection ends before its head.
async fn ask(m: &Mirror, path: &str, range: Option<&str>) -> Option<Answer> {
    let headers: Vec<_> = range.iter().map(|range| ("range", *range)).collect();
    let response = m.request(&format!("GET {path}"), &headers).send().await;
    Some(read(response.ok()?).await)
}

async fn run(seed: u64) -> Tally {
    let mut random = Rng::with_seed(seed);
    let mut run = Run::new(seed).await;
    let mut tally = Tally::default();
    for _ in 0..RESTARTS {
        if random.bool() {
            run.damage(&mut random).await;
        }
        let rate = *random.choice(&RATES).unwrap();
        run.store.fail_by_chance(random.u64(..), rate, &OPERATIONS);
        let store: Arc<dyn Store> = run.store.clone();
        let m = Setup::new(&run.up).store(store).start().await;
        let seeds: Vec<_> = (0..CLIENTS).map(|_| random.u64(..)).collect();
        let clients = seeds.iter().map(|seed| run.client(&m, *seed));
        for one in passing(join_all(clients)).await {
            tally.right += one.right;
            tally.broken += one.broken;
            tally.refused += one.refused;
        }
        passing(m.app.stop()).await;
        run.store.fail_by_chance(0, 0, &[]);
    }
    // A store that is well again serves everything, and has nothing wrong.
    let store: Arc<dyn Store> = run.store.clone();
    let m = Setup::new(&run.up).store(store).start().await;
    for _ in 0..2 {
        for blob in run.image.blobs() {
            let path = format!("/v2/app/blobs/{}", digest(blob));
            if let Some(answer) = passing(ask(&m, &path, None)).await {
                assert!(answer.broken || answer.body == *blob);
            }
            passing(m.get(&path)).await.expect(200, blob);
        }
        passing(tokio::time::sleep(Duration::from_secs(1))).await;
    }
    passing(m.app.stop()).await;
    tally
}

#[expect(clippy::disallowed_methods, reason = "a test's own knobs")]
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap())
}

#[expect(
    clippy::print_stderr,
    reason = "the output of a failed test names its seed"
)]
#[tokio::test(start_paused = true)]
async fn a_failing_store_never_gives_a_wrong_body() {
    let seeds = match number("MILLPOND_CHAOS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MILLPOND_CHAOS_RUNS").unwrap_or(RUNS),
    };
    let mut all = Tally::default();
    for seed in seeds {
        eprintln!("seed {seed}");
        let tally = Box::pin(run(seed)).await;
        all.right += tally.right;
        all.broken += tally.broken;
        all.refused += tally.refused;
    }
    eprintln!("{all:?}");
    assert!(all.right > all.broken + all.refused, "{all:?}");
}
