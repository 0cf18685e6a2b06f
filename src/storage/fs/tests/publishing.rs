use super::*;

#[tokio::test]
async fn where_a_tag_cannot_be_named_the_others_keep_what_they_were_and_no_draft_stays() {
    let (_root, layout, store) = new_store().await;
    let (repo, tags) = (repo("ci/app"), ["a", "b", "c"].map(tag).to_vec());
    let [old, new] = ["old", "new"].map(digest);
    store.set_tag(&repo, &tags[2], &old).await.unwrap();
    // No file can get the name of a directory that isn't empty.
    write(layout.tag_current(&repo, &tags[1]).join("x"), "");
    let tagging = Tagging {
        repo: repo.clone(),
        tags: tags.clone(),
        digest: new,
    };
    let error = store.publish(&[], &[], Some(&tagging)).await.unwrap_err();
    assert_eq!((error.tagged, error.lost), (tags[..1].to_vec(), Vec::new()));
    assert_eq!(store.tag(&repo, &tags[0]).await.unwrap(), Some(new));
    assert_eq!(store.tag(&repo, &tags[2]).await.unwrap(), Some(old));
    assert_eq!(files(&layout.spool()), []);
}
