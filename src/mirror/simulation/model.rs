//! What the replicas of a simulation work with: images, an upstream, a bucket and disks, all without bytes.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small numbers"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::tags::TagKey;
use crate::oci::{Accept, Algorithm, Digest};

/// Blobs below this are uploaded to the bucket in one request: the default of `storage.s3.chunksize`.
pub(super) const PART: u64 = 16 << 20;
/// Repositories, each with a tag that moves.
const APPS: usize = 60;
/// The shortest and the longest time between two images of a tag.
const PERIODS: std::ops::Range<u64> = 15 * 60..90 * 60;
/// Bytes of the layers that the images of a repository share, and of those that each has for itself, beside its
/// manifest and its config.
const BASE: [u64; 3] = [30 << 20, 3_000_000, 400_000];
const OWN: [u64; 3] = [180 << 20, 9_000_000, 30_000];
const MANIFEST: u64 = 2_500;
const CONFIG: u64 = 8_000;

/// A manifest, a config or a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

impl Part {
    fn new(name: &str, bytes: u64) -> Self {
        let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
        Self { digest, bytes }
    }
}

/// A repository with a tag.
struct App {
    key: TagKey,
    /// The manifests that the tag names, one after the other.
    releases: Vec<Digest>,
    period: u64,
}

/// All repositories. The popular ones come first, by Zipf's law.
pub(super) struct Apps {
    began: Instant,
    list: Vec<App>,
    /// By the digest of the manifest, which comes first.
    images: HashMap<Digest, Vec<Part>>,
}

impl Apps {
    /// With as many images as there are within `time`.
    pub(super) fn new(time: Duration) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let mut images = HashMap::new();
        let apps = (0..APPS).map(|app| {
            let period = random.u64(PERIODS);
            let releases = (0..=time.as_secs() / period).map(|release| {
                let image = image(app, release);
                let manifest = image[0].digest;
                images.insert(manifest, image);
                manifest
            });
            App {
                key: TagKey {
                    repo: format!("app/{app}").parse().unwrap(),
                    tag: "main".parse().unwrap(),
                    accept: Accept::everything(),
                },
                releases: releases.collect(),
                period,
            }
        });
        Self {
            began: Instant::now(),
            list: apps.collect(),
            images,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes of all images, each blob once.
    pub(super) fn bytes(&self) -> u64 {
        let parts = self.images.values().flatten();
        let distinct: HashMap<_, _> = parts.map(|part| (part.digest, part.bytes)).collect();
        distinct.values().sum()
    }

    /// A repository; that of a rank in proportion to its inverse.
    pub(super) fn pick(&self, random: &mut fastrand::Rng) -> usize {
        let (last, ticket) = (self.len() as f64 + 1.0, random.f64());
        // The integral of 1/x, inverted.
        last.powf(ticket) as usize - 1
    }

    pub(super) fn key(&self, app: usize) -> &TagKey {
        &self.list[app].key
    }

    /// What the tag names at present.
    pub(super) fn current(&self, app: usize) -> Digest {
        let app = &self.list[app];
        let number = self.began.elapsed().as_secs() / app.period;
        let last = app.releases.len() - 1;
        app.releases[last.min(number as usize)]
    }

    /// The manifest, the config and the layers of an image.
    pub(super) fn image(&self, manifest: &Digest) -> &[Part] {
        &self.images[manifest]
    }
}

fn image(app: usize, release: u64) -> Vec<Part> {
    let part = |what: &str, bytes| Part::new(&format!("{app} {release} {what}"), bytes);
    let base = (0..).zip(BASE);
    let base = base.map(|(layer, bytes)| Part::new(&format!("{app} base {layer}"), bytes));
    let own = (0..).zip(OWN);
    let own = own.map(|(layer, bytes)| part(&format!("layer {layer}"), bytes));
    let head = [part("manifest", MANIFEST), part("config", CONFIG)];
    head.into_iter().chain(base).chain(own).collect()
}

/// What the upstream has been asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) downloads: usize,
    /// Which manifest a tag names.
    pub(super) tags: usize,
}

/// What the bucket has been asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BucketRequests {
    pub(super) gets: usize,
    /// Of blobs below [`PART`] and their links.
    pub(super) small_puts: usize,
    /// Of parts and links of larger ones; each upload has two requests more, of other methods.
    pub(super) large_puts: usize,
}

/// The second tier, by its rules: link and blob are read together, and both are written after a commit.
#[derive(Debug, Default)]
pub(super) struct Bucket(Mutex<(HashSet<Digest>, BucketRequests)>);

impl Bucket {
    /// Whether it has a blob, and its link.
    pub(super) fn get(&self, part: &Part) -> bool {
        let (blobs, requests) = &mut *self.0.lock();
        requests.gets += 2;
        blobs.contains(&part.digest)
    }

    pub(super) fn put(&self, part: &Part) {
        let (blobs, requests) = &mut *self.0.lock();
        blobs.insert(part.digest);
        if part.bytes < PART {
            requests.small_puts += 2;
        } else {
            requests.large_puts += part.bytes.div_ceil(PART) as usize + 1;
        }
    }

    pub(super) fn requests(&self) -> BucketRequests {
        self.0.lock().1
    }
}

/// A replica's disk: what was used least recently makes room.
#[derive(Debug)]
pub(super) struct Disk {
    room: u64,
    used: u64,
    uses: u64,
    /// The last use and the bytes of each.
    blobs: HashMap<Digest, (u64, u64)>,
    by_use: BTreeMap<u64, Digest>,
}

impl Disk {
    pub(super) fn new(room: u64) -> Self {
        Self {
            room,
            used: 0,
            uses: 0,
            blobs: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// Whether it has a blob, which is used.
    pub(super) fn has(&mut self, digest: &Digest) -> bool {
        let Some((last, _)) = self.blobs.get_mut(digest) else {
            return false;
        };
        self.uses += 1;
        self.by_use.remove(last);
        self.by_use.insert(self.uses, *digest);
        *last = self.uses;
        true
    }

    pub(super) fn put(&mut self, part: &Part) {
        if self.has(&part.digest) {
            return;
        }
        self.uses += 1;
        self.used += part.bytes;
        self.blobs.insert(part.digest, (self.uses, part.bytes));
        self.by_use.insert(self.uses, part.digest);
        while self.used > self.room {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                return;
            };
            let (_, bytes) = self.blobs.remove(&oldest).unwrap();
            self.used -= bytes;
        }
    }

    pub(super) fn wipe(&mut self) {
        *self = Self::new(self.room);
    }
}
