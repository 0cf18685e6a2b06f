//! What operators can see of it all.

use crate::harness::{Image, Mirror, Registry, Reply, mirrored, noise, passing};

const COUNTED: &str = r#"
upstream_requests_total{UP,kind="manifest",method="GET",status="200"} 1
upstream_requests_total{UP,kind="manifest",method="GET",status="404"} 1
upstream_requests_total{UP,kind="blob",method="GET",status="200"} 1
upstream_received_bytes_total{UP,kind="blob"} 100000
requests_total{route="manifest",result="miss"} 1
requests_total{route="manifest",result="hit"} 2
requests_total{route="manifest",result="error"} 1
requests_total{route="blob",result="miss"} 1
requests_total{route="blob",result="hit"} 4
requests_total{route="blob",status="200"} 4
requests_total{route="blob",status="206"} 1
requests_total{route="other",status="404"} 1
client_sent_bytes_total{route="blob"} 300100
client_sent_bytes_total{route="blob",UP,result="miss"} 100000
saved_bytes_total{route="blob",UP} 200100
requests_total{UP,route="blob",status="200",result="hit"} 3
requests_total{route="other",upstream="none"} 1
request_duration_seconds_count{route="blob",result="hit"} 4
request_first_byte_seconds_count{route="blob",result="miss"} 1
upstream_phase_duration_seconds_count{UP,phase="first_byte"} 3
upstream_phase_duration_seconds_count{UP,phase="whole"} 3
upstream_errors_total{UP,error="not_found"} 1
upstream_errors_total{UP} 1
store_commit_duration_seconds_count 2
followers 0
store_failures_total 0
"#;

#[tokio::test]
async fn requests_and_bytes_on_both_sides() {
    let (up, m) = mirrored().await;
    let image = Image::oci(1);
    let blob = noise(1, 100_000);
    up.push("app", "1", &image);
    let digest = up.put_blob("app", &blob);
    let path = format!("/v2/app/blobs/{digest}");
    for _ in 0..3 {
        m.serves("/v2/app/manifests/1", &image.manifest).await;
        m.pull(&path, &blob).await;
    }
    let range = [("range", "bytes=0-99")];
    m.ask(&format!("GET {path}"), &range)
        .await
        .expect(206, &blob[..100]);
    m.head(&path).await;
    m.get("/v2/app/manifests/2").await;
    m.get("/nothing").await;
    for line in COUNTED.trim().lines() {
        let line = line.replace("UP", &format!(r#"upstream="{}""#, up.address));
        let (series, value) = line.rsplit_once(' ').unwrap();
        m.counted(&format!("millpond_{series}"), value.parse().unwrap())
            .await;
    }
    let size = image.manifest.len() as u64;
    let errors = 200; // An upper bound of the error document of the unknown tag.
    let sent = m.metric(r#"millpond_client_sent_bytes_total{route="manifest"}"#);
    assert!((3 * size..3 * size + errors).contains(&sent), "{sent}");
}

/// Requests to the upstream with these labels.
fn upstream_requests(up: &Registry, m: &Mirror, labels: &str) -> u64 {
    let name = up.address;
    let labels = format!(r#"{{upstream="{name}",{labels}}}"#);
    m.metric(&format!("millpond_upstream_requests_total{labels}"))
}

#[tokio::test(start_paused = true)]
async fn failures_have_a_name() {
    for (trouble, status) in [
        (Reply::error(503), "503"),
        (Reply::silence(), "timeout"),
        (Reply::hang_up(), "broken"),
    ] {
        let (up, m) = mirrored().await;
        up.reply("", 1, trouble);
        passing(m.get("/v2/app/manifests/1")).await;
        let labels = format!(r#"kind="manifest",method="GET",status="{status}""#);
        assert_eq!(upstream_requests(&up, &m, &labels), 1, "{status}");
    }
}

#[tokio::test]
async fn tokens_are_counted_as_tokens() {
    let (up, m) = mirrored().await;
    up.protect(None);
    up.push("app", "1", &Image::oci(1));
    assert_eq!(m.get("/v2/app/manifests/1").await.status, 200);
    for labels in [
        r#"kind="token",method="GET",status="200""#,
        r#"kind="manifest",method="GET",status="401""#,
    ] {
        assert_eq!(upstream_requests(&up, &m, labels), 1, "{labels}");
    }
}
