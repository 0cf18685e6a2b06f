//! Looking after the bucket for days.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio_util::sync::CancellationToken;

use super::store::{Failure, Kind};
use super::*;
use crate::bucket::retention::Keeping;

/// A replica that looks after the bucket, and whether it is the one that sweeps.
fn keep(
    world: &Arc<World>,
    name: &str,
    cache: &Cache,
    stop: &CancellationToken,
) -> Arc<AtomicBool> {
    let objects = world.objects(&Arc::default(), epoch() + DAY * 7);
    let bucket = Arc::new(bucket(objects, cache, Some(TTL)));
    let is_sweeper = Arc::new(AtomicBool::new(true));
    let sweeps = Arc::clone(&is_sweeper);
    let keeping = Keeping {
        retention: only_ttl(),
        replica: name.to_owned(),
        is_sweeper: Arc::new(move || sweeps.load(SeqCst)),
        is_hosted: Arc::new(|_| false),
    };
    let start = move || Arc::clone(&bucket).keep(keeping.clone());
    Tasks::new().spawn_restarted("bucket", stop.clone(), start);
    is_sweeper
}

#[tokio::test(start_paused = true)]
async fn uses_are_recorded_every_hour_and_the_bucket_is_swept_every_day() {
    let (world, cache, stop) = (World::new(), cache(epoch()), CancellationToken::new());
    world.put_record();
    let old = world.put_layer(DAY * 40, "old");
    put_image(&cache, &repo("a"), "used").await;
    let sweeps = ["one", "other"].map(|name| keep(&world, name, &cache, &stop));
    sweeps[1].store(false, SeqCst);
    tokio::time::sleep(HOUR * 2).await;
    assert_eq!(world.marked(), [old]);
    for name in ["one", "other"] {
        let key = format!("millpond/uses/{}/{name}", Day::of(epoch()));
        assert!(world.has(&key));
    }
    // Another one takes over.
    sweeps[0].store(false, SeqCst);
    sweeps[1].store(true, SeqCst);
    tokio::time::sleep(DAY).await;
    world.take_requests();
    tokio::time::sleep(DAY * 3).await;
    assert!(!world.has_content(&old));
    let passes = world.take_requests().into_iter();
    let passes = passes.filter(|request| request.kind == Kind::List);
    let passes = passes.filter(|request| request.key.ends_with("repositories"));
    assert_eq!(passes.count(), 3);
    assert!(
        world
            .get("millpond/sweep/last")
            .unwrap()
            .starts_with(b"objects=")
    );
    stop.cancel();
}

/// Nothing is asked any more until the next day.
#[tokio::test(start_paused = true)]
async fn a_bucket_that_refuses_is_left_alone_until_the_next_day() {
    let (world, cache, stop) = (World::new(), cache(epoch()), CancellationToken::new());
    world.fail(|request| {
        let is_sweep = request.key.starts_with("millpond/sweep");
        is_sweep.then_some(Failure::Refused)
    });
    keep(&world, "one", &cache, &stop);
    let asked = || {
        let asked = world.take_requests().into_iter();
        asked
            .filter(|request| request.key.starts_with("millpond/sweep"))
            .count()
    };
    tokio::time::sleep(HOUR * 24).await;
    assert_eq!(asked(), 1);
    tokio::time::sleep(HOUR * 24).await;
    assert_eq!(asked(), 1);
    stop.cancel();
}
