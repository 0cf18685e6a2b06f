//! Tags, referrers and the catalog.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::{
    ALWAYS, Answer, Image, Mirror, Registry, Reply, Setup, advance, freeze, mirrored, passing,
    settle,
};

fn strings(answer: &Answer, key: &str) -> Vec<String> {
    let list = answer.json()[key].as_array().unwrap().clone();
    list.iter()
        .map(|entry| entry.as_str().unwrap().to_owned())
        .collect()
}

/// Follows `Link` from page to page.
async fn all(m: &Mirror, first: &str, key: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = m.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        pages.push(strings(&answer, key));
        let link = answer.header("link");
        next = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""))
            .map(str::to_owned);
        assert_eq!(link.is_empty(), next.is_none(), "{link}");
        assert!(pages.len() < 20, "pages without end");
    }
    pages
}

#[tokio::test]
async fn tags_are_the_upstreams_page_by_page() {
    let up = Registry::start().await;
    up.on("/v2/team/app/tags/list", ALWAYS, |seen, _| {
        if seen.line.ends_with("/tags/list?n=2") {
            let page = json!({"name": "team/app", "tags": ["a", "b"]});
            Reply::json(&page).with("Link", "</v2/team/app/tags/list?n=2&last=b>; rel=\"next\"")
        } else if seen.line.contains("n=2") && seen.line.contains("last=b") {
            Reply::json(&json!({"name": "team/app", "tags": ["c"]}))
        } else {
            Reply::json(&json!({"name": "team/app", "tags": ["a", "b", "c", "not a tag"]}))
        }
    });
    let m = Setup::new(&up).start().await;
    let path = "/v2/team/app/tags/list";
    let whole = m.get(path).await;
    whole.expect(200, br#"{"name":"team/app","tags":["a","b","c"]}"#);
    assert_eq!(whole.header("content-type"), "application/json");
    let pages = all(&m, &format!("{path}?n=2"), "tags").await;
    assert_eq!(pages, [vec!["a", "b"], vec!["c"]]);
    let head = m.head(path).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn no_tags_and_no_repository() {
    let up = Registry::start().await;
    up.put_json("/v2/app/tags/list", &json!({"name": "app", "tags": null}));
    let m = Setup::new(&up).start().await;
    m.serves("/v2/app/tags/list", br#"{"name":"app","tags":[]}"#)
        .await;
    let unknown = m.get("/v2/nobody/tags/list").await;
    assert_eq!(unknown.error(), (404, "NAME_UNKNOWN".to_owned()));
    up.reply("/tags/list", 1, Reply::new(200, "<html>"));
    assert_eq!(
        m.get("/v2/other/tags/list").await.error(),
        (502, "UNKNOWN".to_owned())
    );
}

#[tokio::test]
async fn while_the_upstream_is_down_the_cached_tags_are_listed() {
    let (up, m) = mirrored().await;
    for tag in ["a", "b", "c"] {
        up.push("app", tag, &Image::oci(1));
        assert_eq!(m.get(&format!("/v2/app/manifests/{tag}")).await.status, 200);
    }
    up.go_down();
    let answer = m.get("/v2/app/tags/list").await;
    assert_eq!(strings(&answer, "tags"), ["a", "b", "c"]);
    assert_eq!(
        answer.header("cache-status"),
        "millpond; fwd=stale; fwd-status=500; detail=stale"
    );
    let pages = all(&m, "/v2/app/tags/list?n=2", "tags").await;
    assert_eq!(pages, [vec!["a", "b"], vec!["c"]]);
    let unknown = m.get("/v2/other/tags/list").await;
    assert_eq!(unknown.error(), (500, "UNAVAILABLE".to_owned()));
}

#[tokio::test]
async fn the_catalog_is_what_is_cached() {
    let up = Registry::start().await;
    let other = Registry::start().await;
    let m = Setup::new(&up)
        .upstream("ghcr.example", &other, "")
        .start()
        .await;
    m.serves("/v2/_catalog", br#"{"repositories":[]}"#).await;
    for repo in ["b", "a/x", "c"] {
        up.push(repo, "1", &Image::oci(1));
        assert_eq!(m.get(&format!("/v2/{repo}/manifests/1")).await.status, 200);
    }
    other.push("b", "1", &Image::oci(1));
    assert_eq!(m.get("/v2/ghcr.example/b/manifests/1").await.status, 200);
    let names = ["a/x", "b", "c", "ghcr.example/b"];
    assert_eq!(all(&m, "/v2/_catalog", "repositories").await, [names]);
    for n in 1..=5 {
        let pages = all(&m, &format!("/v2/_catalog?n={n}"), "repositories").await;
        assert_eq!(pages, names.chunks(n).collect::<Vec<_>>());
    }
    let after = m.get("/v2/_catalog?last=b").await;
    assert_eq!(strings(&after, "repositories"), ["c", "ghcr.example/b"]);
}

fn digests(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), media_type::OCI_INDEX);
    assert_eq!(answer.json()["schemaVersion"], 2);
    let manifests = answer.json()["manifests"].as_array().unwrap().clone();
    let digest = |manifest: &serde_json::Value| manifest["digest"].as_str().unwrap().to_owned();
    manifests.iter().map(digest).collect()
}

fn referrer(image: &Image, artifact_type: &str) -> serde_json::Value {
    let mut descriptor = image.descriptor();
    descriptor["artifactType"] = artifact_type.into();
    descriptor
}

struct Attached {
    image: Image,
    signature: Image,
    sbom: Image,
    /// What the referrers API lists.
    index: serde_json::Value,
    path: String,
}

fn attached() -> Attached {
    let image = Image::oci(1);
    let signature = Image::artifact(2, &image, "application/sig+json");
    let sbom = Image::artifact(3, &image, "application/sbom");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [referrer(&signature, "application/sig+json"), referrer(&sbom, "application/sbom")],
    });
    let path = format!("/v2/app/referrers/{}", image.digest());
    Attached {
        image,
        signature,
        sbom,
        index,
        path,
    }
}

