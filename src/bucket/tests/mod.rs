//! Tests of the bucket over one in memory: uses, the sweep, and who writes links meanwhile.

mod hosted;
mod interleavings;
mod keeping;
mod orders;
mod parts;
mod store;
mod sweeping;
mod unfinished;
mod uses;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use store::{Actor, World, epoch};

use super::circuit::Circuit;
use super::client::Objects;
use super::day::Day;
use super::digests::{Digests, Read};
use super::queue::Queue;
use super::sweep::Retention;
use super::sweep::Sweep;
use super::sweep::announcement::Announced;
use super::uploads::Uploading;
use super::uses::Uses;
use super::{Bucket, keys};
use crate::cache::{Cache, CacheSettings, LinkKind};
use crate::clock::Clock;
use crate::config::{self, BucketStore, S3, S3Keys, SharedStorage};
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest, Manifest, RepoName};
use crate::storage::MemoryStore;
use crate::tasks::Tasks;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const TTL: Duration = Duration::from_hours(30 * 24);

/// The bucket `shared` of a scripted server, its objects below `below`.
pub(in crate::bucket) fn config_of(url: &str, shared: SharedStorage) -> config::Bucket {
    let keys = S3Keys {
        access: "access".to_owned(),
        secret: "secret".to_owned().into(),
        token: None,
    };
    let store = S3 {
        bucket: "shared".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(url.parse().unwrap()),
        force_path_style: true,
        keys: Some(keys),
        skip_verify: false,
        encryption: None,
        storage_class: None,
        root: "below".to_owned(),
        chunk_size: 5 << 20,
    };
    config::Bucket {
        store: BucketStore::S3(store),
        shared,
    }
}

/// A cache whose wall clock begins at a moment.
fn cache(wall: SystemTime) -> Cache {
    cache_with(wall, CacheSettings::unlimited())
}

fn cache_with(wall: SystemTime, settings: CacheSettings) -> Cache {
    Cache::start(
        Arc::new(MemoryStore::new()),
        Arc::new(Metrics::new()),
        Clock::starting_at(wall),
        settings,
        &Tasks::new(),
        &tokio_util::sync::CancellationToken::new(),
    )
}

/// A replica's bucket.
fn bucket(objects: Objects, cache: &Cache, ttl: Option<Duration>) -> Bucket {
    Bucket {
        objects,
        circuit: Circuit::default(),
        queue: Queue::default(),
        tags: Arc::default(),
        shared: quick_cache::sync::Cache::new(1),
        pointers: quick_cache::sync::Cache::new(1),
        uploading: Uploading::new(16 << 20),
        cache: cache.clone(),
        ttl,
        path: None,
        saved: tokio::sync::Mutex::new(0),
        uses: Uses::default(),
        redirects: None,
        announced: Announced::default(),
        metrics: Metrics::new().bucket(),
    }
}

/// A sweeper that takes repositories below `hosted/` for hosted ones.
fn sweep(objects: Objects, retention: Retention) -> Sweep {
    Sweep {
        objects,
        retention,
        replica: "sweeper".to_owned(),
        is_hosted: Arc::new(|repo: &RepoName| repo.as_str().starts_with("hosted/")),
        metrics: Metrics::new().bucket(),
    }
}

fn only_ttl() -> Retention {
    Retention {
        ttl: Some(TTL),
        max_size: None,
    }
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

/// A manifest without layers, and its digest. Each name has another one.
fn image(name: &str) -> (Digest, Bytes) {
    manifest(name, &[])
}

/// A manifest with these layers.
fn manifest(name: &str, layers: &[Digest]) -> (Digest, Bytes) {
    let config = Digest::of(Algorithm::Sha256, name.as_bytes());
    let descriptor = |digest: &Digest| {
        serde_json::json!({
            "mediaType": "application/octet-stream", "digest": digest.to_string(), "size": 9,
        })
    };
    let layers: Vec<_> = layers.iter().map(descriptor).collect();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config),
        "layers": layers,
    });
    let bytes = Bytes::from(document.to_string());
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

/// Puts a manifest into the cache.
async fn put_image(cache: &Cache, repo: &RepoName, name: &str) -> Digest {
    let (digest, bytes) = image(name);
    let manifest = Manifest::parse(&bytes).unwrap();
    cache.put_manifest(repo, digest, bytes, manifest).await;
    digest
}

impl World {
    /// The bucket has had this content and links to it for so long.
    fn put_linked(&self, age: Duration, content: &Bytes, links: &[(&str, LinkKind)]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, content);
        let at = self.now() - age;
        self.put_at(&keys::blob(&digest), content.clone(), at);
        for (name, kind) in links {
            self.put_at(
                &keys::link(&repo(name), *kind, &digest),
                digest.to_string(),
                at,
            );
        }
        digest
    }

    /// A layer of ten bytes or more, linked by `a`.
    fn put_layer(&self, age: Duration, name: &str) -> Digest {
        let content = Bytes::from(format!("layer {name:>8}"));
        self.put_linked(age, &content, &[("a", LinkKind::Layer)])
    }

    /// A replica has used this content so long ago.
    fn put_use(&self, age: Duration, digests: &[Digest]) {
        let day = Day::of(self.now() - age);
        let key = format!("millpond/uses/{day}/replica-{}", digests.len());
        self.put(&key, Digests::encode(digests.to_vec(), true));
    }

    /// Uses have been recorded for a long time.
    fn put_record(&self) {
        let day = Day::of(self.now() - TTL - DAY);
        self.put(
            &format!("millpond/uses/{day}/first"),
            Digests::encode(Vec::new(), true),
        );
    }

    fn has_content(&self, digest: &Digest) -> bool {
        self.has(&keys::blob(digest))
    }

    fn has_link(&self, name: &str, digest: &Digest) -> bool {
        let of = |kind| self.has(&keys::link(&repo(name), kind, digest));
        of(LinkKind::Layer) || of(LinkKind::Revision)
    }

    /// The digests that are marked.
    fn marked(&self) -> Vec<Digest> {
        let marks = self.keys("millpond/sweep/marked/");
        let lists = marks
            .iter()
            .map(|key| Digests::decode(&self.get(key).unwrap()).unwrap());
        lists
            .flat_map(|list| list.iter().collect::<Vec<_>>())
            .collect()
    }

    /// As a replica with a right clock sees it, whose requests never wait.
    fn seen(self: &Arc<Self>) -> Objects {
        self.objects(&Arc::new(Actor::default()), self.now())
    }
}

/// What a list of digests in the bucket has.
async fn listed(objects: &Objects, key: &str) -> Vec<Digest> {
    match Digests::read(objects, key).await.unwrap() {
        Read::List(list) => list.iter().collect(),
        other => panic!("{other:?}"),
    }
}
