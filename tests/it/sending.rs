//! Blobs sent from files, on a real disk and real sockets: whole, in parts, and while the files are
//! removed, replaced and cut under their readers.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millpond::storage::{FsStore, Layout, Store};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::harness::{Mirror, Registry, Setup, blob_path, digest, noise};

/// Larger than a piece that is sent at once, and no multiple of anything.
const SIZE: usize = 2_500_003;
/// Where a file is cut.
const CUT: u64 = 1024 * 1024;

struct Site {
    root: tempfile::TempDir,
    store: Arc<FsStore>,
    up: Registry,
}

impl Site {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(FsStore::open(root.path()).await.unwrap());
        let up = Registry::start().await;
        Self { root, store, up }
    }

    /// A mirror that has these blobs.
    async fn mirror(&self, blobs: &[Bytes], lines: &[&str]) -> Mirror {
        let store: Arc<dyn Store> = self.store.clone();
        let m = Setup::new(&self.up).store(store).with(lines).start().await;
        for blob in blobs {
            self.up.put_blob("team/app", blob);
            m.serves(&blob_path("team/app", blob), blob).await;
        }
        m.idle().await;
        m
    }

    fn file(&self, blob: &Bytes) -> PathBuf {
        Layout::new(self.root.path()).blob(&digest(blob))
    }
}

#[tokio::test]
async fn whole_blobs_and_their_parts() {
    let site = Site::new().await;
    let blobs = [noise(1, SIZE), noise(2, 1), noise(3, 20_000)];
    for lines in [&[][..], &["http.http2: {disabled: true}"]] {
        let m = site.mirror(&blobs, lines).await;
        for blob in &blobs {
            let answer = m.serves(&blob_path("team/app", blob), blob).await;
            assert_eq!(answer.source(), "hit");
        }
        let line = format!("GET {}", blob_path("team/app", &blobs[0]));
        let range = [("range", "bytes=5-2000004")];
        m.ask(&line, &range)
            .await
            .expect(206, &blobs[0][5..2_000_005]);
        let ranges = [("range", "bytes=0-99999,200000-2500002")];
        let answer = m.ask(&line, &ranges).await;
        let find = |part: &[u8]| answer.body.windows(part.len()).any(|window| window == part);
        assert!(answer.status == 206 && !answer.broken);
        assert!(find(&blobs[0][..100_000]) && find(&blobs[0][200_000..]));
    }
}

/// What happens to a blob's file while it is being sent.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    Unlink,
    Replace,
    Evict,
    Quarantine,
    Cut,
}

async fn disturb(site: &Site, blob: &Bytes, what: Disturbance) {
    let (file, fresh) = (site.file(blob), site.root.path().join("fresh"));
    fs::write(&fresh, blob).unwrap();
    match what {
        Disturbance::Unlink => drop(fs::remove_file(&file)),
        Disturbance::Replace => {}
        Disturbance::Evict => drop(site.store.remove(&digest(blob)).await.unwrap()),
        Disturbance::Quarantine => drop(site.store.quarantine(&digest(blob)).await.unwrap()),
        Disturbance::Cut => {
            if let Ok(opened) = fs::OpenOptions::new().write(true).open(&file) {
                opened.set_len(CUT).unwrap();
            }
        }
    }
    // Its directory may have gone with it: then a reader downloads it again.
    if fs::rename(&fresh, &file).is_err() {
        fs::remove_file(&fresh).unwrap();
    }
}

/// Disturbances between two whole bodies: readers that only ever get a part of one show nothing.
const BURST: usize = 4;

/// Reads a blob over and over while its file suffers; `right` judges what comes.
async fn read_while_disturbed(what: &[Disturbance], right: fn(&Bytes, &Bytes) -> bool) {
    const READERS: usize = 8;
    const ROUNDS: usize = 40;
    let site = Site::new().await;
    let blob = noise(4, SIZE);
    let m = Arc::new(site.mirror(std::slice::from_ref(&blob), &[]).await);
    let (counting, mut whole) = watch::channel(0_usize);
    let read = |m: Arc<Mirror>, blob: Bytes, counting: watch::Sender<usize>| async move {
        for _ in 0..ROUNDS {
            let answer = m.get(&blob_path("team/app", &blob)).await;
            assert_eq!(answer.status, 200);
            assert!(right(&blob, &answer.body), "a wrong byte");
            let announced = answer.header("content-length") == answer.body.len().to_string();
            assert_ne!(announced, answer.broken, "a short body that ended well");
            if answer.body.len() == SIZE {
                counting.send_modify(|whole| *whole += 1);
            }
        }
    };
    let tasks = TaskTracker::new();
    let readers: Vec<_> = (0..READERS)
        .map(|_| tasks.spawn(read(Arc::clone(&m), blob.clone(), counting.clone())))
        .collect();
    drop(counting);
    let mut disturbed = 0;
    for what in what.iter().cycle() {
        disturb(&site, &blob, *what).await;
        disturbed += 1;
        if disturbed % BURST == 0 {
            let before = *whole.borrow_and_update();
            // An error: all readers have finished.
            if whole.wait_for(|whole| *whole > before).await.is_err() {
                break;
            }
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let whole = *whole.borrow();
    assert!(whole > 0 && disturbed > what.len(), "{whole}, {disturbed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_go_under_their_readers_never_give_a_wrong_byte() {
    use Disturbance::{Evict, Quarantine, Replace, Unlink};
    let right = |blob: &Bytes, body: &Bytes| blob.starts_with(body);
    read_while_disturbed(&[Unlink, Evict, Replace, Quarantine], right).await;
}

/// Nothing here cuts a file that has its name. Who does it by hand wipes, to zeros, what waits in
/// sockets, too: the kernel sends the page cache itself. No other byte can come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_cut_under_their_readers_give_nothing_but_themselves() {
    let right = |blob: &Bytes, body: &Bytes| {
        let cut = usize::try_from(CUT).unwrap();
        let mut both = blob.iter().zip(body).enumerate();
        both.all(|(at, (wanted, got))| got == wanted || (at >= cut && *got == 0))
    };
    read_while_disturbed(&[Disturbance::Cut], right).await;
}