/// What all ways to referrers have in common: everything, one type, a type that nothing has.
async fn check(m: &Mirror, attached: &Attached) {
    let Attached {
        signature,
        sbom,
        path,
        ..
    } = attached;
    let (signature, sbom) = (signature.digest(), sbom.digest());
    let everything = m.get(path).await;
    let mut listed = digests(&everything);
    listed.sort();
    let mut both = vec![signature.clone(), sbom];
    both.sort();
    assert_eq!(listed, both);
    assert_eq!(everything.header("oci-filters-applied"), "");
    for kind in ["application/sig%2Bjson", "application/sig+json"] {
        let filtered = m.get(&format!("{path}?artifactType={kind}")).await;
        assert_eq!(digests(&filtered), std::slice::from_ref(&signature));
        assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
        assert_eq!(
            filtered.json()["manifests"][0]["artifactType"],
            "application/sig+json"
        );
    }
    let nothing = m
        .get(&format!("{path}?artifactType=application/none"))
        .await;
    assert!(digests(&nothing).is_empty());
}

#[tokio::test]
async fn referrers_from_the_upstreams_api() {
    let up = Registry::start().await;
    let attached = attached();
    up.put_json(&attached.path, &attached.index);
    let m = Setup::new(&up).start().await;
    check(&m, &attached).await;
}

/// Referrers that the registry lists under the tag which stands in for the API.
fn attached_by_tag(up: &Registry) -> Attached {
    let attached = attached();
    let tag = attached.image.digest().replace(':', "-");
    let index = attached.index.to_string().into();
    up.tag("app", &tag, media_type::OCI_INDEX, &index);
    attached
}

#[tokio::test]
async fn referrers_from_the_tag_that_stands_in_for_the_api() {
    let up = Registry::start().await;
    let attached = attached_by_tag(&up);
    let m = Setup::new(&up).start().await;
    check(&m, &attached).await;
}

#[tokio::test]
async fn nothing_refers_to_it() {
    let (up, m) = mirrored().await;
    let attached = attached();
    assert!(digests(&m.get(&attached.path).await).is_empty());
    up.put_json(
        &attached.path,
        &json!({"schemaVersion": 2, "manifests": []}),
    );
    assert!(digests(&m.get(&attached.path).await).is_empty());
}

