//! What is verified once, what is remembered of it, and what becomes of damaged files.

use super::*;
use crate::storage::faulty::Operation;
use crate::storage::{Content, FsStore, Modified, Stage};

/// A store on disk under a cache.
async fn on_a_disk(directory: &tempfile::TempDir) -> House {
    let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
    let clock = Clock::starting_at(today());
    let house = House::over(store, on_disk(directory), clock);
    house.cache.complete().await;
    house
}

/// Ends the process: the store's directory is free again.
async fn stop(house: House) {
    house.cache.stop().await;
    let store = Arc::downgrade(&house.store);
    drop(house);
    while store.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

async fn open(house: &House, content: &str) -> Content {
    house.store.open(&digest(content)).await.unwrap().unwrap()
}

async fn trust(house: &House, content: &str) -> Trust {
    let open = open(house, content).await;
    house.cache.trust(&digest(content), &open)
}

async fn verify(house: &House, content: &str) -> Integrity {
    let (digest, open) = (digest(content), open(house, content).await);
    let hold = house.cache.hold(&digest).await;
    let mut verification = house.cache.verify(&digest, &open, hold).await;
    let integrity = verification.ended().await;
    assert_eq!(verification.integrity(), Some(integrity));
    integrity
}

/// Writes a blob as a download does.
async fn download(house: &House, link: &Link, content: &'static str) -> Option<Modified> {
    let hold = house.cache.hold(&link.digest).await;
    let mut stage: Box<dyn Stage> = house.store.stage(&link.digest, "u").await.unwrap();
    let commit = move || {
        stage.write_at(0, &[Bytes::from(content)]).unwrap();
        stage.commit().unwrap()
    };
    let placed = tokio::task::spawn_blocking(commit).await.unwrap();
    let size = content.len() as u64;
    let space = house.cache.reserve(size).await.unwrap();
    space.commit(&hold, size);
    if let Some(modified) = placed {
        hold.verified(size, modified);
    }
    house.store.link(link).await.unwrap();
    house
        .cache
        .linked(&link.repo, link.kind, &link.digest, size);
    placed
}

fn path(directory: &tempfile::TempDir, content: &str) -> PathBuf {
    storage::Layout::new(directory.path()).blob(&digest(content))
}

#[tokio::test]
async fn what_was_written_or_verified_is_trusted_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let house = on_a_disk(&directory).await;
    download(&house, &layer("a", "downloaded"), "downloaded").await;
    house.cache_layer("a", "adopted").await;
    house.cache_layer("b", "adopted").await;
    house.cache_layer("a", "never asked for").await;
    assert_eq!(trust(&house, "downloaded").await, Trust::Verified);
    assert_eq!(trust(&house, "adopted").await, Trust::Unknown);
    assert_eq!(verify(&house, "adopted").await, Integrity::Right);
    assert!(open(&house, "adopted").await.reader.is_verified());
    stop(house).await;

    let house = on_a_disk(&directory).await;
    // Nothing is read for this.
    house
        .store
        .fail_from(Operation::Read, 1, io::ErrorKind::Other);
    assert_eq!(trust(&house, "downloaded").await, Trust::Verified);
    assert_eq!(trust(&house, "adopted").await, Trust::Verified);
    assert_eq!(trust(&house, "never asked for").await, Trust::Unknown);
    stop(house).await;
}

#[tokio::test(start_paused = true)]
async fn the_journal_alone_keeps_it_too() {
    let directory = tempfile::tempdir().unwrap();
    let house = on_a_disk(&directory).await;
    house.cache_layer("a", "x").await;
    house.pass(MINUTE).await;
    assert_eq!(verify(&house, "x").await, Integrity::Right);
    house.pass(MINUTE).await;
    let journal = state_file(&directory).with_extension("journal");
    let text = std::fs::read_to_string(journal).unwrap();
    let modified = open(&house, "x").await.modified.to_bits();
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(&format!("\"Verified\":[1,{modified}]")),
        "{text}"
    );
}

#[tokio::test]
async fn another_size_is_damage_and_another_time_a_reason_to_look() {
    let directory = tempfile::tempdir().unwrap();
    let house = on_a_disk(&directory).await;
    for content in ["emptied", "replaced", "grown"] {
        download(&house, &layer("a", content), content).await;
    }
    stop(house).await;
    std::fs::write(path(&directory, "emptied"), "").unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(path(&directory, "replaced"));
    let times = std::fs::FileTimes::new().set_modified(today());
    file.unwrap().set_times(times).unwrap();

    let house = on_a_disk(&directory).await;
    assert_eq!(trust(&house, "emptied").await, Trust::Damaged);
    assert_eq!(trust(&house, "replaced").await, Trust::Unknown);
    assert_eq!(trust(&house, "grown").await, Trust::Verified);
    std::fs::write(path(&directory, "grown"), "grown, while this runs").unwrap();
    assert_eq!(trust(&house, "grown").await, Trust::Damaged);
    let grown = open(&house, "grown").await;
    let known = digest("grown");
    assert!(house.cache.quarantine(&known, Some(&grown)).await);

    let emptied = open(&house, "emptied").await;
    assert!(
        house
            .cache
            .quarantine(&digest("emptied"), Some(&emptied))
            .await
    );
    house.cache.settled().await;
    assert!(!house.is_linked(&layer("a", "emptied")).await);
    let placed = download(&house, &layer("a", "emptied"), "emptied").await;
    assert!(placed.is_some());
    assert_eq!(trust(&house, "emptied").await, Trust::Verified);
    check(&house, &[]).await;
    stop(house).await;
}

