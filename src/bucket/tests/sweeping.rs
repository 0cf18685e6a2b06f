//! What a sweep removes, and what stays.

use std::collections::BTreeMap;

use super::store::{Failure, Kind, PAGE, Request};
use super::*;
use crate::bucket::error::BucketError;
use crate::bucket::sweep::Report;

/// Long enough for marks to be due.
const DUE: Duration = Duration::from_hours(49);

async fn run(world: &Arc<World>, retention: Retention) -> Report {
    sweep(world.seen(), retention).run().await.unwrap()
}

/// Marks, and deletes what was marked two days later.
async fn run_twice(world: &Arc<World>, retention: Retention) -> (Report, Report) {
    let marked = run(world, retention).await;
    tokio::time::advance(DUE).await;
    (marked, run(world, retention).await)
}

#[tokio::test(start_paused = true)]
async fn unused_content_goes_two_days_after_it_was_marked_with_its_links_and_tags() {
    let world = World::new();
    world.put_record();
    let (_, bytes) = image("old");
    let old = world.put_linked(
        DAY * 40,
        &bytes,
        &[("a", LinkKind::Revision), ("b/c", LinkKind::Layer)],
    );
    let young = world.put_layer(DAY * 20, "young");
    let used = world.put_layer(DAY * 40, "used");
    world.put_use(DAY * 10, &[used]);
    let (a, latest, stable) = (
        repo("a"),
        "latest".parse().unwrap(),
        "stable".parse().unwrap(),
    );
    for tag in [&latest, &stable] {
        world.put_at(
            &keys::tag_index(&a, tag, &old),
            old.to_string(),
            epoch() - DAY * 40,
        );
    }
    world.put(&keys::tag_current(&a, &latest), format!("{old}\n"));
    // It has moved on.
    world.put(&keys::tag_current(&a, &stable), young.to_string());
    let first = run(&world, only_ttl()).await;
    assert_eq!(
        (first.objects, first.marked, first.removals.deleted),
        (3, 1, 0)
    );
    assert_eq!(world.marked(), [old]);
    tokio::time::advance(HOUR * 47).await;
    let again = run(&world, only_ttl()).await;
    assert_eq!((again.marked, again.removals.deleted), (0, 0));
    assert!(world.has_content(&old));
    tokio::time::advance(HOUR * 2).await;
    let last = run(&world, only_ttl()).await;
    assert_eq!(
        (last.removals.deleted, last.removals.bytes),
        (1, bytes.len() as u64)
    );
    assert_eq!(last.removals.links, 4);
    assert!(!world.has_content(&old) && !world.has_link("a", &old) && !world.has_link("b/c", &old));
    assert!(!world.has(&keys::tag_current(&a, &latest)));
    assert!(!world.has(&keys::tag_index(&a, &stable, &old)));
    assert!(world.has(&keys::tag_current(&a, &stable)));
    for stays in [young, used] {
        assert!(world.has_content(&stays) && world.has_link("a", &stays));
    }
    assert_eq!(world.keys("millpond/sweep/"), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_used_written_or_linked_after_it_was_marked_stays() {
    let world = World::new();
    world.put_record();
    let all: Vec<_> = ["used", "written", "linked", "tagged", "unused"]
        .into_iter()
        .map(|name| (name, world.put_layer(DAY * 40, name)))
        .collect();
    let of: BTreeMap<_, _> = all.into_iter().collect();
    let marked = run(&world, only_ttl()).await;
    assert_eq!(marked.marked, 5);
    tokio::time::advance(HOUR).await;
    world.put_use(Duration::ZERO, &[of["used"]]);
    world.put(&keys::blob(&of["written"]), "layer  written");
    world.put(&keys::link(&repo("b"), LinkKind::Layer, &of["linked"]), "x");
    world.put(
        &keys::tag_index(&repo("b"), &"v1".parse().unwrap(), &of["tagged"]),
        "x",
    );
    tokio::time::advance(DUE).await;
    let report = run(&world, only_ttl()).await;
    assert_eq!(report.removals.deleted, 1);
    for (name, digest) in &of {
        assert_eq!(world.has_content(digest), *name != "unused", "{name}");
        assert_eq!(world.has_link("a", digest), *name != "unused", "{name}");
    }
    // What was only linked counts as used for as long as the link is new.
    assert_eq!(world.marked(), []);
    tokio::time::advance(DAY).await;
    run(&world, only_ttl()).await;
    let mut again = world.marked();
    again.sort_unstable();
    let mut expected = [of["linked"], of["tagged"]];
    expected.sort_unstable();
    assert_eq!(again, expected);
}

#[tokio::test(start_paused = true)]
async fn above_the_limit_the_least_recently_used_go() {
    let world = World::new();
    world.put_record();
    // 14 bytes each.
    let layers: Vec<_> = (0..10)
        .map(|age| world.put_layer(DAY * (age + 3), &format!("{age}")))
        .collect();
    // The oldest was used lately.
    world.put_use(DAY, &[layers[9]]);
    let retention = Retention {
        ttl: None,
        max_size: Some(14 * 7),
    };
    let (marked, swept) = run_twice(&world, retention).await;
    assert_eq!((marked.bytes, marked.marked), (140, 3));
    assert_eq!((swept.removals.deleted, swept.marked), (3, 0));
    let stays: Vec<_> = layers
        .iter()
        .map(|layer| world.has_content(layer))
        .collect();
    assert_eq!(
        stays,
        [
            true, true, true, true, true, true, false, false, false, true
        ]
    );
    let (marked, swept) = run_twice(&world, retention).await;
    assert_eq!((marked.marked, swept.removals.deleted), (0, 0));
}

/// Also where it is among the least recently used again.
#[tokio::test(start_paused = true)]
async fn a_use_after_the_mark_spares_content_above_the_limit() {
    let world = World::new();
    world.put_record();
    let (used, unused) = (
        world.put_layer(DAY * 9, "used"),
        world.put_layer(DAY * 9, "unused"),
    );
    let nothing = Retention {
        ttl: None,
        max_size: Some(0),
    };
    assert_eq!(run(&world, nothing).await.marked, 2);
    tokio::time::advance(HOUR).await;
    world.put_use(Duration::ZERO, &[used]);
    tokio::time::advance(DAY * 5).await;
    assert_eq!(run(&world, nothing).await.removals.deleted, 1);
    assert!(world.has_content(&used) && !world.has_content(&unused));
}

/// By somebody who knows nothing of sweeps, as another registry.
#[tokio::test(start_paused = true)]
async fn content_that_is_written_after_it_was_listed_stays() {
    let world = World::new();
    world.put_record();
    let old = world.put_layer(DAY * 40, "old");
    run(&world, only_ttl()).await;
    tokio::time::advance(DUE).await;
    let key = keys::blob(&old);
    let watched = key.clone();
    let actor = Arc::new(Actor::watched(move |request: &Request| {
        request.key == watched
    }));
    let sweep = sweep(world.objects(&actor, epoch()), only_ttl());
    let writing = async {
        while actor.waits().is_none() {
            tokio::time::advance(HOUR / 60).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(actor.waits().unwrap().kind, Kind::Head);
        world.put(&key, "layer      old");
        actor.go_on();
    };
    let (report, ()) = tokio::join!(sweep.run(), writing);
    assert_eq!(report.unwrap().removals.deleted, 0);
    assert!(world.has_content(&old) && world.has_link("a", &old));
}

#[tokio::test(start_paused = true)]
async fn marks_do_not_count_when_the_limit_is_raised() {
    let world = World::new();
    world.put_record();
    let layer = world.put_layer(DAY * 40, "old");
    run(&world, only_ttl()).await;
    tokio::time::advance(DUE).await;
    let longer = Retention {
        ttl: Some(TTL * 2),
        max_size: None,
    };
    run(&world, longer).await;
    assert!(world.has_content(&layer));
    assert_eq!(world.marked(), []);
}

#[tokio::test(start_paused = true)]
async fn hosted_content_stays() {
    let world = World::new();
    world.put_record();
    let content = Bytes::from_static(b"both");
    let links = [("a", LinkKind::Layer), ("hosted/app", LinkKind::Layer)];
    let both = world.put_linked(DAY * 99, &content, &links);
    let pushed = world.put_layer(DAY * 99, "pushed later");
    let nothing = Retention {
        ttl: Some(DAY),
        max_size: Some(0),
    };
    run(&world, nothing).await;
    assert_eq!(world.marked(), [pushed]);
    // The link is as old as the content: a store that was copied.
    let link = keys::link(&repo("hosted/app"), LinkKind::Layer, &pushed);
    world.put_at(&link, "x", epoch() - DAY * 99);
    // Content that is lost.
    let lost = Digest::of(Algorithm::Sha256, b"lost");
    let link = keys::link(&repo("hosted/app"), LinkKind::Layer, &lost);
    world.put_at(&link, "x", epoch() - DAY * 99);
    for _ in 0..3 {
        tokio::time::advance(DUE).await;
        run(&world, nothing).await;
    }
    assert!(world.has_content(&both) && world.has_content(&pushed) && world.has(&link));
}

#[tokio::test(start_paused = true)]
async fn what_used_manifests_refer_to_stays() {
    let world = World::new();
    world.put_record();
    let layers = ["in use", "of a child", "unused"].map(|name| world.put_layer(DAY * 40, name));
    let revision = [("a", LinkKind::Revision)];
    let (_, child) = manifest("child", &[layers[1]]);
    let child_digest = world.put_linked(DAY * 40, &child, &revision);
    let (_, in_use) = manifest("in use", &[layers[0]]);
    let in_use = world.put_linked(DAY * 40, &in_use, &revision);
    let (_, unused) = manifest("unused", &[layers[2]]);
    let unused = world.put_linked(DAY * 40, &unused, &revision);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": child_digest.to_string(),
            "size": child.len(),
        }],
    });
    let index = world.put_linked(DAY * 40, &index.to_string().into(), &revision);
    // Only the manifests are asked for.
    world.put_use(DAY * 5, &[in_use]);
    world.put_use(DAY * 6, &[index, in_use]);
    let (marked, swept) = run_twice(&world, only_ttl()).await;
    assert_eq!((marked.marked, swept.removals.deleted), (2, 2));
    for stays in [layers[0], layers[1], child_digest, in_use, index] {
        assert!(world.has_content(&stays));
    }
    assert!(!world.has_content(&layers[2]) && !world.has_content(&unused));
}

