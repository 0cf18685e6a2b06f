//! The deny list and the audit log.

use std::fs;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

async fn list_at(path: &std::path::Path) -> DenyList {
    let config = DenyConfig::default();
    DenyList::open(&config, Some(path.to_owned()))
        .await
        .unwrap()
}

const NOW: &str = "2026-01-01T00:00:00Z";

#[tokio::test]
async fn the_deny_list_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("millpond/denied.json");
    let list = list_at(&path).await;
    assert_eq!(list.list(), []);
    assert!(!path.exists(), "nothing is written before the first entry");
    let bad = digest("bad");
    let of_repository = format!("x/y@{bad}");
    let added = list
        .add(&of_repository, Some("mal\nware".to_owned()), NOW.to_owned())
        .await
        .unwrap();
    assert_eq!(
        (added.reference, added.reason.as_deref()),
        (bad.to_string(), Some("mal ware"))
    );
    list.add("x/y:1.*", None, NOW.to_owned()).await.unwrap();
    let again = list_at(&path).await;
    assert_eq!(again.list(), list.list());
    assert_eq!(again.list().len(), 2);
    assert!(again.of_digest(&bad).is_some());
    let (repo, other): (RepoName, RepoName) = ("x/y".parse().unwrap(), "x/z".parse().unwrap());
    let tag: Reference = "1.2".parse().unwrap();
    assert!(again.of_request(&repo, Some(&tag)).is_some());
    assert!(again.of_request(&other, Some(&tag)).is_none());
    assert!(
        again.of_request(&repo, None).is_none(),
        "a tag isn't the repository"
    );
    again.remove("x/y:1.*").await.unwrap();
    assert_eq!(list_at(&path).await.list().len(), 1);
    let unknown = again.remove("x/y:1.*").await.unwrap_err();
    assert_eq!(unknown.to_string(), "x/y:1.* isn't on the deny list");
}

#[tokio::test]
async fn entries_of_the_configuration_stay_there() {
    let config = DenyConfig {
        digests: vec![digest("bad")],
        images: vec!["x/**".parse().unwrap()],
    };
    let list = DenyList::open(&config, None).await.unwrap();
    assert_eq!(list.list().len(), 2);
    for change in [
        list.remove("x/**").await.unwrap_err(),
        list.add("x/**", None, NOW.to_owned()).await.unwrap_err(),
    ] {
        let expected = "x/** is denied by the configuration; remove it there";
        assert_eq!(change.to_string(), expected);
    }
}

