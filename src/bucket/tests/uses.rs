//! The record of uses.

use super::store::Failure;
use super::*;
use crate::bucket::uses::{DIRECTORY, day, replica_key};

async fn record(bucket: &Bucket) {
    bucket.record_uses("me").await.unwrap();
}

fn key(world: &World, replica: &str) -> String {
    format!("{DIRECTORY}/{}/{replica}", Day::of(world.now()))
}

/// Sorted.
fn sorted(digests: &[Digest]) -> Vec<Digest> {
    let mut digests = digests.to_vec();
    digests.sort_unstable();
    digests
}

#[tokio::test(start_paused = true)]
async fn uses_of_a_day_are_added_to_one_object() {
    let (world, cache) = (World::new(), cache(epoch()));
    let first = put_image(&cache, &repo("a"), "first").await;
    let before = bucket(world.seen(), &cache, None);
    record(&before).await;
    let (mine, objects) = (key(&world, "me"), world.seen());
    assert_eq!(listed(&objects, &mine).await, [first]);
    // Another process, whose cache has nothing of it.
    let other_cache = super::cache(epoch());
    let after = bucket(world.seen(), &other_cache, None);
    let second = put_image(&other_cache, &repo("a"), "second").await;
    let elsewhere = Digest::of(Algorithm::Sha512, b"a redirect");
    after.note_use(&elsewhere);
    record(&after).await;
    let all = sorted(&[first, second, elsewhere]);
    assert_eq!(listed(&objects, &mine).await, all);
    // Without news, nothing is written.
    world.take_requests();
    record(&after).await;
    assert_eq!(world.take_requests().len(), 1);
    assert_eq!(world.keys(DIRECTORY), [mine]);
}

#[tokio::test(start_paused = true)]
async fn the_day_is_the_buckets() {
    for skew in [0, 1] {
        let world = World::new();
        let wall = epoch() - DAY / 2 + DAY * skew * 3;
        let cache = cache(wall);
        let early = put_image(&cache, &repo("a"), "early").await;
        let objects = world.objects(&Arc::default(), wall);
        let bucket = bucket(objects, &cache, None);
        record(&bucket).await;
        assert_eq!(listed(&world.seen(), &key(&world, "me")).await, [early]);
        assert_eq!(world.keys(DIRECTORY).len(), 1);
        // Until the next day of the bucket, when only the last hour counts.
        tokio::time::advance(HOUR * 11).await;
        record(&bucket).await;
        tokio::time::advance(HOUR / 2).await;
        let late = put_image(&cache, &repo("a"), "late").await;
        tokio::time::advance(HOUR).await;
        record(&bucket).await;
        assert_eq!(listed(&world.seen(), &key(&world, "me")).await, [late]);
        assert_eq!(world.keys(DIRECTORY).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_written_later() {
    let (world, cache) = (World::new(), cache(epoch()));
    let bucket = bucket(world.seen(), &cache, None);
    let noted = Digest::of(Algorithm::Sha256, b"a redirect");
    bucket.note_use(&noted);
    let used = put_image(&cache, &repo("a"), "used").await;
    world.fail(|_| Some(Failure::Unavailable));
    for _ in 0..30 {
        tokio::time::advance(HOUR).await;
        bucket.record_uses("me").await.unwrap_err();
    }
    world.fail(|_| None);
    record(&bucket).await;
    let all = sorted(&[noted, used]);
    assert_eq!(listed(&world.seen(), &key(&world, "me")).await, all);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_no_list_is_left_alone() {
    let (world, cache) = (World::new(), cache(epoch()));
    put_image(&cache, &repo("a"), "used").await;
    let mine = key(&world, "me");
    world.put(&mine, "not a list");
    record(&bucket(world.seen(), &cache, None)).await;
    assert_eq!(world.get(&mine).unwrap(), "not a list");
}

#[tokio::test(start_paused = true)]
async fn too_many_notes_are_a_part() {
    let (world, cache) = (World::new(), cache(epoch()));
    let bucket = bucket(world.seen(), &cache, None);
    for number in 0..=100_000_u32 {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        bucket.note_use(&Digest::Sha256(digest));
    }
    record(&bucket).await;
    let Read::List(list) = Digests::read(&world.seen(), &key(&world, "me"))
        .await
        .unwrap()
    else {
        panic!("a list")
    };
    assert!(!list.is_whole());
    assert_eq!(list.len(), 100_000);
}

#[test]
fn members_have_different_keys() {
    for (member, key) in [
        ("10.0.0.1:5000", "10.0.0.1_5000"),
        ("[fd00::1]:5000", "=5bfd00__1=5d_5000"),
        ("a_b:1", "a=5fb_1"),
        ("a/../b", "a=2f..=2fb"),
    ] {
        assert_eq!(replica_key(member), key);
    }
}

#[test]
fn keys_of_the_record_are_read_back() {
    assert_eq!(day("millpond/uses/2026-11-29/a"), Day::parse("2026-11-29"));
    for foreign in [
        "millpond/uses/2026-11-29",
        "millpond/uses/x/a",
        "millpond/uses/2026-11-29/a/b",
    ] {
        assert_eq!(day(foreign), None);
    }
}
