//! Clients that read different manifests ask for one tag: each gets what it can read.

use std::sync::Arc;
use std::time::Duration;

use millpond::oci::manifest::media_type;

use crate::harness::{ALWAYS, Image, Registry, Reply, Setup, advance, freeze, mirrored};

const PATH: &str = "/v2/app/manifests/latest";

const SIX: [&str; 6] = [
    media_type::OCI_MANIFEST,
    media_type::OCI_INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::DOCKER_SCHEMA1,
    media_type::DOCKER_SCHEMA1_SIGNED,
];

#[tokio::test]
async fn equal_accept_lists_share_one_request() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    up.push("app", "latest", &image);
    let line = format!("GET {PATH}");
    let joined = SIX.join(", ");
    let lines = SIX.map(|kind| ("accept", kind));
    let reversed: Vec<_> = lines.into_iter().rev().collect();
    for accept in [&[("accept", &*joined)][..], &lines, &reversed] {
        m.ask(&line, accept).await.expect(200, &image.manifest);
    }
    assert_eq!(up.count(""), 1);
    let sent = up.seen("")[0].header("accept").unwrap().to_owned();
    for kind in SIX {
        assert!(sent.contains(kind), "{sent}");
    }
}

/// Answers old clients with schema 2 and others with an index, as Docker Hub does.
fn by_accept(up: &Registry) -> (Image, bytes::Bytes) {
    let old = Image::docker(1);
    let index = Image::index(media_type::OCI_INDEX, &[&Image::oci(2)]);
    up.push("app", "latest", &old);
    up.put_manifest("app", media_type::OCI_INDEX, &index);
    let (bytes, digest) = (index.clone(), crate::harness::digest(&index));
    up.on("/manifests/latest", ALWAYS, move |seen, usual| {
        if !seen
            .header("accept")
            .unwrap()
            .contains(media_type::OCI_INDEX)
        {
            return usual;
        }
        Reply::new(200, bytes.clone())
            .with("Docker-Content-Digest", digest)
            .with("Content-Type", media_type::OCI_INDEX)
    });
    (old, index)
}

#[tokio::test(start_paused = true)]
async fn old_and_new_clients_get_each_their_own_manifest() {
    let _frozen = freeze();
    let line = format!("GET {PATH}");
    let (narrow, wide) = (
        [("accept", media_type::DOCKER_MANIFEST)],
        SIX.map(|kind| ("accept", kind)),
    );
    for old_first in [true, false] {
        let (up, m) = mirrored().await;
        let (old, index) = by_accept(&up);
        let mut clients: [(&[_], _); 2] = [(&narrow, &old.manifest), (&wide, &index)];
        if !old_first {
            clients.reverse();
        }
        for _ in 0..2 {
            for (accept, expected) in clients {
                m.ask(&line, accept).await.expect(200, expected);
            }
        }
        assert_eq!(
            up.take().len(),
            3,
            "GET, then HEAD and GET of what the HEAD named"
        );
        up.go_down();
        advance(Duration::from_secs(61)).await;
        for (accept, expected) in clients {
            let answer = m.ask(&line, accept).await;
            answer.expect(200, expected);
            let from = answer.header("cache-status");
            assert!(from.ends_with("; detail=stale"), "{from}");
        }
    }
}

#[tokio::test]
async fn an_unacceptable_manifest_is_not_served_stale() {
    let (up, m) = mirrored().await;
    by_accept(&up);
    let line = format!("GET {PATH}");
    assert_eq!(
        m.ask(&line, &SIX.map(|kind| ("accept", kind))).await.status,
        200
    );
    up.go_down();
    let old = m
        .ask(&line, &[("accept", media_type::DOCKER_MANIFEST)])
        .await;
    assert_eq!(old.error(), (500, "UNAVAILABLE".to_owned()));
}

#[tokio::test]
async fn after_a_restart_an_old_clients_manifest_has_not_taken_the_place_of_the_index() {
    let (narrow, wide) = (
        [("accept", media_type::DOCKER_MANIFEST)],
        SIX.map(|kind| ("accept", kind)),
    );
    let line = format!("GET {PATH}");
    for order in [[true, false], [false, true]] {
        let (up, m) = mirrored().await;
        let (_, index) = by_accept(&up);
        for is_wide in order {
            let accept = if is_wide { &wide[..] } else { &narrow };
            assert_eq!(m.ask(&line, accept).await.status, 200);
        }
        up.go_down();
        let m = Setup::new(&up).store(Arc::clone(&m.store)).start().await;
        m.ask(&line, &wide).await.expect(200, &index);
    }
}
