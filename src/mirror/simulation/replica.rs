//! One replica of a simulation: it decides as the program does who is asked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::super::single_flight::SingleFlight;
use super::super::tags::{TagKey, TagRecords, Worth};
use super::model::{Apps, Asked, Bucket, Disk, Part};
use crate::cache::ManifestMeta;
use crate::clock::Clock;
use crate::config::{TagTimes, Tags};
use crate::oci::{Digest, ManifestType};
use crate::replicas::Members;

/// For how long a tag is fresh.
pub(super) const TTL: Duration = Duration::from_mins(5);
/// What a request between replicas or to the bucket takes, and one to the upstream.
const NEAR: Duration = Duration::from_millis(1);
const FAR: Duration = Duration::from_millis(80);
/// Bytes a second of a download from the upstream, and between replicas and the bucket.
const UPSTREAM_RATE: u64 = 100 << 20;
const NEAR_RATE: u64 = 1 << 30;
/// The upstream's name, of which keys of tags are made.
const UPSTREAM: &str = "registry.example";

/// The replicas, and what they are in front of.
pub(super) struct World {
    pub(super) apps: Apps,
    pub(super) replicas: Vec<Replica>,
    pub(super) bucket: Option<Bucket>,
    pub(super) asked: Mutex<Asked>,
}

pub(super) struct Replica {
    own: String,
    members: Members,
    records: TagRecords,
    disk: Mutex<Disk>,
    /// By what is asked, and whether other replicas are.
    questions: SingleFlight<(TagKey, bool), (Digest, Duration)>,
    downloads: SingleFlight<(Digest, bool), ()>,
}

impl Replica {
    pub(super) fn new(own: &str, members: Members, disk: Disk, tasks: &TaskTracker) -> Self {
        let times = TagTimes {
            ttl: TTL,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: None,
        };
        let rules = Vec::new();
        Self {
            own: own.to_owned(),
            members,
            records: TagRecords::new(Tags { times, rules }, Clock::system()),
            disk: Mutex::new(disk),
            questions: SingleFlight::new(tasks.clone()),
            downloads: SingleFlight::new(tasks.clone()),
        }
    }

    pub(super) fn wipe(&self) {
        self.disk.lock().wipe();
    }

    /// The replica to ask about a key before the upstream is, for a client. Nobody fails here, so the first
    /// one answers.
    fn owner(&self, key: &str, is_from_peer: bool) -> Option<Arc<str>> {
        let ahead = self.members.ahead(key).into_iter();
        ahead.take(usize::from(!is_from_peer)).next()
    }
}

impl World {
    fn named(&self, name: &str) -> usize {
        let mut replicas = self.replicas.iter();
        replicas.position(|replica| replica.own == name).unwrap()
    }

    /// The manifest that a tag names, as a replica tells a client or another replica, and how long ago the
    /// upstream said so.
    pub(super) fn tag(
        self: &Arc<Self>,
        at: usize,
        app: usize,
        is_from_peer: bool,
    ) -> BoxFuture<'static, (Digest, Duration)> {
        let world = Arc::clone(self);
        async move {
            let (replica, key) = (&world.replicas[at], world.apps.key(app));
            if let Some((known, _)) = replica.records.fresh(key, || 1) {
                let age = replica.records.age(key, &known.digest);
                return (known.digest, age.unwrap_or_default());
            }
            let text = format!("{UPSTREAM}/{}:{}", key.repo, key.tag);
            let owner = replica.owner(&text, is_from_peer);
            let (asking, flight) = (Arc::clone(&world), (key.clone(), owner.is_some()));
            let question = replica.questions.join(flight, |_| async move {
                asking.ask_tag(at, app, owner.as_deref()).await
            });
            question.await.unwrap()
        }
        .boxed()
    }

    async fn ask_tag(
        self: &Arc<Self>,
        at: usize,
        app: usize,
        owner: Option<&str>,
    ) -> (Digest, Duration) {
        let (records, key) = (&self.replicas[at].records, self.apps.key(app));
        let mut answer = None;
        if let Some(owner) = owner {
            sleep(NEAR).await;
            let (digest, age) = self.tag(self.named(owner), app, true).await;
            // Answers have whole seconds.
            let age = Duration::from_secs(age.as_secs() + u64::from(age.subsec_nanos() > 0));
            answer = (records.worth(key, age) != Worth::Outdated).then_some((digest, age));
        }
        let (digest, age) = if let Some(answer) = answer {
            answer
        } else {
            self.asked.lock().tags += 1;
            sleep(FAR).await;
            (self.apps.current(app), Duration::ZERO)
        };
        let known = ManifestMeta {
            digest,
            media_type: ManifestType::OciManifest,
            size: 0,
        };
        records.confirmed(key, known, None, age);
        (digest, age)
    }

    /// A replica sends a blob or a manifest to a client or another replica.
    pub(super) fn content(
        self: &Arc<Self>,
        at: usize,
        part: Part,
        is_from_peer: bool,
    ) -> BoxFuture<'static, ()> {
        let world = Arc::clone(self);
        async move {
            let replica = &world.replicas[at];
            if replica.disk.lock().has(&part.digest) {
                return;
            }
            let owner = replica.owner(&part.digest.to_string(), is_from_peer);
            let (asking, flight) = (Arc::clone(&world), (part.digest, owner.is_some()));
            let download = replica.downloads.join(flight, |_| async move {
                asking.download(at, part, owner.as_deref()).await;
            });
            download.await.unwrap();
        }
        .boxed()
    }

    /// The owner is asked, the bucket, the upstream, in this order.
    async fn download(self: &Arc<Self>, at: usize, part: Part, owner: Option<&str>) {
        let time = |rate: u64| Duration::from_micros(part.bytes * 1_000_000 / rate);
        if let Some(owner) = owner {
            self.content(self.named(owner), part, true).await;
            sleep(NEAR + time(NEAR_RATE)).await;
        } else if self.bucket.as_ref().is_some_and(|bucket| bucket.get(&part)) {
            sleep(NEAR + time(NEAR_RATE)).await;
        } else {
            self.asked.lock().downloads += 1;
            sleep(FAR + time(UPSTREAM_RATE)).await;
            if let Some(bucket) = &self.bucket {
                bucket.put(&part);
            }
        }
        self.replicas[at].disk.lock().put(&part);
    }
}