#[tokio::test]
async fn a_deny_list_that_cannot_be_read_is_an_error_and_one_that_cannot_be_saved_is_in_effect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("denied.json");
    fs::write(&path, "{\"denied\":[{\"reference\":\"x\"").unwrap();
    let config = DenyConfig::default();
    let error = DenyList::open(&config, Some(path.clone()))
        .await
        .unwrap_err();
    assert!(matches!(error, DenyError::Invalid { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let list = list_at(&path).await;
    // A directory is in the place of the file.
    fs::create_dir(&path).unwrap();
    let bad = digest("bad");
    let error = list
        .add(&bad.to_string(), None, NOW.to_owned())
        .await
        .unwrap_err();
    assert!(matches!(error, DenyError::Save { .. }), "{error}");
    assert!(list.of_digest(&bad).is_some(), "in effect all the same");
    let error = list.remove(&bad.to_string()).await.unwrap_err();
    assert!(matches!(error, DenyError::Save { .. }), "{error}");
    assert!(list.of_digest(&bad).is_some(), "not removed");
}

#[tokio::test]
async fn the_deny_list_refuses_what_is_no_reference_and_is_bounded() {
    let list = DenyList::default();
    for bad in ["", "A/b", "a b", "a:b/c", "sha256:12/x", "a:"] {
        let error = list.add(bad, None, NOW.to_owned()).await.unwrap_err();
        assert!(matches!(error, DenyError::Reference(_)), "{bad}: {error}");
    }
    let long = "x".repeat(entry::MAX_REASON + 1);
    let error = list
        .add("a/b", Some(long), NOW.to_owned())
        .await
        .unwrap_err();
    assert!(matches!(error, DenyError::Reason));
    for number in 0..entry::MAX_IMAGES {
        list.add(&format!("a/{number}"), None, NOW.to_owned())
            .await
            .unwrap();
    }
    let error = list.add("a/b", None, NOW.to_owned()).await.unwrap_err();
    assert!(matches!(error, DenyError::Full));
    // A known one may change its reason.
    list.add("a/0", Some("x".to_owned()), NOW.to_owned())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_response_under_way_is_denied_by_a_new_entry_only() {
    let list = Arc::new(DenyList::default());
    let repository: RepoName = "x/y".parse().unwrap();
    let mut watch = Watch::new(&list, &repository, Reference::Digest(digest("a")));
    assert!(!watch.is_denied());
    list.add(&digest("b").to_string(), None, NOW.to_owned())
        .await
        .unwrap();
    assert!(!watch.is_denied(), "another digest");
    list.add(&digest("a").to_string(), None, NOW.to_owned())
        .await
        .unwrap();
    assert!(watch.is_denied());
    // One that is made after the entry, for a request that was checked before it.
    let mut late = Watch::new(&list, &repository, Reference::Digest(digest("a")));
    assert!(late.is_denied());
}

#[tokio::test]
async fn refusals_and_changes_of_the_list_are_logged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let clock = Clock::starting_at(std::time::SystemTime::UNIX_EPOCH);
    let audit = Audit::start(&config::Audit::File(path.clone()), clock, &Metrics::new()).unwrap();
    let access = access(
        "access: [{repositories: [x/*], effect: deny}, {anyone: true, effect: allow}]",
        false,
    )
    .with(Arc::default(), audit);
    let alice = caller(Some(("alice", &["g"])), Some("192.0.2.7"));
    assert_eq!(
        decide(&access, &alice, "x/y", Permission::Pull),
        "403 c.yml:3"
    );
    assert_eq!(decide(&access, &alice, "y/y", Permission::Pull), "allowed");
    let bad = digest("bad");
    let denials = access.denials();
    denials
        .add(&bad.to_string(), Some("CVE".to_owned()), NOW.to_owned())
        .await
        .unwrap();
    let repository: RepoName = "y/y".parse().unwrap();
    let reference: Reference = "1".parse().unwrap();
    let resource = Resource {
        upstream: "a.example",
        repository: &repository,
        reference: Some(&reference),
    };
    let denied = access
        .decide_content(&caller(None, None), &resource, &bad)
        .unwrap_err();
    assert_eq!(denied.to_string(), format!("{bad} is denied: CVE"));
    denials.remove(&bad.to_string()).await.unwrap();
    denials.audit().flush().await;
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let line = |event: &str, more: serde_json::Value| {
        let mut line = serde_json::json!({"event": event});
        line.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        line
    };
    let expected = [
        line(
            "refused",
            serde_json::json!({"user": "alice", "anonymous": false, "groups": ["g"],
            "address": "192.0.2.7", "action": "pull", "upstream": "a.example", "repository": "x/y",
            "rule": "c.yml:3"}),
        ),
        line(
            "denied",
            serde_json::json!({"reference": bad.to_string(), "reason": "CVE"}),
        ),
        line(
            "refused",
            serde_json::json!({"anonymous": true, "action": "pull", "upstream": "a.example",
            "repository": "y/y", "reference": "1", "rule": bad.to_string()}),
        ),
        line(
            "denial_removed",
            serde_json::json!({"reference": bad.to_string(), "reason": "CVE"}),
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (mut line, expected) in lines.into_iter().zip(expected) {
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        assert!(
            time.as_str().unwrap().starts_with("1970-01-01T00:00:0"),
            "{time}"
        );
        assert_eq!(line, expected);
    }
}

#[tokio::test]
async fn lost_lines_are_counted_and_named_once_the_log_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let (clock, metrics) = (Clock::system(), Metrics::new());
    let audit = Audit::start(&config::Audit::File(path.clone()), clock, &metrics).unwrap();
    let access = access("access: [{effect: deny}]", false).with(Arc::default(), audit);
    // A directory takes the file's place: the log can't be opened again.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let nobody = caller(None, None);
    for _ in 0..3 {
        assert_eq!(
            decide(&access, &nobody, "x/y", Permission::Pull),
            "403 c.yml:3"
        );
    }
    access.audit().flush().await;
    assert_eq!(metrics.audit_lines_lost().get(), 3);
    fs::remove_dir(&path).unwrap();
    decide(&access, &nobody, "x/z", Permission::Pull);
    access.audit().flush().await;
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].ends_with("\"event\":\"lost\",\"lines\":3}"),
        "{text}"
    );
    assert!(lines[1].contains("\"repository\":\"x/z\""), "{text}");
}

#[tokio::test]
async fn the_catalog_does_not_show_what_is_denied_as_a_whole() {
    let list = Arc::new(DenyList::default());
    list.add("x/y", None, NOW.to_owned()).await.unwrap();
    let access = Access::default().with(list, Audit::default());
    let anyone = Caller::anonymous(None);
    let shows = |name: &str| access.shows(&anyone, "a.example", &name.parse().unwrap());
    assert!(!shows("x/y") && shows("x/z"));
}
