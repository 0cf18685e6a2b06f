//! Blobs that several upstreams have: which of them may serve another one's bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use millpond::storage::{FsStore, MemoryStore};

use crate::harness::{
    ALWAYS, FaultyStore, Image, Mirror, Operation, Registry, Reply, Setup, blob_path, digest,
    noise, passing, put_blob,
};
use crate::private::{ANN, BOB, CALLER, Guard, NOBODY, TAG, ask, get, guard};

/// A mirror of a guarded upstream, and of `liar`, which says to each HEAD that it has everything.
async fn with_a_liar(trust: bool) -> ([Registry; 2], Mirror, Image) {
    let (up, liar) = (Registry::start().await, Registry::start().await);
    let image = Image::oci(1);
    up.push("private/app", "1", &image);
    guard(&up, Guard::Basic);
    let manifest = image.manifest.clone();
    liar.on("HEAD ", ALWAYS, move |seen, _| {
        let known =
            Reply::ok(&manifest).with("Content-Type", "application/vnd.oci.image.manifest.v1+json");
        if seen.line.contains("/manifests/") {
            known.with("Docker-Content-Digest", digest(&manifest))
        } else {
            Reply::ok(noise(1, 70_000))
        }
    });
    let mut setup = Setup::new(&up).with(&[CALLER]);
    setup = if trust {
        let more = ", authorize: shared, trust: friends";
        let trusting = setup.with(&["proxy.trust: friends"]);
        trusting.upstream("liar", &liar, more)
    } else {
        setup.upstream("liar", &liar, ", authorize: shared")
    };
    let m = setup.start().await;
    for blob in image.blobs() {
        get(&m, ANN, &blob_path("private/app", blob))
            .await
            .expect(200, blob);
    }
    get(&m, ANN, TAG).await.expect(200, &image.manifest);
    passing(m.idle()).await;
    ([up, liar], m, image)
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_claims_to_have_a_blob_is_not_given_another_ones() {
    let (_upstreams, m, image) = with_a_liar(false).await;
    let manifest = digest(&image.manifest);
    for login in [NOBODY, BOB] {
        for blob in image.blobs() {
            let path = blob_path("liar/app", blob);
            assert_eq!(get(&m, login, &path).await.status, 404, "{path}");
            let range = ask(&m, login, &format!("GET {path}"), Some("bytes=0-9")).await;
            assert_eq!(range.status, 404);
        }
        for reference in [manifest.to_string(), "1".to_owned()] {
            let path = format!("/v2/liar/app/manifests/{reference}");
            assert_eq!(get(&m, login, &path).await.status, 404, "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn upstreams_of_a_trust_group_share_blobs() {
    let (_upstreams, m, image) = with_a_liar(true).await;
    for blob in image.blobs() {
        get(&m, NOBODY, &blob_path("liar/app", blob))
            .await
            .expect(200, blob);
    }
}

#[tokio::test(start_paused = true)]
async fn an_honest_upstream_gives_its_own_bytes_and_public_blobs_are_shared() {
    let (up, other) = (Registry::start().await, Registry::start().await);
    let (secret, open) = (noise(1, 100_000), noise(2, 100_000));
    for registry in [&up, &other] {
        registry.put_blob("private/app", &secret);
        registry.put_blob("public/app", &open);
    }
    guard(&up, Guard::Basic);
    let m = Setup::new(&up)
        .with(&[CALLER])
        .upstream("other", &other, ", authorize: shared")
        .start()
        .await;
    let (secret_path, open_path) = (
        blob_path("private/app", &secret),
        blob_path("public/app", &open),
    );
    get(&m, ANN, &secret_path).await.expect(200, &secret);
    get(&m, NOBODY, &open_path).await.expect(200, &open);
    passing(m.idle()).await;
    for _ in 0..2 {
        let path = blob_path("other/private/app", &secret);
        get(&m, NOBODY, &path).await.expect(200, &secret);
        passing(m.idle()).await;
    }
    // Downloaded once, because the other upstream is asked for its own.
    assert_eq!(other.count(&format!("GET {secret_path}")), 1);
    get(&m, NOBODY, &blob_path("other/public/app", &open))
        .await
        .expect(200, &open);
    assert_eq!(other.count(&format!("GET {open_path}")), 0);
}

/// An upstream with content is no longer configured, or another one has its name; its content stays.
#[tokio::test(start_paused = true)]
async fn content_of_a_removed_or_replaced_upstream_is_given_to_nobody_on_anothers_word() {
    for name in [None, Some("team")] {
        let (liar, private) = (Registry::start().await, Registry::start().await);
        let (secret, own) = (noise(1, 100_000), noise(2, 100_000));
        private.put_blob("app", &secret);
        liar.put_blob("app", &own);
        liar.on("HEAD ", ALWAYS, |_, _| Reply::ok(noise(1, 100_000)));
        let root = tempfile::tempdir().unwrap();
        let opened = async |upstreams: &[(&str, &Registry)]| {
            let store = FsStore::open(root.path()).await.unwrap();
            let upstreams = upstreams.iter();
            let upstreams = upstreams.map(|(name, up)| ((*name).to_owned(), up.url()));
            let upstreams: BTreeMap<_, _> = upstreams.collect();
            store.set_upstreams(upstreams).await.unwrap();
            Arc::new(store)
        };
        let store = opened(&[("", &liar), ("team", &private)]).await;
        let m = Setup::new(&liar)
            .upstream("team", &private, "")
            .store(store)
            .start()
            .await;
        m.pull(&blob_path("team/app", &secret), &secret).await;
        m.pull(&blob_path("app", &own), &own).await;
        passing(m.idle()).await;
        passing(m.app.stop()).await;
        drop(m.store);

        let mut now = vec![("", &liar)];
        now.extend(name.map(|name| (name, &liar)));
        let store = opened(&now).await;
        let mut setup = Setup::new(&liar).store(store);
        if let Some(name) = name {
            setup = setup.upstream(name, &liar, "");
        }
        let m = setup.start().await;
        for repo in ["app", "team/app"] {
            let answer = passing(m.get(&blob_path(repo, &secret))).await;
            assert_eq!(answer.status, 404, "{repo} {name:?}");
        }
        // What is still proved is shared as before.
        let downloads = liar.count("GET ");
        let other = passing(m.get(&blob_path("other", &own))).await;
        other.expect(200, &own);
        assert_eq!(liar.count("GET "), downloads);
    }
}

/// The file of a blob is seen before its links are.
#[tokio::test]
async fn a_blob_that_is_being_linked_is_not_fetched_again() {
    for repo in ["app", "other"] {
        let up = Registry::start().await;
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let setup = Setup::new(&up).with(&["proxy.username: mirror", "proxy.password: secret"]);
        let second = Registry::start().await;
        let setup = setup.upstream("second", &second, ", username: mirror, password: secret");
        let m = setup.store(store.clone()).start().await;
        let (blob, path) = put_blob(&up, 1, 100_000);
        up.put_blob("other", &blob);
        let linking = store.stall(Operation::Link, 1);
        m.serves(&path, &blob).await;
        linking.reached().await;
        m.serves(&blob_path(repo, &blob), &blob).await;
        linking.release();
        m.idle().await;
        let lines = up.lines();
        let gets = lines
            .iter()
            .filter(|line| line.starts_with("GET ") && line.contains("/blobs/"));
        assert_eq!(gets.count(), 1, "{repo}: {lines:?}");
    }
}
