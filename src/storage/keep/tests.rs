use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::oci::{Algorithm, RangeSet};
use crate::storage::{FsStore, Stage, Store, put};

fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

fn partial(total: u64, start: u64, end: u64) -> Partial {
    let mut ranges = RangeSet::new();
    ranges.insert(start, end);
    Partial {
        upstream: "u".into(),
        total,
        ranges,
    }
}

/// The names in the spool, sorted.
fn spool(root: &Path) -> Vec<String> {
    let listed = disk::list(&Layout::new(root).spool()).unwrap();
    let mut names: Vec<_> = listed.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

async fn stage(store: &FsStore, digest: &Digest, content: &'static str) -> Box<dyn Stage> {
    let mut stage = store.stage(digest).await.unwrap();
    stage.write_at(0, &[Bytes::from(content)]).unwrap();
    stage
}

/// A store that another process left with `ab` of the 3 bytes of `abc`, and the paths of the two
/// files.
async fn left_behind() -> (TempDir, Digest, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let digest = digest("abc");
    let stage = stage(&store, &digest, "ab").await;
    stage.keeper().keep(&partial(3, 0, 2)).unwrap();
    stage.leave();
    let layout = Layout::new(root.path());
    let (staged, sidecar) = (layout.staged(&digest, 1), layout.sidecar(&digest, 1));
    assert_eq!(spool(root.path()), [name(&staged), name(&sidecar)]);
    (root, digest, staged, sidecar)
}

#[tokio::test]
async fn a_restart_finds_partials_and_sweeps_the_rest() {
    let (root, digest, staged, sidecar) = left_behind().await;
    let layout = Layout::new(root.path());
    let other = self::digest("other");
    fs::write(layout.staged(&other, 1), "no sidecar").unwrap();
    fs::copy(&sidecar, layout.sidecar(&digest, 9)).unwrap();
    fs::write(layout.draft(7), "draft").unwrap();
    fs::write(layout.spool().join("sha256-1.1.part"), "").unwrap();
    fs::write(layout.spool().join("notes.txt"), "keep").unwrap();

    let store = FsStore::open(root.path()).await.unwrap();
    let kept = ["notes.txt".to_owned(), name(&staged), name(&sidecar)];
    assert_eq!(spool(root.path()), kept);
    let partials = store.partials().await.unwrap();
    let modified = fs::metadata(&sidecar).unwrap().modified().unwrap();
    assert_eq!(partials, [(digest, partial(3, 0, 2), modified)]);

    // A new stage of the same digest has another name.
    drop(stage(&store, &digest, "zz").await);
    let (mut stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(spool(root.path()), kept, "a crash now would find it again");
    stage.write_at(2, &[Bytes::from_static(b"c")]).unwrap();
    stage.commit().unwrap();
    assert_eq!(spool(root.path()), ["notes.txt"]);
    assert_eq!(fs::read(layout.blob(&digest)).unwrap(), b"abc");
}

#[tokio::test]
async fn of_two_partials_a_restart_keeps_the_newer() {
    let (root, digest, staged, sidecar) = left_behind().await;
    let layout = Layout::new(root.path());
    let (staged_2, sidecar_2) = (layout.staged(&digest, 2), layout.sidecar(&digest, 2));
    fs::copy(&staged, &staged_2).unwrap();
    fs::copy(&sidecar, &sidecar_2).unwrap();
    let file = File::options().write(true).open(&sidecar).unwrap();
    let newer = fs::metadata(&sidecar_2).unwrap().modified().unwrap();
    file.set_modified(newer + std::time::Duration::from_secs(9))
        .unwrap();
    FsStore::open(root.path()).await.unwrap();
    assert_eq!(spool(root.path()), [name(&staged), name(&sidecar)]);
}

#[tokio::test]
async fn a_partial_of_a_committed_blob_is_swept() {
    let (root, digest, ..) = left_behind().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let store = FsStore::open(elsewhere.path()).await.unwrap();
    put(&store, &digest, "abc".into()).await.unwrap();
    let blob = Layout::new(elsewhere.path()).blob(&digest);
    let layout = Layout::new(root.path());
    let modes = crate::storage::Modes::of(&layout, None);
    disk::place(&blob, &layout.blob(&digest), &modes).unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    assert!(spool(root.path()).is_empty());
    assert!(store.partials().await.unwrap().is_empty());
}

/// Ways to damage a partial, given the staged file, the sidecar and what that says.
type Damage = fn(&Path, &Path, &str);

const DAMAGES: [Damage; 9] = [
    |_, sidecar, _| fs::write(sidecar, "").unwrap(),
    |_, sidecar, text| fs::write(sidecar, text.trim_end_matches('}')).unwrap(),
    |_, sidecar, text| fs::write(sidecar, text.replace("[0,2]", "[2,2]")).unwrap(),
    |_, sidecar, text| fs::write(sidecar, text.replace("[0,2]", "[0,4]")).unwrap(),
    |_, sidecar, text| {
        let other = digest("other").to_string();
        fs::write(sidecar, text.replace(&digest("abc").to_string(), &other)).unwrap();
    },
    |_, sidecar, text| fs::write(sidecar, text.to_owned() + &" ".repeat(65_536)).unwrap(),
    |_, sidecar, _| fs::remove_file(sidecar).unwrap(),
    |staged, _, _| fs::write(staged, "a").unwrap(),
    |staged, _, _| fs::write(staged, "abcd").unwrap(),
];

#[tokio::test]
async fn a_damaged_partial_is_removed_and_reads_as_none() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        // Before the start, before it is taken up, before it is listed.
        for when in 0..3 {
            let (root, digest, staged, sidecar) = left_behind().await;
            let text = fs::read_to_string(&sidecar).unwrap();
            if when == 0 {
                damage(&staged, &sidecar, &text);
            }
            let store = FsStore::open(root.path()).await.unwrap();
            if when > 0 {
                assert_eq!(spool(root.path()).len(), 2);
                damage(&staged, &sidecar, &text);
            }
            if when == 1 {
                assert!(
                    store.resume(&digest, "u").await.unwrap().is_none(),
                    "{number}"
                );
            }
            assert!(store.partials().await.unwrap().is_empty(), "{number}");
            assert!(spool(root.path()).is_empty(), "{number}");
            assert!(
                store.resume(&digest, "u").await.unwrap().is_none(),
                "{number}"
            );
            put(&store, &digest, "abc".into()).await.unwrap();
        }
    }
}

