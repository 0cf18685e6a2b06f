use super::*;

#[tokio::test(start_paused = true)]
async fn a_use_extends_and_the_shared_file_goes_with_its_last_link() {
    let house = House::with(with_ttl(HOUR)).await;
    let a = house.cache_layer("a", "shared").await;
    let b = house.cache_layer("b", "shared").await;
    house.pass(MINUTE * 40).await;
    house.use_link(&b).await;
    house.pass(MINUTE * 30).await;
    assert!(!house.is_linked(&a).await);
    assert!(house.is_linked(&b).await && house.has("shared").await);
    check(&house, &[]).await;
    house.pass(MINUTE * 30).await;
    assert!(!house.is_linked(&b).await && !house.has("shared").await);
    assert_eq!(
        house.cache.usage(),
        Usage {
            complete: true,
            ..Usage::default()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn never_early_and_at_most_a_second_late() {
    let house = House::with(with_ttl(Duration::from_millis(90_500))).await;
    let a = house.cache_layer("a", "x").await;
    tokio::time::sleep(Duration::from_millis(90_400)).await;
    assert!(house.is_linked(&a).await);
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    house.cache.settled().await;
    assert!(!house.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn fixed_entries_go_however_much_they_are_used() {
    let mut settings = with_ttl(HOUR);
    settings.ttl.mode = TtlMode::Fixed;
    let house = House::with(settings).await;
    let a = house.cache_layer("a", "x").await;
    house.pass(MINUTE * 50).await;
    house.use_link(&a).await;
    house.pass(MINUTE * 10).await;
    assert!(!house.is_linked(&a).await);
}

#[tokio::test(start_paused = true)]
async fn each_repository_has_its_own_time_and_none_is_for_ever() {
    let mut settings = with_ttl(HOUR);
    let rule = |pattern: &str, ttl| TtlRule {
        pattern: pattern.parse().unwrap(),
        ttl,
    };
    settings.ttl.rules = vec![rule("ghcr.io/**", Some(MINUTE)), rule("keep/*", None)];
    let house = House::with(settings).await;
    let short = house.cache_layer("ghcr.io/a/b", "1").await;
    let kept = house.cache_layer("keep/a", "2").await;
    let usual = house.cache_layer("a", "3").await;
    house.pass(MINUTE).await;
    assert!(!house.is_linked(&short).await && house.is_linked(&usual).await);
    house.pass(WEEK * 1000).await;
    assert!(!house.is_linked(&usual).await && house.is_linked(&kept).await);
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_manifest_takes_its_tags_along_but_not_one_that_has_moved() {
    let house = House::with(with_ttl(HOUR)).await;
    let (a, old, moved) = (repo("a"), tag("old"), tag("moved"));
    house
        .cache_manifest("a", Some("old"), &manifest_of("1", &[]))
        .await
        .unwrap();
    house
        .cache_manifest("a", Some("moved"), &manifest_of("1", &[]))
        .await
        .unwrap();
    house.pass(MINUTE * 30).await;
    let new = house
        .cache_manifest("a", Some("moved"), &manifest_of("2", &[]))
        .await
        .unwrap();
    house.pass(MINUTE * 30).await;
    assert_eq!(house.store.tag(&a, &old).await.unwrap(), None);
    assert_eq!(house.store.tag(&a, &moved).await.unwrap(), Some(new.digest));
    check(&house, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn held_content_outlives_its_time() {
    let house = House::with(with_ttl(HOUR)).await;
    let a = house.cache_layer("a", "x").await;
    let hold = house.cache.hold(&a.digest).await;
    house.pass(HOUR * 3).await;
    assert!(house.is_linked(&a).await && house.has("x").await);
    drop(hold);
    house.pass(MINUTE).await;
    assert!(!house.is_linked(&a).await && !house.has("x").await);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_at_once_are_handed_over_in_steps() {
    let house = House::with(with_ttl(HOUR)).await;
    for n in 0..3000 {
        house
            .cache
            .used(&repo("a"), LinkKind::Layer, &digest(&n.to_string()), 1);
    }
    house.pass(HOUR).await;
    assert_eq!(house.cache.usage().entries, 0);
    assert_eq!(house.cache.usage().used, 0);
}