#[tokio::test]
async fn while_the_upstream_is_down_the_cached_referrers_are_listed() {
    let (up, m) = mirrored().await;
    let attached = attached();
    for (tag, image) in [
        ("i", &attached.image),
        ("s", &attached.signature),
        ("b", &attached.sbom),
    ] {
        up.push("app", tag, image);
        assert_eq!(m.get(&format!("/v2/app/manifests/{tag}")).await.status, 200);
    }
    up.go_down();
    check(&m, &attached).await;
    let answer = m.get(&attached.path).await;
    assert_eq!(
        answer.header("cache-status"),
        "millpond; fwd=stale; fwd-status=500; detail=stale"
    );
    let unknown = m
        .get(&format!("/v2/app/referrers/{}", attached.sbom.digest()))
        .await;
    assert_eq!(unknown.error(), (500, "UNAVAILABLE".to_owned()));
}

const TAGS: &str = "/v2/app/tags/list";
const SECOND: Duration = Duration::from_secs(1);

fn source(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
        .header("cache-status")
        .trim_start_matches("millpond; ")
}

fn put_tags(up: &Registry, tags: &[&str]) {
    up.put_json(TAGS, &json!({"name": "app", "tags": tags}));
}

#[tokio::test(start_paused = true)]
async fn tags_are_sorted_and_paged_whatever_the_upstream_does() {
    let _frozen = freeze();
    let up = Registry::start().await;
    // It heeds neither n nor last.
    put_tags(&up, &["c", "a", "B", "not a tag", "d", "b", "a"]);
    let m = Setup::new(&up).start().await;
    let sorted = ["B", "a", "b", "c", "d"];
    for n in 1..=6 {
        let pages = all(&m, &format!("{TAGS}?n={n}"), "tags").await;
        assert_eq!(pages, sorted.chunks(n).collect::<Vec<_>>());
    }
    assert_eq!(all(&m, TAGS, "tags").await, [sorted]);
    let after = m.get(&format!("{TAGS}?last=b&n=0")).await;
    assert_eq!(strings(&after, "tags"), [""; 0]);
    assert_eq!(up.count(TAGS), 1);
}

#[tokio::test]
async fn all_pages_of_the_upstream_make_one_list() {
    let up = Registry::start().await;
    up.on(TAGS, ALWAYS, |seen, _| {
        let link = |rest: &str| format!("<{TAGS}?{rest}>; rel=\"next\"");
        let page = |tags: &[&str]| Reply::json(&json!({"name": "app", "tags": tags}));
        if seen.line.contains("n=1000") {
            Reply::error(400)
        } else if seen.line.contains("last=y") {
            page(&["b", "z"]).with("Link", link("last=z"))
        } else if seen.line.contains("last=z") {
            page(&["a"])
        } else {
            page(&["x", "y"]).with("Link", link("last=y"))
        }
    });
    let m = Setup::new(&up).start().await;
    let pages = all(&m, &format!("{TAGS}?n=4"), "tags").await;
    assert_eq!(pages, [vec!["a", "b", "x", "y"], vec!["z"]]);
}

