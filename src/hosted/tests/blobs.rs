//! Blobs: other repositories' content, deletion.

use super::*;

/// A mirrored repository with a layer, as a download leaves it.
async fn mirrored(rig: &Rig, name: &str, content: &str) -> Digest {
    let (repo, digest) = (repo(name), sha256(content));
    crate::storage::put(
        &*rig.store,
        &digest,
        Bytes::copy_from_slice(content.as_bytes()),
    )
    .await
    .unwrap();
    let link = Link::new(&repo, LinkKind::Layer, &digest);
    rig.store.link(&link).await.unwrap();
    rig.cache
        .linked(&repo, LinkKind::Layer, &digest, content.len() as u64);
    digest
}

fn layer() -> String {
    "a layer of a mirrored base image ".repeat(40)
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_the_caller_may_pull_it() {
    on_both(async |rig| {
        let digest = rig.put("content").await;
        let (other, source) = (repo("ci/other"), app());
        let only = |name: &'static str| move |repo: &RepoName| repo.as_str() == name;
        let absent = repo("ci/third");
        for (from, may_pull, mounted) in [
            (Some(&source), "ci/nothing", false),
            (None, "ci/nothing", false),
            (Some(&absent), "ci/app", false),
            (Some(&source), "ci/app", true),
        ] {
            let may_pull = only(may_pull);
            let done = rig.hosted.mount(&other, &digest, from, &may_pull).await;
            assert_eq!(done.unwrap(), mounted);
            assert_eq!(rig.head(&other, &digest).await.is_some(), mounted);
        }
        let third = rig.hosted.mount(&absent, &digest, None, &anybody).await;
        assert!(third.unwrap());
        let unknown = rig
            .hosted
            .mount(&other, &sha256("unknown"), None, &anybody)
            .await;
        assert!(!unknown.unwrap());
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn layers_of_mirrored_images_need_not_be_pushed() {
    on_both(async |rig| {
        let layer = layer();
        let digest = mirrored(&rig, "library/base", &layer).await;
        let small = mirrored(&rig, "library/base", "small").await;
        let blob = async |digest, may_reuse: &MayPull<'_>| {
            let blob = rig
                .hosted
                .blob(&app(), digest, ReadMode::Head, may_reuse)
                .await;
            blob.is_ok()
        };
        assert!(!blob(&digest, &nobody).await);
        assert!(!blob(&small, &anybody).await);
        assert!(blob(&digest, &anybody).await);
        // Not yet the repository's.
        assert!(!blob(&digest, &nobody).await);
        rig.put("config").await;
        let text = image("config", &[&layer]);
        let push = async |may_reuse: &MayPull<'_>| {
            let body = Bytes::copy_from_slice(text.as_bytes());
            let (repo, reference) = (app(), tagged("v1"));
            rig.hosted
                .put_manifest(&repo, &reference, &[], Some(OCI), body, may_reuse)
                .await
        };
        let refused = push(&nobody).await;
        let Err(HostedError::PartsMissing(missing)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(missing, [digest]);
        push(&anybody).await.unwrap();
        assert!(blob(&digest, &nobody).await);
        assert!(rig.is_linked(LinkKind::Layer, digest).await);
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_was_found_for_reuse_outlives_its_mirrored_repository() {
    let rig = Rig::new().await;
    let layer = layer();
    let digest = mirrored(&rig, "library/base", &layer).await;
    rig.hosted
        .blob(&app(), &digest, ReadMode::Head, &anybody)
        .await
        .unwrap();
    rig.pass(HOUR * 167).await;
    rig.hosted
        .blob(&app(), &digest, ReadMode::Head, &anybody)
        .await
        .unwrap();
    // Its week is over, and the day of the lease isn't: a manifest can still link it.
    rig.pass(2 * HOUR).await;
    let mounted = rig
        .hosted
        .mount(&repo("ci/other"), &digest, None, &anybody)
        .await;
    assert!(mounted.unwrap());
    rig.hosted
        .delete_blob(&repo("ci/other"), &digest)
        .await
        .unwrap();
    assert_eq!(
        rig.store.size(&digest).await.unwrap(),
        Some(layer.len() as u64)
    );
    rig.pass(8 * DAY).await;
    assert_eq!(rig.store.size(&digest).await.unwrap(), None);
}

#[tokio::test]
async fn reuse_can_be_switched_off() {
    let rig = Rig::with(SpaceSettings {
        reuse: false,
        ..space()
    })
    .await;
    let digest = mirrored(&rig, "library/base", &layer()).await;
    let found = rig
        .hosted
        .blob(&app(), &digest, ReadMode::Head, &anybody)
        .await;
    assert!(matches!(found, Err(HostedError::NotFound)));
    let mounted = rig.hosted.mount(&app(), &digest, None, &anybody).await;
    assert!(!mounted.unwrap());
}

#[tokio::test]
async fn a_deleted_blob_is_gone_at_once_whoever_holds_it() {
    on_both(async |rig| {
        let digest = rig.put("content").await;
        rig.put_to(&repo("ci/other"), "content").await;
        let reading = rig
            .hosted
            .blob(&app(), &digest, ReadMode::Content, &nobody)
            .await;
        let reading = reading.unwrap();
        rig.hosted.delete_blob(&app(), &digest).await.unwrap();
        assert!(!rig.has("content").await);
        let again = rig.hosted.delete_blob(&app(), &digest).await;
        assert!(matches!(again, Err(HostedError::NotFound)));
        drop(reading);
        rig.cache.settled().await;
        assert!(!rig.is_linked(LinkKind::Layer, digest).await);
        assert_eq!(rig.head(&repo("ci/other"), &digest).await, Some(7));
        // And it may come back.
        rig.put("content").await;
        assert!(rig.has("content").await);
        rig.hosted.delete_blob(&app(), &digest).await.unwrap();
        rig.hosted
            .delete_blob(&repo("ci/other"), &digest)
            .await
            .unwrap();
        rig.cache.settled().await;
        assert_eq!(rig.store.size(&digest).await.unwrap(), None);
        rig.cache.check_index();
    })
    .await;
}

#[tokio::test]
async fn a_blob_that_a_manifest_needs_is_not_deleted() {
    on_both(async |rig| {
        let manifest = rig.push("v1", &["layer"]).await;
        for content in ["layer", "v1"] {
            let refused = rig.hosted.delete_blob(&app(), &sha256(content)).await;
            assert!(matches!(refused, Err(HostedError::Referenced)), "{content}");
        }
        let reference = Reference::Digest(manifest);
        rig.hosted
            .delete_manifest(&app(), &reference)
            .await
            .unwrap();
        rig.hosted
            .delete_blob(&app(), &sha256("layer"))
            .await
            .unwrap();
        assert!(!rig.has("layer").await && rig.has("v1").await);
    })
    .await;
}

#[tokio::test]
async fn what_is_disabled_is_refused() {
    let rig = Rig::with(SpaceSettings {
        delete: false,
        ..space()
    })
    .await;
    let digest = rig.put("content").await;
    let refused = rig.hosted.delete_blob(&app(), &digest).await;
    assert!(matches!(refused, Err(HostedError::DeleteDisabled(_))));
    let refused = rig.hosted.delete_manifest(&app(), &tagged("v1")).await;
    assert!(matches!(refused, Err(HostedError::DeleteDisabled(_))));
    let rig = rig
        .restarted(SpaceSettings {
            readonly: true,
            ..space()
        })
        .await;
    assert!(rig.has("content").await);
    let refused = rig.hosted.start_upload(&app(), None).await;
    assert!(matches!(refused, Err(HostedError::ReadOnly(_))));
    let refused = rig.put_image("v1", &image("content", &[])).await;
    assert!(matches!(refused, Err(HostedError::ReadOnly(_))));
    let refused = rig.hosted.delete_blob(&app(), &digest).await;
    assert!(matches!(refused, Err(HostedError::ReadOnly(_))));
    let refused = rig.hosted.mount(&app(), &digest, None, &anybody).await;
    assert!(matches!(refused, Err(HostedError::ReadOnly(_))));
}

#[tokio::test]
async fn content_is_served_while_the_index_is_built() {
    on_both(async |rig| {
        rig.push("v1", &["layer"]).await;
        rig.cache.stop().await;
        let spaces = vec![space()];
        let store = Arc::new(FaultyStore::new(Arc::clone(&rig.store) as _));
        let building = store.stall(Operation::Repositories, 1);
        let rig = Rig::begun(store, settings(&spaces), spaces, today());
        building.reached().await;
        assert!(rig.has("layer").await && !rig.has("unknown").await);
        rig.hosted.manifest(&app(), &tagged("v1")).await.unwrap();
        rig.put("new").await;
        assert!(rig.has("new").await);
        building.release();
        rig.cache.complete().await;
        rig.cache.check_index();
        assert!(rig.has("layer").await && rig.has("new").await);
    })
    .await;
}
