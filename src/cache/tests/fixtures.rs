//! A start from each file in `scheduler-fixtures/`.

use super::*;
use crate::cache::state::timestamp::Timestamp;

const MANIFEST: &str = "sha256:27ef699ef900025091340332c9ef632c3e68e7f60b83ed7b857d80f3b35f4434";
const BLOBS: [&str; 2] = [
    "sha256:6ba4f98f27d8fdbfb6cfa95afe37774d16aea84fb316c533907f6000cd03f51e",
    "sha256:d0b52691ad4749587b9861ce7042e630cf6ac1a4310ede2ea125dba7013b01e8",
];

const BROKEN: &str = "scheduler-state.json.broken-1";

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
        put(&*store, &digest, "a stand-in").await;
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

fn team_manifest() -> Link {
    link(
        "team/fixture",
        LinkKind::Revision,
        MANIFEST.parse().unwrap(),
    )
}

/// Starts from copies of a snapshot and a journal, where there are any.
async fn start(snapshot: Option<&str>, journal: Option<&str>) -> (Rig, tempfile::TempDir) {
    start_with(settings(), snapshot, journal).await
}

async fn start_with(
    settings: CacheSettings,
    snapshot: Option<&str>,
    journal: Option<&str>,
) -> (Rig, tempfile::TempDir) {
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
    (Rig::started(store, settings, today()).await, directory)
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
fn idle(rig: &Rig, name: &str) -> u64 {
    let entries = rig.entries();
    let manifest = entries
        .iter()
        .find(|entry| entry.link.repo == repo(name) && entry.link.kind == LinkKind::Revision);
    let last_use = manifest.unwrap().last_use;
    rig.clock.wall().duration_since(last_use).unwrap().as_secs()
}

fn broken_files(directory: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".broken-")).collect()
}

