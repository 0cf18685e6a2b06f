//! What a scrub finds, what it sets aside, and who is left unharmed.

use std::num::NonZeroU64;

use super::*;
use crate::storage::FsStore;
use crate::storage::faulty::Operation;

const REPAIR: ScrubSettings = ScrubSettings {
    rate: None,
    repair: true,
};

/// A store on disk, with an image whose first layer is then damaged.
async fn damaged() -> (tempfile::TempDir, House, Link) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
    let clock = Clock::starting_at(today());
    let house = House::over(store, on_disk(&directory), clock);
    house.cache.complete().await;
    house.pull("a", "1", &["bad", "good"]).await.unwrap();
    let path = storage::Layout::new(directory.path()).blob(&digest("bad"));
    std::fs::write(path, "bat").unwrap();
    (directory, house, layer("a", "bad"))
}

async fn scrub(house: &House, settings: ScrubSettings) -> ScrubReport {
    house.cache.scrub(settings).await.unwrap()
}

#[tokio::test]
async fn without_repair_a_corrupt_blob_is_only_reported() {
    let (_directory, house, bad) = damaged().await;
    let before = house.entries();
    let report = scrub(&house, ScrubSettings::default()).await;
    assert_eq!(
        (report.checked, report.corrupt, report.quarantined),
        (4, 1, 0)
    );
    assert_eq!(report.bytes, house.cache.usage().used);
    let [finding] = report.findings.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!((finding.digest, finding.size), (bad.digest, 3));
    assert_eq!(finding.verdict, Verdict::Corrupt);
    assert!(house.is_linked(&bad).await && house.has("bad").await);
    assert_eq!(house.entries(), before);
}

#[tokio::test]
async fn a_corrupt_blob_is_set_aside_with_its_links_and_nothing_else() {
    let (directory, house, bad) = damaged().await;
    let report = scrub(&house, REPAIR).await;
    assert_eq!(
        (report.corrupt, report.quarantined, report.failed),
        (1, 1, 0)
    );
    assert!(!house.is_linked(&bad).await && !house.has("bad").await);
    assert!(house.is_linked(&layer("a", "good")).await && house.has("good").await);
    assert_eq!(house.entries().len(), 3);
    check(&house, &[]).await;
    let aside = storage::Layout::new(directory.path()).quarantined(&bad.digest);
    assert_eq!(std::fs::read(aside).unwrap(), b"bat");

    // What is downloaded again is whole, and the state on disk knows it.
    assert!(house.cache(&bad, "bad").await);
    assert_eq!(scrub(&house, REPAIR).await.corrupt, 0);
    check(&house, &[]).await;
    house.cache.stop().await;
    let state = std::fs::read_to_string(state_file(&directory)).unwrap();
    assert!(state.contains(&bad.digest.to_string()));
}

#[tokio::test]
async fn a_truncated_blob_is_corrupt() {
    let (directory, house, bad) = damaged().await;
    let path = storage::Layout::new(directory.path()).blob(&bad.digest);
    std::fs::write(path, "").unwrap();
    assert_eq!(scrub(&house, REPAIR).await.quarantined, 1);
    assert!(!house.is_linked(&bad).await);
}

#[tokio::test]
async fn a_reader_keeps_what_it_reads_and_the_links_go_when_it_is_done() {
    let (_directory, house, bad) = damaged().await;
    let hold = house.cache.hold(&bad.digest).await;
    let open = house.store.open(&bad.digest).await.unwrap().unwrap();
    assert_eq!(scrub(&house, REPAIR).await.quarantined, 1);
    assert!(!house.has("bad").await, "it isn't waited for the reader");
    assert!(house.is_linked(&bad).await);
    // The reader tells of its use late: that brings no file back.
    house.cache.used(&bad.repo, bad.kind, &bad.digest, 3);
    assert_eq!(open.reader.read_at(0, 9).await.unwrap(), "bat");
    drop((open, hold));
    house.cache.settled().await;
    assert!(!house.is_linked(&bad).await);
    check(&house, &[]).await;
}

