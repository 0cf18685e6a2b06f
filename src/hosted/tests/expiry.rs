//! What is removed when, and what makes room.

use super::*;
use crate::cache::MinFree;

#[tokio::test(start_paused = true)]
async fn a_layer_without_a_manifest_goes_after_its_grace() {
    let rig = Rig::new().await;
    let digest = rig.put("layer").await;
    rig.pass(HOUR * 23).await;
    assert!(rig.has("layer").await);
    rig.pass(HOUR * 23).await;
    assert!(
        rig.is_linked(LinkKind::Layer, digest).await,
        "the HEAD counts"
    );
    rig.pass(2 * HOUR).await;
    assert_eq!(rig.store.size(&digest).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_a_manifest_refers_to_stays_as_long_as_the_manifest() {
    let rig = Rig::new().await;
    let (first, second) = (
        rig.push("v1", &["shared", "own"]).await,
        rig.push("v2", &["shared"]).await,
    );
    rig.pass(30 * DAY).await;
    let is_kept = async |content: &str| rig.is_linked(LinkKind::Layer, sha256(content)).await;
    for content in ["shared", "own", "v1", "v2"] {
        assert!(is_kept(content).await, "{content}");
    }
    let reference = Reference::Digest(first);
    rig.hosted
        .delete_manifest(&app(), &reference)
        .await
        .unwrap();
    // Their last use was long ago.
    rig.pass(Duration::from_secs(5)).await;
    for (content, kept) in [
        ("shared", true),
        ("own", false),
        ("v1", false),
        ("v2", true),
    ] {
        assert_eq!(is_kept(content).await, kept, "{content}");
    }
    assert!(rig.is_linked(LinkKind::Revision, second).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_pushed_is_kept_across_a_restart() {
    let rig = Rig::new().await;
    rig.push("v1", &["layer"]).await;
    rig.put("loose").await;
    rig.pass(10 * HOUR).await;
    let rig = rig.restarted(space()).await;
    rig.cache.check_index();
    rig.pass(30 * DAY).await;
    assert!(rig.is_linked(LinkKind::Layer, sha256("layer")).await);
    assert!(!rig.is_linked(LinkKind::Layer, sha256("loose")).await);
}

#[tokio::test(start_paused = true)]
async fn untagged_manifests_expire_where_that_is_configured() {
    let rig = Rig::with(with_policy(HostedPolicy {
        untagged: Some(HOUR),
        ..policy()
    }))
    .await;
    let old = rig.push("v1", &["old"]).await;
    // A child of an index, and what is attached to it, have no tags.
    let text = image("v1", &["old"]);
    rig.put("{}").await;
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let subject = serde_json::json!({"mediaType": OCI, "digest": old, "size": text.len()});
    let attached = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI, "layers": [], "subject": subject,
        "config": {"mediaType": kind, "digest": sha256("{}"), "size": 2},
    });
    let attached = attached.to_string();
    let attached_to = Reference::Digest(sha256(&attached));
    rig.put_manifest(&attached_to, None, &attached)
        .await
        .unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [subject]});
    rig.put_manifest(&tagged("all"), None, &index.to_string())
        .await
        .unwrap();
    rig.push("v2", &["new"]).await;
    rig.put_image("v1", &image("v2", &["new"])).await.unwrap();
    rig.pass(30 * DAY).await;
    let has = async |digest| rig.is_linked(LinkKind::Revision, digest).await;
    assert!(has(old).await && has(sha256(&attached)).await);
    rig.hosted
        .delete_manifest(&app(), &tagged("all"))
        .await
        .unwrap();
    rig.pass(HOUR).await;
    rig.pass(HOUR).await;
    assert!(!has(old).await && !has(sha256(&attached)).await);
    assert!(has(sha256(&image("v2", &["new"]))).await);
    rig.pass(DAY).await;
    assert!(!rig.is_linked(LinkKind::Layer, sha256("old")).await);
    assert!(rig.is_linked(LinkKind::Layer, sha256("new")).await);
}

