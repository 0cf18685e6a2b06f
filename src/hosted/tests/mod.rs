//! Tests of the module, over stores in memory and on disk.

mod blobs;
mod damage;
mod expiry;
mod manifests;
mod orders;
mod uploads;

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::cache::{CacheSettings, HostedPolicy, HostedRole, TtlPolicy};
use crate::oci::{Algorithm, Reference, Tag, UploadId};
use crate::storage::faulty::Operation;
use crate::storage::{FaultyStore, FsStore, Link, LinkKind, MemoryStore, Store};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A server's engine over a store.
struct Rig {
    store: Arc<FaultyStore>,
    cache: Cache,
    hosted: Hosted,
    clock: Clock,
}

fn policy() -> HostedPolicy {
    HostedPolicy {
        repositories: vec!["ci/**".parse().unwrap()],
        quota: None,
        grace: DAY,
        untagged: None,
        ttl: None,
        keep_newest: 0,
        keep_tags: Vec::new(),
        evictable: false,
    }
}

fn space() -> SpaceSettings {
    SpaceSettings {
        name: "ci".to_owned(),
        policy: policy(),
        reuse: true,
        delete: true,
        readonly: false,
        incomplete: Incomplete::Refuse,
        immutable: Vec::new(),
        mutable: Vec::new(),
        maxblob: 1 << 30,
        uploads_ttl: DAY,
        uploads_max: 256,
        sync: SyncMode::Manifest,
    }
}

fn with_policy(policy: HostedPolicy) -> SpaceSettings {
    SpaceSettings { policy, ..space() }
}

fn settings(spaces: &[SpaceSettings]) -> CacheSettings {
    CacheSettings {
        ttl: TtlPolicy::sliding(Some(7 * DAY)),
        hosted: spaces.iter().map(|space| space.policy.clone()).collect(),
        ..CacheSettings::unlimited()
    }
}

fn today() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_mins(29_920_575)
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn app() -> RepoName {
    repo("ci/app")
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn tagged(name: &str) -> Reference {
    Reference::Tag(tag(name))
}

fn sha256(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn nobody(_: &RepoName) -> bool {
    false
}

fn anybody(_: &RepoName) -> bool {
    true
}

/// A step of a body.
enum Sent {
    Bytes(Bytes),
    /// Waits until the test lets it go on.
    Pause(CancellationToken),
    Break,
}

/// A body that a test has written down.
struct Script(VecDeque<Sent>);

impl Script {
    fn of(content: &str) -> Self {
        let chunks = content.as_bytes().chunks(7);
        let chunks = chunks.map(|chunk| Sent::Bytes(Bytes::copy_from_slice(chunk)));
        Self(chunks.collect())
    }

    fn none() -> Self {
        Self::of("")
    }

    fn then(mut self, step: Sent) -> Self {
        self.0.push_back(step);
        self
    }
}

#[async_trait::async_trait]
impl PushBody for Script {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            match self.0.front() {
                None => return Ok(None),
                Some(Sent::Pause(until)) => {
                    until.clone().cancelled().await;
                    self.0.pop_front();
                }
                Some(Sent::Break) => {
                    return Err(BodyError::Broken("the line was cut".into()));
                }
                Some(Sent::Bytes(_)) => match self.0.pop_front() {
                    Some(Sent::Bytes(bytes)) => return Ok(Some(bytes)),
                    _ => unreachable!("it was looked at"),
                },
            }
        }
    }
}

fn chunked() -> Part {
    Part::default()
}

fn from(start: u64) -> Part {
    Part {
        start: Some(start),
        ..Part::default()
    }
}

fn descriptor(content: &str) -> serde_json::Value {
    let kind = "application/vnd.oci.image.layer.v1.tar";
    serde_json::json!({"mediaType": kind, "digest": sha256(content), "size": content.len()})
}

/// An image of these layers, with a config of its own name.
fn image(config: &str, layers: &[&str]) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    let config = descriptor(config);
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI, "config": config, "layers": layers})
        .to_string()
}

impl Rig {
    async fn new() -> Self {
        Self::with(space()).await
    }

    async fn with(space: SpaceSettings) -> Self {
        Self::over(Arc::new(MemoryStore::new()), vec![space], today()).await
    }

