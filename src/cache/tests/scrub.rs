//! Scrubs: what they report and quarantine, and that readers and downloads are unharmed.

use std::num::NonZeroU64;

use super::*;
use crate::storage::faulty::Operation;

/// A store on disk, with an image whose first layer is then damaged.
async fn damaged() -> (tempfile::TempDir, Rig, Link) {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::in_directory(&directory).await;
    rig.pull("a", "1", &["bad", "good"]).await.unwrap();
    let path = storage::Layout::new(directory.path()).blob(&digest("bad"));
    std::fs::write(path, "bat").unwrap();
    (directory, rig, layer("a", "bad"))
}

/// A store in memory, with a damaged layer.
async fn damaged_in_memory() -> (Rig, Link) {
    let rig = Rig::with(settings()).await;
    let bad = layer("a", "bad");
    let wrong = Bytes::from_static(b"bat");
    put(&*rig.store, &bad.digest, wrong).await;
    rig.store.link(&bad).await.unwrap();
    rig.cache.linked(&bad.repo, bad.kind, &bad.digest, 3);
    (rig, bad)
}

async fn scrub(rig: &Rig, settings: ScrubSettings) -> ScrubReport {
    rig.cache.scrub(settings).await.unwrap()
}

#[tokio::test]
async fn without_repair_a_corrupt_blob_is_only_reported() {
    let (_directory, rig, bad) = damaged().await;
    let before = rig.entries();
    let report = scrub(&rig, ScrubSettings::default()).await;
    assert_eq!(
        (report.checked, report.corrupt, report.quarantined),
        (4, 1, 0)
    );
    assert_eq!(report.bytes, rig.cache.usage().used);
    let [finding] = report.findings.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!((finding.digest, finding.size), (bad.digest, 3));
    assert_eq!(finding.verdict, Verdict::Corrupt);
    assert!(rig.is_linked(&bad).await && rig.has("bad").await);
    assert_eq!(rig.entries(), before);
}

#[tokio::test]
async fn a_corrupt_blob_is_quarantined_with_its_links_and_nothing_else() {
    let (directory, rig, bad) = damaged().await;
    let report = scrub(&rig, REPAIR).await;
    assert_eq!(
        (report.corrupt, report.quarantined, report.failed),
        (1, 1, 0)
    );
    assert!(!rig.is_linked(&bad).await && !rig.has("bad").await);
    assert!(rig.is_linked(&layer("a", "good")).await && rig.has("good").await);
    assert_eq!(rig.entries().len(), 3);
    check(&rig, &[]).await;
    let aside = storage::Layout::new(directory.path()).quarantined(&bad.digest);
    assert_eq!(std::fs::read(aside).unwrap(), b"bat");

    // What is downloaded again is whole, and the state on disk knows it.
    assert!(rig.cache(&bad, "bad").await);
    assert_eq!(scrub(&rig, REPAIR).await.corrupt, 0);
    check(&rig, &[]).await;
    rig.cache.stop().await;
    let state = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert!(state.contains(&bad.digest.to_string()));
}

#[tokio::test]
async fn a_truncated_blob_is_corrupt() {
    let (directory, rig, bad) = damaged().await;
    let path = storage::Layout::new(directory.path()).blob(&bad.digest);
    std::fs::write(path, "").unwrap();
    assert_eq!(scrub(&rig, REPAIR).await.quarantined, 1);
    assert!(!rig.is_linked(&bad).await);
}

#[tokio::test]
async fn a_reader_keeps_its_file_and_the_links_are_removed_after_it() {
    let (_directory, rig, bad) = damaged().await;
    let hold = rig.cache.hold(&bad.digest).await;
    let open = rig.store.open(&bad.digest).await.unwrap().unwrap();
    assert_eq!(scrub(&rig, REPAIR).await.quarantined, 1);
    assert!(!rig.has("bad").await, "it isn't waited for the reader");
    assert!(rig.is_linked(&bad).await);
    // The reader tells of its use late: that brings no file back.
    rig.cache.used(&bad.repo, bad.kind, &bad.digest, 3);
    assert_eq!(open.reader.read_at(0, 9).await.unwrap(), "bat");
    drop((open, hold));
    rig.cache.settled().await;
    assert!(!rig.is_linked(&bad).await);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn a_download_before_the_links_are_removed_keeps_them() {
    let (_directory, rig, bad) = damaged().await;
    let reader = rig.cache.hold(&bad.digest).await;
    assert_eq!(scrub(&rig, REPAIR).await.quarantined, 1);
    assert!(rig.cache(&bad, "bad").await);
    drop(reader);
    rig.cache.settled().await;
    assert!(rig.is_linked(&bad).await && rig.has("bad").await);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn a_blob_that_cannot_be_quarantined_stays_and_is_reported() {
    let (_directory, rig, bad) = damaged().await;
    let kind = io::ErrorKind::PermissionDenied;
    rig.store.fail(Operation::Quarantine, 1, kind);
    let report = scrub(&rig, REPAIR).await;
    assert_eq!(
        (report.corrupt, report.quarantined, report.failed),
        (0, 0, 1)
    );
    assert!(rig.is_linked(&bad).await && rig.has("bad").await);
    check(&rig, &[]).await;
    assert_eq!(scrub(&rig, REPAIR).await.quarantined, 1);
}

#[tokio::test]
async fn a_failed_link_removal_is_retried() {
    tokio::time::pause();
    let (rig, bad) = damaged_in_memory().await;
    let kind = io::ErrorKind::PermissionDenied;
    rig.store.fail(Operation::Unlink, 1, kind);
    assert_eq!(scrub(&rig, REPAIR).await.quarantined, 1);
    assert!(rig.is_linked(&bad).await);
    rig.pass(2 * MINUTE).await;
    assert!(!rig.is_linked(&bad).await);
    check(&rig, &[]).await;
}

#[tokio::test]
async fn a_blob_is_read_by_one_scrub_at_a_time() {
    let rig = Rig::with(settings()).await;
    rig.cache_layer("a", "x").await;
    let stall = rig.store.stall(Operation::Open, 1);
    let second = async {
        stall.reached().await;
        // The second one's end is no end of the first one.
        let reports = [scrub(&rig, REPAIR).await, scrub(&rig, REPAIR).await];
        stall.release();
        reports
    };
    let (first, others) = tokio::join!(scrub(&rig, REPAIR), second);
    assert_eq!((first.checked, first.skipped), (1, 0));
    for other in others {
        assert_eq!((other.checked, other.skipped), (0, 1));
    }
    assert_eq!(scrub(&rig, REPAIR).await.checked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_scrub_keeps_to_its_rate() {
    let rig = Rig::with(settings()).await;
    for name in ["w", "x", "y", "z"] {
        rig.cache_layer("a", &name.repeat(1000)).await;
    }
    let settings = ScrubSettings {
        rate: NonZeroU64::new(100),
        repair: false,
    };
    let started = rig.clock.now();
    let report = scrub(&rig, settings).await;
    assert_eq!((report.checked, report.bytes), (4, 4000));
    // Nothing is read in the last piece's second, so the scrub doesn't wait for it.
    assert_eq!(started.elapsed().as_secs(), 39);
}

#[tokio::test(start_paused = true)]
async fn background_passes_repeat_and_end_with_the_cache() {
    let (rig, bad) = damaged_in_memory().await;
    let pass = rig.cache.background(HOUR, REPAIR);
    let watch = async {
        rig.pass(HOUR).await;
        assert!(!rig.is_linked(&bad).await);
        rig.cache.stop().await;
    };
    tokio::join!(pass, watch);
}
