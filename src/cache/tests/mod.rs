//! Tests of the module. [`Rig`] does to the store and to the cache what the mirror does.

mod capacity;
#[cfg(unix)]
mod damage;
mod deletion;
mod expiry;
mod fixtures;
mod graph;
mod model;
mod pins;
mod recent;
mod scrub;
mod state;
mod verified;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{TtlMode, TtlRule};
use crate::oci::{Algorithm, Manifest, Tag};
use crate::storage::{self, FaultyStore, FsStore, Link, MemoryStore};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const WEEK: Duration = Duration::from_hours(7 * 24);
const REPAIR: ScrubSettings = ScrubSettings {
    rate: None,
    repair: true,
};

struct Rig {
    store: Arc<FaultyStore>,
    cache: Cache,
    clock: Clock,
}

fn settings() -> CacheSettings {
    with_ttl(WEEK)
}

fn with_ttl(ttl: Duration) -> CacheSettings {
    CacheSettings {
        ttl: TtlPolicy::sliding(Some(ttl)),
        ..CacheSettings::unlimited()
    }
}

fn capped(max_size: u64) -> CacheSettings {
    CacheSettings {
        max_size: Some(max_size),
        ..settings()
    }
}

fn on_disk(directory: &tempfile::TempDir) -> CacheSettings {
    CacheSettings {
        state: Some(state_file(directory)),
        ..settings()
    }
}

fn state_file(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("scheduler-state.json")
}

/// 2026-11-21, as in the recorded fixtures.
fn today() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_mins(29_920_575)
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn link(name: &str, kind: LinkKind, digest: Digest) -> Link {
    Link::new(&repo(name), kind, &digest)
}

fn layer(name: &str, content: &str) -> Link {
    link(name, LinkKind::Layer, digest(content))
}

fn descriptor(content: &str) -> serde_json::Value {
    serde_json::json!({"mediaType": "x/y", "digest": digest(content), "size": content.len()})
}

/// An image manifest whose config is `<name>-config`.
fn manifest_of(name: &str, layers: &[&str]) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    let config = descriptor(&format!("{name}-config"));
    serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string()
}

fn index_of(children: &[&str]) -> String {
    let children: Vec<_> = children.iter().map(|child| descriptor(child)).collect();
    serde_json::json!({"schemaVersion": 2, "manifests": children}).to_string()
}

async fn put(store: &dyn Store, digest: &Digest, content: impl Into<Bytes>) {
    storage::put(store, digest, content.into()).await.unwrap();
}

/// All pages of a listing.
fn pages<T>(page: impl Fn(usize) -> (Vec<T>, Option<usize>)) -> Vec<T> {
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let (page, next) = page(at);
        all.extend(page);
        from = next;
    }
    all
}

impl Rig {
    async fn with(settings: CacheSettings) -> Self {
        Self::started(Arc::new(MemoryStore::new()), settings, today()).await
    }

    /// Over a store on disk, with its state beside it.
    async fn in_directory(directory: &tempfile::TempDir) -> Self {
        let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
        Self::started(store, on_disk(directory), today()).await
    }

    /// At this time, when the index is complete and nothing is left to delete.
    async fn started(store: Arc<dyn Store>, settings: CacheSettings, now: SystemTime) -> Self {
        let rig = Self::over(store, settings, Clock::starting_at(now));
        rig.cache.complete().await;
        rig.cache.settled().await;
        rig
    }

    /// The next process over the same store.
    async fn restart(&self, settings: CacheSettings) -> Self {
        Self::started(Arc::clone(&self.store) as _, settings, self.clock.wall()).await
    }

    fn over(store: Arc<dyn Store>, settings: CacheSettings, clock: Clock) -> Self {
        let store = Arc::new(FaultyStore::new(store));
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        // Nothing cancels `stop`; the test's runtime ends the tasks.
        let cache = Cache::start(shared, Arc::default(), clock, settings, &tasks, &stop);
        Self {
            store,
            cache,
            clock,
        }
    }

    /// Caches and links content, as a download does. False when there is no space.
    async fn cache(&self, link: &Link, content: &str) -> bool {
        let size = content.len() as u64;
        let hold = self.cache.hold(&link.digest).await;
        if self.store.size(&link.digest).await.unwrap().is_none() {
            let Ok(space) = self.cache.reserve(size).await else {
                return false;
            };
            put(&*self.store, &link.digest, content.to_owned()).await;
            space.commit(&hold, size);
        }
        self.store.link(link).await.unwrap();
        self.cache.linked(&link.repo, link.kind, &link.digest, size);
        true
    }