#[tokio::test(start_paused = true)]
async fn images_expire_after_their_last_pull_unless_a_rule_keeps_them() {
    let rig = Rig::with(with_policy(HostedPolicy {
        ttl: Some(10 * DAY),
        keep_newest: 1,
        keep_tags: vec!["release*".parse().unwrap()],
        ..policy()
    }))
    .await;
    for name in ["release-1", "never-pulled", "pulled"] {
        rig.push(name, &["layer"]).await;
    }
    rig.pass(DAY).await;
    rig.push("newest", &[]).await;
    rig.pass(8 * DAY).await;
    rig.hosted
        .manifest(&app(), &tagged("pulled"))
        .await
        .unwrap();
    rig.pass(9 * DAY).await;
    let mut tags = rig.hosted.tags(&app()).await.unwrap();
    assert_eq!(tags, ["newest", "pulled", "release-1"].map(tag));
    rig.pass(5 * DAY).await;
    tags = rig.hosted.tags(&app()).await.unwrap();
    assert_eq!(tags, ["newest", "release-1"].map(tag));
    assert!(rig.is_linked(LinkKind::Layer, sha256("layer")).await);
    assert!(!rig.is_linked(LinkKind::Layer, sha256("pulled")).await);
}

#[tokio::test(start_paused = true)]
async fn nothing_expires_where_another_replica_decides_that() {
    let rules = || {
        with_policy(HostedPolicy {
            ttl: Some(DAY),
            untagged: Some(HOUR),
            ..policy()
        })
    };
    let rig = Rig::with(rules()).await;
    rig.cache.set_hosted_role(HostedRole::Copies).await;
    let digest = rig.push("v1", &["layer"]).await;
    rig.put("loose").await;
    let has = async || {
        let loose = rig.is_linked(LinkKind::Layer, sha256("loose")).await;
        assert_eq!(rig.is_linked(LinkKind::Revision, digest).await, loose);
        loose
    };
    rig.pass(30 * DAY).await;
    assert!(has().await);
    // Changed settings don't change who decides.
    rig.cache.configure(settings(&[rules()])).await;
    rig.pass(DAY).await;
    assert!(has().await);
    rig.cache.set_hosted_role(HostedRole::Decides).await;
    rig.pass(HOUR).await;
    rig.pass(HOUR).await;
    assert!(!has().await);
}

/// Caches an image layer of a mirrored repository. False when there is no space.
async fn cache_mirrored(rig: &Rig, content: &str) -> bool {
    let (repo, digest) = (repo("library/x"), sha256(content));
    let hold = rig.cache.hold(&digest).await;
    let Ok(space) = rig.cache.reserve(content.len() as u64).await else {
        return false;
    };
    crate::storage::put(&*rig.store, &digest, content.to_owned().into())
        .await
        .unwrap();
    space.commit(&hold, content.len() as u64);
    rig.store
        .link(&Link::new(&repo, LinkKind::Layer, &digest))
        .await
        .unwrap();
    rig.cache
        .linked(&repo, LinkKind::Layer, &digest, content.len() as u64);
    true
}

async fn capped(evictable: bool) -> Rig {
    let spaces = vec![with_policy(HostedPolicy {
        evictable,
        ..policy()
    })];
    let settings = CacheSettings {
        max_size: Some(1000),
        ..settings(&spaces)
    };
    Rig::configured(Arc::new(MemoryStore::new()), settings, spaces, today()).await
}

#[tokio::test(start_paused = true)]
async fn mirrored_content_makes_room_for_pushes_and_hosted_content_stays() {
    let rig = capped(false).await;
    rig.put(&"h".repeat(400)).await;
    rig.pass(HOUR).await;
    assert!(cache_mirrored(&rig, &"m".repeat(400)).await);
    rig.put(&"n".repeat(300)).await;
    rig.cache.settled().await;
    assert_eq!(
        rig.store.size(&sha256(&"m".repeat(400))).await.unwrap(),
        None
    );
    assert!(rig.has(&"h".repeat(400)).await);
    // Nothing is left that may go.
    let content = "f".repeat(400);
    let mut body = Script::of(&content);
    let (repo, digest) = (app(), sha256(&content));
    let full = rig
        .hosted
        .put_blob(&repo, &digest, Some(400), &mut body)
        .await;
    assert!(matches!(full, Err(HostedError::Full(_))), "{full:?}");
    assert!(!cache_mirrored(&rig, &"g".repeat(400)).await);
    assert!(rig.has(&"n".repeat(300)).await);
    rig.cache.check_index();
}