#[tokio::test]
async fn a_download_before_the_links_are_gone_makes_them_good_again() {
    let (_directory, house, bad) = damaged().await;
    let reader = house.cache.hold(&bad.digest).await;
    assert_eq!(scrub(&house, REPAIR).await.quarantined, 1);
    assert!(house.cache(&bad, "bad").await);
    drop(reader);
    house.cache.settled().await;
    assert!(house.is_linked(&bad).await && house.has("bad").await);
    check(&house, &[]).await;
}

#[tokio::test]
async fn what_can_not_be_set_aside_stays_and_is_reported() {
    let (_directory, house, bad) = damaged().await;
    let kind = io::ErrorKind::PermissionDenied;
    house.store.fail(Operation::Quarantine, 1, kind);
    let report = scrub(&house, REPAIR).await;
    assert_eq!(
        (report.corrupt, report.quarantined, report.failed),
        (0, 0, 1)
    );
    assert!(house.is_linked(&bad).await && house.has("bad").await);
    check(&house, &[]).await;
    assert_eq!(scrub(&house, REPAIR).await.quarantined, 1);
}

#[tokio::test]
async fn a_link_that_can_not_be_removed_is_tried_again() {
    tokio::time::pause();
    let house = House::with(settings()).await;
    let bad = layer("a", "bad");
    let wrong = Bytes::from_static(b"bat");
    storage::put(&*house.store, &bad.digest, wrong)
        .await
        .unwrap();
    house.store.link(&bad).await.unwrap();
    house.cache.linked(&bad.repo, bad.kind, &bad.digest, 3);
    let kind = io::ErrorKind::PermissionDenied;
    house.store.fail(Operation::Unlink, 1, kind);
    assert_eq!(scrub(&house, REPAIR).await.quarantined, 1);
    assert!(house.is_linked(&bad).await);
    house.pass(2 * MINUTE).await;
    assert!(!house.is_linked(&bad).await);
    check(&house, &[]).await;
}

#[tokio::test]
async fn two_scrubs_leave_a_blob_to_one_of_them() {
    let house = House::with(settings()).await;
    house.cache_layer("a", "x").await;
    let stall = house.store.stall(Operation::Open, 1);
    let second = async {
        stall.reached().await;
        let report = scrub(&house, REPAIR).await;
        stall.release();
        report
    };
    let (first, second) = tokio::join!(scrub(&house, REPAIR), second);
    assert_eq!((first.checked, first.skipped), (1, 0));
    assert_eq!((second.checked, second.skipped), (0, 1));
    assert_eq!(scrub(&house, REPAIR).await.checked, 1);
}

#[tokio::test(start_paused = true)]
async fn reading_keeps_to_its_rate() {
    let house = House::with(settings()).await;
    for name in ["w", "x", "y", "z"] {
        house.cache_layer("a", &name.repeat(1000)).await;
    }
    let rate = NonZeroU64::new(100);
    let started = house.clock.now();
    let report = scrub(
        &house,
        ScrubSettings {
            rate,
            repair: false,
        },
    )
    .await;
    assert_eq!((report.checked, report.bytes), (4, 4000));
    // The last piece's second is nobody's to wait for.
    assert_eq!(started.elapsed().as_secs(), 39);
}

#[tokio::test(start_paused = true)]
async fn the_background_pass_comes_round_and_ends_with_the_cache() {
    let house = House::with(settings()).await;
    let bad = layer("a", "bad");
    let wrong = Bytes::from_static(b"bat");
    storage::put(&*house.store, &bad.digest, wrong)
        .await
        .unwrap();
    house.store.link(&bad).await.unwrap();
    house.cache.linked(&bad.repo, bad.kind, &bad.digest, 3);
    let pass = house.cache.background(HOUR, REPAIR);
    let watch = async {
        house.pass(HOUR).await;
        assert!(!house.is_linked(&bad).await);
        house.cache.stop().await;
    };
    tokio::join!(pass, watch);
}
