//! Damaged blobs and manifests: nobody is given a wrong body, and the next request finds them whole.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millpond::oci::Digest;
use millpond::storage::{self, FsStore, Layout, Link, LinkKind, Store};

use crate::harness::{
    FaultyStore, Image, Mirror, Operation, Registry, Setup, Stall, blob_path, digest, eventually,
    noise, put_blob, settle,
};

/// Verified before its first byte is sent.
const SMALL: usize = 20_000;
/// Verified while it is sent.
const LARGE: usize = 2_500_003;

struct Site {
    root: tempfile::TempDir,
    store: Arc<FaultyStore>,
    up: Registry,
}

impl Site {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(FsStore::open(root.path()).await.unwrap());
        let store = Arc::new(FaultyStore::new(store));
        let up = Registry::start().await;
        Self { root, store, up }
    }

    /// With a blob that a mirror has pulled.
    async fn with_pulled(length: usize) -> (Self, Mirror, Bytes, String) {
        let site = Self::new().await;
        let (blob, path) = put_blob(&site.up, 1, length);
        let m = site.mirror().await;
        m.pull(&path, &blob).await;
        (site, m, blob, path)
    }

    /// Keeps the mirror, which is yet to start, from listing the store: it would find files that the
    /// test is changing.
    fn hold_listing(&self) -> Stall {
        self.store.stall(Operation::Blobs, 1)
    }

    async fn mirror(&self) -> Mirror {
        let store: Arc<dyn Store> = self.store.clone();
        Setup::new(&self.up).store(store).start().await
    }

    /// A blob that another program has put into the store.
    async fn adopt(&self, blob: &Bytes) {
        let link = Link {
            repo: "app".parse().unwrap(),
            kind: LinkKind::Layer,
            digest: self.up.put_blob("app", blob),
        };
        let put = storage::put(&*self.store, &link.digest, blob.clone());
        put.await.unwrap();
        self.store.link(&link).await.unwrap();
    }

    fn file(&self, content: &Bytes) -> PathBuf {
        Layout::new(self.root.path()).blob(&digest(content))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Empty,
    Cut,
    FirstByte,
    LastByte,
    Zeros,
}

const DAMAGES: [Damage; 5] = [
    Damage::Empty,
    Damage::Cut,
    Damage::FirstByte,
    Damage::LastByte,
    Damage::Zeros,
];

impl Damage {
    fn strike(self, site: &Site, blob: &Bytes) {
        let path = site.file(blob);
        let file = fs::File::options().write(true).open(path).unwrap();
        let length = blob.len() as u64;
        match self {
            Self::Empty => file.set_len(0).unwrap(),
            Self::Cut => file.set_len(length / 2).unwrap(),
            Self::FirstByte => file.write_all_at(&[!blob[0]], 0).unwrap(),
            Self::LastByte => {
                let last = !blob[blob.len() - 1];
                file.write_all_at(&[last], length - 1).unwrap();
            }
            Self::Zeros => file.write_all_at(&vec![0; blob.len()], 0).unwrap(),
        }
    }
}

/// What a client gets of a damaged blob, at first and then.
async fn heals(site: &Site, m: &Mirror, blob: &Bytes, what: &str) -> bool {
    let first = m.get(&blob_path("app", blob)).await;
    assert_eq!(first.status, 200, "{what}");
    assert!(first.broken || first.body == *blob, "{what}: a wrong body");
    let may_break = blob.len() > SMALL;
    assert!(may_break || !first.broken, "{what}");
    eventually("it is set aside", || {
        Layout::new(site.root.path())
            .quarantined(&digest(blob))
            .exists()
    })
    .await;
    m.idle().await;
    m.counted("millpond_cache_quarantined_blobs_total", 1).await;
    m.pull(&blob_path("app", blob), blob).await;
    site.up.go_down();
    m.serves(&blob_path("app", blob), blob).await;
    site.up.behave();
    !first.broken
}

#[tokio::test]
async fn adopted_damage_is_found_before_a_body_ends() {
    for size in [SMALL, LARGE] {
        for damage in DAMAGES {
            let what = format!("{damage:?} of {size}");
            let site = Site::new().await;
            let blob = noise(1, size);
            site.adopt(&blob).await;
            damage.strike(&site, &blob);
            let m = site.mirror().await;
            let whole = heals(&site, &m, &blob, &what).await;
            // The bytes before the damage equal the upstream's, so the response continues.
            assert!(whole || damage != Damage::LastByte, "{what}");
        }
    }
}

