//! Tags, referrers and the catalog.

use std::time::Duration;

use futures_util::future::join_all;
use millpond::oci::manifest::media_type;
use serde_json::json;

use crate::harness::{
    ALWAYS, Answer, Image, Mirror, Registry, Reply, Setup, advance, mirrored, passing, settle,
};

fn strings(answer: &Answer, key: &str) -> Vec<String> {
    serde_json::from_value(answer.json()[key].clone()).unwrap()
}

/// Follows `Link` from page to page.
async fn all(m: &Mirror, first: &str, key: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = m.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        pages.push(strings(&answer, key));
        next = match answer.header("link") {
            "" => None,
            link => {
                let link = link.strip_prefix('<').unwrap();
                Some(link.strip_suffix(">; rel=\"next\"").unwrap().to_owned())
            }
        };
        assert!(pages.len() < 20, "pages without end");
    }
    pages
}

/// Puts an image into the upstream and pulls its manifest.
async fn pull(up: &Registry, m: &Mirror, repo: &str, tag: &str, image: &Image) {
    up.push(repo, tag, image);
    let path = format!("/v2/{repo}/manifests/{tag}");
    m.serves(&path, &image.manifest).await;
}

#[tokio::test]
async fn tags_are_the_upstreams_page_by_page() {
    let (up, m) = mirrored().await;
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
    let path = "/v2/team/app/tags/list";
    let expected = br#"{"name":"team/app","tags":["a","b","c"]}"#;
    let whole = m.serves(path, expected).await;
    assert_eq!(whole.header("content-type"), "application/json");
    let pages = all(&m, &format!("{path}?n=2"), "tags").await;
    assert_eq!(pages, [vec!["a", "b"], vec!["c"]]);
    let head = m.head(path).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn no_tags_and_no_repository() {
    let (up, m) = mirrored().await;
    up.put_json("/v2/app/tags/list", &json!({"name": "app", "tags": null}));
    m.serves("/v2/app/tags/list", br#"{"name":"app","tags":[]}"#)
        .await;
    m.get("/v2/nobody/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
    up.reply("/tags/list", 1, Reply::new(200, "<html>"));
    m.get("/v2/other/tags/list").await.refused(502, "UNKNOWN");
}

#[tokio::test]
async fn while_the_upstream_is_down_the_cached_tags_are_listed() {
    let (up, m) = mirrored().await;
    for tag in ["a", "b", "c"] {
        pull(&up, &m, "app", tag, &Image::oci(1)).await;
    }
    up.go_down();
    let answer = m.get("/v2/app/tags/list").await;
    assert_eq!(strings(&answer, "tags"), ["a", "b", "c"]);
    assert_eq!(answer.source(), "fwd=stale; fwd-status=500; detail=stale");
    let pages = all(&m, "/v2/app/tags/list?n=2", "tags").await;
    assert_eq!(pages, [vec!["a", "b"], vec!["c"]]);
    m.get("/v2/other/tags/list")
        .await
        .refused(500, "UNAVAILABLE");
}

#[tokio::test]
async fn the_catalog_is_what_is_cached() {
    let up = Registry::start().await;
    let other = Registry::start().await;
    let setup = Setup::new(&up).upstream("ghcr.example", &other, "");
    let m = setup.start().await;
    m.serves("/v2/_catalog", br#"{"repositories":[]}"#).await;
    for repo in ["b", "a/x", "c"] {
        pull(&up, &m, repo, "1", &Image::oci(1)).await;
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
    let none = format!("{path}?artifactType=application/none");
    assert!(digests(&m.get(&none).await).is_empty());
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
async fn referrers_come_from_the_api_or_the_tag_that_stands_in_for_it() {
    for from_api in [true, false] {
        let (up, m) = mirrored().await;
        let attached = if from_api {
            let attached = attached();
            up.put_json(&attached.path, &attached.index);
            attached
        } else {
            attached_by_tag(&up)
        };
        check(&m, &attached).await;
    }
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
        pull(&up, &m, "app", tag, image).await;
    }
    up.go_down();
    check(&m, &attached).await;
    let answer = m.get(&attached.path).await;
    assert_eq!(answer.source(), "fwd=stale; fwd-status=500; detail=stale");
    let other = format!("/v2/app/referrers/{}", attached.sbom.digest());
    m.get(&other).await.refused(500, "UNAVAILABLE");
}

const TAGS: &str = "/v2/app/tags/list";
const SECOND: Duration = Duration::from_secs(1);

fn source(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.source()
}

fn put_tags(up: &Registry, tags: &[&str]) {
    up.put_json(TAGS, &json!({"name": "app", "tags": tags}));
}

#[tokio::test(start_paused = true)]
async fn tags_are_sorted_and_paged_whatever_the_upstream_does() {
    let (up, m) = mirrored().await;
    // It heeds neither n nor last.
    put_tags(&up, &["c", "a", "B", "not a tag", "d", "b", "a"]);
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
    let (up, m) = mirrored().await;
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
    let pages = all(&m, &format!("{TAGS}?n=4"), "tags").await;
    assert_eq!(pages, [vec!["a", "b", "x", "y"], vec!["z"]]);
}

#[tokio::test]
async fn a_page_has_at_most_a_thousand_tags() {
    let (up, m) = mirrored().await;
    let tags: Vec<String> = (0..2_500).map(|n| format!("t{n:04}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    put_tags(&up, &tags);
    for path in [TAGS.to_owned(), format!("{TAGS}?n=1000000000")] {
        let pages = all(&m, &path, "tags").await;
        assert_eq!(pages, tags.chunks(1000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_list_that_is_too_long_is_passed_on_page_by_page() {
    let (up, m) = mirrored().await;
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
    let pages = all(&m, &format!("{TAGS}?n=2"), "tags").await;
    // In the upstream's order.
    assert_eq!(pages, [vec!["c", "b"], vec!["a"]]);
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
    let attached = attached();
    for n in 0..3 {
        let (up, m) = mirrored().await;
        let path = &listed(&up, &attached)[n];
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
    let attached = attached();
    for (trouble, status) in [
        (Reply::error(500), "; fwd-status=500"),
        (Reply::error(429), "; fwd-status=429"),
        (Reply::silence(), ""),
    ] {
        let (up, m) = mirrored().await;
        let paths = listed(&up, &attached);
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
            stale.has("warning", "110 millpond \"Response is Stale\"");
            stale.expect(200, &first.body);
            up.take();
            let again = m.serves(path, &first.body).await;
            assert_eq!(source(&again), "hit; detail=stale");
            assert_eq!(up.count(path), 0, "left alone for a while");
            up.behave();
            // A 429 is over for other lists, too.
            advance(10 * SECOND).await;
        }
        // Filters apply to what is remembered.
        let some = format!("{}?artifactType=application/sbom", attached.path);
        assert_eq!(digests(&m.get(&some).await), [attached.sbom.digest()]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_gone_is_forgotten() {
    let (up, m) = mirrored().await;
    put_tags(&up, &["a"]);
    assert_eq!(source(&m.get(TAGS).await), "fwd=miss; fwd-status=200");
    up.delete(TAGS);
    advance(31 * SECOND).await;
    m.get(TAGS).await.refused(404, "NAME_UNKNOWN");
    up.go_down();
    advance(10 * SECOND).await;
    m.get(TAGS).await.refused(500, "UNAVAILABLE");
}

#[tokio::test]
async fn after_a_restart_referrers_are_known_from_the_tag_that_lists_them() {
    let (up, m) = mirrored().await;
    let attached = attached_by_tag(&up);
    assert_eq!(digests(&m.get(&attached.path).await).len(), 2);
    up.go_down();
    let answer = m.restarted(&up).await.get(&attached.path).await;
    assert_eq!(digests(&answer).len(), 2);
    assert_eq!(source(&answer), "fwd=stale; fwd-status=500; detail=stale");
}
