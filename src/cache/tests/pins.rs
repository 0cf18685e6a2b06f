//! Pins that are made at run time.

use super::*;

const DAY: Duration = Duration::from_hours(24);

impl Rig {
    async fn pin(&self, reference: &str, lasting: Option<Duration>) {
        let pins = self.cache.pin(vec![reference.to_owned()], lasting).await;
        assert_eq!(pins.unwrap()[0].reference, reference);
    }

    async fn unpin(&self, reference: &str) {
        self.cache.unpin(reference.to_owned()).await.unwrap();
    }
}

/// An image of `content`, with a signature that names it as its subject.
async fn pull_signed(rig: &Rig, name: &str, as_tag: &str, content: &str) -> [Link; 2] {
    let image = rig.pull(name, as_tag, &[content]).await.unwrap();
    let blob = format!("{content}-signature");
    let size = rig.store.size(&image.digest).await.unwrap().unwrap();
    let subject = serde_json::json!({"mediaType": "x/y", "digest": image.digest, "size": size});
    let text = serde_json::json!({
        "schemaVersion": 2, "config": descriptor("{}"), "layers": [descriptor(&blob)], "subject": subject,
    });
    let signature = rig.cache_manifest(name, None, &text.to_string()).await;
    rig.cache_layer(name, &blob).await;
    [image, signature.unwrap()]
}

#[tokio::test(start_paused = true)]
async fn a_pinned_image_does_not_expire_until_it_is_unpinned() {
    for pin in ["a:t", "a", "*:t", "digest"] {
        let rig = Rig::with(with_ttl(HOUR)).await;
        let [image, signature] = pull_signed(&rig, "a", "t", "layer").await;
        rig.pull("b", "u", &["layer", "other"]).await.unwrap();
        let pin = pin.replace("digest", &format!("a@{}", image.digest));
        rig.pin(&pin, None).await;
        rig.pass(DAY).await;
        for content in ["layer", "a:t-config", "layer-signature"] {
            assert!(rig.has(content).await, "{pin} {content}");
        }
        assert!(rig.is_linked(&image).await && rig.is_linked(&signature).await);
        assert_eq!(rig.cache.tags(&repo("a")).await, [tag("t")]);
        let names_b = |entry: &EntryView| entry.link.repo == repo("b");
        let of_b = rig.entries().into_iter().find(names_b);
        assert!(of_b.is_none(), "{pin}: {of_b:?}");
        let images = rig.images();
        assert!(images.iter().all(|image| image.pinned), "{images:?}");
        assert!(images.iter().all(|image| image.expiry.is_none()));
        check(&rig, &[]).await;

        rig.unpin(&pin).await;
        rig.pass(HOUR).await;
        assert_eq!(rig.entries(), [], "{pin}");
        assert!(rig.cache.unpin(pin).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pin_with_an_end_ends() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    rig.pull("a", "t", &["layer"]).await.unwrap();
    rig.pin("a:t", Some(DAY)).await;
    rig.pin("a:t", Some(DAY * 3)).await;
    assert_eq!(rig.cache.pins().len(), 1);
    let end = rig.clock.wall() + DAY * 3;
    let shown = rig.images()[0].pinned_until.unwrap();
    assert!(end.duration_since(shown).unwrap() <= Duration::from_secs(1));
    assert_eq!(rig.images()[0].expiry, Some(shown));
    rig.pass(HOUR * 71).await;
    assert!(rig.has("layer").await);
    rig.pass(HOUR * 2).await;
    assert_eq!(rig.entries(), []);
    assert_eq!(rig.cache.pins(), []);
}

#[tokio::test(start_paused = true)]
async fn a_pinned_tag_that_moves_takes_its_protection_along() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let old = rig.pull("a", "t", &["old", "shared"]).await.unwrap();
    rig.pin("a:t", None).await;
    rig.pass(DAY).await;
    // `pull` makes the same manifest of the same layers.
    let new = rig.pull("a", "t", &["new", "shared"]).await.unwrap();
    rig.pass(DAY).await;
    assert!(!rig.is_linked(&old).await && !rig.has("old").await);
    assert!(rig.is_linked(&new).await && rig.has("new").await && rig.has("shared").await);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_pinned_image_is_not_evicted() {
    let rig = Rig::with(capped(6_000)).await;
    let large = |name: &str| name.repeat(2_000);
    pull_signed(&rig, "a", "t", &large("a")).await;
    rig.pin("a:t", None).await;
    tokio::time::sleep(MINUTE).await;
    rig.cache_layer("b", &"b".repeat(500)).await;
    let before = rig.cache.usage().used;
    assert!(rig.cache.reserve(6_000 - before + 100).await.is_ok());
    rig.cache.settled().await;
    assert!(rig.has(&large("a")).await && !rig.has(&"b".repeat(500)).await);
    assert!(rig.has(&format!("{}-signature", large("a"))).await);
    assert!(rig.cache.reserve(3_000).await.is_err());
    rig.unpin("a:t").await;
    assert!(rig.cache.reserve(3_000).await.is_ok());
    rig.cache.settled().await;
    assert!(!rig.has(&large("a")).await);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn pins_outlive_the_process_and_a_broken_file_deletes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("millpond/pins.json");
    let settings = || CacheSettings {
        state: Some(state_file(&directory)),
        ..with_ttl(HOUR)
    };
    let rig = Rig::with(settings()).await;
    rig.pull("a", "t", &["layer"]).await.unwrap();
    rig.pull("b", "t", &["other"]).await.unwrap();
    rig.pin("a:*", None).await;
    rig.pin("ended", Some(MINUTE)).await;
    rig.cache.stop().await;

    let text = std::fs::read_to_string(&file).unwrap();
    for broken in [
        "{",
        r#"{"pins":[{"reference":"a:b:c","added":""}]}"#,
        r#"{"pins":[{"reference":"a","added":"","until":"soon"}]}"#,
    ] {
        std::fs::write(&file, broken).unwrap();
        let (store, later) = (Arc::clone(&rig.store) as _, rig.clock.wall() + DAY);
        let next = Rig::over(store, settings(), Clock::starting_at(later));
        tokio::time::sleep(DAY).await;
        let error = next.cache.health().unwrap_err();
        assert!(error.contains("pins.json"), "{error}");
        assert!(next.has("layer").await && next.has("other").await);
        assert!(next.cache.pin(vec!["a".to_owned()], None).await.is_err());
        // Mended, it starts.
        std::fs::write(&file, &text).unwrap();
        next.cache.complete().await;
        next.pass(DAY).await;
        assert!(next.has("layer").await && !next.has("other").await);
        let pins = next.cache.pins();
        assert_eq!(pins.len(), 1, "{pins:?}");
        next.cache.stop().await;
        rig.pull("b", "t", &["other"]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_cannot_be_saved_or_read_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(on_disk(&directory)).await;
    for bad in ["", "a:b:c", "a@sha256:12", "A B"] {
        let pinned = rig
            .cache
            .pin(vec!["a".to_owned(), bad.to_owned()], None)
            .await;
        assert!(matches!(pinned, Err(PinError::Reference { .. })), "{bad}");
    }
    let many = (0..=100).map(|n| format!("{n}/*")).collect();
    assert!(matches!(
        rig.cache.pin(many, None).await,
        Err(PinError::Full)
    ));
    // A file stands where the directory should be.
    std::fs::write(directory.path().join("millpond"), "").unwrap();
    let pinned = rig.cache.pin(vec!["a".to_owned()], None).await;
    assert!(matches!(pinned, Err(PinError::Save { .. })), "{pinned:?}");
    assert_eq!(rig.cache.pins(), []);
}