    async fn on_disk(directory: &tempfile::TempDir, space: SpaceSettings) -> Self {
        let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
        Self::over(store, vec![space], today()).await
    }

    async fn over(store: Arc<dyn Store>, spaces: Vec<SpaceSettings>, now: SystemTime) -> Self {
        let settings = settings(&spaces);
        Self::configured(store, settings, spaces, now).await
    }

    async fn configured(
        store: Arc<dyn Store>,
        settings: CacheSettings,
        spaces: Vec<SpaceSettings>,
        now: SystemTime,
    ) -> Self {
        let rig = Self::begun(Arc::new(FaultyStore::new(store)), settings, spaces, now);
        rig.cache.complete().await;
        rig.cache.settled().await;
        rig
    }

    /// Its index isn't complete yet.
    fn begun(
        store: Arc<FaultyStore>,
        settings: CacheSettings,
        spaces: Vec<SpaceSettings>,
        now: SystemTime,
    ) -> Self {
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let clock = Clock::starting_at(now);
        let cache = Cache::start(shared, Arc::default(), clock, settings, &tasks, &stop);
        let hosted = Hosted::start((cache.clone(), None), clock, spaces, &tasks, &stop);
        Self {
            store,
            cache,
            hosted,
            clock,
        }
    }

    async fn put(&self, content: &str) -> Digest {
        self.put_to(&app(), content).await
    }

    async fn put_to(&self, repo: &RepoName, content: &str) -> Digest {
        let digest = sha256(content);
        let length = Some(content.len() as u64);
        let mut body = Script::of(content);
        let put = self.hosted.put_blob(repo, &digest, length, &mut body);
        put.await.unwrap();
        digest
    }

    /// Pushes an image of these layers and its own name as config, under a tag.
    async fn push(&self, name: &str, layers: &[&str]) -> Digest {
        for content in layers.iter().chain([&name]) {
            self.put(content).await;
        }
        self.put_image(name, &image(name, layers)).await.unwrap()
    }

    async fn put_image(&self, name: &str, text: &str) -> Result<Digest, HostedError> {
        self.put_manifest(&tagged(name), None, text).await
    }

    async fn put_manifest(
        &self,
        reference: &Reference,
        kind: Option<&str>,
        text: &str,
    ) -> Result<Digest, HostedError> {
        let body = Bytes::copy_from_slice(text.as_bytes());
        let (hosted, repo) = (&self.hosted, app());
        let put = hosted.put_manifest(&repo, reference, &[], kind, body, &nobody);
        Ok(put.await?.digest)
    }

    async fn head(&self, repo: &RepoName, digest: &Digest) -> Option<u64> {
        let found = self
            .hosted
            .blob(repo, digest, ReadMode::Head, &nobody)
            .await;
        found.ok().map(|blob| blob.size())
    }

    async fn has(&self, content: &str) -> bool {
        self.head(&app(), &sha256(content)).await == Some(content.len() as u64)
    }

    /// Whether the link is in the store, which counts as no use.
    async fn is_linked(&self, kind: LinkKind, digest: Digest) -> bool {
        self.store
            .linked(&Link::new(&app(), kind, &digest))
            .await
            .unwrap()
    }

    async fn read(&self, digest: &Digest) -> Bytes {
        let found = self
            .hosted
            .blob(&app(), digest, ReadMode::Content, &nobody)
            .await;
        let blob = found.unwrap();
        let size = usize::try_from(blob.size()).unwrap();
        blob.content().reader.read_at(0, size).await.unwrap()
    }

    /// Lets time pass, and what is due then happen.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.cache.settled().await;
        self.cache.check_index();
    }

    /// The next process over the same store.
    async fn restarted(self, space: SpaceSettings) -> Self {
        let Self {
            store,
            cache,
            clock,
            hosted,
        } = self;
        cache.stop().await;
        drop((cache, hosted));
        Self::over(store, vec![space], clock.wall()).await
    }
}

/// The same test over both stores.
async fn on_both(test: impl AsyncFn(Rig)) {
    test(Rig::new().await).await;
    let directory = tempfile::tempdir().unwrap();
    test(Rig::on_disk(&directory, space()).await).await;
}
