use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::storage::checkpoint::boot_id;
use crate::storage::claims::BLOCK;
use crate::storage::contract::{digest, partial};
use crate::storage::{FsStore, Modes, Resumed, Stage, Store, put};

const UPSTREAM: &str = "u";

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
    let mut stage = store.stage(digest, UPSTREAM).await.unwrap();
    stage.write_at(0, &[Bytes::from(content)]).unwrap();
    stage
}

/// A data directory with `ab` of the 3 bytes of `abc`, and its files.
struct Left {
    root: TempDir,
    layout: Layout,
    digest: Digest,
    staged: PathBuf,
    checkpoint: PathBuf,
}

impl Left {
    fn of(root: TempDir) -> Self {
        let (layout, digest) = (Layout::new(root.path()), digest("abc"));
        let name = StageName::new(&digest, UPSTREAM);
        Self {
            root,
            digest,
            staged: layout.staged(name),
            checkpoint: layout.checkpoint(name),
            layout,
        }
    }

    /// As a process leaves it that is killed after a checkpoint, or ends well.
    async fn by(killed: bool, sync: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = FsStore::open(root.path()).await.unwrap();
        let mut stage = stage(&store, &digest("abc"), "ab").await;
        stage.checkpoint(3, sync).unwrap();
        if !killed {
            stage.leave();
            return Self::of(root);
        }
        // What isn't claimed yet, and the draft of the next checkpoint.
        stage.write_at(2, &[Bytes::from_static(b"x")]).unwrap();
        fs::write(Layout::new(root.path()).draft(99), "half").unwrap();
        std::mem::forget(stage);
        let after = tempfile::tempdir().unwrap();
        copy(root.path(), after.path());
        Self::of(after)
    }

    async fn well() -> Self {
        let left = Self::by(false, false).await;
        assert_eq!(left.spool(), left.names());
        left
    }

    /// The names in the spool, sorted.
    fn spool(&self) -> Vec<String> {
        spool(self.root.path())
    }

    /// The names of its two files.
    fn names(&self) -> [String; 2] {
        [name(&self.checkpoint), name(&self.staged)]
    }

    async fn open(&self) -> FsStore {
        FsStore::open(self.root.path()).await.unwrap()
    }

    async fn resume(&self, store: &FsStore) -> Option<Resumed> {
        store.resume(&self.digest, UPSTREAM).await.unwrap()
    }

    /// Writes the checkpoint anew, of another boot.
    fn reboot(&self) {
        let text = fs::read_to_string(&self.checkpoint).unwrap();
        let json = text.split_once('\n').unwrap().1;
        let json = json.replace(&boot_id(), "another boot");
        assert!(json.contains("another boot"));
        let text = format!("{:08x}\n{json}", crc32c::crc32c(json.as_bytes()));
        fs::write(&self.checkpoint, text).unwrap();
    }
}

/// The files of a process that is gone without having ended anything: its lock went with it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}