#[tokio::test]
async fn a_page_has_at_most_a_thousand_tags() {
    let up = Registry::start().await;
    let tags: Vec<String> = (0..2_500).map(|n| format!("t{n:04}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    put_tags(&up, &tags);
    let m = Setup::new(&up).start().await;
    for path in [TAGS.to_owned(), format!("{TAGS}?n=1000000000")] {
        let pages = all(&m, &path, "tags").await;
        assert_eq!(pages, tags.chunks(1000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_list_that_is_too_long_is_passed_on_page_by_page() {
    let up = Registry::start().await;
    up.on(TAGS, ALWAYS, |seen, _| {
        if seen.line.contains("n=1000") {
            Reply::new(200, vec![b' '; 4 * 1024 * 1024 + 1])
        } else if seen.line.contains("last=b") {
            Reply::json(&json!({"name": "app", "tags": ["a"]}))
        } else {
            Reply::json(&json!({"name": "app", "tags": ["c", "b"]}))
                .with("Link", format!("<{TAGS}?n=2&last=b>; rel=\"next\""))
        }
    });
    let m = Setup::new(&up).start().await;
    let pages = all(&m, &format!("{TAGS}?n=2"), "tags").await;
    assert_eq!(
        pages,
        [vec!["c", "b"], vec!["a"]],
        "in the upstream's order"
    );
    assert_eq!((up.count("n=1000"), up.count(TAGS)), (1, 3));
}

/// The paths of lists that the upstream has: tags, referrers, and referrers of what has none.
fn listed(up: &Registry, attached: &Attached) -> [String; 3] {
    put_tags(up, &["a"]);
    up.put_json(&attached.path, &attached.index);
    let alone = format!("/v2/app/referrers/{}", attached.sbom.digest());
    [TAGS.to_owned(), attached.path.clone(), alone]
}

#[tokio::test(start_paused = true)]
async fn a_list_is_asked_for_once_for_all_and_for_thirty_seconds() {
    let _frozen = freeze();
    let attached = attached();
    for n in 0..3 {
        let up = Registry::start().await;
        let path = &listed(&up, &attached)[n];
        let m = Setup::new(&up).start().await;
        let gate = up.hold(path, 1);
        let (answers, ()) = tokio::join!(join_all((0..20).map(|_| m.get(path))), async {
            up.wait(1, path).await;
            m.counted("millpond_connections", 20).await;
            settle().await;
            gate.open();
        });
        for answer in &answers {
            assert_eq!(source(answer), "fwd=miss; fwd-status=200");
        }
        assert_eq!(up.count(path), 1);
        advance(29 * SECOND).await;
        assert_eq!(source(&m.get(path).await), "hit");
        advance(2 * SECOND).await;
        assert_eq!(up.count(path), 1);
        assert_eq!(source(&m.get(path).await), "fwd=miss; fwd-status=200");
        assert_eq!(up.count(path), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_were_seen_are_remembered_while_the_upstream_cannot_answer() {
    let _frozen = freeze();
    let attached = attached();
    for (trouble, status) in [
        (Reply::error(500), "; fwd-status=500"),
        (Reply::error(429), "; fwd-status=429"),
        (Reply::silence(), ""),
    ] {
        let up = Registry::start().await;
        let paths = listed(&up, &attached);
        let m = Setup::new(&up).start().await;
        for path in &paths {
            let first = m.get(path).await;
            assert_eq!(source(&first), "fwd=miss; fwd-status=200");
            advance(60 * SECOND).await;
            up.reply("", ALWAYS, trouble.clone());
            let started = tokio::time::Instant::now();
            let stale = passing(m.get(path)).await;
            assert!(started.elapsed() < 11 * SECOND, "{:?}", started.elapsed());
            let forwarded = format!("fwd=stale{status}; detail=stale");
            assert_eq!(source(&stale), forwarded, "{path}");
            assert_eq!(
                stale.header("warning"),
                "110 millpond \"Response is Stale\""
            );
            stale.expect(200, &first.body);
            up.take();
            let again = m.get(path).await;
            again.expect(200, &first.body);
            assert_eq!(source(&again), "hit; detail=stale");
            assert_eq!(up.count(path), 0, "left alone for a while");
            up.behave();
        }
        // Filters apply to what is remembered.
        let some = m
            .get(&format!("{}?artifactType=application/sbom", attached.path))
            .await;
        assert_eq!(digests(&some), [attached.sbom.digest()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_gone_is_forgotten() {
    let _frozen = freeze();
    let up = Registry::start().await;
    put_tags(&up, &["a"]);
    let m = Setup::new(&up).start().await;
    assert_eq!(source(&m.get(TAGS).await), "fwd=miss; fwd-status=200");
    up.delete(TAGS);
    advance(31 * SECOND).await;
    assert_eq!(m.get(TAGS).await.error(), (404, "NAME_UNKNOWN".to_owned()));
    up.go_down();
    assert_eq!(m.get(TAGS).await.error(), (500, "UNAVAILABLE".to_owned()));
}

#[tokio::test]
async fn after_a_restart_referrers_are_known_from_the_tag_that_lists_them() {
    let up = Registry::start().await;
    let attached = attached_by_tag(&up);
    let m = Setup::new(&up).start().await;
    assert_eq!(digests(&m.get(&attached.path).await).len(), 2);
    up.go_down();
    let again = Setup::new(&up).store(Arc::clone(&m.store)).start().await;
    let answer = again.get(&attached.path).await;
    assert_eq!(digests(&answer).len(), 2);
    assert_eq!(source(&answer), "fwd=stale; fwd-status=500; detail=stale");
}