#[tokio::test(start_paused = true)]
async fn evictable_content_goes_after_mirrored_content() {
    let rig = capped(true).await;
    rig.put(&"h".repeat(400)).await;
    rig.pass(HOUR).await;
    assert!(cache_mirrored(&rig, &"m".repeat(400)).await);
    assert!(cache_mirrored(&rig, &"n".repeat(300)).await);
    rig.cache.settled().await;
    assert!(rig.has(&"h".repeat(400)).await);
    assert_eq!(
        rig.store.size(&sha256(&"m".repeat(400))).await.unwrap(),
        None
    );
    rig.put(&"i".repeat(500)).await;
    rig.cache.settled().await;
    assert!(!rig.has(&"n".repeat(300)).await);
    rig.put(&"j".repeat(450)).await;
    rig.cache.settled().await;
    assert!(!rig.has(&"h".repeat(400)).await && rig.has(&"j".repeat(450)).await);
    rig.cache.check_index();
}

/// The bucket must not lose what was a copy here.
#[tokio::test(start_paused = true)]
async fn only_who_decides_evicts_more_than_copies() {
    for (role, is_evicted, is_told) in [
        (HostedRole::Decides, true, true),
        (HostedRole::Copies, true, false),
        (HostedRole::Learns, false, false),
    ] {
        let rig = capped(true).await;
        let mut losses = rig.cache.losses().unwrap();
        let hosted = "h".repeat(600);
        rig.put(&hosted).await;
        rig.pass(HOUR).await;
        rig.cache.set_hosted_role(role).await;
        rig.cache.check_index();
        let (next, repo) = ("n".repeat(450), app());
        let (digest, mut body) = (sha256(&next), Script::of(&next));
        let pushing = rig.hosted.put_blob(&repo, &digest, Some(450), &mut body);
        assert_eq!(pushing.await.is_ok(), is_evicted, "{role:?}");
        rig.cache.settled().await;
        assert_eq!(rig.has(&hosted).await, !is_evicted, "{role:?}");
        assert_eq!(losses.try_recv().is_ok(), is_told, "{role:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_values_apply_at_once() {
    let rig = Rig::new().await;
    rig.put("layer").await;
    let spaces = vec![with_policy(HostedPolicy {
        grace: HOUR,
        quota: Some(3),
        ..policy()
    })];
    let settings = CacheSettings {
        min_free: None::<MinFree>,
        ..settings(&spaces)
    };
    rig.cache.configure(settings).await;
    let hosted = rig.hosted.renewed(spaces);
    let (repo, digest, mut body) = (app(), sha256("x"), Script::of("x"));
    let refused = hosted.put_blob(&repo, &digest, Some(1), &mut body).await;
    assert!(matches!(refused, Err(HostedError::OverQuota { .. })));
    rig.pass(HOUR).await;
    assert!(!rig.is_linked(LinkKind::Layer, sha256("layer")).await);
}

#[tokio::test(start_paused = true)]
async fn operators_purge_hosted_content() {
    let rig = Rig::new().await;
    rig.push("v1", &["layer"]).await;
    rig.push("v2", &["layer"]).await;
    let purged = rig.cache.purge(&"ci/app:v1".parse().unwrap(), false).await;
    assert_eq!(
        purged.len(),
        2,
        "the manifest, and the config that only it has"
    );
    assert_eq!(rig.hosted.tags(&app()).await.unwrap(), [tag("v2")]);
    assert!(rig.has("layer").await);
    rig.cache.purge(&"ci/**".parse().unwrap(), false).await;
    assert_eq!(rig.hosted.repositories().await.unwrap(), []);
    assert_eq!(rig.cache.usage().used, 0);
    rig.cache.check_index();
}
