use super::*;

fn names(page: &TagsPage) -> Vec<&str> {
    page.tags.iter().map(crate::oci::Tag::as_str).collect()
}

#[tokio::test]
async fn a_page_of_tags() {
    let server = Server::start(|_| {
        Reply::ok(r#"{"name":"library/app","tags":["b","../x","a",""]}"#).with(
            "Link",
            r#"</v2/library/app/tags/list?n=2&last=a>; rel="next""#,
        )
    })
    .await;
    let page = client(&server)
        .tags(&repo(), Some(2), Some("é&n=9"))
        .await
        .unwrap();
    assert_eq!(names(&page), ["b", "a"]);
    assert!(page.next);
    assert_eq!(
        server.lines(),
        ["GET /v2/library/app/tags/list?n=2&last=%C3%A9%26n%3D9"]
    );
}

#[tokio::test]
async fn no_tags_are_an_empty_last_page() {
    for body in [
        r#"{"name":"x","tags":null}"#,
        r#"{"name":"x"}"#,
        r#"{"tags":["*"]}"#,
    ] {
        let server = Server::start(move |_| Reply::ok(body).with("Link", "</x>; rel=next")).await;
        let page = client(&server).tags(&repo(), None, None).await.unwrap();
        assert_eq!(
            page,
            TagsPage {
                tags: vec![],
                next: false
            }
        );
        assert_eq!(server.lines(), ["GET /v2/library/app/tags/list"]);
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_an_error() {
    let endless = vec![b' '; 4 * 1024 * 1024 + 1];
    for reply in [
        Reply::ok("<html>"),
        Reply::ok(r#"{"tags":{}}"#),
        Reply::chunked(&endless),
    ] {
        let server = Server::start(move |_| reply.clone()).await;
        let upstream = client(&server);
        let error = upstream.tags(&repo(), None, None).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
    }
}

async fn referrers(server: &Server) -> Result<Option<Referrers>, UpstreamError> {
    client(server)
        .referrers(&repo(), &digest_of("subject"), Some("a/b+c"))
        .await
}

#[tokio::test]
async fn one_page_of_referrers_is_passed_on_byte_for_byte() {
    let body = r#"{ "schemaVersion":2, "manifests":[{"digest":"x"}], "annotations":{"k":"v"} }"#;
    for (header, applied) in [
        ("artifactType", true),
        ("other, artifactType", true),
        ("", false),
    ] {
        let server =
            Server::start(move |_| Reply::ok(body).with("OCI-Filters-Applied", header)).await;
        let found = referrers(&server).await.unwrap().unwrap();
        assert_eq!(
            found,
            Referrers {
                bytes: body.into(),
                filters_applied: applied
            }
        );
        let subject = digest_of("subject");
        let line = format!("GET /v2/library/app/referrers/{subject}?artifactType=a%2Fb%2Bc");
        assert_eq!(server.lines(), [line]);
    }
}

#[tokio::test]
async fn pages_of_referrers_are_merged() {
    let server = Server::start(|seen| match seen.line.rsplit('?').next() {
        Some("page=2") => Reply::ok(r#"{"manifests":null}"#).with("Link", "<?page=3>; rel=next"),
        Some("page=3") => Reply::ok(r#"{"manifests":[{"digest":"b","extra":[1]}]}"#),
        _ => Reply::ok(r#"{"schemaVersion":2,"manifests":[{"digest":"a"}]}"#)
            .with("Link", "<?page=2>; rel=next")
            .with("OCI-Filters-Applied", "artifactType"),
    })
    .await;
    let found = referrers(&server).await.unwrap().unwrap();
    let index: serde_json::Value = serde_json::from_slice(&found.bytes).unwrap();
    let expected = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"digest": "a"}, {"digest": "b", "extra": [1]}],
    });
    assert_eq!(index, expected);
    assert!(!found.filters_applied, "one page was not filtered");
}

#[tokio::test]
async fn an_upstream_without_the_api() {
    for status in [400, 404, 405] {
        let server = Server::start(move |_| Reply::new(status, "")).await;
        assert_eq!(referrers(&server).await.unwrap(), None, "{status}");
    }
    let denied = Server::start(|_| Reply::new(403, "")).await;
    assert_eq!(referrers(&denied).await.unwrap_err().class(), "denied");
}

#[tokio::test]
async fn pages_have_an_end_and_stay_at_home() {
    let page = r#"{"manifests":[]}"#;
    let endless = Server::start(move |_| Reply::ok(page).with("Link", "<?again>; rel=next")).await;
    assert_eq!(referrers(&endless).await.unwrap_err().class(), "protocol");
    assert_eq!(endless.lines().len(), 20);
    let foreign = "<http://other.example/>; rel=next";
    let leaving = Server::start(move |_| Reply::ok(page).with("Link", foreign)).await;
    assert_eq!(referrers(&leaving).await.unwrap_err().class(), "protocol");
    let html = Server::start(|_| Reply::ok("<html>")).await;
    assert_eq!(referrers(&html).await.unwrap_err().class(), "protocol");
}
