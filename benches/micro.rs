//! `cargo bench --bench micro [-- FILTER]`: the pure steps of a request, and the expiry set, one by
//! one. Nothing here has a target: it shows which step a change made slower.
#![expect(clippy::unwrap_used, reason = "a benchmark: failing is stopping")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use http::{Method, Uri};
use millpond::cache::{Cache, CacheSettings, TtlPolicy};
use millpond::clock::Clock;
use millpond::metrics::{Answer, Ending, Format, Kind, Metrics, Outcome};
use millpond::oci::{Accept, Algorithm, Digest, RangeSet, RepoName, Requested, Route};
use millpond::storage::{LinkKind, MemoryStore};
use millpond::tasks::Tasks;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";
/// What containerd 2 accepts of a manifest.
const TYPES: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

/// Entries of the expiry set.
const ENTRIES: usize = 100_000;
/// Entries that come and go together.
const BATCH: usize = 1000;
const TTL: Duration = Duration::from_hours(1);

fn main() {
    divan::main();
}

// --- Requests -------------------------------------------------------------------------------------

#[divan::bench(args = ["tag", "digest", "blob", "ns", "base"])]
fn route(bencher: Bencher<'_, '_>, kind: &str) {
    let uri: Uri = match kind {
        "tag" => "/v2/library/debian/manifests/bookworm-slim".to_owned(),
        "digest" => format!("/v2/library/debian/manifests/{DIGEST}"),
        "blob" => format!("/v2/library/debian/blobs/{DIGEST}"),
        "ns" => format!("/v2/owner/group/application/blobs/{DIGEST}?ns=ghcr.io"),
        _ => "/v2/".to_owned(),
    }
    .parse()
    .unwrap();
    bencher.bench(|| Route::parse(&Method::GET, black_box(&uri)));
}

#[divan::bench(args = [1, 70])]
fn range(bencher: Bencher<'_, '_>, ranges: u64) {
    let each: Vec<_> = (0..ranges)
        .map(|n| format!("{}-{}", n * 65_536, n * 65_536 + 4095))
        .collect();
    let header = format!("bytes={}", each.join(","));
    bencher.bench(|| Requested::parse(black_box(&header)).map(|asked| asked.resolve(1 << 30)));
}

#[divan::bench]
fn accept(bencher: Bencher<'_, '_>) {
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(TYPES))]);
    bencher.bench(|| Accept::from_headers(black_box(&headers)));
}

// --- Metrics --------------------------------------------------------------------------------------

/// What a scrape renders when 50 upstreams have answered all kinds of requests.
#[divan::bench(args = ["text", "openmetrics"])]
fn metrics_of_50_upstreams(bencher: Bencher<'_, '_>, format: &str) {
    let metrics = Metrics::new();
    for n in 0..50 {
        let upstream = metrics.upstream(&format!("registry-{n}.example"));
        for route in [Kind::Manifest, Kind::Blob, Kind::Tags, Kind::Referrers] {
            for result in [Outcome::Hit, Outcome::Miss, Outcome::Joined, Outcome::Error] {
                let answer = Answer {
                    upstream: upstream.id(),
                    route,
                    result,
                };
                metrics.client_sent(answer, 1000);
                for status in [200, 206, 304, 404, 502] {
                    let time = Duration::from_millis(3);
                    metrics.served(answer, status, (time, time));
                }
            }
            for status in [200, 206, 401, 404, 429, 503] {
                upstream.request(route, "GET", Ending::Status(status));
            }
            upstream.received(route).inc_by(1000);
        }
        for error in ["timeout", "not_found", "unavailable", "rate_limited"] {
            upstream.failed(error);
        }
    }
    let format = match format {
        "text" => Format::Text,
        _ => Format::OpenMetrics,
    };
    bencher.bench(|| metrics.render_as(format));
}