#[tokio::test]
async fn a_size_that_a_manifest_contradicts_is_damage_until_it_is_verified() {
    let house = House::with(settings()).await;
    house.pull("a", "1", &["layer"]).await.unwrap();
    let layers = [r#"{"mediaType":"x/y","digest":"#, r#","size":6}"#];
    let lie = format!(
        r#"{{"schemaVersion":2,"layers":[{}"{}"{}]}}"#,
        layers[0],
        digest("layer"),
        layers[1]
    );
    let lie = Manifest::parse(lie.as_bytes()).unwrap();
    house.cache.expect_sizes(&lie);
    assert_eq!(trust(&house, "layer").await, Trust::Damaged);
    assert_eq!(verify(&house, "layer").await, Integrity::Right);
    house.cache.expect_sizes(&lie);
    assert_eq!(trust(&house, "layer").await, Trust::Verified);
}

#[tokio::test]
async fn many_who_ask_cause_one_verification() {
    let house = House::with(settings()).await;
    house.cache_layer("a", "x").await;
    let stall = house.store.stall(Operation::Read, 1);
    // A second job would meet it.
    house.store.fail(Operation::Read, 2, io::ErrorKind::Other);
    let (digest, content) = (digest("x"), open(&house, "x").await);
    let mut verifications = Vec::new();
    for _ in 0..10 {
        let hold = house.cache.hold(&digest).await;
        verifications.push(house.cache.verify(&digest, &content, hold).await);
    }
    stall.reached().await;
    assert_eq!(verifications[0].integrity(), None);
    stall.release();
    for mut verification in verifications {
        assert_eq!(verification.ended().await, Integrity::Right);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_quarantine_and_what_may_pass_is_not() {
    let house = House::with(settings()).await;
    let link = house.cache_layer("a", "x").await;
    house
        .store
        .fail(Operation::Read, 1, io::ErrorKind::OutOfMemory);
    assert_eq!(verify(&house, "x").await, Integrity::Unknown);
    assert!(house.has("x").await);
    house.store.fail(Operation::Read, 1, io::ErrorKind::Other);
    assert_eq!(verify(&house, "x").await, Integrity::Damaged);
    house.cache.settled().await;
    assert!(!house.has("x").await && !house.is_linked(&link).await);
    check(&house, &[]).await;
}

#[tokio::test]
async fn what_cannot_be_quarantine_is_damaged_until_it_is_written_anew() {
    let house = House::with(settings()).await;
    house.cache_layer("a", "x").await;
    let reader = house.cache.hold(&digest("x")).await;
    house.store.fail(Operation::Read, 1, io::ErrorKind::Other);
    house
        .store
        .fail(Operation::Quarantine, 1, io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(verify(&house, "x").await, Integrity::Damaged);
    assert!(house.has("x").await);
    assert_eq!(trust(&house, "x").await, Trust::Damaged);
    // The deletion task removes it once no reader is left.
    drop(reader);
    house.cache.settled().await;
    assert!(!house.has("x").await);
    check(&house, &[]).await;
    house.cache_layer("a", "x").await;
    // As for any file that nobody has read yet.
    assert_eq!(trust(&house, "x").await, Trust::Unknown);
}

#[tokio::test]
async fn a_file_that_took_the_damaged_ones_place_stays() {
    let house = House::with(settings()).await;
    let link = house.cache_layer("a", "x").await;
    let damaged = open(&house, "x").await;
    house.store.remove(&link.digest).await.unwrap();
    storage::put(&*house.store, &link.digest, "x".into())
        .await
        .unwrap();
    assert!(!house.cache.quarantine(&link.digest, Some(&damaged)).await);
    assert!(house.has("x").await && house.is_linked(&link).await);
}

#[tokio::test]
async fn a_scrub_repairs_what_cannot_be_read_or_opened() {
    let repair = ScrubSettings {
        rate: None,
        repair: true,
    };
    for operation in [Operation::Read, Operation::Open] {
        let house = House::with(settings()).await;
        let link = house.cache_layer("a", "x").await;
        house.store.fail_from(operation, 1, io::ErrorKind::Other);
        let only_reported = house.cache.scrub(ScrubSettings::default()).await;
        assert_eq!(only_reported.unwrap().failed, 1, "{operation:?}");
        assert!(house.has("x").await);
        let report = house.cache.scrub(repair).await.unwrap();
        assert_eq!((report.quarantined, report.failed), (1, 0), "{operation:?}");
        assert!(!house.has("x").await && !house.is_linked(&link).await);
    }
    let house = House::with(settings()).await;
    house.cache_layer("a", "x").await;
    // What a scrub finds right needn't be verified when it is asked for.
    house.cache.scrub(repair).await.unwrap();
    assert_eq!(trust(&house, "x").await, Trust::Verified);
}
