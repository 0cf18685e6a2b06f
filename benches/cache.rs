//! Retention at a million entries, and what its eviction is worth. Prints a table in Markdown.
//!
//! ```text
//! cargo bench --bench cache            # a million entries, some minutes
//! cargo bench --bench cache -- --quick # a hundredth of that
//! ```
//!
//! The store is one in memory that only knows sizes and links: what is measured is the index, the
//! state files (on the real disk) and the decisions, not the file system's speed of deleting.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark: failing is stopping, and figures are approximate"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millpond::cache::{Cache, CacheSettings, TtlPolicy};
use millpond::clock::Clock;
use millpond::config::TtlRule;
use millpond::oci::{Algorithm, Digest, Manifest, RepoName, Tag, UploadId};
use millpond::storage::{
    Content, Link, LinkKind, Partial, Resumed, Stage, Store, StoreError, SyncError, Tagging,
    Upload, UploadFile,
};
use millpond::tasks::Tasks;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const WEEK: Duration = Duration::from_hours(7 * 24);
/// Entries of one image: a manifest, a config and eight layers.
const PARTS: u64 = 10;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick { 100 } else { 1 };
    println!("| what | target | measured | verdict |\n|---|---|---|---|");
    many_entries(1_000_000 / scale);
    expiries(1_000_000 / scale, 100_000 / scale);
    zipf(20_000 / scale.min(10));
    cap(4_000 / scale.min(10));
}

fn row(what: &str, target: &str, measured: &str, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("| {what} | {target} | {measured} | {verdict} |");
}

// --- The store ------------------------------------------------------------------------------------

/// Sizes and links, no content.
#[derive(Debug, Default)]
struct Sizes {
    /// By the first byte of the digest.
    blobs: Mutex<HashMap<u8, HashMap<Digest, u64>>>,
    links: Mutex<BTreeMap<(RepoName, LinkKind), Vec<Digest>>>,
    bytes: AtomicU64,
    most_bytes: AtomicU64,
}

impl Sizes {
    fn part<T>(&self, first: u8, step: impl FnOnce(&mut HashMap<Digest, u64>) -> T) -> T {
        step(self.blobs.lock().unwrap().entry(first).or_default())
    }

    fn put(&self, digest: Digest, size: u64) {
        let before = self.part(digest.first_byte(), |part| part.insert(digest, size));
        if before.is_none() {
            let bytes = self.bytes.fetch_add(size, Ordering::SeqCst) + size;
            self.most_bytes.fetch_max(bytes, Ordering::SeqCst);
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.part(digest.first_byte(), |part| part.contains_key(digest))
    }
}

#[async_trait::async_trait]
impl Store for Sizes {
    async fn open(&self, _: &Digest) -> Result<Option<Content>, StoreError> {
        Ok(None)
    }
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.part(digest.first_byte(), |part| part.get(digest).copied()))
    }
    async fn stage(&self, _: &Digest, _: &str) -> Result<Box<dyn Stage>, StoreError> {
        Err(StoreError::Incomplete {
            path: PathBuf::new(),
        })
    }
    async fn resume(&self, _: &Digest, _: &str) -> Result<Option<Resumed>, StoreError> {
        Ok(None)
    }
    async fn partials(&self) -> Result<Vec<(Digest, Partial, SystemTime)>, StoreError> {
        Ok(Vec::new())
    }
    async fn discard(&self, _: &Digest, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
    async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let size = self.part(digest.first_byte(), |part| part.remove(digest));
        self.bytes.fetch_sub(size.unwrap_or(0), Ordering::SeqCst);
        Ok(size.is_some())
    }
    async fn linked(&self, _: &Link) -> Result<bool, StoreError> {
        Ok(true)
    }
    async fn link(&self, _: &Link) -> Result<(), StoreError> {
        Ok(())
    }
    async fn unlink(&self, _: &Link) -> Result<bool, StoreError> {
        Ok(true)
    }
    async fn tag(&self, _: &RepoName, _: &Tag) -> Result<Option<Digest>, StoreError> {
        Ok(None)
    }
    async fn set_tag(&self, _: &RepoName, _: &Tag, _: &Digest) -> Result<(), StoreError> {
        Ok(())
    }
    async fn write_blob(&self, _: &Digest, _: Bytes) -> Result<bool, StoreError> {
        Ok(false)
    }
    async fn publish(
        &self,
        _: &[Digest],
        _: &[Link],
        _: Option<&Tagging>,
    ) -> Result<(), SyncError> {
        Ok(())
    }
    async fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.remove(digest).await
    }
    async fn remove_tag(&self, _: &RepoName, _: &Tag) -> Result<bool, StoreError> {
        Ok(false)
    }
    async fn tags(&self, _: &RepoName) -> Result<Vec<Tag>, StoreError> {
        Ok(Vec::new())
    }
    async fn links(&self, repo: &RepoName, kind: LinkKind) -> Result<Vec<Digest>, StoreError> {
        let links = self.links.lock().unwrap();
        Ok(links
            .get(&(repo.clone(), kind))
            .cloned()
            .unwrap_or_default())
    }
    async fn blobs(&self, first: u8) -> Result<Vec<(Digest, u64)>, StoreError> {
        Ok(self.part(first, |part| part.clone().into_iter().collect()))
    }
    async fn start_upload(
        &self,
        _: &RepoName,
        _: &UploadId,
        _: SystemTime,
    ) -> Result<Box<dyn UploadFile>, StoreError> {
        Err(StoreError::Incomplete {
            path: PathBuf::new(),
        })
    }
    async fn open_upload(
        &self,
        _: &RepoName,
        _: &UploadId,
    ) -> Result<Option<Box<dyn UploadFile>>, StoreError> {
        Ok(None)
    }
    async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        Ok(Vec::new())
    }
    async fn remove_upload(&self, _: &Upload) -> Result<bool, StoreError> {
        Ok(false)
    }
    async fn cancel_upload(&self, _: &RepoName, _: &UploadId) -> Result<bool, StoreError> {
        Ok(false)
    }
    async fn repositories(&self) -> Result<Vec<RepoName>, StoreError> {
        let links = self.links.lock().unwrap();
        let repositories: BTreeSet<_> = links.keys().map(|(repo, _)| repo.clone()).collect();
        Ok(repositories.into_iter().collect())
    }
}