/// What a warm request counts.
#[divan::bench]
fn count_a_request(bencher: Bencher<'_, '_>) {
    let metrics = Metrics::new();
    let answer = Answer {
        upstream: metrics.upstream("docker.io").id(),
        route: Kind::Blob,
        result: Outcome::Hit,
    };
    let time = Duration::from_micros(40);
    bencher.bench(|| {
        metrics.client_sent(black_box(answer), 1000);
        metrics.served(black_box(answer), 200, (time, time));
    });
}

// --- Content --------------------------------------------------------------------------------------

#[divan::bench(args = [4096, 1 << 20])]
fn sha256(bencher: Bencher<'_, '_>, bytes: usize) {
    let content = vec![0x5a; bytes];
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| Digest::of(Algorithm::Sha256, black_box(&content)));
}

#[divan::bench]
fn parse_digest() -> Digest {
    black_box(DIGEST).parse().unwrap()
}

/// Every other 64 KiB of a blob of 128 MiB arrives, then the rest.
#[divan::bench]
fn range_set_fill(bencher: Bencher<'_, '_>) {
    const PIECE: u64 = 64 * 1024;
    let pieces = (0..2048).step_by(2).chain((1..2048).step_by(2));
    let starts: Vec<u64> = pieces.map(|piece| piece * PIECE).collect();
    bencher.counter(ItemsCount::new(starts.len())).bench(|| {
        let mut set = RangeSet::new();
        for start in &starts {
            set.insert(*start, start + PIECE);
        }
        set
    });
}

#[divan::bench]
fn range_set_contains(bencher: Bencher<'_, '_>) {
    let mut set = RangeSet::new();
    for piece in 0..1024 {
        set.insert(piece * 8192, piece * 8192 + 4096);
    }
    bencher.bench(|| black_box(&set).contains(512 * 8192, 512 * 8192 + 4096));
}

// --- The expiry set -------------------------------------------------------------------------------

/// The index over an empty store, under paused time.
struct Expiry {
    runtime: Runtime,
    cache: Cache,
    repo: RepoName,
}

impl Expiry {
    fn with(digests: &[Digest]) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let settings = CacheSettings {
            ttl: TtlPolicy::sliding(Some(TTL)),
            ..CacheSettings::unlimited()
        };
        let cache = runtime.block_on(async {
            let cache = Cache::start(
                Arc::new(MemoryStore::new()),
                Arc::default(),
                Clock::system(),
                settings,
                &Tasks::new(),
                &CancellationToken::new(),
            );
            cache.complete().await;
            cache
        });
        let expiry = Self {
            runtime,
            cache,
            repo: "library/debian".parse().unwrap(),
        };
        expiry.insert(digests);
        expiry
    }

    fn insert(&self, digests: &[Digest]) {
        for digest in digests {
            self.cache.linked(&self.repo, LinkKind::Layer, digest, 1000);
        }
    }

    /// Lets time pass until everything has expired and is swept.
    fn expire(&self) {
        self.runtime.block_on(async {
            tokio::time::advance(TTL * 2).await;
            while self.cache.usage().entries > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
}

fn digests(from: usize, count: usize) -> Vec<Digest> {
    (from..from + count)
        .map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes()))
        .collect()
}

/// A batch is inserted into a set that has many already.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn expiry_insert(bencher: Bencher<'_, '_>) {
    let expiry = Expiry::with(&digests(0, ENTRIES));
    let mut next = ENTRIES;
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            next += BATCH;
            digests(next, BATCH)
        })
        .bench_local_values(|batch| expiry.insert(&batch));
}

#[divan::bench]
fn expiry_touch(bencher: Bencher<'_, '_>) {
    let all = digests(0, ENTRIES);
    let expiry = Expiry::with(&all);
    let mut random = fastrand::Rng::with_seed(1);
    bencher
        .with_inputs(|| random.choice(&all).unwrap())
        .bench_local_values(|digest| {
            expiry
                .cache
                .used(&expiry.repo, LinkKind::Layer, digest, 1000);
        });
}

/// A batch comes due and goes: the deadline, the sweep, the store's answer.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn expiry_pop(bencher: Bencher<'_, '_>) {
    let batch = digests(0, BATCH);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| Expiry::with(&batch))
        .bench_local_refs(|expiry| expiry.expire());
}
