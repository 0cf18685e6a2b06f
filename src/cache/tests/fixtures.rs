//! A start from each file in `scheduler-fixtures/`.

use super::*;
use crate::cache::state::timestamp::Timestamp;

const MANIFEST: &str = "sha256:27ef699ef900025091340332c9ef632c3e68e7f60b83ed7b857d80f3b35f4434";
const BLOBS: [&str; 2] = [
    "sha256:6ba4f98f27d8fdbfb6cfa95afe37774d16aea84fb316c533907f6000cd03f51e",
    "sha256:d0b52691ad4749587b9861ce7042e630cf6ac1a4310ede2ea125dba7013b01e8",
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("scheduler-fixtures")
        .join(name)
}

/// The recorded image's links in both repositories. The digests are all that matters of it: the
/// content is not the real one.
async fn store_of_the_recording() -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (kind, digest) in links() {
        storage::put(&*store, &digest, "a stand-in".into())
            .await
            .unwrap();
        for name in ["library/fixture", "team/fixture"] {
            store.link(&link(name, kind, digest)).await.unwrap();
        }
    }
    store
}

fn links() -> Vec<(LinkKind, Digest)> {
    let blobs = BLOBS.map(|blob| (LinkKind::Layer, blob.parse().unwrap()));
    let manifest = (LinkKind::Revision, MANIFEST.parse().unwrap());
    blobs.into_iter().chain([manifest]).collect()
}

/// Starts from copies of a snapshot and a journal, where there are any.
async fn start(snapshot: Option<&str>, journal: Option<&str>) -> (House, tempfile::TempDir) {
    start_with(settings(), snapshot, journal).await
}

async fn start_with(
    settings: CacheSettings,
    snapshot: Option<&str>,
    journal: Option<&str>,
) -> (House, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let to = state_file(&directory);
    if let Some(snapshot) = snapshot {
        std::fs::copy(fixture(snapshot), &to).unwrap();
    }
    if let Some(journal) = journal {
        std::fs::copy(fixture(journal), to.with_extension("journal")).unwrap();
    }
    let store = store_of_the_recording().await;
    let settings = CacheSettings {
        state: Some(to),
        ..settings
    };
    let house = House::over(store, settings, Clock::starting_at(today()));
    house.cache.complete().await;
    house.cache.settled().await;
    (house, directory)
}

/// The earliest and the latest expiry of the entries in a fixture.
fn expiries(name: &str) -> (SystemTime, SystemTime) {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    let state: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    let time = |entry: &serde_json::Value| {
        let expiry = Timestamp::parse(entry["ExpiryData"].as_str().unwrap());
        expiry.unwrap().system_time()
    };
    let times: Vec<_> = state.values().map(time).collect();
    (*times.iter().min().unwrap(), *times.iter().max().unwrap())
}

/// When the manifest in this repository was last used, in seconds before now.
fn idle(house: &House, name: &str) -> u64 {
    let entries = house.entries();
    let manifest = entries
        .iter()
        .find(|entry| entry.link.repo == repo(name) && entry.link.kind == LinkKind::Revision);
    let last_use = manifest.unwrap().last_use;
    house
        .clock
        .wall()
        .duration_since(last_use)
        .unwrap()
        .as_secs()
}

fn broken_files(directory: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".broken-")).collect()
}

/// Whatever the files held: all links are known, nothing was deleted, and the state is written
/// in a form that can be read again.
async fn is_whole(house: &House, directory: &tempfile::TempDir) {
    assert_eq!(house.entries().len(), 6);
    check(house, &[]).await;
    house.cache.stop().await;
    let text = std::fs::read_to_string(state_file(directory)).unwrap();
    let written: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    assert_eq!(written.len(), 6);
    for (key, value) in &written {
        assert_eq!(value["Key"], **key);
        let revision = key.ends_with(MANIFEST);
        assert_eq!(value["EntryType"], u64::from(revision));
        assert!(Timestamp::parse(value["ExpiryData"].as_str().unwrap()).is_some());
    }
    assert!(!state_file(directory).with_extension("journal").exists());
}

#[tokio::test(start_paused = true)]
async fn the_reference_registrys_state_is_read_and_written() {
    let (house, directory) = start(Some("distribution-2.8-shared.json"), None).await;
    // It expires a week after it was cached, which was a little more than a minute ago.
    let idle = idle(&house, "library/fixture");
    assert!((1..200).contains(&idle), "{idle}");
    is_whole(&house, &directory).await;
    assert!(broken_files(&directory).is_empty());

    let (house, directory) = start(Some("distribution-2.8.json"), None).await;
    is_whole(&house, &directory).await;
}

