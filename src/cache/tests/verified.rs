//! Verification: its result is remembered, and damaged files are quarantined.

use super::*;
use crate::storage::faulty::Operation;
use crate::storage::{Content, Modified, Stage};

/// Ends the process: the store's directory is free again.
async fn stop(rig: Rig) {
    rig.cache.stop().await;
    let store = Arc::downgrade(&rig.store);
    drop(rig);
    while store.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

async fn open(rig: &Rig, content: &str) -> Content {
    rig.store.open(&digest(content)).await.unwrap().unwrap()
}

async fn trust(rig: &Rig, content: &str) -> Trust {
    let open = open(rig, content).await;
    rig.cache.trust(&digest(content), &open)
}

async fn verify(rig: &Rig, content: &str) -> Integrity {
    let (digest, open) = (digest(content), open(rig, content).await);
    let hold = rig.cache.hold(&digest).await;
    let mut verification = rig.cache.verify(&digest, &open, hold).await;
    let integrity = verification.ended().await;
    assert_eq!(verification.integrity(), Some(integrity));
    integrity
}

/// Writes a blob as a download does.
async fn download(rig: &Rig, link: &Link, content: &'static str) -> Option<Modified> {
    let hold = rig.cache.hold(&link.digest).await;
    let mut stage: Box<dyn Stage> = rig.store.stage(&link.digest, "u").await.unwrap();
    let commit = move || {
        stage.write_at(0, &[Bytes::from(content)]).unwrap();
        stage.commit().unwrap()
    };
    let placed = tokio::task::spawn_blocking(commit).await.unwrap();
    let size = content.len() as u64;
    let space = rig.cache.reserve(size).await.unwrap();
    space.commit(&hold, size);
    if let Some(modified) = placed {
        hold.verified(size, modified);
    }
    rig.store.link(link).await.unwrap();
    rig.cache.linked(&link.repo, link.kind, &link.digest, size);
    placed
}

fn path(directory: &tempfile::TempDir, content: &str) -> PathBuf {
    storage::Layout::new(directory.path()).blob(&digest(content))
}

#[tokio::test]
async fn a_written_or_verified_blob_is_trusted_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    download(&rig, &layer("a", "downloaded"), "downloaded").await;
    rig.cache_layer("a", "adopted").await;
    rig.cache_layer("b", "adopted").await;
    rig.cache_layer("a", "never asked for").await;
    assert_eq!(trust(&rig, "downloaded").await, Trust::Verified);
    assert_eq!(trust(&rig, "adopted").await, Trust::Unknown);
    assert_eq!(verify(&rig, "adopted").await, Integrity::Right);
    assert!(open(&rig, "adopted").await.reader.is_verified());
    stop(rig).await;

    let rig = Rig::in_directory(&directory).await;
    // Nothing is read for this.
    rig.store
        .fail_from(Operation::Read, 1, io::ErrorKind::Other);
    assert_eq!(trust(&rig, "downloaded").await, Trust::Verified);
    assert_eq!(trust(&rig, "adopted").await, Trust::Verified);
    assert_eq!(trust(&rig, "never asked for").await, Trust::Unknown);
    stop(rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_verification_is_journaled() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    rig.cache_layer("a", "x").await;
    rig.pass(MINUTE).await;
    assert_eq!(verify(&rig, "x").await, Integrity::Right);
    rig.pass(MINUTE).await;
    let journal = state_file(&directory).with_extension("journal");
    let text = std::fs::read_to_string(journal).unwrap();
    let modified = open(&rig, "x").await.modified.to_bits();
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(&format!("\"Verified\":[1,{modified}]")),
        "{text}"
    );
}

#[tokio::test]
async fn another_size_is_damage_and_another_time_is_verified_again() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    for content in ["emptied", "replaced", "grown"] {
        download(&rig, &layer("a", content), content).await;
    }
    stop(rig).await;
    std::fs::write(path(&directory, "emptied"), "").unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(path(&directory, "replaced"));
    let times = std::fs::FileTimes::new().set_modified(today());
    file.unwrap().set_times(times).unwrap();

    let rig = Rig::in_directory(&directory).await;
    assert_eq!(trust(&rig, "emptied").await, Trust::Damaged);
    assert_eq!(trust(&rig, "replaced").await, Trust::Unknown);
    assert_eq!(trust(&rig, "grown").await, Trust::Verified);
    std::fs::write(path(&directory, "grown"), "grown, while this runs").unwrap();
    assert_eq!(trust(&rig, "grown").await, Trust::Damaged);
    let grown = open(&rig, "grown").await;
    let known = digest("grown");
    assert!(rig.cache.quarantine(&known, Some(&grown)).await);

    let emptied = open(&rig, "emptied").await;
    assert!(
        rig.cache
            .quarantine(&digest("emptied"), Some(&emptied))
            .await
    );
    rig.cache.settled().await;
    assert!(!rig.is_linked(&layer("a", "emptied")).await);
    let placed = download(&rig, &layer("a", "emptied"), "emptied").await;
    assert!(placed.is_some());
    assert_eq!(trust(&rig, "emptied").await, Trust::Verified);
    check(&rig, &[]).await;
    stop(rig).await;
}

