//! Pushes, deletions and expiry at the same time, in many orders.

use fastrand::Rng;

use super::*;

/// Orders that are tried.
const SEEDS: u64 = 60;
const GRACE: Duration = Duration::from_secs(2);

fn brief() -> SpaceSettings {
    with_policy(HostedPolicy {
        grace: GRACE,
        untagged: Some(GRACE),
        ..policy()
    })
}

async fn nap(rng: &mut Rng, most: u64) {
    tokio::time::sleep(Duration::from_millis(rng.u64(..most))).await;
}

/// Pushes an image as clients do: asks for each blob, pushes what is missing, and all that it is told
/// is missing.
async fn push(rig: &Rig, rng: &mut Rng, name: &str, layers: &[&str]) -> Option<Digest> {
    let text = image(name, layers);
    let mut missing: Vec<&str> = layers.iter().copied().chain([name]).collect();
    for _ in 0..20 {
        for content in &missing {
            nap(rng, 200).await;
            if rng.bool() && rig.has(content).await {
                continue;
            }
            rig.put(content).await;
        }
        nap(rng, 5000).await;
        match rig.put_image(name, &text).await {
            Ok(digest) => return Some(digest),
            Err(HostedError::PartsMissing(digests)) => {
                let all = layers.iter().copied().chain([name]);
                missing = all.filter(|one| digests.contains(&sha256(one))).collect();
                assert!(!missing.is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    }
    None
}

/// Everything that an image needs is there.
async fn is_whole(rig: &Rig, name: &str, layers: &[&str]) {
    let found = rig.hosted.manifest(&app(), &tagged(name)).await;
    assert_eq!(found.unwrap().content, image(name, layers), "{name}");
    for content in layers.iter().chain([&name]) {
        assert_eq!(
            rig.read(&sha256(content)).await,
            *content,
            "{content} of {name}"
        );
    }
}

/// Nothing dangles, and nothing is left.
async fn is_consistent(rig: &Rig) {
    // Nothing expires while this looks: what can has, an untagged manifest before its layers.
    tokio::time::sleep(10 * GRACE).await;
    rig.cache.settled().await;
    rig.cache.check_index();
    assert_eq!(rig.cache.lost(9), (Vec::new(), 0));
    for repo in rig.store.repositories().await.unwrap() {
        for kind in [LinkKind::Layer, LinkKind::Revision] {
            for digest in rig.store.links(&repo, kind).await.unwrap() {
                let size = rig.store.size(&digest).await.unwrap();
                assert!(size.is_some(), "{repo}@{digest} dangles");
            }
        }
        for tag in rig.store.tags(&repo).await.unwrap() {
            let named = rig.store.tag(&repo, &tag).await.unwrap().unwrap();
            let link = Link::new(&repo, LinkKind::Revision, &named);
            assert!(
                rig.store.linked(&link).await.unwrap(),
                "{} dangles",
                tag.as_str()
            );
        }
    }
    assert_eq!(rig.store.uploads().await.unwrap(), []);
}

/// Pushes an image of its own and of shared layers again and again, and deletes it in one way or
/// another.
async fn client(rig: &Rig, mut rng: Rng, name: &str) {
    for _ in 0..4 {
        let layers = ["shared one", "shared two", "shared three"];
        let layers = &layers[rng.usize(..3)..];
        let Some(digest) = push(rig, &mut rng, name, layers).await else {
            continue;
        };
        is_whole(rig, name, layers).await;
        nap(&mut rng, 6000).await;
        is_whole(rig, name, layers).await;
        let reference = match rng.u8(..3) {
            0 => tagged(name),
            1 => Reference::Digest(digest),
            _ => continue,
        };
        let deleted = rig.hosted.delete_manifest(&app(), &reference).await;
        deleted.unwrap();
        let found = rig.hosted.manifest(&app(), &reference).await;
        assert!(matches!(found, Err(HostedError::NotFound)));
    }
}

/// Deletes layers, where nothing refers to them.
async fn vandal(rig: &Rig, mut rng: Rng) {
    for _ in 0..40 {
        nap(&mut rng, 1000).await;
        rig.cache.check_index();
        let content = *rng
            .choice(&["shared one", "shared two", "shared three"])
            .unwrap();
        match rig.hosted.delete_blob(&app(), &sha256(content)).await {
            Ok(()) | Err(HostedError::NotFound | HostedError::Referenced) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_order_of_push_deletion_and_expiry_loses_a_part() {
    for seed in 0..SEEDS {
        let rig = Rig::with(brief()).await;
        let mut rng = Rng::with_seed(seed);
        rig.store.delay_by_chance(seed, Duration::from_millis(20));
        tokio::join!(
            client(&rig, rng.fork(), "a"),
            client(&rig, rng.fork(), "b"),
            client(&rig, rng.fork(), "c"),
            vandal(&rig, rng.fork()),
        );
        is_consistent(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn forty_pushers_of_one_layer_while_expiry_runs() {
    let rig = Rig::with(brief()).await;
    rig.store.delay_by_chance(7, Duration::from_millis(20));
    let rig = &rig;
    let pushers = (0..40).map(|n| async move {
        let (mut rng, name) = (Rng::with_seed(n), format!("image-{n}"));
        for _ in 0..3 {
            nap(&mut rng, 3000).await;
            let digest = push(rig, &mut rng, &name, &["one layer"]).await.unwrap();
            is_whole(rig, &name, &["one layer"]).await;
            nap(&mut rng, 3000).await;
            is_whole(rig, &name, &["one layer"]).await;
            let reference = Reference::Digest(digest);
            rig.hosted
                .delete_manifest(&app(), &reference)
                .await
                .unwrap();
        }
    });
    futures_util::future::join_all(pushers).await;
    rig.pass(2 * GRACE).await;
    rig.pass(2 * GRACE).await;
    is_consistent(rig).await;
    assert_eq!(rig.cache.usage().used, 0);
}