fn digest(kind: &str, number: u64) -> Digest {
    Digest::of(Algorithm::Sha256, format!("{kind}{number}").as_bytes())
}

fn repo(number: u64) -> RepoName {
    format!("library/application-{}", number % 1000)
        .parse()
        .unwrap()
}

/// Link number `n` of a cache of distinct images.
fn link(n: u64) -> Link {
    let image = n / PARTS;
    let kind = if n.is_multiple_of(PARTS) {
        LinkKind::Revision
    } else {
        LinkKind::Layer
    };
    Link::new(&repo(image), kind, &digest("part", n))
}

fn settings(state: Option<&Path>) -> CacheSettings {
    CacheSettings {
        ttl: TtlPolicy::sliding(Some(WEEK)),
        state: state.map(Path::to_owned),
        ..CacheSettings::unlimited()
    }
}

fn start(store: &Arc<Sizes>, settings: CacheSettings) -> Cache {
    let store: Arc<dyn Store> = Arc::clone(store) as _;
    Cache::start(
        store,
        Arc::default(),
        Clock::system(),
        settings,
        &Tasks::new(),
        &CancellationToken::new(),
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn fill(cache: &Cache, links: &[Link]) {
    for image in links.chunks(PARTS as usize) {
        for link in image {
            cache.linked(&link.repo, link.kind, &link.digest, 1000);
        }
        let parts = image[1..].iter().map(|link| (link.digest, 1000));
        cache.describe(&image[0].digest, &manifest_of(parts));
    }
}

/// A manifest of parts with these sizes in bytes.
fn manifest_of(parts: impl Iterator<Item = (Digest, u64)>) -> Manifest {
    let layers = parts.map(
        |(digest, size)| serde_json::json!({"mediaType": "x/y", "digest": digest, "size": size}),
    );
    let layers: Vec<_> = layers.collect();
    let text = serde_json::json!({"schemaVersion": 2, "layers": layers}).to_string();
    Manifest::parse(text.as_bytes()).unwrap()
}

// --- A million entries ----------------------------------------------------------------------------

/// Resident memory of this process, in bytes, where the platform tells.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1);
    pages.and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4096
}

/// User and system time of this process, where the platform tells.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = text.split(' ').skip(13).take(2);
    let ticks = ticks.filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

fn many_entries(entries: u64) {
    let links: Vec<_> = (0..entries).map(link).collect();
    let store = Arc::new(Sizes::default());
    for link in &links {
        store.put(link.digest, 1000);
        let mut all = store.links.lock().unwrap();
        let own = all.entry((link.repo.clone(), link.kind)).or_default();
        own.push(link.digest);
    }
    memory_and_touches(&links);
    // The directory of the build is on a disk; that of temporary files may be memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let state = directory.path().join("scheduler-state.json");
    saving(&links, &state);
    let runtime = runtime();
    runtime.block_on(async {
        let (began, cpu) = (Instant::now(), processor_time());
        let cache = start(&store, settings(Some(&state)));
        while (cache.usage().entries as u64) < entries {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (ready, cpu) = (began.elapsed(), processor_time().saturating_sub(cpu));
        cache.complete().await;
        let complete = began.elapsed();
        assert_eq!(cache.usage().entries as u64, entries);
        let size = std::fs::metadata(&state).unwrap().len() / 1_000_000;
        row(
            &format!("start to ready, {entries} entries from a snapshot of {size} MB"),
            "< 2 s",
            &format!("{ready:.2?}, {cpu:.2?} of processor time (reconciled with the store: {complete:.2?})"),
            ready < Duration::from_secs(2),
        );
    });
}

fn memory_and_touches(links: &[Link]) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let before = resident();
    let cache = start(&Arc::default(), settings(None));
    runtime.block_on(cache.complete());
    fill(&cache, links);
    let bytes = resident().saturating_sub(before) as f64 / links.len() as f64;
    row(
        "memory an entry (resident, every entry with content of its own, graph included)",
        "< 200 B",
        &format!("{bytes:.0} B"),
        bytes < 200.0,
    );
    let mut random = fastrand::Rng::with_seed(1);
    let chosen: Vec<_> = (0..links.len())
        .map(|_| links[random.usize(..links.len())].clone())
        .collect();
    // In batches, because a machine that others use, too, takes the processor away now and then.
    let mut batches: Vec<_> = chosen
        .chunks(1000)
        .map(|batch| {
            let began = Instant::now();
            for link in batch {
                cache.used(&link.repo, link.kind, &link.digest, 1000);
            }
            began.elapsed().as_nanos() / batch.len() as u128
        })
        .collect();
    batches.sort_unstable();
    let (median, slow) = (batches[batches.len() / 2], batches[batches.len() * 9 / 10]);
    row(
        "a touch, at random (median and 90 % of batches of 1,000)",
        "< 1000 ns",
        &format!("{median} ns, {slow} ns"),
        median < 1000,
    );
}

fn saving(links: &[Link], state: &Path) {
    let runtime = runtime();
    runtime.block_on(async {
        let cache = start(&Arc::default(), settings(Some(state)));
        cache.complete().await;
        fill(&cache, links);
        let began = Instant::now();
        cache.stop().await;
        let took = began.elapsed();
        println!("| writing the whole snapshot | | {took:.2?} | |");
    });
    let took = runtime.block_on(async {
        let journaled = state.with_file_name("touches.json");
        let cache = start(&Arc::default(), settings(Some(&journaled)));
        cache.complete().await;
        fill(&cache, &links[..links.len().min(10_000)]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut took = Vec::new();
        for round in 0..5 {
            for link in links.iter().take(1000) {
                cache.used(&link.repo, link.kind, &link.digest, 1000);
            }
            tokio::time::sleep(Duration::from_millis(4000 + round)).await;
            took.push(cache.counts().last_save);
        }
        took.sort_unstable();
        took
    });
    row(
        "a save of 1,000 touches, synced (median, worst of 5)",
        "< 50 ms",
        &format!("{:.1?}, {:.1?}", took[2], took[4]),
        took[2] < Duration::from_millis(50),
    );
}

// --- Expiry ---------------------------------------------------------------------------------------

fn expiries(entries: u64, due: u64) {
    let runtime = runtime();
    let short: Vec<_> = (0..due)
        .map(|n| Link {
            repo: "short/lived".parse().unwrap(),
            ..link(n)
        })
        .collect();
    let long: Vec<_> = (due..entries).map(link).collect();
    let mut settings = settings(None);
    settings.ttl.rules = vec![TtlRule {
        pattern: "short/*".parse().unwrap(),
        ttl: Some(Duration::from_secs(5)),
    }];
    let _entered = runtime.enter();
    let cache = start(&Arc::default(), settings);
    runtime.block_on(cache.complete());
    fill(&cache, &long);
    // Once more when a round was disturbed: others on the machine only ever add to the wait.
    let rounds = (0..3).map(|_| {
        for link in &short {
            cache.linked(&link.repo, link.kind, &link.digest, 1000);
        }
        expire_round(&runtime, &cache, &long, entries - due)
    });
    let (before, most, worst) = rounds.min_by_key(|(_, _, worst)| *worst).unwrap();
    row(
        &format!(
            "{due} expiries in one tick: a request's wait for the lock (99.9 %, worst; best of 3)"
        ),
        "< 5 ms",
        &format!("{most:.2?}, {worst:.2?} (worst while nothing expires: {before:.2?})"),
        worst < Duration::from_millis(5),
    );
}

/// Uses entries that don't expire, until only `remaining` are left. Returns how long a use took: at
/// worst before anything was due, then for 99.9 % of the uses, and at worst.
fn expire_round(
    runtime: &tokio::runtime::Runtime,
    cache: &Cache,
    long: &[Link],
    remaining: u64,
) -> (Duration, Duration, Duration) {
    let done = AtomicBool::new(false);
    let (mut before, mut waits) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            runtime.block_on(async {
                while cache.usage().entries as u64 > remaining {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            done.store(true, Ordering::Relaxed);
        });
        let mut random = fastrand::Rng::with_seed(2);
        let started = Instant::now();
        while !done.load(Ordering::Relaxed) {
            let link = &long[random.usize(..long.len())];
            let began = Instant::now();
            cache.used(&link.repo, link.kind, &link.digest, 1000);
            let quiet = started.elapsed() < Duration::from_secs(3);
            if quiet { &mut before } else { &mut waits }.push(began.elapsed());
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    waits.sort_unstable();
    let before = before.into_iter().max().unwrap_or_default();
    let (most, worst) = (waits[waits.len() * 999 / 1000], waits[waits.len() - 1]);
    (before, most, worst)
}

// --- What eviction is worth -----------------------------------------------------------------------

/// An image of a made-up registry.
struct Image {
    repo: RepoName,
    manifest: Digest,
    /// Config and layers, with their sizes in bytes.
    parts: Vec<(Digest, u64)>,
}

const MANIFEST_SIZE: u64 = 2_000;

impl Image {
    /// The manifest, then the parts.
    fn contents(&self) -> impl Iterator<Item = (Digest, u64)> {
        let manifest = (self.manifest, MANIFEST_SIZE);
        std::iter::once(manifest).chain(self.parts.iter().copied())
    }
}

/// Images with one to three layers of one of 60 bases, and two to five of their own; sizes spread
/// evenly over the orders of magnitude from 10 KB to 100 MB.
fn images(count: u64, random: &mut fastrand::Rng) -> Vec<Image> {
    let mut size = || 10_f64.powf(4.0 + 4.0 * random.f64()) as u64;
    let bases: Vec<_> = (0..180).map(|n| (digest("base", n), size())).collect();
    let own: Vec<_> = (0..count * 5).map(|n| (digest("own", n), size())).collect();
    (0..count)
        .map(|n| {
            let mut parts = vec![(digest("config", n), 5_000)];
            let base = random.usize(..60) * 3;
            parts.extend(&bases[base..=base + random.usize(..3)]);
            let first = n as usize * 5;
            parts.extend(&own[first..first + random.usize(2..=5)]);
            Image {
                repo: repo(n),
                manifest: digest("manifest", n),
                parts,
            }
        })
        .collect()
}

/// Whole pulls, blobs and bytes: those found in the cache, and all.
#[derive(Default)]
struct Hits {
    hits: [u64; 3],
    all: [u64; 3],
}

impl Hits {
    fn count(&mut self, image: &Image, has: impl Fn(&Digest) -> bool) {
        let mut whole = true;
        for (digest, size) in image.contents() {
            let hit = has(&digest);
            whole &= hit;
            self.add([0, 1, size], hit);
        }
        self.add([1, 0, 0], whole);
    }

    fn add(&mut self, counts: [u64; 3], hit: bool) {
        for (at, count) in counts.into_iter().enumerate() {
            self.hits[at] += u64::from(hit) * count;
            self.all[at] += count;
        }
    }

    fn shares(&self) -> [f64; 3] {
        std::array::from_fn(|at| 100.0 * self.hits[at] as f64 / self.all[at] as f64)
    }
}

/// Least recently used blob first, without a thought for images.
#[derive(Default)]
struct BlobLru {
    order: BTreeMap<u64, Digest>,
    blobs: HashMap<Digest, (u64, u64)>,
    used: u64,
    tick: u64,
}

impl BlobLru {
    fn touch(&mut self, digest: Digest, size: u64, max: u64) {
        self.tick += 1;
        match self.blobs.insert(digest, (self.tick, size)) {
            Some((tick, _)) => drop(self.order.remove(&tick)),
            None => self.used += size,
        }
        self.order.insert(self.tick, digest);
        while self.used > max {
            let (_, oldest) = self.order.pop_first().unwrap();
            self.used -= self.blobs.remove(&oldest).unwrap().1;
        }
    }
}

/// A pull, as the mirror does it. A part that finds no space is passed through.
async fn pull(cache: &Cache, store: &Sizes, image: &Image) {
    for (digest, size) in image.contents() {
        let hold = cache.hold(&digest).await;
        if !store.has(&digest) {
            let Ok(space) = cache.reserve(size).await else {
                continue;
            };
            tokio::task::yield_now().await;
            store.put(digest, size);
            space.commit(&hold, size);
        }
        if digest == image.manifest {
            cache.linked(&image.repo, LinkKind::Revision, &digest, size);
            cache.describe(&digest, &manifest_of(image.parts.iter().copied()));
        } else {
            cache.linked(&image.repo, LinkKind::Layer, &digest, size);
        }
    }
}

async fn capped(store: &Arc<Sizes>, max_size: u64) -> Cache {
    let settings = CacheSettings {
        max_size: Some(max_size),
        ..settings(None)
    };
    let cache = start(store, settings);
    cache.complete().await;
    cache
}

fn total(images: &[Image]) -> u64 {
    let parts = images.iter().flat_map(|image| &image.parts);
    parts.copied().collect::<HashMap<_, _>>().values().sum()
}

fn zipf(pulls: u64) {
    let mut random = fastrand::Rng::with_seed(3);
    let images = images(1000, &mut random);
    // Image number n is pulled with a probability proportional to 1 / (n + 1).
    let sums: Vec<_> = (1..=images.len())
        .scan(0.0, |sum, n| {
            *sum += 1.0 / n as f64;
            Some(*sum)
        })
        .collect();
    let draw = |random: &mut fastrand::Rng| {
        let at = random.f64() * sums[sums.len() - 1];
        &images[sums.partition_point(|sum| *sum < at)]
    };
    let trace: Vec<_> = (0..pulls).map(|_| draw(&mut random)).collect();
    for percent in [5, 20] {
        let max_size = total(&images) * percent / 100;
        let (mut plain, mut lru) = (Hits::default(), BlobLru::default());
        for image in &trace {
            plain.count(image, |digest| lru.blobs.contains_key(digest));
            for (digest, size) in image.contents() {
                lru.touch(digest, size, max_size);
            }
        }
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let ours = runtime.block_on(async {
            let store = Arc::new(Sizes::default());
            let cache = capped(&store, max_size).await;
            let mut ours = Hits::default();
            for image in &trace {
                ours.count(image, |digest| store.has(digest));
                pull(&cache, &store, image).await;
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            ours
        });
        let (ours, plain) = (ours.shares(), plain.shares());
        let shares = |[images, blobs, bytes]: [f64; 3]| {
            format!("{images:.1} % of pulls whole, {blobs:.1} % of blobs, {bytes:.1} % of bytes")
        };
        row(
            &format!("hits, Zipf(1.0), {pulls} pulls, cap {percent} % of the images' size"),
            &format!("blob-LRU: {}", shares(plain)),
            &shares(ours),
            ours[0] >= plain[0],
        );
    }
}

fn cap(pulls: u64) {
    let mut random = fastrand::Rng::with_seed(4);
    let images: Arc<Vec<_>> = Arc::new(images(1000, &mut random));
    let max_size = total(&images) / 5;
    let sizes = images
        .iter()
        .flat_map(Image::contents)
        .map(|(_, size)| size);
    let largest = sizes.max().unwrap();
    let store = Arc::new(Sizes::default());
    let runtime = runtime();
    let began = Instant::now();
    let full = runtime.block_on(async {
        let cache = capped(&store, max_size).await;
        let mut pullers = tokio::task::JoinSet::new();
        for n in 0..16 {
            let (cache, store) = (cache.clone(), Arc::clone(&store));
            let images = Arc::clone(&images);
            pullers.spawn(async move {
                let mut random = fastrand::Rng::with_seed(100 + n);
                for _ in 0..pulls / 16 {
                    let image = &images[random.usize(..images.len())];
                    pull(&cache, &store, image).await;
                }
            });
        }
        while pullers.join_next().await.is_some() {}
        cache.counts().full
    });
    let most = store.most_bytes.load(Ordering::SeqCst);
    let percent = 100.0 * most as f64 / max_size as f64;
    row(
        &format!("most bytes stored: 16 pullers, {pulls} pulls, five times the cap"),
        "<= cap + one blob",
        &format!(
            "{percent:.1} % of the cap; {full} passed through; {:.1?}",
            began.elapsed()
        ),
        most <= max_size + largest,
    );
}
