//! The text of all metrics, and the files of `deploy/` that name them.

use super::*;

fn zero() -> (Duration, Duration) {
    (Duration::ZERO, Duration::ZERO)
}

#[test]
fn what_is_counted_is_rendered_as_text() {
    let metrics = Metrics::new();
    let answer = |route, result| Answer {
        upstream: UpstreamId::NONE,
        route,
        result,
    };
    metrics.served(answer(Kind::Manifest, Outcome::Stale), 200, zero());
    metrics.authenticated(Authentication::Refused);
    metrics.caller_refused(RefusedCaller::DenyList);
    metrics.handshake(Handshake::Resumed);
    metrics.tls_expiry(":5000", 7);
    metrics.removed(Removal::MaxSize, 7, true);
    metrics.removed(Removal::MaxSize, 8, false);
    metrics.removed(Removal::Expired, 9, true);
    metrics.quarantined();
    metrics.store_free(Some(11));
    metrics.store_committed(Duration::from_millis(3));
    metrics.task_panics(2);
    metrics.task_panics(1);
    let figures = CacheFigures {
        bytes: 1,
        staging_bytes: 2,
        full: 3,
        expiring_links: 4,
        ..CacheFigures::default()
    };
    metrics.cache(&figures);
    let (_one, two) = (metrics.follower(), metrics.follower());
    drop(two);
    let text = metrics.render();
    for line in [
        r#"millpond_requests_total{route="manifest",upstream="none",status="200",result="stale"} 1"#,
        r#"millpond_authentications_total{result="refused"} 1"#,
        r#"millpond_callers_refused_total{reason="deny_list"} 1"#,
        r#"millpond_callers_refused_total{reason="rule"} 0"#,
        r#"millpond_tls_handshakes_total{result="resumed"} 1"#,
        r#"millpond_tls_handshakes_total{result="timeout"} 0"#,
        r#"millpond_tls_certificate_expiry_timestamp_seconds{listener=":5000"} 7"#,
        r#"millpond_cache_evictions_total{reason="maxsize"} 2"#,
        r#"millpond_cache_evicted_bytes_total{reason="maxsize"} 15"#,
        r#"millpond_cache_evicted_bytes_total{reason="expired"} 9"#,
        "millpond_cache_evicted_recently_used_bytes_total 7",
        "millpond_cache_quarantined_blobs_total 1",
        "millpond_store_free_bytes 11.0",
        "millpond_store_commit_duration_seconds_count 1",
        "millpond_task_panics_total 2",
        "millpond_cache_bytes 1",
        "millpond_cache_staging_bytes 2",
        "millpond_cache_full_total 3",
        "millpond_cache_expiry_queue_links 4",
        "millpond_followers 1",
        "millpond_downloads_in_flight 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    let build = format!(
        "millpond_build_info{{version=\"{}\",",
        env!("CARGO_PKG_VERSION")
    );
    assert!(text.contains(&build), "{text}");
}

#[test]
fn both_formats_have_the_same_series() {
    let metrics = Metrics::new();
    let text = metrics.render();
    let open = metrics.render_as(Format::OpenMetrics);
    assert!(open.ends_with("# EOF\n"));
    let series = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(series(&text), series(&open));
}