    async fn cache_layer(&self, name: &str, content: &str) -> Link {
        let link = layer(name, content);
        assert!(self.cache(&link, content).await);
        link
    }

    /// Caches a manifest alone, and points a tag at it.
    async fn cache_manifest(&self, name: &str, as_tag: Option<&str>, text: &str) -> Option<Link> {
        let link = link(name, LinkKind::Revision, digest(text));
        if !self.cache(&link, text).await {
            return None;
        }
        let parsed = Manifest::parse(text.as_bytes()).unwrap();
        self.cache.describe(&link.digest, &parsed);
        if let Some(as_tag) = as_tag {
            let (repo, as_tag) = (repo(name), tag(as_tag));
            assert!(self.cache.tag(&repo, &as_tag, &link.digest).await);
        }
        Some(link)
    }

    /// Pulls a whole image; a hit counts as a use. Returns its manifest's link, unless something
    /// of it found no space.
    async fn pull(&self, name: &str, as_tag: &str, layers: &[&str]) -> Option<Link> {
        let image = format!("{name}:{as_tag}");
        let config = format!("{image}-config");
        let text = manifest_of(&image, layers);
        let manifest = self.cache_manifest(name, Some(as_tag), &text).await?;
        let mut whole = self.cache(&layer(name, &config), &config).await;
        for content in layers {
            whole &= self.cache(&layer(name, content), content).await;
        }
        whole.then_some(manifest)
    }

    async fn is_linked(&self, link: &Link) -> bool {
        self.store.linked(link).await.unwrap()
    }

    async fn has(&self, content: &str) -> bool {
        self.store.size(&digest(content)).await.unwrap().is_some()
    }

    /// Lets time pass, and what is due then happen.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        // Deadlines are whole seconds, rounded up.
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.cache.settled().await;
    }

    async fn use_link(&self, link: &Link) {
        let size = self.store.size(&link.digest).await.unwrap().unwrap();
        self.cache.used(&link.repo, link.kind, &link.digest, size);
    }

    /// Whether the index has the link, so that the store isn't asked. Counts as a use.
    fn knows(&self, link: &Link) -> bool {
        self.cache
            .used_if_linked(&link.repo, link.kind, &link.digest)
    }

    async fn purge(&self, selection: impl AsRef<str>) -> Vec<EntryView> {
        let selection = selection.as_ref().parse().unwrap();
        self.cache.purge(&selection, false).await
    }

    fn entries(&self) -> Vec<EntryView> {
        pages(|from| self.cache.entries(from))
    }

    fn images(&self) -> Vec<ImageView> {
        pages(|from| self.cache.images(from))
    }
}

/// What has to hold of a store and its index at any rest: no link dangles, no file is unlinked, and
/// the bytes add up.
async fn check(rig: &Rig, held: &[Digest]) {
    rig.cache.inner.with(|index| index.check_invariants());
    let mut linked = std::collections::BTreeSet::new();
    for repo in rig.store.repositories().await.unwrap() {
        for kind in [LinkKind::Layer, LinkKind::Revision] {
            for digest in rig.store.links(&repo, kind).await.unwrap() {
                let size = rig.store.size(&digest).await.unwrap();
                assert!(size.is_some(), "{repo}@{digest} dangles");
                linked.insert(digest);
            }
        }
        for tag in rig.store.tags(&repo).await.unwrap() {
            let named = rig.store.tag(&repo, &tag).await.unwrap().unwrap();
            let link = Link::new(&repo, LinkKind::Revision, &named);
            let linked = rig.is_linked(&link).await;
            assert!(linked, "{repo}:{} dangles", tag.as_str());
        }
    }
    let mut bytes = 0;
    for first in 0..=u8::MAX {
        for (digest, size) in rig.store.blobs(first).await.unwrap() {
            bytes += size;
            let needed = linked.contains(&digest) || held.contains(&digest);
            assert!(needed, "{digest} has no link");
        }
    }
    assert_eq!(rig.cache.usage().used, bytes);
}