#[tokio::test]
async fn damage_under_a_running_mirror_is_found_too() {
    for size in [SMALL, LARGE] {
        for damage in DAMAGES {
            let what = format!("{damage:?} of {size}");
            let (site, m, blob, _) = Site::with_pulled(size).await;
            damage.strike(&site, &blob);
            let whole = heals(&site, &m, &blob, &what).await;
            // A wrong length is seen when the file is opened.
            let length = matches!(damage, Damage::Empty | Damage::Cut | Damage::LastByte);
            assert!(whole || !length, "{what}");
        }
    }
}

#[tokio::test]
async fn ranges_are_not_to_be_kept_before_the_blob_is_verified() {
    let site = Site::new().await;
    let (small, large, cold) = (noise(1, SMALL), noise(2, LARGE), noise(3, LARGE));
    site.adopt(&small).await;
    site.adopt(&large).await;
    site.up.put_blob("app", &cold);
    let m = site.mirror().await;
    let gate = site.up.hold_body(&blob_path("app", &cold), 1, LARGE / 2);
    let first = m.range(&blob_path("app", &small), "bytes=5-9").await;
    first.expect(206, &small[5..10]);
    assert_eq!(first.header("cache-control"), "max-age=31536000");

    let verification = site.store.stall(Operation::Read, 2);
    for blob in [&large, &cold] {
        for (asked, start, end) in [("bytes=0-4", 0, 5), ("bytes=70000-80000", 70_000, 80_001)] {
            let answer = m.range(&blob_path("app", blob), asked).await;
            answer.expect(206, &blob[start..end]);
            assert_eq!(answer.header("cache-control"), "no-store", "{asked}");
            if *blob == large {
                verification.reached().await;
            }
        }
        let parts = m.range(&blob_path("app", blob), "bytes=0-4,9-10").await;
        assert_eq!((parts.status, parts.broken), (206, false));
        assert_eq!(parts.header("cache-control"), "no-store");
    }
    verification.release();
    gate.open();
    for blob in [&large, &cold] {
        m.pull(&blob_path("app", blob), blob).await;
        let answer = m.range(&blob_path("app", blob), "bytes=5-9").await;
        answer.expect(206, &blob[5..10]);
        assert_eq!(answer.header("cache-control"), "max-age=31536000");
    }
}

