//! A day of a cluster, simulated: 200 nodes, an upstream that permits 100 pulls in 6 hours, and an outage
//! of an hour. Counts what the upstream is asked, and which pulls fail.
//!
//! The nodes call the mirror itself, without HTTP between them, so that a day takes seconds; the upstream
//! is reached over HTTP.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use millpond::app::{cache_settings, upstream_client};
use millpond::cache::{Cache, ReadMode, VERIFIED_FIRST};
use millpond::clock::Clock;
use millpond::config;
use millpond::download::{Client, DownloadSettings, Downloader, DownloaderOptions};
use millpond::metrics::Metrics;
use millpond::mirror::{
    Mirror, MirrorError, MirrorOptions, MirrorPolicy, PrefetchLimits, RangeRules, Target, Upstreams,
};
use millpond::oci::{Accept, Classified as _, Digest, ErrorKind, Reference};
use millpond::storage::MemoryStore;
use millpond::tasks::Tasks;
use serde_json::json;
use testkit::time::freeze;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{ALWAYS, Image, Registry, Reply, advance, noise};

const DAY: u64 = 24 * 60;
const NODES: usize = 200;
/// Repositories whose nodes pull a moving tag, and a tag for each release.
const MOVING: usize = 8;
const RELEASED: usize = 32;
const LIMIT: u64 = 100;
const WINDOW: Duration = Duration::from_hours(6);
/// The hour of the outage, and the time at which many new images are pulled at once, in minutes.
const OUTAGE: std::ops::Range<u64> = 13 * 60..14 * 60;
const BURST: u64 = 20 * 60;
const BURST_IMAGES: usize = 150;

/// A registry with a limit of pulls, as Docker Hub has it.
struct Hub {
    registry: Registry,
    limit: Arc<Mutex<Window>>,
    /// Images so far.
    seed: u64,
}

struct Window {
    began: Instant,
    pulls: u64,
}

impl Window {
    fn at(&mut self, now: Instant) -> &mut Self {
        if now >= self.began + WINDOW {
            (self.began, self.pulls) = (now, 0);
        }
        self
    }
}

impl Hub {
    async fn start() -> Self {
        let window = Window {
            began: Instant::now(),
            pulls: 0,
        };
        let hub = Self {
            registry: Registry::start().await,
            limit: Arc::new(Mutex::new(window)),
            seed: 0,
        };
        hub.behave();
        hub
    }

    /// Answers with the limit again after an outage.
    fn behave(&self) {
        self.registry.behave();
        let limit = Arc::clone(&self.limit);
        self.registry.on("/manifests/", ALWAYS, move |seen, usual| {
            let mut window = limit.lock().unwrap();
            let window = window.at(Instant::now());
            let is_pull = seen.line.starts_with("GET ");
            let is_over = is_pull && window.pulls >= LIMIT;
            window.pulls += u64::from(is_pull && !is_over);
            let document = json!({"errors": [{"code": "TOOMANYREQUESTS", "message": "enough"}]});
            let reply = if is_over {
                Reply::json(&document).status(429).with("Retry-After", 60)
            } else {
                usual
            };
            let (left, seconds) = (LIMIT - window.pulls, WINDOW.as_secs());
            reply
                .with("RateLimit-Limit", format!("{LIMIT};w={seconds}"))
                .with("RateLimit-Remaining", format!("{left};w={seconds}"))
        });
    }

    /// Pulls that the limit permits yet.
    fn left(&self) -> usize {
        let mut window = self.limit.lock().unwrap();
        let left = LIMIT - window.at(Instant::now()).pulls;
        usize::try_from(left).unwrap()
    }

    fn push(&mut self, repo: &str, tag: &str) {
        self.seed += 1;
        let layer = noise(self.seed, 1000);
        let image = Image::layered(self.seed, vec![layer], |_, _| ());
        self.registry.push(repo, tag, &image);
    }
}