#[tokio::test]
async fn a_size_that_contradicts_a_manifest_is_damage_until_it_is_verified() {
    let rig = Rig::with(settings()).await;
    rig.pull("a", "1", &["layer"]).await.unwrap();
    let mut layer = descriptor("layer");
    layer["size"] = 6.into();
    let lie = serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    let lie = Manifest::parse(lie.as_bytes()).unwrap();
    rig.cache.describe(&digest("lie"), &lie);
    assert_eq!(trust(&rig, "layer").await, Trust::Damaged);
    assert_eq!(verify(&rig, "layer").await, Integrity::Right);
    rig.cache.describe(&digest("lie"), &lie);
    assert_eq!(trust(&rig, "layer").await, Trust::Verified);
}

#[tokio::test]
async fn concurrent_requests_share_one_verification() {
    let rig = Rig::with(settings()).await;
    rig.cache_layer("a", "x").await;
    let stall = rig.store.stall(Operation::Read, 1);
    // A second job would meet it.
    rig.store.fail(Operation::Read, 2, io::ErrorKind::Other);
    let (digest, content) = (digest("x"), open(&rig, "x").await);
    let mut verifications = Vec::new();
    for _ in 0..10 {
        let hold = rig.cache.hold(&digest).await;
        verifications.push(rig.cache.verify(&digest, &content, hold).await);
    }
    stall.reached().await;
    assert_eq!(verifications[0].integrity(), None);
    stall.release();
    for mut verification in verifications {
        assert_eq!(verification.ended().await, Integrity::Right);
    }
}

#[tokio::test]
async fn an_unreadable_blob_is_quarantined_and_a_passing_error_is_not_damage() {
    let rig = Rig::with(settings()).await;
    let link = rig.cache_layer("a", "x").await;
    rig.store
        .fail(Operation::Read, 1, io::ErrorKind::OutOfMemory);
    assert_eq!(verify(&rig, "x").await, Integrity::Unknown);
    assert!(rig.has("x").await);
    rig.store.fail(Operation::Read, 1, io::ErrorKind::Other);
    assert_eq!(verify(&rig, "x").await, Integrity::Damaged);
    rig.cache.settled().await;
    assert!(!rig.has("x").await && !rig.is_linked(&link).await);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn a_blob_that_cannot_be_quarantined_is_damaged_until_it_is_written_again() {
    let rig = Rig::with(settings()).await;
    rig.cache_layer("a", "x").await;
    let reader = rig.cache.hold(&digest("x")).await;
    rig.store.fail(Operation::Read, 1, io::ErrorKind::Other);
    rig.store
        .fail(Operation::Quarantine, 1, io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(verify(&rig, "x").await, Integrity::Damaged);
    assert!(rig.has("x").await);
    assert_eq!(trust(&rig, "x").await, Trust::Damaged);
    // The deletion task removes it once no reader is left.
    drop(reader);
    rig.cache.settled().await;
    assert!(!rig.has("x").await);
    check(&rig, &[]).await;
    rig.cache_layer("a", "x").await;
    // As for any file that nobody has read yet.
    assert_eq!(trust(&rig, "x").await, Trust::Unknown);
}

#[tokio::test]
async fn a_file_that_replaced_a_damaged_one_stays() {
    let rig = Rig::with(settings()).await;
    let link = rig.cache_layer("a", "x").await;
    let damaged = open(&rig, "x").await;
    rig.store.remove(&link.digest).await.unwrap();
    put(&*rig.store, &link.digest, "x").await;
    assert!(!rig.cache.quarantine(&link.digest, Some(&damaged)).await);
    assert!(rig.has("x").await && rig.is_linked(&link).await);
}

#[tokio::test]
async fn a_scrub_repairs_unreadable_blobs() {
    for operation in [Operation::Read, Operation::Open] {
        let rig = Rig::with(settings()).await;
        let link = rig.cache_layer("a", "x").await;
        rig.store.fail_from(operation, 1, io::ErrorKind::Other);
        let only_reported = rig.cache.scrub(ScrubSettings::default()).await;
        assert_eq!(only_reported.unwrap().failed, 1, "{operation:?}");
        assert!(rig.has("x").await);
        let report = rig.cache.scrub(REPAIR).await.unwrap();
        assert_eq!((report.quarantined, report.failed), (1, 0), "{operation:?}");
        assert!(!rig.has("x").await && !rig.is_linked(&link).await);
    }
    let rig = Rig::with(settings()).await;
    rig.cache_layer("a", "x").await;
    // What a scrub finds right needn't be verified when it is asked for.
    rig.cache.scrub(REPAIR).await.unwrap();
    assert_eq!(trust(&rig, "x").await, Trust::Verified);
}