/// A bucket that another registry has filled, or whose uses nobody has recorded yet.
#[tokio::test(start_paused = true)]
async fn what_was_there_before_uses_were_recorded_stays_for_a_ttl() {
    let world = World::new();
    let old = world.put_layer(DAY * 400, "old");
    let report = run(&world, only_ttl()).await;
    assert!(!report.is_informed && report.marked == 0);
    world.put_use(Duration::ZERO, &[]);
    assert_eq!(run(&world, only_ttl()).await.marked, 0);
    tokio::time::advance(DAY * 29).await;
    assert_eq!(run(&world, only_ttl()).await.marked, 0);
    tokio::time::advance(DAY * 2).await;
    world.put_use(Duration::ZERO, &[]);
    assert_eq!(run(&world, only_ttl()).await.marked, 1);
    assert_eq!(world.marked(), [old]);
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_while_a_list_of_uses_is_broken_or_not_whole() {
    let part = Digests::encode(Vec::new(), false);
    for broken in [Bytes::from_static(b"what?"), part] {
        let world = World::new();
        world.put_record();
        let old = world.put_layer(DAY * 40, "old");
        run(&world, only_ttl()).await;
        tokio::time::advance(DUE).await;
        world.put_layer(DAY * 41, "another");
        let key = format!("millpond/uses/{}/x", Day::of(world.now()));
        world.put(&key, broken);
        let report = run(&world, only_ttl()).await;
        assert!(!report.is_informed && report.marked == 0);
        assert!(world.has_content(&old) && world.has(&key));
        // The mark still counts when an operator has removed it.
        world.remove(&key);
        let report = run(&world, only_ttl()).await;
        assert_eq!((report.marked, report.removals.deleted), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_keys_are_left_alone_and_counted() {
    let world = World::new();
    world.put_record();
    let old = world.put_layer(DAY * 40, "old");
    let (hex, first) = (old.hex(), format!("{:02x}", old.first_byte()));
    let blobs = "docker/registry/v2/blobs/sha256";
    let foreign = [
        format!("{blobs}/{first}/notes.txt"),
        format!("{blobs}/{first}/{hex}/data2"),
        format!("{blobs}/{first}/12345/data"),
        "docker/registry/v2/repositories/readme".to_owned(),
        "docker/registry/v2/repositories/Upper/_layers/sha256/x/link".to_owned(),
        format!("docker/registry/v2/repositories/UPPER/_layers/sha256/{hex}/link"),
        format!("docker/registry/v2/repositories/a/_uploads/{hex}/data"),
        "millpond/uses/yesterday/me".to_owned(),
        "millpond/sweep/marked/what".to_owned(),
    ];
    for key in &foreign {
        world.put_at(key, "x", epoch() - DAY * 400);
    }
    let (first, second) = run_twice(&world, only_ttl()).await;
    assert_eq!((first.foreign, second.foreign), (9, 9));
    assert_eq!(second.removals.deleted, 1);
    for key in &foreign {
        assert!(world.has(key), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn links_without_content_go_unless_they_are_new_or_get_content() {
    let world = World::new();
    world.put_record();
    let link = |name: &str, age| {
        let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
        let key = keys::link(&repo("a"), LinkKind::Layer, &digest);
        world.put_at(&key, digest.to_string(), world.now() - age);
        digest
    };
    let gone = link("gone", DAY * 2);
    let new = link("new", HOUR);
    let healed = link("healed", DAY * 2);
    let report = run(&world, only_ttl()).await;
    assert_eq!(report.marked, 2);
    world.put(&keys::blob(&healed), "healed");
    tokio::time::advance(DUE).await;
    let report = run(&world, only_ttl()).await;
    assert_eq!((report.removals.deleted, report.removals.links), (0, 1));
    assert!(!world.has_link("a", &gone));
    assert!(world.has_link("a", &healed) && world.has_link("a", &new));
    assert_eq!(world.marked(), [new]);
}

#[tokio::test(start_paused = true)]
async fn uses_go_when_they_are_older_than_the_ttl() {
    let world = World::new();
    for age in [0, 29, 34, 36, 400] {
        world.put_use(DAY * age, &[]);
    }
    run(&world, only_ttl()).await;
    assert_eq!(world.keys("millpond/uses/").len(), 3);
}

/// All times are the bucket's.
#[tokio::test(start_paused = true)]
async fn wall_clocks_make_no_difference() {
    for skew in [DAY * 60, Duration::ZERO] {
        let world = World::new();
        world.put_record();
        let old = world.put_layer(DAY * 32, "old");
        let young = world.put_layer(DAY * 29, "young");
        for (at, wall) in [
            (0, epoch() - DAY * 30 + skew),
            (1, epoch() - skew),
            (2, epoch() + DAY),
        ] {
            let objects = world.objects(&Arc::default(), wall);
            sweep(objects, only_ttl()).run().await.unwrap();
            assert_eq!(world.has_content(&old), at < 2, "{at}");
            tokio::time::advance(HOUR * 25).await;
        }
        assert!(world.has_content(&young));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_refuses_ends_the_sweep_and_one_that_fails_is_asked_again() {
    let world = World::new();
    world.put_record();
    world.fail(|_| Some(Failure::Refused));
    let sweep = sweep(world.seen(), only_ttl());
    let error = sweep.run().await.unwrap_err();
    assert!(matches!(error, BucketError::Refused(_)));
    assert_eq!(world.take_requests().len(), 1);
    world.fail(|_| Some(Failure::Unavailable));
    sweep.run().await.unwrap_err();
    assert_eq!(world.take_requests().len(), 3);
    // Each request fails once.
    let mut failed = std::collections::HashSet::new();
    let old = world.put_layer(DAY * 40, "old");
    let mut fail = move |request: &Request| {
        failed
            .insert(request.to_string())
            .then_some(Failure::Unavailable)
    };
    world.fail(move |request| fail(request));
    sweep.run().await.unwrap();
    tokio::time::advance(DUE).await;
    sweep.run().await.unwrap();
    assert!(!world.has_content(&old));
}

/// Its list stays: nobody relies on the content before it is certain that it isn't deleted later.
#[tokio::test(start_paused = true)]
async fn a_deletion_without_an_answer_leaves_the_list_of_what_is_deleted() {
    let world = World::new();
    world.put_record();
    let old = world.put_layer(DAY * 40, "old");
    run(&world, only_ttl()).await;
    tokio::time::advance(DUE).await;
    let key = keys::blob(&old);
    let mut is_first = true;
    world.fail(move |request| {
        let is_deletion = request.kind == Kind::Delete && request.key == key;
        (is_deletion && std::mem::take(&mut is_first)).then_some(Failure::Lost)
    });
    run(&world, only_ttl()).await;
    assert!(!world.has_content(&old));
    assert_eq!(world.keys("millpond/sweep/deleting/").len(), 1);
    tokio::time::advance(HOUR * 9).await;
    run(&world, only_ttl()).await;
    assert_eq!(world.keys("millpond/sweep/deleting/"), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn one_sweep_a_day_is_enough_for_all_replicas() {
    let world = World::new();
    world.put_record();
    let first = sweep(world.seen(), only_ttl());
    let second = sweep(
        world.objects(&Arc::default(), epoch() + DAY * 9),
        only_ttl(),
    );
    assert!(first.sweep_if_due().await.unwrap().is_some());
    assert!(second.sweep_if_due().await.unwrap().is_none());
    tokio::time::advance(HOUR * 22).await;
    assert!(second.sweep_if_due().await.unwrap().is_none());
    tokio::time::advance(HOUR * 2).await;
    assert!(second.sweep_if_due().await.unwrap().is_some());
    assert!(first.sweep_if_due().await.unwrap().is_none());
}

/// Three links for each object of content.
#[tokio::test(start_paused = true)]
async fn lists_are_read_once_and_a_page_at_a_time() {
    const CONTENTS: usize = 6_000;
    let world = World::new();
    world.put_record();
    for number in 0..CONTENTS {
        let content = Bytes::from(format!("{number}"));
        let links = ["a", "b", "c"].map(|name| (name, LinkKind::Layer));
        world.put_linked(DAY, &content, &links);
    }
    run(&world, only_ttl()).await;
    let requests = world.take_requests();
    let lists = |prefix: &str| {
        let lists = requests.iter().filter(|request| request.kind == Kind::List);
        lists
            .filter(|request| request.key.starts_with(prefix))
            .count()
    };
    // None of the 256ths has more than a page.
    assert_eq!(lists("docker/registry/v2/blobs/sha256"), 256);
    assert_eq!(
        lists("docker/registry/v2/repositories"),
        CONTENTS * 3 / PAGE
    );
    // Those of long digests, of marks, of uses and of what is being deleted.
    let all = requests.iter().filter(|request| request.kind == Kind::List);
    assert_eq!(all.count(), 256 + CONTENTS * 3 / PAGE + 4);
    let others = requests.iter().filter(|request| request.kind != Kind::List);
    let others: Vec<_> = others.map(ToString::to_string).collect();
    assert_eq!(others.len(), 1, "{others:?}");
}
