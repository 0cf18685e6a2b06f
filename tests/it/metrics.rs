//! The page of metrics: its formats, and the series that it has.

use std::collections::BTreeMap;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{Image, mirrored, mirrored_with, noise, put_image};

/// The page that lists all metrics.
const PAGE: &str = include_str!("../../deploy/metrics.md");

/// The labels of each metric on the page; those of a histogram under the names of its series.
fn documented() -> BTreeMap<String, Vec<&'static str>> {
    let mut found = BTreeMap::new();
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (name, kind) = (cells[1].trim_matches('`'), cells[2]);
        let labels = cells[3].split(',').map(str::trim);
        let labels: Vec<_> = labels.filter(|label| !label.is_empty()).collect();
        if kind == "histogram" {
            found.insert(format!("{name}_sum"), labels.clone());
            found.insert(format!("{name}_count"), labels.clone());
            let with_bound = ["le"].into_iter().chain(labels).collect();
            found.insert(format!("{name}_bucket"), with_bound);
        } else {
            found.insert(name.to_owned(), labels);
        }
    }
    found
}

#[tokio::test]
async fn series_have_the_documented_names_and_labels_and_no_names_of_content() {
    let deny =
        "root.access: [{repositories: [secret/**], effect: deny}, {anyone: true, effect: allow}]";
    let (up, m) = mirrored_with(&[deny]).await;
    up.protect(None);
    let image = Image::oci(1);
    let blob = noise(1, 100_000);
    up.push("team/app", "release-1", &image);
    let digest = up.put_blob("team/app", &blob);
    m.serves("/v2/team/app/manifests/release-1", &image.manifest)
        .await;
    m.pull(&format!("/v2/team/app/blobs/{digest}"), &blob).await;
    m.get("/v2/team/app/manifests/none").await;
    m.get("/v2/team/app/tags/list").await;
    m.get("/v2/team/app/manifests/release-1?ns=unknown.example")
        .await;
    assert_eq!(m.get("/v2/secret/app/manifests/1").await.status, 403);
    m.counted("millpond_requests_total", 6).await;
    m.counted(r#"millpond_callers_refused_total{reason="rule"}"#, 1)
        .await;
    m.counted("millpond_callers_refused_total", 1).await;
    let tokens = r#"millpond_upstream_token_fetches_total{result="granted"}"#;
    m.counted(tokens, 1).await;
    let none = r#"millpond_requests_total{upstream="none",route="manifest",result="error"}"#;
    m.counted(none, 1).await;

    let text = m.debug("/metrics").await;
    assert_eq!(text.header("vary"), "accept");
    let text = String::from_utf8(text.body.to_vec()).unwrap();
    let young = |line: &str| {
        line.starts_with("millpond_endpoint_tokens{") && line.ends_with("age=\"1m\"} 1")
    };
    assert!(text.lines().any(young), "{text}");
    let documented = documented();
    let mut seen = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split(',');
        let mut labels: Vec<_> = labels
            .filter_map(|label| Some(label.split_once('=')?.0))
            .collect();
        labels.sort_unstable();
        let mut known = documented
            .get(name)
            .unwrap_or_else(|| panic!("{line}"))
            .clone();
        known.sort_unstable();
        assert_eq!(labels, known, "{line}");
        seen += 1;
        for content in ["team", "app", "release-1", "sha256", "unknown", "secret"] {
            assert!(!line.contains(content), "{line}");
        }
    }
    assert!(seen > 100, "{seen}");
}

#[tokio::test]
async fn accept_selects_the_format() {
    let (_up, m) = mirrored_with(&[]).await;
    let open = "application/openmetrics-text; version=1.0.0";
    for (accept, content_type, end) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "\n"),
        (
            open,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "\n# EOF\n",
        ),
        (
            "application/openmetrics-text;q=0.1, text/plain;version=0.0.4;q=0.2",
            "text/plain; version=0.0.4; charset=utf-8",
            "\n",
        ),
    ] {
        let page = m.debug_as("/metrics", accept).await;
        assert_eq!(page.header("content-type"), content_type, "{accept}");
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        assert!(text.ends_with(end), "{accept}: {text}");
        let is_open = content_type.starts_with("application/");
        assert_eq!(text.contains("# UNIT "), is_open, "{accept}");
        let kind = if is_open {
            "connections_refused counter"
        } else {
            "connections_refused_total counter"
        };
        assert!(
            text.contains(&format!("\n# TYPE millpond_{kind}\n")),
            "{accept}: {text}"
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_counts_for_its_route() {
    let (up, m) = mirrored().await;
    let (_, path) = put_image(&up, 1);
    let _gate = up.hold("/manifests/", 1);
    let mut client = TcpStream::connect(m.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    up.wait(1, "/manifests/").await;
    drop(client);
    m.counted(
        r#"millpond_requests_total{route="manifest",status="none"}"#,
        1,
    )
    .await;
}