/// A mirror of the registry, without a server in front of it.
fn mirror(up: &Registry) -> Arc<Mirror> {
    let rules = "{ttl: 5m, stalewhilerevalidate: 1m, rules: [{semver: true, immutable: true}]}";
    let text = format!(
        "version: 0.1\nstorage: inmemory\nproxy: {{remoteurl: '{}', tags: {rules}}}\n",
        up.url()
    );
    let config = config::parse(&text, "the test", std::iter::empty())
        .unwrap()
        .config;
    let proxy = &config.proxy;
    let (metrics, clock) = (Arc::new(Metrics::new()), Clock::system());
    let (background, tasks) = (Tasks::new(), TaskTracker::new());
    let stop = CancellationToken::new();
    let cache = Cache::start(
        Arc::new(MemoryStore::new()),
        Arc::clone(&metrics),
        clock,
        cache_settings(&config),
        &background,
        &stop,
    );
    let downloader = Downloader::new(DownloaderOptions {
        settings: DownloadSettings {
            segments: proxy.segments,
            streams: proxy.streams,
            on_abandon: proxy.on_abandon,
            fill_after: proxy.fill_after,
            max_blob: proxy.max_blob_size,
            verified_first: VERIFIED_FIRST,
        },
        cache: cache.clone(),
        metrics: Arc::clone(&metrics),
        tasks: background.tracked_by(&tasks),
        drain: stop.clone(),
        stop: stop.clone(),
    });
    let client = upstream_client(&proxy.default, proxy.timeouts, clock, &metrics).unwrap();
    Mirror::new(MirrorOptions {
        bucket: None,
        upstreams: Upstreams::new(Arc::new(client), [], true),
        policy: MirrorPolicy {
            tags: proxy.tags.clone(),
            negative_ttl: proxy.negative_ttl,
            ranges: RangeRules {
                rules: proxy.range_rules.clone(),
                otherwise: proxy.ranges,
            },
            prefetch: PrefetchLimits {
                downloads: 0,
                image: 0,
                layer: 0,
            },
        },
        downloader,
        cache,
        tasks,
        stop,
        metrics,
        clock,
    })
}

/// A repository and the tag of it that nodes check.
struct App {
    name: String,
    target: Target,
    tag: Reference,
    releases: usize,
}

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    checks: usize,
    pulls: usize,
    failed_new: usize,
}

struct Day {
    mirror: Arc<Mirror>,
    apps: Vec<App>,
    /// What each node runs of each app.
    nodes: Vec<Vec<Option<Digest>>>,
    /// Tags and digests whose images the mirror has served.
    served: HashSet<String>,
    counts: Counts,
}

impl Day {
    /// A node looks whether it runs what the tag names, and pulls that if it doesn't.
    async fn check(&mut self, node: usize, app: usize) {
        let App {
            name, target, tag, ..
        } = &self.apps[app];
        self.counts.checks += 1;
        let named = format!("{name}:{tag}");
        let accept = Accept::everything();
        let head = self
            .mirror
            .manifest(target, tag, &accept, ReadMode::Head)
            .await;
        let digest = match head {
            Ok(answer) => answer.found.known().digest,
            Err(error) => return self.failed(&named, &error),
        };
        if self.nodes[node][app] == Some(digest) {
            return;
        }
        self.counts.pulls += 1;
        let by_digest = format!("{name}@{digest}");
        match pull(&self.mirror, target, &Reference::Digest(digest)).await {
            Ok(()) => {
                self.served.extend([named, by_digest]);
                self.nodes[node][app] = Some(digest);
            }
            Err(error) => self.failed(&by_digest, &error),
        }
    }

    /// A pull has failed, which must be one of content that isn't cached.
    fn failed(&mut self, named: &str, error: &MirrorError) {
        assert!(
            !self.served.contains(named),
            "{named} is cached, but: {error}"
        );
        self.counts.failed_new += 1;
    }
}

/// Pulls an image: its manifest, config and layers.
async fn pull(
    mirror: &Arc<Mirror>,
    target: &Target,
    reference: &Reference,
) -> Result<(), MirrorError> {
    let accept = Accept::everything();
    let answer = mirror
        .manifest(target, reference, &accept, ReadMode::Content)
        .await?;
    let content = answer.content().unwrap();
    let manifest = millpond::oci::Manifest::parse(&content).unwrap();
    for blob in manifest.config.iter().chain(&manifest.blobs) {
        // Small ones are verified before they are given.
        let want = (ReadMode::Content, Client::UNKNOWN);
        mirror
            .blob(target, blob.digest, want.0, None, want.1)
            .await?;
    }
    Ok(())
}

fn target(mirror: &Mirror, name: &str) -> Target {
    let name = name.parse().unwrap();
    mirror.upstreams.target(None, None, &name).unwrap()
}