/// Whatever the files held: all links are known, nothing was deleted, and the state is written
/// in a form that can be read again.
async fn is_whole(rig: &Rig, directory: &tempfile::TempDir) {
    assert_eq!(rig.entries().len(), 6);
    check(rig, &[]).await;
    rig.cache.stop().await;
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
    let (rig, directory) = start(Some("distribution-2.8-shared.json"), None).await;
    // It expires a week after it was cached, which was a little more than a minute ago.
    let idle = idle(&rig, "library/fixture");
    assert!((1..200).contains(&idle), "{idle}");
    is_whole(&rig, &directory).await;
    assert!(broken_files(&directory).is_empty());

    let (rig, directory) = start(Some("distribution-2.8.json"), None).await;
    is_whole(&rig, &directory).await;
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
            let (rig, directory) = start_with(settings(), Some(file), None).await;
            let before = first.duration_since(rig.clock.wall()).unwrap();
            rig.pass(before.checked_sub(MINUTE).unwrap()).await;
            assert_eq!(rig.entries().len(), 6, "{case}");
            is_whole(&rig, &directory).await;

            // The same after a restart, from the state that was written here.
            let state = Some(state_file(&directory));
            let settings = CacheSettings {
                state,
                ..settings()
            };
            let rig = rig.restart(settings).await;
            let expiries = rig.entries().into_iter().filter_map(|entry| entry.expiry);
            // What is due soon after a start gets its grace.
            assert!(expiries.min().unwrap() >= first, "{case}");
            rig.pass(HOUR + MINUTE).await;
            assert!(rig.clock.wall() > last, "{case}");
            assert!(rig.entries().is_empty(), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_adopted_entry_is_kept_for_ever_without_a_ttl() {
    let settings = CacheSettings::unlimited();
    let (rig, _directory) = start_with(settings, Some("distribution-ttl-24h.json"), None).await;
    rig.pass(WEEK * 52).await;
    assert_eq!(rig.entries().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_use_extends_an_adopted_entry_and_never_shortens_it() {
    let manifest = team_manifest();
    let expiry = |rig: &Rig| {
        let entries = rig.entries();
        let entry = entries.iter().find(|entry| entry.link == manifest).unwrap();
        entry
            .expiry
            .unwrap()
            .duration_since(rig.clock.wall())
            .unwrap()
    };
    let (rig, _directory) = start(Some("distribution-ttl-24h.json"), None).await;
    assert!(expiry(&rig) <= HOUR * 24);
    rig.use_link(&manifest).await;
    assert!(expiry(&rig) >= WEEK);

    let (rig, _directory) = start(Some("distribution-ttl-720h.json"), None).await;
    rig.use_link(&manifest).await;
    assert!(expiry(&rig) > HOUR * 719);
    rig.pass(HOUR * 600).await;
    rig.use_link(&manifest).await;
    assert!(expiry(&rig) >= WEEK);
}

#[tokio::test(start_paused = true)]
async fn our_state_is_read_with_its_times() {
    for file in ["ours.json", "never.json", "offset.json"] {
        let (rig, directory) = start(Some(file), None).await;
        assert_eq!(idle(&rig, "team/fixture"), 900, "{file}");
        is_whole(&rig, &directory).await;
        assert!(broken_files(&directory).is_empty(), "{file}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_state_every_ttl_starts_now() {
    for file in [None, Some("empty.json")] {
        let (rig, directory) = start(file, None).await;
        assert_eq!(idle(&rig, "library/fixture"), 0);
        is_whole(&rig, &directory).await;
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
        let (rig, directory) = start(Some(file), None).await;
        // What could be read counts.
        assert_eq!(idle(&rig, "library/fixture"), first, "{file}");
        let latest = rig.entries().iter().map(|entry| entry.last_use).max();
        let idle = rig.clock.wall().duration_since(latest.unwrap());
        let idle = idle.unwrap().as_secs();
        assert_eq!(idle, last, "{file}");
        assert_eq!(broken_files(&directory), [BROKEN], "{file}");
        let aside = std::fs::read(directory.path().join(BROKEN)).unwrap();
        assert_eq!(aside, std::fs::read(fixture(file)).unwrap());
        is_whole(&rig, &directory).await;
    }
}

#[tokio::test(start_paused = true)]
async fn entries_that_cannot_be_parsed_are_skipped() {
    let (rig, directory) = start(Some("unknown-entries.json"), None).await;
    let mut entries = rig.entries();
    entries.retain(|entry| entry.last_use == today());
    assert_eq!(entries.len(), 3);
    is_whole(&rig, &directory).await;
    assert!(broken_files(&directory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_store_decides_which_links_exist() {
    for file in ["content-gone.json", "content-unknown.json"] {
        let (rig, directory) = start(Some(file), None).await;
        assert_eq!(idle(&rig, "library/fixture"), 900);
        let expected = if file == "content-gone.json" { 900 } else { 0 };
        assert_eq!(idle(&rig, "team/fixture"), expected);
        is_whole(&rig, &directory).await;
    }
    // And a link whose file is gone goes, as does a file without a link.
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("ours.json"), state_file(&directory)).unwrap();
    let store = store_of_the_recording().await;
    store.remove(&MANIFEST.parse().unwrap()).await.unwrap();
    put(&*store, &digest("orphan"), "orphan").await;
    let (tagged, named) = (repo("team/fixture"), team_manifest().digest);
    store.set_tag(&tagged, &tag("t"), &named).await.unwrap();
    let rig = Rig::started(store, on_disk(&directory), today()).await;
    assert_eq!(rig.entries().len(), 4);
    assert!(rig.store.tags(&tagged).await.unwrap().is_empty());
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_keeps_nothing_for_years() {
    let (rig, _directory) = start(Some("clock-was-ahead.json"), None).await;
    assert_eq!(idle(&rig, "library/fixture"), 0);
    rig.pass(WEEK).await;
    assert!(rig.entries().is_empty());
}

#[tokio::test(start_paused = true)]
async fn entries_due_while_the_mirror_was_off_get_a_grace() {
    let (rig, _directory) = start(Some("long-off.json"), None).await;
    assert_eq!(rig.entries().len(), 6);
    rig.pass(MINUTE * 58).await;
    assert_eq!(rig.entries().len(), 6);
    rig.use_link(&team_manifest()).await;
    rig.pass(MINUTE * 2).await;
    assert_eq!(rig.entries().len(), 1);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_mostly_due_gets_a_longer_grace() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    for n in 0..40 {
        rig.cache_layer("a", &n.to_string()).await;
    }
    rig.cache.stop().await;
    // The next start believes to be a year later.
    let (store, later) = (Arc::clone(&rig.store) as _, today() + WEEK * 52);
    let rig = Rig::started(store, on_disk(&directory), later).await;
    rig.pass(HOUR * 23).await;
    assert_eq!(rig.entries().len(), 40);
    rig.pass(HOUR).await;
    assert_eq!(rig.entries().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_journal_is_replayed_up_to_where_it_is_torn() {
    for file in ["torn.journal", "garbage-line.journal", "removed.journal"] {
        let (rig, directory) = start(Some("ours.json"), Some(file)).await;
        assert_eq!(idle(&rig, "library/fixture"), 300, "{file}");
        // The removed entry's link is still there, so it starts anew.
        let expected = if file == "removed.journal" { 0 } else { 900 };
        assert_eq!(idle(&rig, "team/fixture"), expected, "{file}");
        is_whole(&rig, &directory).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_oversized_file_is_set_aside_unread() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(state_file(&directory)).unwrap();
    // Sparse: it takes no space.
    file.set_len(3 * 1024 * 1024 * 1024).unwrap();
    let store = store_of_the_recording().await;
    let rig = Rig::started(store, on_disk(&directory), today()).await;
    assert_eq!(broken_files(&directory), [BROKEN]);
    is_whole(&rig, &directory).await;
}
