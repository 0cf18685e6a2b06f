use super::*;

#[tokio::test(start_paused = true)]
async fn a_use_extends_and_a_shared_file_is_removed_with_its_last_link() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let a = rig.cache_layer("a", "shared").await;
    let b = rig.cache_layer("b", "shared").await;
    rig.pass(MINUTE * 40).await;
    rig.use_link(&b).await;
    rig.pass(MINUTE * 30).await;
    assert!(!rig.is_linked(&a).await);
    assert!(rig.is_linked(&b).await && rig.has("shared").await);
    check(&rig, &[]).await;
    rig.pass(MINUTE * 30).await;
    assert!(!rig.is_linked(&b).await && !rig.has("shared").await);
    assert_eq!(
        rig.cache.usage(),
        Usage {
            complete: true,
            ..Usage::default()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn links_expire_never_early_and_at_most_a_second_late() {
    let rig = Rig::with(with_ttl(Duration::from_millis(90_500))).await;
    let a = rig.cache_layer("a", "x").await;
    tokio::time::sleep(Duration::from_millis(90_400)).await;
    assert!(rig.is_linked(&a).await);
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    rig.cache.settled().await;
    assert!(!rig.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn a_use_does_not_extend_a_fixed_ttl() {
    let mut settings = with_ttl(HOUR);
    settings.ttl.mode = TtlMode::Fixed;
    let rig = Rig::with(settings).await;
    let a = rig.cache_layer("a", "x").await;
    rig.pass(MINUTE * 50).await;
    rig.use_link(&a).await;
    rig.pass(MINUTE * 10).await;
    assert!(!rig.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn each_repository_has_its_own_ttl_and_none_is_for_ever() {
    let mut settings = with_ttl(HOUR);
    let rule = |pattern: &str, ttl| TtlRule {
        pattern: pattern.parse().unwrap(),
        ttl,
    };
    settings.ttl.rules = vec![rule("ghcr.io/**", Some(MINUTE)), rule("keep/*", None)];
    let rig = Rig::with(settings).await;
    let short = rig.cache_layer("ghcr.io/a/b", "1").await;
    let kept = rig.cache_layer("keep/a", "2").await;
    let usual = rig.cache_layer("a", "3").await;
    rig.pass(MINUTE).await;
    assert!(!rig.is_linked(&short).await && rig.is_linked(&usual).await);
    rig.pass(WEEK * 1000).await;
    assert!(!rig.is_linked(&usual).await && rig.is_linked(&kept).await);
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_manifest_loses_its_tags_but_not_a_moved_one() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let (a, old, moved) = (repo("a"), tag("old"), tag("moved"));
    let tagged = async |tag: &str, manifest: &str| {
        let text = manifest_of(manifest, &[]);
        rig.cache_manifest("a", Some(tag), &text).await.unwrap()
    };
    tagged("old", "1").await;
    tagged("moved", "1").await;
    rig.pass(MINUTE * 30).await;
    let new = tagged("moved", "2").await;
    rig.pass(MINUTE * 30).await;
    assert_eq!(rig.store.tag(&a, &old).await.unwrap(), None);
    assert_eq!(rig.store.tag(&a, &moved).await.unwrap(), Some(new.digest));
    check(&rig, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn held_content_outlives_its_ttl() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    let a = rig.cache_layer("a", "x").await;
    let hold = rig.cache.hold(&a.digest).await;
    rig.pass(HOUR * 3).await;
    assert!(rig.is_linked(&a).await && rig.has("x").await);
    drop(hold);
    rig.pass(MINUTE).await;
    assert!(!rig.is_linked(&a).await && !rig.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn many_links_due_at_once_expire_in_batches() {
    let rig = Rig::with(with_ttl(HOUR)).await;
    for n in 0..3000 {
        rig.cache
            .used(&repo("a"), LinkKind::Layer, &digest(&n.to_string()), 1);
    }
    rig.pass(HOUR).await;
    assert_eq!(rig.cache.usage().entries, 0);
    assert_eq!(rig.cache.usage().used, 0);
}