impl Day {
    fn new(hub: &mut Hub, mirror: &Arc<Mirror>) -> Self {
        let apps = (0..MOVING + RELEASED).map(|app| {
            let name = format!("app/{app}");
            let tag = if app < MOVING { "main" } else { "v1.0.0" };
            hub.push(&name, tag);
            App {
                target: target(mirror, &name),
                tag: tag.parse().unwrap(),
                releases: 0,
                name,
            }
        });
        let apps: Vec<_> = apps.collect();
        Self {
            nodes: vec![vec![None; apps.len()]; NODES],
            served: HashSet::new(),
            counts: Counts::default(),
            mirror: Arc::clone(mirror),
            apps,
        }
    }

    /// What happens in a minute, but for what the nodes do: each moving tag moves every two hours, there
    /// is a release every half an hour, and some nodes are replaced every hour.
    fn change(&mut self, hub: &mut Hub, minute: u64, random: &mut fastrand::Rng) {
        for app in 0..MOVING {
            if minute % 120 == app as u64 * 15 + 7 {
                hub.push(&self.apps[app].name, "main");
            }
        }
        if minute % 30 == 11 {
            let app = &mut self.apps[MOVING + random.usize(..RELEASED)];
            app.releases += 1;
            let tag = format!("v1.0.{}", app.releases);
            hub.push(&app.name, &tag);
            app.tag = tag.parse().unwrap();
        }
        if minute % 60 == 30 {
            for _ in 0..NODES / 20 {
                self.nodes[random.usize(..NODES)].fill(None);
            }
        }
    }
}

/// Pulls many new images, one after the other: those that the limit permits are served, in their order,
/// and the others get the upstream's refusal. Returns how many were served.
async fn pull_burst(hub: &mut Hub, mirror: &Arc<Mirror>) -> usize {
    let left = hub.left();
    assert!(left > 0 && left < BURST_IMAGES, "{left}");
    for image in 0..BURST_IMAGES {
        let name = format!("burst/{image}");
        hub.push(&name, "v1.0.0");
        let (target, tag) = (target(mirror, &name), "v1.0.0".parse().unwrap());
        let pulled = pull(mirror, &target, &tag).await;
        let pulled = pulled.map_err(|error| (error.kind(), error.retry_after().is_some()));
        let expected = if image < left {
            Ok(())
        } else {
            Err((ErrorKind::RateLimited, true))
        };
        assert_eq!(pulled, expected, "image {image}; the limit permits {left}");
    }
    left
}

/// Where the nodes' popular images begin, by Zipf's law: the probability of a rank is proportional to its
/// inverse.
fn ranks(count: usize) -> Vec<u64> {
    let ends = (1..=count as u64).scan(0, |end, rank| {
        *end += 1_000_000 / rank;
        Some(*end)
    });
    ends.collect()
}

#[tokio::test(start_paused = true)]
#[expect(clippy::print_stderr, reason = "the figures are what the test is for")]
async fn a_day_of_200_nodes_behind_a_rate_limit_and_an_outage() {
    let _still = freeze();
    let mut hub = Hub::start().await;
    let mirror = mirror(&hub.registry);
    let mut day = Day::new(&mut hub, &mirror);
    let ranks = ranks(day.apps.len());
    let mut random = fastrand::Rng::with_seed(1);
    let mut burst = 0;
    for minute in 0..DAY {
        if minute == OUTAGE.start {
            hub.registry.go_down();
        } else if minute == OUTAGE.end {
            hub.behave();
        } else if minute == BURST {
            burst = pull_burst(&mut hub, &mirror).await;
        }
        day.change(&mut hub, minute, &mut random);
        for node in 0..NODES {
            let ticket = random.u64(..ranks[ranks.len() - 1]);
            let rank = ranks.partition_point(|end| *end <= ticket);
            // Popular ones are of both kinds.
            day.check(node, rank * 7 % ranks.len()).await;
        }
        advance(Duration::from_mins(1)).await;
    }
    let (asked, fetched) = (hub.registry.count(""), hub.registry.count("GET "));
    let Counts {
        checks,
        pulls,
        failed_new,
    } = day.counts;
    let without = checks + fetched;
    eprintln!(
        "a day of {NODES} nodes: {checks} checks of tags, {pulls} pulls\n\
         upstream requests: {asked} with millpond, {without} with a HEAD for every request\n\
         failed pulls: none of cached content; {failed_new} of new content, in the outage \
         or over the limit; {burst} of {BURST_IMAGES} new images at once were served"
    );
    assert!(without >= 50 * asked, "{}", without / asked);
    assert!(pulls > checks / 10);
}
