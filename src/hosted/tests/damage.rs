//! Damaged and lost content, failing syncs, and what a power cut leaves.

use super::*;
use crate::storage::Layout;

async fn on_disk() -> (tempfile::TempDir, Layout, Rig) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let rig = Rig::on_disk(&directory, space()).await;
    (directory, layout, rig)
}

#[tokio::test]
async fn a_damaged_blob_is_reported_and_healed_by_a_push() {
    let (_directory, layout, rig) = on_disk().await;
    rig.push("v1", &["layer", "other"]).await;
    let rig = rig.restarted(space()).await;
    std::fs::write(layout.blob(&sha256("layer")), "LAYER").unwrap();
    let (repo, digest) = (app(), sha256("layer"));
    let read = rig
        .hosted
        .blob(&repo, &digest, ReadMode::Content, &nobody)
        .await;
    assert!(matches!(read, Err(HostedError::Damaged(_))));
    rig.cache.settled().await;
    assert!(!rig.has("layer").await);
    assert!(rig.is_linked(LinkKind::Layer, sha256("layer")).await);
    assert_eq!(rig.cache.lost(9), (vec![digest], 1));
    assert_eq!(rig.hosted.tags(&app()).await.unwrap(), [tag("v1")]);
    let refused = rig.put_image("v2", &image("v1", &["layer", "other"])).await;
    assert!(matches!(refused, Err(HostedError::PartsMissing(missing)) if missing == [digest]));
    // So it is after a start.
    let rig = rig.restarted(space()).await;
    rig.cache.settled().await;
    assert!(rig.is_linked(LinkKind::Layer, sha256("layer")).await);
    assert_eq!(rig.cache.lost(0), (Vec::new(), 1));
    rig.put("layer").await;
    assert!(rig.has("layer").await);
    assert_eq!(rig.cache.lost(9), (Vec::new(), 0));
    rig.cache.check_index();
}

#[tokio::test]
async fn a_push_replaces_a_blob_that_is_damaged_unnoticed() {
    let (_directory, layout, rig) = on_disk().await;
    rig.push("v1", &["layer"]).await;
    let rig = rig.restarted(space()).await;
    std::fs::write(layout.blob(&sha256("layer")), "LAYER").unwrap();
    rig.put("layer").await;
    assert_eq!(rig.read(&sha256("layer")).await, "layer");
}

#[tokio::test(start_paused = true)]
async fn layers_outlive_a_manifest_that_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let rig = Rig::on_disk(&directory, space()).await;
    let digest = rig.push("v1", &["layer"]).await;
    let rig = rig.restarted(space()).await;
    std::fs::remove_file(layout.blob(&digest)).unwrap();
    let rig = rig.restarted(space()).await;
    assert_eq!(rig.cache.lost(9), (vec![digest], 1));
    rig.pass(10 * DAY).await;
    assert!(rig.is_linked(LinkKind::Layer, sha256("layer")).await);
    let found = rig.hosted.manifest(&app(), &tagged("v1")).await;
    assert!(found.is_err());
    rig.put_image("v1", &image("v1", &["layer"])).await.unwrap();
    rig.hosted.manifest(&app(), &tagged("v1")).await.unwrap();
    assert_eq!(rig.cache.lost(9), (Vec::new(), 0));
}

#[tokio::test]
async fn a_failed_sync_fails_the_manifest_and_its_layers_are_pushed_again() {
    for failing in [
        Operation::Sync,
        Operation::Commit,
        Operation::Link,
        Operation::SetTag,
    ] {
        let (_directory, _layout, rig) = on_disk().await;
        rig.put("layer").await;
        rig.put("v1").await;
        rig.store.fail(failing, 1, std::io::ErrorKind::Other);
        let failed = rig.put_image("v1", &image("v1", &["layer"])).await;
        assert!(matches!(failed, Err(HostedError::Store(_))), "{failing:?}");
        rig.cache.settled().await;
        assert_eq!(
            rig.hosted.tags(&app()).await.unwrap(),
            [] as [Tag; 0],
            "{failing:?}"
        );
        // What may be torn isn't confirmed.
        let is_there = rig.has("layer").await;
        assert_eq!(is_there, failing != Operation::Sync, "{failing:?}");
        if !is_there {
            rig.put("layer").await;
            rig.put("v1").await;
        }
        rig.put_image("v1", &image("v1", &["layer"])).await.unwrap();
        assert_eq!(rig.cache.lost(9).1, 0);
        rig.cache.check_index();
    }
}

#[tokio::test]
async fn a_blob_is_durable_before_its_success_where_that_is_configured() {
    let (_directory, _layout, rig) = on_disk().await;
    let rig = rig
        .restarted(SpaceSettings {
            sync: SyncMode::Blob,
            ..space()
        })
        .await;
    rig.store
        .fail(Operation::Sync, 1, std::io::ErrorKind::Other);
    let (repo, digest, mut body) = (app(), sha256("layer"), Script::of("layer"));
    let failed = rig
        .hosted
        .put_blob(&repo, &digest, Some(5), &mut body)
        .await;
    assert!(matches!(failed, Err(HostedError::Store(_))));
    rig.put("layer").await;
    assert!(rig.has("layer").await);
}

/// Runs one process: dropping the runtime ends all its tasks.
fn process<T>(life: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap().block_on(life)
}

/// What a process knew of a blob that wasn't durable isn't saved, so that the next one hashes it.
#[test]
fn a_torn_blob_is_never_confirmed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let start = async || {
        let spaces = vec![space()];
        let settings = CacheSettings {
            state: Some(layout.scheduler_state()),
            ..settings(&spaces)
        };
        let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
        Rig::configured(store, settings, spaces, today()).await
    };
    process(async {
        let rig = start().await;
        rig.push("v1", &["durable"]).await;
        rig.put("loose").await;
        rig.put("torn").await;
        rig.cache.stop().await;
    });
    let state = std::fs::read_to_string(layout.scheduler_state()).unwrap();
    let contents = [
        ("durable", true),
        ("v1", true),
        ("loose", false),
        ("torn", false),
    ];
    for (content, saved) in contents {
        let key = format!("ci/app@{}", sha256(content));
        let line = state.lines().find(|line| line.contains(&key)).unwrap();
        assert_eq!(line.contains("Verified"), saved, "{content}");
    }
    // As long as it was, and written at the same time, as far as anybody can tell.
    let path = layout.blob(&sha256("torn"));
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, "\0\0\0\0").unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    process(async {
        let rig = start().await;
        assert!(rig.has("loose").await && rig.has("durable").await);
        assert!(!rig.has("torn").await);
        rig.put("torn").await;
        assert!(rig.has("torn").await);
        rig.cache.check_index();
    });
}

#[tokio::test]
async fn content_that_was_cached_before_it_became_hosted_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let rig = Rig::on_disk(&directory, space()).await;
    let digest = rig.push("v1", &["layer"]).await;
    rig.cache.settled().await;
    let noted = std::fs::read_to_string(layout.root().join("millpond/hosted.json"));
    assert_eq!(noted.unwrap(), r#"["ci/**"]"#);
    let other = with_policy(HostedPolicy {
        repositories: vec!["builds/**".parse().unwrap(), "ci/*".parse().unwrap()],
        ..policy()
    });
    let rig = rig.restarted(other).await;
    assert!(rig.has("layer").await);
    rig.hosted
        .manifest(&app(), &Reference::Digest(digest))
        .await
        .unwrap();
}
