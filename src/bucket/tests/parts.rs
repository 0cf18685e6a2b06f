//! Uploads in parts to a scripted server, from files.

use testkit::noise;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::bucket::queue::{Entry, Upload};
use crate::bucket::uploads::Ended;
use crate::config::RedirectMode;
use crate::storage::{FsStore, Link, Store as _, put};

/// Bytes of two parts and a short third.
const SIZE: usize = (10 << 20) + 9;
/// The pieces that one part is read in. All of them are never fewer, whichever part ends first.
const PIECES: usize = 5;

#[tokio::test]
async fn the_memory_of_parts_is_free_once_they_are_sent() {
    let server = testkit::Registry::<Digest>::start().await;
    server.be_bucket("shared");
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(directory.path()).await.unwrap());
    let content = noise(7, SIZE);
    let digest = Digest::of(Algorithm::Sha256, &content);
    put(&*store, &digest, content.clone()).await.unwrap();
    let link = Link::new(&repo("app"), LinkKind::Layer, &digest);
    store.link(&link).await.unwrap();
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()));
    let cache = Cache::start(
        store,
        Arc::clone(&metrics),
        clock,
        CacheSettings::unlimited(),
        &Tasks::new(),
        &CancellationToken::new(),
    );
    let shared = SharedStorage {
        timeout: Duration::from_secs(10),
        redirect: RedirectMode::Never,
        redirect_above: 1,
        redirect_private: false,
        ttl: None,
        max_size: None,
    };
    let config = config_of(&server.url(), shared);
    let bucket = Bucket::open(&config, None, cache, (clock, &metrics)).unwrap();
    // Otherwise it ends with the upload.
    let buffers = bucket.uploading.buffers();
    let entry = Entry {
        upload: Upload::new(&repo("app"), LinkKind::Layer, &digest, None),
        is_absent: true,
    };
    assert_eq!(bucket.upload_one(&entry).await.unwrap(), Ended::Done);
    let key = format!("below/{}", keys::blob(&digest));
    assert!(server.object(&key).unwrap() == content);
    assert!(buffers.free() >= PIECES, "{}", buffers.free());
}
