//! The text of all metrics, and the files of `deploy/` that name them.

use super::*;

fn zero() -> (Duration, Duration) {
    (Duration::ZERO, Duration::ZERO)
}

/// Metrics with something counted in many of them.
fn counted() -> Metrics {
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
    metrics
}

#[test]
fn what_is_counted_is_rendered_as_text() {
    let metrics = counted();
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

// --- The files of `deploy/` --------------------------------------------------------------------------

const PAGE: &str = include_str!("../../deploy/metrics.md");
const DASHBOARD: &str = include_str!("../../deploy/grafana/millpond.json");
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const ALERTS_TEST: &str = include_str!("../../deploy/prometheus/alerts_test.yml");

/// The rows of the page's table: name, type, labels.
fn documented() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let rows = PAGE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `millpond_").map(|_| line.split('|'))?;
        let (_, name, kind, labels) = (cells.next(), cells.next()?, cells.next()?, cells.next()?);
        let labels = labels.split(',').map(str::trim);
        let labels = labels.filter(|label| !label.is_empty()).collect();
        Some((name.trim().trim_matches('`'), kind.trim(), labels))
    });
    rows.collect()
}

#[test]
fn the_page_lists_the_metrics_that_exist() {
    let metrics = Metrics::new();
    let mut documented: Vec<_> = documented()
        .into_iter()
        .map(|(name, kind, _)| (name.to_owned(), kind.to_owned()))
        .collect();
    let mut existing = metrics.names().to_vec();
    documented.sort();
    existing.sort();
    assert_eq!(documented, existing);
}

/// The metrics that a text names, each with the labels that are written after it in braces.
fn named(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("millpond_") {
        let (before, rest) = text.split_at(at);
        if before.ends_with('_') {
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let selectors = braces.map_or("", |(selectors, _)| selectors).split(',');
        let labels = selectors.filter_map(|selector| {
            let (label, _) = selector.split_once(['=', '!'])?;
            Some(label.trim())
        });
        found.push((name, labels.collect()));
    }
    found
}

#[test]
fn dashboard_and_alerts_name_metrics_and_labels_that_exist() {
    let documented = documented();
    for (file, text, at_least) in [
        ("dashboard", DASHBOARD, 50),
        ("alerts", ALERTS, 18),
        ("alerts_test", ALERTS_TEST, 40),
    ] {
        let named = named(text);
        assert!(named.len() >= at_least, "{file}: {}", named.len());
        for (name, labels) in named {
            let of_histogram = ["_bucket", "_count", "_sum"]
                .into_iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let known = documented.iter().find(|(known, kind, _)| {
                name == *known && *kind != "histogram"
                    || of_histogram == Some(known) && *kind == "histogram"
            });
            let (_, _, known) = known.unwrap_or_else(|| panic!("{file} has {name}"));
            for label in labels {
                let always = ["instance", "job"].contains(&label);
                let of_bucket = label == "le" && name.ends_with("_bucket");
                assert!(
                    always || of_bucket || known.contains(&label),
                    "{file}: {name} has no label {label}"
                );
            }
        }
    }
}

#[test]
fn each_alert_is_tested() {
    let alerts = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        let row = format!("alertname=\"{alert}\"");
        assert!(ALERTS_TEST.contains(&row), "{alert}");
    }
}
