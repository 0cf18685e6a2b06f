//! References and referrers, which the index knows.

use super::*;

async fn is_referenced(rig: &Rig, name: &str, content: &str) -> bool {
    let (repo, digest) = (repo(name), digest(content));
    rig.cache.is_referenced(&repo, &digest).await
}

#[tokio::test(start_paused = true)]
async fn a_reference_is_known_for_its_own_repository() {
    let rig = Rig::with(settings()).await;
    let manifest = rig.pull("a", "1", &["layer"]).await.unwrap();
    rig.cache_layer("b", "layer").await;
    let asked = async |name: &str, content: &str| is_referenced(&rig, name, content).await;
    assert!(asked("a", "layer").await && asked("a", "a:1-config").await);
    assert!(!asked("b", "layer").await && !asked("nobody", "layer").await);
    assert!(!asked("a", "other").await);

    // Also of what isn't cached.
    let text = manifest_of("b:1", &["layer", "absent"]);
    rig.cache_manifest("b", None, &text).await.unwrap();
    assert!(asked("b", "layer").await && asked("b", "absent").await);
    assert!(!asked("a", "absent").await);

    rig.purge(format!("a@{}", manifest.digest)).await;
    assert!(!asked("a", "layer").await && asked("b", "layer").await);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_layer_is_no_reference() {
    let rig = Rig::with(settings()).await;
    let mut layers = [descriptor("layer"), descriptor("foreign")];
    layers[1]["urls"] = serde_json::json!(["https://elsewhere.example/"]);
    let config = descriptor("config");
    let text = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    rig.cache_manifest("a", None, &text.to_string())
        .await
        .unwrap();
    assert!(is_referenced(&rig, "a", "layer").await);
    assert!(!is_referenced(&rig, "a", "foreign").await);
}

#[tokio::test(start_paused = true)]
async fn a_reference_is_found_among_many() {
    let rig = Rig::with(settings()).await;
    for n in 0..10_000 {
        let digest = digest(&n.to_string());
        rig.cache.used(&repo("many"), LinkKind::Layer, &digest, 1);
    }
    rig.pull("a", "1", &["layer"]).await.unwrap();
    assert!(is_referenced(&rig, "a", "layer").await);
    assert!(!is_referenced(&rig, "many", "layer").await);
}

#[tokio::test(start_paused = true)]
async fn referrers_are_known_for_their_own_repository_and_after_a_restart() {
    let rig = Rig::with(settings()).await;
    let subject = rig.pull("a", "1", &["layer"]).await.unwrap();
    let about = |note: &str| {
        let mut text: serde_json::Value = serde_json::from_str(&manifest_of(note, &[])).unwrap();
        text["subject"] = descriptor("");
        text["subject"]["digest"] = subject.digest.to_string().into();
        text.to_string()
    };
    let store = async |note: &str| {
        let link = rig.cache_manifest("a", None, &about(note)).await;
        link.unwrap().digest
    };
    let asked = async |rig: &Rig, name: &str| {
        let mut all = rig.cache.referrers(&repo(name), &subject.digest).await;
        all.sort();
        all
    };
    assert_eq!(asked(&rig, "a").await, []);
    let (one, two) = (store("one").await, store("two").await);
    let mut both = vec![one, two];
    both.sort();
    assert_eq!(asked(&rig, "a").await, both);
    assert_eq!(asked(&rig, "b").await, []);

    let next = rig.restart(settings()).await;
    assert_eq!(asked(&next, "a").await, both);
    next.purge(format!("a@{one}")).await;
    assert_eq!(asked(&next, "a").await, [two]);
    // The subject isn't part of what is about it.
    assert!(next.is_linked(&subject).await);
}