#[tokio::test]
async fn the_checkpoint_of_a_killed_process_is_resumed() {
    let left = Left::by(true, false).await;
    let store = left.open().await;
    assert_eq!(left.spool(), left.names());
    let (mut stage, claimed) = left.resume(&store).await.unwrap();
    assert_eq!(claimed, partial(3, &[(0, 2)]));
    stage.write_at(2, &[Bytes::from_static(b"c")]).unwrap();
    stage.commit().unwrap();
    assert!(left.spool().is_empty());
    assert_eq!(fs::read(left.layout.blob(&left.digest)).unwrap(), b"abc");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_a_synced_checkpoint_survives_a_reboot() {
    for synced in [false, true] {
        let left = Left::by(false, synced).await;
        left.reboot();
        let store = left.open().await;
        assert_eq!(left.spool().len(), if synced { 2 } else { 0 });
        let partials = store.partials().await.unwrap();
        assert_eq!(partials.len(), usize::from(synced));
        let resumed = left.resume(&store).await;
        let ranges = resumed.map(|(_stage, partial)| partial.ranges.len());
        assert_eq!(ranges, synced.then_some(2));
    }
}

#[tokio::test]
async fn an_unsynced_checkpoint_replaces_a_synced_one() {
    let left = Left::by(false, true).await;
    let (mut stage, _) = left.resume(&left.open().await).await.unwrap();
    stage.checkpoint(3, false).unwrap();
    stage.leave();
    let text = fs::read(&left.checkpoint).unwrap();
    let parsed = Checkpoint::parse(&text, &left.digest, "another boot");
    assert!(parsed.unwrap_err().to_string().contains("restarted"));
}

/// Every byte of a file that has claims in two blocks is flipped in turn, one in a few thousand: the
/// claim that has it is dropped, the other one stays.
#[tokio::test]
async fn a_flipped_byte_is_downloaded_again() {
    let block = usize::try_from(BLOCK).unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).await.unwrap();
    let (digest, total) = (digest("x"), 3 * BLOCK);
    let mut stage = store.stage(&digest, UPSTREAM).await.unwrap();
    let content = Bytes::from(vec![b'x'; 2 * block - 100]);
    stage.write_at(0, &[content]).unwrap();
    stage.checkpoint(total, false).unwrap();
    stage.leave();
    let end = 2 * BLOCK - 100;
    let name = StageName::new(&digest, UPSTREAM);
    let staged = Layout::new(root.path()).staged(name);
    let flip = |at: u64, value: u8| {
        use std::os::unix::fs::FileExt as _;
        let file = File::options().write(true).open(&staged).unwrap();
        file.write_all_at(&[value], at).unwrap();
    };
    let ranges = async || {
        let (stage, partial) = store.resume(&digest, UPSTREAM).await.unwrap().unwrap();
        stage.leave();
        partial
    };
    for at in [0, 1, BLOCK / 2, BLOCK - 1, BLOCK, BLOCK + 5, end - 1] {
        flip(at, b'y');
        let whole = if at < BLOCK { (BLOCK, end) } else { (0, BLOCK) };
        assert_eq!(ranges().await, partial(total, &[whole]), "{at}");
        flip(at, b'x');
        assert_eq!(ranges().await, partial(total, &[(0, end)]));
    }
    // Cut off: the missing bytes can't be read, and the others stay claimed.
    let file = File::options().write(true).open(&staged).unwrap();
    file.set_len(BLOCK + 1).unwrap();
    assert_eq!(ranges().await, partial(total, &[(0, BLOCK)]));
    // Bytes that aren't claimed any more are written again, and the claim with them.
    let (mut stage, _) = store.resume(&digest, UPSTREAM).await.unwrap().unwrap();
    let again = Bytes::from(vec![b'x'; block - 100]);
    stage.write_at(BLOCK, &[again]).unwrap();
    stage.checkpoint(total, false).unwrap();
    stage.leave();
    assert_eq!(ranges().await, partial(total, &[(0, end)]));
    flip(0, b'y');
    flip(end - 1, b'y');
    assert!(store.resume(&digest, UPSTREAM).await.unwrap().is_none());
    assert!(spool(root.path()).is_empty());
}

#[tokio::test]
async fn a_restart_finds_partials_and_removes_the_rest() {
    let left = Left::well().await;
    let layout = &left.layout;
    let other = StageName::new(&digest("other"), UPSTREAM);
    fs::write(layout.staged(other), "no checkpoint").unwrap();
    let elsewhere = StageName::new(&left.digest, "elsewhere");
    fs::copy(&left.checkpoint, layout.checkpoint(elsewhere)).unwrap();
    fs::write(layout.draft(7), "draft").unwrap();
    fs::write(layout.draft(0), "").unwrap();
    fs::write(layout.spool().join("sha256-1.1.part"), "").unwrap();
    fs::write(layout.spool().join("sha256-1.1.part.json"), "").unwrap();
    fs::write(layout.spool().join("notes.txt"), "keep").unwrap();

    let store = left.open().await;
    let [checkpoint, staged] = left.names();
    let kept = ["notes.txt".to_owned(), checkpoint, staged];
    assert_eq!(left.spool(), kept);
    let partials = store.partials().await.unwrap();
    let modified = fs::metadata(&left.checkpoint).unwrap();
    let modified = modified.modified().unwrap();
    assert_eq!(partials, [(left.digest, partial(3, &[(0, 2)]), modified)]);
    let (_stage, _) = left.resume(&store).await.unwrap();
    assert_eq!(left.spool(), kept, "a crash now would find it again");
}

#[tokio::test]
async fn a_partial_of_a_committed_blob_is_removed_at_the_start() {
    let left = Left::well().await;
    let blob = left.root.path().join("blob");
    fs::write(&blob, "abc").unwrap();
    let modes = Modes::of(&left.layout, None);
    disk::place(&blob, &left.layout.blob(&left.digest), &modes).unwrap();
    let store = left.open().await;
    assert!(left.spool().is_empty());
    assert!(store.partials().await.unwrap().is_empty());
}

/// Ways to damage a partial, given its files and the text of the checkpoint.
type Damage = fn(&Left, &[u8]);

const DAMAGES: [Damage; 9] = [
    |left, _| fs::write(&left.checkpoint, "").unwrap(),
    |left, text| fs::write(&left.checkpoint, &text[..text.len() - 1]).unwrap(),
    |left, text| fs::write(&left.checkpoint, &text[1..]).unwrap(),
    |left, text| {
        let mut flipped = text.to_vec();
        flipped[40] ^= 1;
        fs::write(&left.checkpoint, flipped).unwrap();
    },
    // Of another digest, and of another upstream.
    |left, _| {
        let claims = Claims::default();
        let other = Checkpoint::new(&digest("other"), UPSTREAM, 3, &boot_id(), &claims);
        fs::write(&left.checkpoint, other.to_text().unwrap()).unwrap();
    },
    |left, text| {
        let room = usize::try_from(MAX_CHECKPOINT).unwrap();
        let long = [text, &vec![b' '; room]].concat();
        fs::write(&left.checkpoint, long).unwrap();
    },
    |left, _| fs::remove_file(&left.checkpoint).unwrap(),
    |left, _| fs::remove_file(&left.staged).unwrap(),
    |left, _| fs::write(&left.staged, "abcd").unwrap(),
];

