//! An hour of 10,000 clients of 10 replicas, in paused time: what the upstream and the bucket are asked.
//!
//! Each replica decides with the code of the program: [`Members`] says who is asked, `TagRecords` what a
//! tag's answer of another replica is worth, and `SingleFlight` joins equal requests (`replica`). Disks, the
//! bucket and the upstream are models without bytes (`model`). `tests/it/replicas_many.rs` counts the same with
//! whole servers, for fewer clients.
//!
//! ```text
//! cargo test --lib mirror::simulation -- --nocapture      prints the table
//! ```

mod model;
mod replica;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use crate::oci::Digest;
use crate::replicas::Members;
use model::{Apps, Asked, Bucket, BucketRequests, Disk, PART};
use replica::{Replica, TTL, World};

const HOUR: Duration = Duration::from_hours(1);
/// The mean time between two checks of a client.
const BETWEEN_CHECKS: Duration = Duration::from_mins(10);

/// What is simulated.
#[derive(Debug, Clone, Copy)]
struct Scene {
    clients: usize,
    replicas: usize,
    /// Whether the replicas know each other.
    is_shared: bool,
    has_bucket: bool,
    /// Each replica's disk, in per cent of the bytes of all content.
    disk: u64,
    /// Whether all disks are lost after half an hour.
    is_wiped: bool,
}

const ALL: Scene = Scene {
    clients: 10_000,
    replicas: 10,
    is_shared: true,
    has_bucket: true,
    disk: 110,
    is_wiped: false,
};
/// Fewer clients, and disks on which little fits.
const SMALL: Scene = Scene {
    clients: 1_000,
    disk: 30,
    ..ALL
};

/// What clients have pulled, with bytes.
type Pulled = Arc<Mutex<HashMap<Digest, u64>>>;

/// What a scene has come to.
#[derive(Debug)]
struct Outcome {
    /// Distinct manifests and blobs that clients have pulled, and those that the bucket takes in one request.
    distinct: usize,
    small: usize,
    tags: usize,
    asked: Asked,
    bucket: BucketRequests,
}

/// Runs a scene to its end.
async fn run(scene: Scene) -> Outcome {
    let (apps, tasks) = (Apps::new(HOUR), TaskTracker::new());
    let names = (0..scene.replicas).map(|replica| format!("10.0.0.{replica}:5000"));
    let names: Vec<_> = names.collect();
    let room = apps.bytes() / 100 * scene.disk;
    let replica = |own: &String| {
        let known = if scene.is_shared {
            &names[..]
        } else {
            std::slice::from_ref(own)
        };
        let members = Members::new(known.iter().map(String::as_str), Some(own));
        Replica::new(own, members, Disk::new(room), &tasks)
    };
    let world = Arc::new(World {
        replicas: names.iter().map(replica).collect(),
        apps,
        bucket: scene.has_bucket.then(Bucket::default),
        asked: Mutex::default(),
    });
    let pulled = Pulled::default();
    let end = Instant::now() + HOUR;
    for seed in 0..scene.clients {
        let world = Arc::clone(&world);
        tasks.spawn(client(world, Arc::clone(&pulled), seed as u64, end));
    }
    if scene.is_wiped {
        sleep(HOUR / 2).await;
        world.replicas.iter().for_each(Replica::wipe);
    }
    tasks.close();
    tasks.wait().await;
    outcome(&world, &pulled.lock())
}

/// Looks now and then whether it runs what a tag names, and pulls that if it doesn't.
async fn client(world: Arc<World>, pulled: Pulled, seed: u64, end: Instant) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut has = HashSet::new();
    // A load balancer takes any replica for each request.
    let count = world.replicas.len();
    loop {
        sleep(BETWEEN_CHECKS.mul_f64(2.0 * random.f64())).await;
        if Instant::now() >= end {
            return;
        }
        let app = world.apps.pick(&mut random);
        let (image, age) = world.tag(random.usize(..count), app, false).await;
        assert!(age <= TTL, "{age:?}");
        for part in world.apps.image(&image) {
            if has.insert(part.digest) {
                pulled.lock().insert(part.digest, part.bytes);
                world.content(random.usize(..count), *part, false).await;
            }
        }
    }
}

fn outcome(world: &World, pulled: &HashMap<Digest, u64>) -> Outcome {
    Outcome {
        distinct: pulled.len(),
        small: pulled.values().filter(|bytes| **bytes < PART).count(),
        tags: world.apps.len(),
        asked: *world.asked.lock(),
        bucket: world
            .bucket
            .as_ref()
            .map(Bucket::requests)
            .unwrap_or_default(),
    }
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
    fn row(&self, name: &str) -> String {
        let each = |count: usize, of: usize| count as f64 / of as f64;
        format!(
            "| {name} | {} | {:.2} | {:.1} | {:.2} | {:.2} |\n",
            self.distinct,
            each(self.asked.downloads, self.distinct),
            each(self.asked.tags, self.tags),
            each(self.bucket.gets, self.distinct),
            each(self.bucket.small_puts, self.small),
        )
    }
}

#[tokio::test(start_paused = true)]
#[expect(clippy::print_stderr, reason = "the figures are what the test is for")]
async fn an_hour_of_10_000_clients_costs_what_one_mirror_would() {
    let all = run(ALL).await;
    let small = |is_shared, has_bucket, is_wiped| {
        run(Scene {
            is_shared,
            has_bucket,
            is_wiped,
            ..SMALL
        })
    };
    let alone = small(false, false, false).await;
    let shared = small(true, false, false).await;
    let lasting = small(true, true, true).await;
    eprintln!(
        "| | blobs | downloads upstream for each | questions for each tag | GETs of the bucket for each blob | \
         PUTs for each small one |\n|---|---:|---:|---:|---:|---:|\n{}{}{}{}",
        all.row("10,000 clients of 10 replicas, with a bucket"),
        alone.row("1,000 clients of 10 that don't know each other, disks of 30 %"),
        shared.row("the same of replicas"),
        lasting.row("the same with a bucket, all disks lost after half an hour"),
    );
    let most_questions = all.tags * usize::try_from(HOUR.as_secs() / TTL.as_secs()).unwrap();
    assert_eq!(all.asked.downloads, all.distinct);
    assert!(all.asked.tags <= most_questions, "{all:?}");
    assert!(all.bucket.gets <= 2 * all.distinct, "{all:?}");
    assert!(all.bucket.small_puts <= 2 * all.small, "{all:?}");
    // The bucket stands in for disks that are too small, or lost.
    assert_eq!(lasting.asked.downloads, lasting.distinct);
    assert!(lasting.asked.tags <= most_questions, "{lasting:?}");
    assert!(
        shared.asked.downloads < alone.asked.downloads / 2,
        "{shared:?}, {alone:?}"
    );
}
