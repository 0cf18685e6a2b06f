//! What is asked of the index instead of the store.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_reference_is_known_for_its_own_repository() {
    let house = House::with(settings()).await;
    let manifest = house.pull("a", "1", &["layer"]).await.unwrap();
    house.cache_layer("b", "layer").await;
    let asked = async |name: &str, content: &str| {
        house
            .cache
            .is_referenced(&repo(name), &digest(content))
            .await
    };
    assert!(asked("a", "layer").await && asked("a", "a:1-config").await);
    assert!(!asked("b", "layer").await && !asked("nobody", "layer").await);
    assert!(!asked("a", "other").await);

    // Also of what isn't cached.
    let text = manifest_of("b:1", &["layer", "absent"]);
    house.cache_manifest("b", None, &text).await.unwrap();
    assert!(asked("b", "layer").await && asked("b", "absent").await);
    assert!(!asked("a", "absent").await);

    let selection = format!("a@{}", manifest.digest);
    house.cache.purge(&selection.parse().unwrap(), false).await;
    assert!(!asked("a", "layer").await && asked("b", "layer").await);
}

#[tokio::test(start_paused = true)]
async fn a_reference_is_found_among_many() {
    let house = House::with(settings()).await;
    for n in 0..10_000 {
        let digest = digest(&n.to_string());
        house.cache.used(&repo("many"), LinkKind::Layer, &digest, 1);
    }
    house.pull("a", "1", &["layer"]).await.unwrap();
    assert!(
        house
            .cache
            .is_referenced(&repo("a"), &digest("layer"))
            .await
    );
    assert!(
        !house
            .cache
            .is_referenced(&repo("many"), &digest("layer"))
            .await
    );
}

#[tokio::test(start_paused = true)]
async fn referrers_are_known_for_their_own_repository_and_after_a_restart() {
    let house = House::with(settings()).await;
    let subject = house.pull("a", "1", &["layer"]).await.unwrap();
    let about = |note: &str| {
        let descriptor = serde_json::json!({
            "mediaType": "x/y", "digest": subject.digest, "size": 1,
        });
        let mut text: serde_json::Value = serde_json::from_str(&manifest_of(note, &[])).unwrap();
        text["subject"] = descriptor;
        text.to_string()
    };
    let asked = async |house: &House, name: &str| {
        let mut all = house.cache.referrers(&repo(name), &subject.digest).await;
        all.sort();
        all
    };
    assert_eq!(asked(&house, "a").await, []);
    let one = house
        .cache_manifest("a", None, &about("one"))
        .await
        .unwrap();
    let two = house
        .cache_manifest("a", None, &about("two"))
        .await
        .unwrap();
    let mut both = vec![one.digest, two.digest];
    both.sort();
    assert_eq!(asked(&house, "a").await, both);
    assert_eq!(asked(&house, "b").await, []);

    let next = House::over(Arc::clone(&house.store) as _, settings(), house.clock);
    next.cache.complete().await;
    assert_eq!(asked(&next, "a").await, both);
    let selection = format!("a@{}", one.digest);
    next.cache.purge(&selection.parse().unwrap(), false).await;
    assert_eq!(asked(&next, "a").await, [two.digest]);
    // The subject isn't part of what is about it.
    assert!(next.is_linked(&subject).await);
}