/// The reference registry's TTL isn't in its file. Whatever it was, and whatever is configured here:
/// no entry goes before the expiry that was written, and an unused one goes at that time.
#[tokio::test(start_paused = true)]
async fn an_adopted_entry_expires_when_the_reference_registry_said() {
    let ours = [24, 168, 720].map(|hours| Some(HOUR * hours));
    for file in [
        "distribution-ttl-24h.json",
        "distribution-ttl-100h.json",
        "distribution-2.8-shared.json",
        "distribution-ttl-720h.json",
    ] {
        let (first, last) = expiries(file);
        for (ttl, mode) in ours
            .iter()
            .flat_map(|ttl| [TtlMode::Sliding, TtlMode::Fixed].map(|mode| (*ttl, mode)))
        {
            let case = format!("{file} {ttl:?} {mode:?}");
            let policy = TtlPolicy {
                mode,
                ..TtlPolicy::sliding(ttl)
            };
            let settings = || CacheSettings {
                ttl: policy.clone(),
                ..settings()
            };
            let (house, directory) = start_with(settings(), Some(file), None).await;
            let before = first.duration_since(house.clock.wall()).unwrap();
            house.pass(before.checked_sub(MINUTE).unwrap()).await;
            assert_eq!(house.entries().len(), 6, "{case}");
            is_whole(&house, &directory).await;

            // The same after a restart, from the state that was written here.
            let house = House::over(
                Arc::clone(&house.store) as _,
                CacheSettings {
                    state: Some(state_file(&directory)),
                    ..settings()
                },
                Clock::starting_at(house.clock.wall()),
            );
            house.cache.complete().await;
            let expiries = house.entries().into_iter().filter_map(|entry| entry.expiry);
            // What is due soon after a start gets its grace.
            assert!(expiries.min().unwrap() >= first, "{case}");
            house.pass(HOUR + MINUTE).await;
            assert!(house.clock.wall() > last, "{case}");
            assert!(house.entries().is_empty(), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_adopted_entry_is_kept_for_ever_where_nothing_expires() {
    let settings = CacheSettings::unlimited();
    let (house, _directory) = start_with(settings, Some("distribution-ttl-24h.json"), None).await;
    house.pass(WEEK * 52).await;
    assert_eq!(house.entries().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_use_extends_an_adopted_entry_and_never_shortens_it() {
    let manifest = link(
        "team/fixture",
        LinkKind::Revision,
        MANIFEST.parse().unwrap(),
    );
    let expiry = |house: &House| {
        let entries = house.entries();
        let entry = entries.iter().find(|entry| entry.link == manifest).unwrap();
        entry
            .expiry
            .unwrap()
            .duration_since(house.clock.wall())
            .unwrap()
    };
    let (house, _directory) = start(Some("distribution-ttl-24h.json"), None).await;
    assert!(expiry(&house) <= HOUR * 24);
    house.use_link(&manifest).await;
    assert!(expiry(&house) >= WEEK);

    let (house, _directory) = start(Some("distribution-ttl-720h.json"), None).await;
    house.use_link(&manifest).await;
    assert!(expiry(&house) > HOUR * 719);
    house.pass(HOUR * 600).await;
    house.use_link(&manifest).await;
    assert!(expiry(&house) >= WEEK);
}

#[tokio::test(start_paused = true)]
async fn our_state_is_read_with_its_times() {
    for (file, seconds) in [
        ("ours.json", 900),
        ("never.json", 900),
        ("offset.json", 900),
    ] {
        let (house, directory) = start(Some(file), None).await;
        assert_eq!(idle(&house, "team/fixture"), seconds, "{file}");
        is_whole(&house, &directory).await;
        assert!(broken_files(&directory).is_empty(), "{file}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_state_everything_starts_its_time_now() {
    for file in [None, Some("empty.json")] {
        let (house, directory) = start(file, None).await;
        assert_eq!(idle(&house, "library/fixture"), 0);
        is_whole(&house, &directory).await;
        assert!(broken_files(&directory).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_is_set_aside_and_the_start_goes_on() {
    for (file, first, last) in [
        ("truncated.json", 900, 0),
        ("garbage.json", 0, 0),
        ("not-an-object.json", 0, 0),
        ("unknown-version.json", 0, 0),
    ] {
        let (house, directory) = start(Some(file), None).await;
        // What could be read counts.
        assert_eq!(idle(&house, "library/fixture"), first, "{file}");
        let second = house
            .entries()
            .iter()
            .map(|entry| entry.last_use)
            .max()
            .unwrap();
        let idle = house.clock.wall().duration_since(second).unwrap().as_secs();
        assert_eq!(idle, last, "{file}");
        assert_eq!(
            broken_files(&directory),
            ["scheduler-state.json.broken-1"],
            "{file}"
        );
        let aside = directory.path().join("scheduler-state.json.broken-1");
        assert_eq!(
            std::fs::read(aside).unwrap(),
            std::fs::read(fixture(file)).unwrap()
        );
        is_whole(&house, &directory).await;
    }
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_not_understood_are_left_out() {
    let (house, directory) = start(Some("unknown-entries.json"), None).await;
    let fresh = house
        .entries()
        .iter()
        .filter(|entry| entry.last_use == today())
        .count();
    assert_eq!(fresh, 3);
    is_whole(&house, &directory).await;
    assert!(broken_files(&directory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_store_says_what_there_is() {
    for file in ["content-gone.json", "content-unknown.json"] {
        let (house, directory) = start(Some(file), None).await;
        assert_eq!(idle(&house, "library/fixture"), 900);
        let expected = if file == "content-gone.json" { 900 } else { 0 };
        assert_eq!(idle(&house, "team/fixture"), expected);
        is_whole(&house, &directory).await;
    }
    // And a link whose file is gone goes, as does a file without a link.
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("ours.json"), state_file(&directory)).unwrap();
    let store = store_of_the_recording().await;
    store.remove(&MANIFEST.parse().unwrap()).await.unwrap();
    storage::put(&*store, &digest("orphan"), "orphan".into())
        .await
        .unwrap();
    let tagged = (repo("team/fixture"), tag("t"));
    store
        .set_tag(&tagged.0, &tagged.1, &MANIFEST.parse().unwrap())
        .await
        .unwrap();
    let house = House::over(store, on_disk(&directory), Clock::starting_at(today()));
    house.cache.complete().await;
    house.cache.settled().await;
    assert_eq!(house.entries().len(), 4);
    assert!(house.store.tags(&tagged.0).await.unwrap().is_empty());
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_keeps_nothing_for_years() {
    let (house, _directory) = start(Some("clock-was-ahead.json"), None).await;
    assert_eq!(idle(&house, "library/fixture"), 0);
    house.pass(WEEK).await;
    assert!(house.entries().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_due_while_the_mirror_was_off_gets_a_grace() {
    let (house, _directory) = start(Some("long-off.json"), None).await;
    assert_eq!(house.entries().len(), 6);
    house.pass(MINUTE * 58).await;
    assert_eq!(house.entries().len(), 6);
    house
        .use_link(&link(
            "team/fixture",
            LinkKind::Revision,
            MANIFEST.parse().unwrap(),
        ))
        .await;
    house.pass(MINUTE * 2).await;
    assert_eq!(house.entries().len(), 1);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn most_of_a_cache_isnt_deleted_in_the_first_hours() {
    let directory = tempfile::tempdir().unwrap();
    let house = House::over(
        Arc::new(MemoryStore::new()),
        on_disk(&directory),
        Clock::starting_at(today()),
    );
    house.cache.complete().await;
    for n in 0..40 {
        house.cache_layer("a", &n.to_string()).await;
    }
    house.cache.stop().await;
    // The next start believes to be a year later.
    let later = Clock::starting_at(today() + WEEK * 52);
    let house = House::over(Arc::clone(&house.store) as _, on_disk(&directory), later);
    house.cache.complete().await;
    house.pass(HOUR * 23).await;
    assert_eq!(house.entries().len(), 40);
    house.pass(HOUR).await;
    assert_eq!(house.entries().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_journal_is_replayed_up_to_where_it_is_torn() {
    for file in ["torn.journal", "garbage-line.journal", "removed.journal"] {
        let (house, directory) = start(Some("ours.json"), Some(file)).await;
        assert_eq!(idle(&house, "library/fixture"), 300, "{file}");
        // The removed entry's link is still there, so it starts anew.
        let expected = if file == "removed.journal" { 0 } else { 900 };
        assert_eq!(idle(&house, "team/fixture"), expected, "{file}");
        is_whole(&house, &directory).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_oversized_file_is_set_aside_unread() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(state_file(&directory)).unwrap();
    // Sparse: it takes no space.
    file.set_len(3 * 1024 * 1024 * 1024).unwrap();
    let store = store_of_the_recording().await;
    let house = House::over(store, on_disk(&directory), Clock::starting_at(today()));
    house.cache.complete().await;
    assert_eq!(broken_files(&directory), ["scheduler-state.json.broken-1"]);
    is_whole(&house, &directory).await;
}
