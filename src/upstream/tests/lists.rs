use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::oci::{Descriptor, Tag};

async fn tags(server: &Server) -> Result<Vec<String>, UpstreamError> {
    let list = client(server).tags(&repo()).await?;
    Ok(list.tags()?.iter().map(Tag::to_string).collect())
}

#[tokio::test]
async fn all_pages_of_tags_are_read() {
    let server = Server::scripted(|seen| match seen.line.rsplit('?').next() {
        Some("n=1000") => Reply::ok(r#"{"name":"library/app","tags":["b","../x","a",""]}"#).with(
            "Link",
            r#"</v2/library/app/tags/list?n=2&last=a>; rel="next""#,
        ),
        Some("n=2&last=a") => Reply::ok(r#"{"tags":null}"#).with("Link", "<?page=3>; rel=next"),
        _ => Reply::ok(r#"{"tags":["\u0063","a"]}"#),
    })
    .await;
    assert_eq!(tags(&server).await.unwrap(), ["b", "a", "c", "a"]);
    let list = "GET /v2/library/app/tags/list";
    assert_eq!(
        server.lines(),
        [
            format!("{list}?n=1000"),
            format!("{list}?n=2&last=a"),
            format!("{list}?page=3")
        ]
    );
}

#[tokio::test]
async fn one_page_of_tags_is_read() {
    let link = "</v2/library/app/tags/list?x>; rel=next";
    let server = replying(Reply::ok(r#"{"tags":["b","a"]}"#).with("Link", link)).await;
    let upstream = client(&server);
    let page = upstream.tags_page(&repo(), 2, Some("é&n=9")).await;
    let (list, more) = page.unwrap();
    assert_eq!((list.tags().unwrap().len(), more), (2, true));
    assert_eq!(
        server.lines(),
        ["GET /v2/library/app/tags/list?n=2&last=%C3%A9%26n%3D9"]
    );
}

#[tokio::test]
async fn an_upstream_that_refuses_large_pages_chooses_their_size() {
    let refusal = Reply::new(400, r#"{"errors":[{"code":"PAGINATION_NUMBER_INVALID"}]}"#);
    let server = Server::in_turn([refusal, Reply::ok(r#"{"tags":["a"]}"#)]).await;
    assert_eq!(tags(&server).await.unwrap(), ["a"]);
    assert!(server.lines()[0].contains("n=") && !server.lines()[1].contains("n="));
}

#[tokio::test]
async fn no_tags_are_an_empty_list() {
    let null = r#"{"name":"x","tags":null}"#;
    for body in [null, r#"{"name":"x"}"#, r#"{"tags":["*"]}"#] {
        let server = replying(Reply::ok(body)).await;
        assert_eq!(tags(&server).await.unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn a_page_that_links_to_itself_is_the_last() {
    let link = "</v2/library/app/tags/list?n=2&last=b>; rel=next";
    let server = replying(Reply::ok(r#"{"tags":["a","b"]}"#).with("Link", link)).await;
    assert_eq!(tags(&server).await.unwrap(), ["a", "b", "a", "b"]);
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_an_error() {
    let endless = vec![b' '; 4 * 1024 * 1024 + 1];
    let many = format!(r#"{{"tags":[{}"a"]}}"#, r#""a","#.repeat(100_000));
    for (reply, too_long) in [
        (Reply::ok("<html>"), false),
        (Reply::ok(r#"{"tags":{}}"#), false),
        (Reply::ok(&endless).chunked(), true),
        (Reply::ok(many.as_bytes()).chunked(), true),
    ] {
        let server = replying(reply).await;
        let error = tags(&server).await.unwrap_err();
        assert_eq!(error.class(), "protocol", "{error}");
        assert_eq!(error.is_too_long(), too_long, "{error}");
    }
}

async fn referrers(server: &Server) -> Result<Option<Vec<Descriptor>>, UpstreamError> {
    let list = client(server)
        .referrers(&repo(), &digest_of("subject"), Some("a/b+c"))
        .await?;
    list.map(UnparsedList::referrers).transpose()
}

/// An index with one entry.
fn index(content: &str) -> String {
    let digest = digest_of(content);
    format!(r#"{{"manifests":[{{"mediaType":"a/b","digest":"{digest}","size":1,"extra":[1]}}]}}"#)
}

#[tokio::test]
async fn all_pages_of_referrers_are_read() {
    let server = Server::scripted(|seen| match seen.line.rsplit('?').next() {
        Some("page=2") => Reply::ok(r#"{"manifests":null}"#).with("Link", "<?page=3>; rel=next"),
        Some("page=3") => Reply::ok(index("b").as_bytes()).chunked(),
        _ => Reply::ok(index("a").as_bytes())
            .chunked()
            .with("Link", "<?page=2>; rel=next"),
    })
    .await;
    let found = referrers(&server).await.unwrap().unwrap();
    let digests: Vec<_> = found.iter().map(|one| one.digest).collect();
    assert_eq!(digests, [digest_of("a"), digest_of("b")]);
    let subject = digest_of("subject");
    let line = format!("GET /v2/library/app/referrers/{subject}?artifactType=a%2Fb%2Bc");
    assert_eq!(server.lines()[0], line);
}

#[tokio::test]
async fn an_upstream_without_the_referrers_api_has_none() {
    for status in [400, 404, 405] {
        let server = replying(Reply::new(status, "")).await;
        assert_eq!(referrers(&server).await.unwrap(), None, "{status}");
    }
    let denied = replying(Reply::new(403, "")).await;
    assert_eq!(referrers(&denied).await.unwrap_err().class(), "denied");
}

#[tokio::test]
async fn pages_are_bounded_and_stay_on_the_upstream() {
    let page = r#"{"manifests":[]}"#;
    let asked = AtomicUsize::new(0);
    let endless = Server::scripted(move |_| {
        let next = asked.fetch_add(1, Ordering::SeqCst);
        Reply::ok(page).with("Link", format!("<?page={next}>; rel=next"))
    })
    .await;
    assert!(referrers(&endless).await.unwrap_err().is_too_long());
    assert_eq!(endless.lines().len(), 100);
    let foreign = "<http://other.example/>; rel=next";
    let leaving = replying(Reply::ok(page).with("Link", foreign)).await;
    assert_eq!(referrers(&leaving).await.unwrap_err().class(), "protocol");
    let html = replying(Reply::ok("<html>")).await;
    assert_eq!(referrers(&html).await.unwrap_err().class(), "protocol");
}