/// A keeper at work while its stage ends. Which of the two is first is left to chance, many times.
#[tokio::test]
async fn a_keeper_that_races_the_end_of_its_stage_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let digest = digest("abc");
    for round in 0..150 {
        let stage = stage(&store, &digest, "abc").await;
        let keeper = stage.keeper();
        std::thread::scope(|scope| {
            let keeping = scope.spawn(|| {
                for _ in 0..3 {
                    keeper.keep(&partial(3, 0, 3)).unwrap();
                }
            });
            match round % 3 {
                0 => drop(stage.commit().unwrap()),
                1 => drop(stage),
                _ => stage.leave(),
            }
            keeping.join().unwrap();
        });
        assert_eq!(store.remove(&digest).await.unwrap(), round % 3 == 0);
        // Left or dropped, by whether anything had been kept: never a part of the two files.
        let left = store.discard(&digest, "u").await.unwrap();
        assert!(!left || round % 3 == 2);
        assert!(spool(root.path()).is_empty(), "{round}");
    }
}

#[tokio::test]
async fn a_keeper_that_fails_leaves_what_was_kept_before() {
    let (root, digest, _, sidecar) = left_behind().await;
    let store = FsStore::open(root.path()).await.unwrap();
    let (stage, _) = store.resume(&digest, "u").await.unwrap().unwrap();
    let keeper = stage.keeper();
    fs::remove_file(&sidecar).unwrap();
    // Something is in the way of the rename.
    fs::create_dir_all(sidecar.join("x")).unwrap();
    keeper.keep(&partial(3, 0, 1)).unwrap_err();
    fs::remove_dir_all(&sidecar).unwrap();
    assert_eq!(spool(root.path()).len(), 1, "no draft stays");
    keeper.keep(&partial(3, 0, 1)).unwrap();
    stage.leave();
    let (_stage, kept) = store.resume(&digest, "u").await.unwrap().unwrap();
    assert_eq!(kept, partial(3, 0, 1));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_claimed() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    let spool = Arc::new(Spool::open(layout.clone(), None).unwrap());
    let part = Arc::new(Part::new(&layout, &digest("abc"), 1, false));
    fs::write(part.path(), "abc").unwrap();
    let unsynced = Arc::new(AtomicBool::new(true));
    let keeper = FileKeeper::new(spool, part, unsynced);
    let error = keeper.keep(&partial(3, 0, 3)).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
    assert_eq!(self::spool(root.path()).len(), 1);
}

/// The one blocking thread takes things one after the other, so the second question comes when the
/// answer to the first has been dropped.
#[test]
fn a_partial_that_nobody_waits_for_any_more_is_left() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (root, digest, ..) = left_behind().await;
        let store = FsStore::open(root.path()).await.unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let holding = tokio::task::spawn_blocking(move || released.recv());
        let mut resuming = store.resume(&digest, "u");
        tokio::select! {
            biased;
            _ = &mut resuming => panic!("the answer can't be there yet"),
            () = std::future::ready(()) => {}
        }
        drop(resuming);
        release.send(()).unwrap();
        holding.await.unwrap().unwrap();
        assert!(store.resume(&digest, "u").await.unwrap().is_some());
    });
}