#[tokio::test]
async fn a_damaged_partial_is_removed_and_reads_as_none() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        for before_the_start in [true, false] {
            let left = Left::well().await;
            let text = fs::read(&left.checkpoint).unwrap();
            if before_the_start {
                damage(&left, &text);
            }
            let store = left.open().await;
            if !before_the_start {
                damage(&left, &text);
            }
            assert!(left.resume(&store).await.is_none(), "{number}");
            assert!(store.partials().await.unwrap().is_empty(), "{number}");
            // Without its checkpoint a file is removed by the next stage or the next start.
            drop(store.stage(&left.digest, UPSTREAM).await.unwrap());
            assert!(left.spool().is_empty(), "{number}");
            put(&store, &left.digest, "abc".into()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn listing_removes_unusable_partials() {
    let left = Left::well().await;
    let store = left.open().await;
    fs::write(&left.checkpoint, "torn").unwrap();
    assert!(store.partials().await.unwrap().is_empty());
    assert!(left.spool().is_empty());
}

/// Its file's name has only a part of the hash of the upstream's name.
#[tokio::test]
async fn a_checkpoint_of_another_upstream_is_not_resumed() {
    let left = Left::well().await;
    let other = StageName::new(&left.digest, "v");
    fs::rename(&left.checkpoint, left.layout.checkpoint(other)).unwrap();
    fs::rename(&left.staged, left.layout.staged(other)).unwrap();
    let store = left.open().await;
    assert!(store.resume(&left.digest, "v").await.unwrap().is_none());
    assert!(left.spool().is_empty());
}

#[tokio::test]
async fn a_failed_checkpoint_leaves_the_earlier_one() {
    let left = Left::well().await;
    let store = left.open().await;
    let (mut stage, _) = left.resume(&store).await.unwrap();
    stage.write_at(2, &[Bytes::from_static(b"c")]).unwrap();
    // Something has the name of every draft.
    let drafts = || (0..20).map(|number| left.layout.draft(number));
    drafts().for_each(|draft| fs::create_dir_all(draft.join("x")).unwrap());
    stage.checkpoint(3, false).unwrap_err();
    drafts().for_each(|draft| drop(fs::remove_dir_all(draft)));
    stage.leave();
    assert_eq!(left.spool(), left.names(), "no draft stays");
    let (_, claimed) = left.resume(&store).await.unwrap();
    assert_eq!(claimed, partial(3, &[(0, 2)]));
}

/// Stages that end and start at the same time, in every way: the spool has two files of a partial, or
/// none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stages_that_race_for_a_name_leave_it_whole() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(root.path()).await.unwrap());
    let digest = digest("abc");
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..6 {
        let store = Arc::clone(&store);
        racers.spawn(async move {
            for round in 0..25 {
                let mut stage = match store.resume(&digest, UPSTREAM).await.unwrap() {
                    Some((stage, _)) => stage,
                    None => stage(&store, &digest, "abc").await,
                };
                stage.checkpoint(3, false).unwrap();
                match (racer + round) % 4 {
                    0 => drop(stage.commit().unwrap()),
                    1 => drop(stage),
                    _ => stage.leave(),
                }
                store.discard(&digest, UPSTREAM).await.unwrap();
                store.partials().await.unwrap();
            }
        });
    }
    while let Some(raced) = racers.join_next().await {
        raced.unwrap();
    }
    let left = spool(root.path());
    assert!(left.is_empty() || left.len() == 2, "{left:?}");
    assert_eq!(store.partials().await.unwrap().len(), left.len() / 2);
}

/// The one blocking thread takes steps one after the other, so the second question is answered after
/// the answer to the first has been dropped.
#[test]
fn a_cancelled_resume_leaves_the_partial() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let left = Left::well().await;
        let store = left.open().await;
        let (release, released) = std::sync::mpsc::channel::<()>();
        let holding = tokio::task::spawn_blocking(move || released.recv());
        let mut resuming = store.resume(&left.digest, UPSTREAM);
        tokio::select! {
            biased;
            _ = &mut resuming => panic!("the answer can't be there yet"),
            () = std::future::ready(()) => {}
        }
        drop(resuming);
        release.send(()).unwrap();
        holding.await.unwrap().unwrap();
        assert!(left.resume(&store).await.is_some());
    });
}