#[tokio::test]
async fn nothing_of_a_small_blob_is_sent_before_all_of_it_is_right() {
    let site = Site::new().await;
    let (blob, path) = put_blob(&site.up, 1, SMALL);
    let m = site.mirror().await;
    for asked in [None, Some("bytes=0-0"), Some("bytes=500-600")] {
        let headers: Vec<_> = asked.iter().map(|range| ("range", *range)).collect();
        let line = format!("GET {path}");
        // Wrong content is an error status, not a body.
        site.up.on(&path, 1, |_, usual| usual.forged());
        assert_eq!(m.ask(&line, &headers).await.status, 502, "{asked:?}");

        let gate = site.up.hold_body(&path, 1, SMALL - 1);
        let mut asking = std::pin::pin!(m.ask(&line, &headers));
        let seen = site.up.count(&path);
        let held_back = async {
            site.up.wait(seen + 1, &path).await;
            for _ in 0..20 {
                settle().await;
            }
        };
        tokio::select! {
            biased;
            answer = &mut asking => panic!("an early answer: {answer:?}"),
            () = held_back => {}
        }
        gate.open();
        let answer = asking.await;
        let whole = asked.is_none();
        assert_eq!(answer.status, if whole { 200 } else { 206 });
        assert!(!answer.broken && (!whole || answer.body == blob));
        m.idle().await;
        site.store.remove(&digest(&blob)).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_any_more_is_not_noticed() {
    for (adopted, nth) in [(false, 1), (false, 5), (true, 1), (true, 5), (true, 20)] {
        let what = format!("adopted: {adopted}, read {nth}");
        let site = Site::new().await;
        let (blob, path) = put_blob(&site.up, 1, LARGE);
        if adopted {
            site.adopt(&blob).await;
        }
        let m = site.mirror().await;
        if !adopted {
            m.pull(&path, &blob).await;
        }
        let before = site.up.count("GET ");
        site.store.fail(Operation::Read, nth, ErrorKind::Other);
        m.pull(&path, &blob).await;
        let aside = Layout::new(site.root.path()).quarantined(&digest(&blob));
        assert!(aside.exists(), "{what}");
        assert!(site.up.count("GET ") > before, "{what}");
        site.up.go_down();
        m.serves(&path, &blob).await;
    }
}

#[tokio::test]
async fn a_range_continues_from_the_upstream_too() {
    let (site, m, blob, path) = Site::with_pulled(LARGE).await;
    site.store.fail(Operation::Read, 4, ErrorKind::Other);
    let answer = m.range(&path, "bytes=100000-2000000").await;
    answer.expect(206, &blob[100_000..2_000_001]);
    for nth in 1..=2 {
        m.idle().await;
        site.store.fail(Operation::Read, nth, ErrorKind::Other);
        let answer = m.range(&path, "bytes=100-99999,200000-299999").await;
        assert_eq!((answer.status, answer.broken), (206, false), "read {nth}");
        let find = |part: &[u8]| answer.body.windows(part.len()).any(|window| window == part);
        assert!(find(&blob[100..100_000]) && find(&blob[200_000..300_000]));
    }
}

#[tokio::test]
async fn a_blob_that_cannot_be_opened_is_fetched_again_once() {
    let site = Site::new().await;
    let blob = noise(1, SMALL);
    site.adopt(&blob).await;
    let m = site.mirror().await;
    site.store.fail(Operation::Open, 1, ErrorKind::Other);
    m.pull(&blob_path("app", &blob), &blob).await;
    let asked = site.up.count("GET ");
    assert_eq!(asked, 1);
    m.serves(&blob_path("app", &blob), &blob).await;
    assert_eq!(site.up.count("GET "), asked);
}

/// A download that finds the blob in the store ends for all its clients, which read the stored blob.
#[tokio::test]
async fn all_clients_of_a_needless_download_get_the_stored_blob() {
    let site = Site::new().await;
    let _listing = site.hold_listing();
    let blob = noise(1, LARGE);
    let m = site.mirror().await;
    // The first request looks, and then its download.
    let looking = site.store.stall(Operation::Open, 2);
    let path = blob_path("app", &blob);
    let joined = async {
        looking.reached().await;
        eventually("both follow", || m.metric("millpond_followers") == 2).await;
        site.adopt(&blob).await;
        looking.release();
    };
    let second = async {
        looking.reached().await;
        m.get(&path).await
    };
    let (first, second, ()) = tokio::join!(m.get(&path), second, joined);
    first.expect(200, &blob);
    second.expect(200, &blob);
    assert_eq!(site.up.count("GET "), 0);
}

/// A file that is cut when a request opens it, and whole again before it is set aside and when a
/// download looks for it.
#[tokio::test]
async fn a_file_that_changes_whenever_it_is_looked_at_costs_no_client_its_blob() {
    let site = Site::new().await;
    let _listing = site.hold_listing();
    let (blob, path) = put_blob(&site.up, 1, LARGE);
    let m = site.mirror().await;
    m.pull(&path, &blob).await;
    let (file, fresh) = (site.file(&blob), site.root.path().join("fresh"));
    let mut asking = std::pin::pin!(m.get(&path));
    let (mut cut, mut cuts) = (false, 0);
    let answer = loop {
        let opening = site.store.stall(Operation::Open, 1);
        tokio::select! {
            answer = &mut asking => break answer,
            () = opening.reached() => {}
        }
        cut = !cut && m.metric("millpond_downloads_in_flight") == 0;
        if cut {
            cuts += 1;
            Damage::Cut.strike(&site, &blob);
        } else {
            fs::write(&fresh, &blob).unwrap();
            fs::rename(&fresh, &file).unwrap();
        }
    };
    answer.expect(200, &blob);
    assert!(cuts > 2, "{cuts}");
}

#[tokio::test]
async fn a_damaged_manifest_is_fetched_again() {
    for text in ["", "{}", "not even JSON"] {
        let site = Site::new().await;
        let image = Image::oci(1);
        let digest: Digest = site.up.push("app", "1", &image);
        let by_digest = format!("/v2/app/manifests/{digest}");
        let m = site.mirror().await;
        m.serves("/v2/app/manifests/1", &image.manifest).await;
        assert!(m.app.stop().await);
        fs::write(site.file(&image.manifest), text).unwrap();

        // Without what the first one had in memory.
        let m = site.mirror().await;
        let before = site.up.count("GET ");
        let gate = site.up.hold(&by_digest, 1);
        let fetched_slowly = async {
            site.up.wait(before + 1, "GET ").await;
            // What is set aside is forgotten now, unless it is on its way again.
            for _ in 0..20 {
                settle().await;
            }
            gate.open();
        };
        let (answer, ()) = tokio::join!(m.get(&by_digest), fetched_slowly);
        answer.expect(200, &image.manifest);
        m.serves("/v2/app/manifests/1", &image.manifest).await;
        assert_eq!(site.up.count("GET "), before + 1);
        let healed = fs::read(site.file(&image.manifest)).unwrap();
        assert_eq!(healed, image.manifest);
        assert!(m.app.stop().await);
        let m = site.mirror().await;
        site.up.go_down();
        m.serves(&by_digest, &image.manifest).await;
    }
}
