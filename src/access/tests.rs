//! The rules against a naive model, the defaults, the deny list and the audit log.

use std::fs;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::auth::User;
use crate::clock::Clock;
use crate::config::{self, Callers, Config, DenyConfig};
use crate::metrics::Metrics;
use crate::oci::Algorithm;

fn config(text: &str) -> Config {
    let text = format!(
        "version: 0.1\nproxy: {{remoteurl: 'https://a.example', upstreams: [{{name: b.c, remoteurl: \
         'https://b.c'}}]}}\n{text}"
    );
    config::parse(&text, "c.yml", std::iter::empty())
        .unwrap()
        .config
}

fn access(text: &str, has_users: bool) -> Access {
    let config = config(text);
    Access::new(config.access.rules, has_users, &config.proxy)
}

fn caller(user: Option<(&str, &[&str])>, address: Option<&str>) -> Caller {
    Caller {
        user: user.map(|(name, groups)| {
            let groups = groups.iter().map(ToString::to_string).collect();
            Arc::new(User {
                name: name.to_owned(),
                groups,
            })
        }),
        ..Caller::anonymous(address.map(|address| address.parse::<IpAddr>().unwrap()))
    }
}

fn decide(access: &Access, caller: &Caller, repository: &str, action: Permission) -> String {
    let repository: RepoName = repository.parse().unwrap();
    let upstream = if repository.as_str().starts_with("b.c/") {
        "b.c"
    } else {
        "a.example"
    };
    let resource = Resource {
        upstream,
        repository: &repository,
        reference: None,
    };
    match access.decide(caller, &resource, action) {
        Ok(()) => "allowed".to_owned(),
        Err(Denied::Anonymous(rule)) => format!("401 {}", rule.as_deref().unwrap_or("-")),
        Err(Denied::Caller(rule)) => format!("403 {}", rule.as_deref().unwrap_or("-")),
        Err(Denied::Hidden(rule)) => format!("404 {rule}"),
        Err(Denied::Listed(entry)) => format!("listed {}", entry.reference),
    }
}

#[test]
fn without_rules_and_users_everyone_reads() {
    let access = access("", false);
    assert!(access.is_open() && !access.hides());
    let anonymous = caller(None, None);
    assert_eq!(
        decide(&access, &anonymous, "x/y", Permission::Pull),
        "allowed"
    );
    assert_eq!(
        decide(&access, &anonymous, "x/y", Permission::List),
        "allowed"
    );
}

#[test]
fn without_rules_but_with_users_those_may_do_everything() {
    let access = access("", true);
    assert!(!access.is_open());
    let alice = caller(Some(("alice", &[])), None);
    for action in [
        Permission::Pull,
        Permission::List,
        Permission::Push,
        Permission::Delete,
    ] {
        assert_eq!(decide(&access, &alice, "x/y", action), "allowed");
        assert_eq!(decide(&access, &caller(None, None), "x/y", action), "401 -");
    }
}

#[test]
fn an_upstream_may_stay_open_to_anonymous_readers() {
    let mut config = config("");
    config.proxy.default.anonymous = true;
    let access = Access::new(Vec::new(), true, &config.proxy);
    let anonymous = caller(None, None);
    assert_eq!(
        decide(&access, &anonymous, "x/y", Permission::Pull),
        "allowed"
    );
    assert_eq!(
        decide(&access, &anonymous, "x/y", Permission::Push),
        "401 -"
    );
    assert_eq!(
        decide(&access, &anonymous, "b.c/y", Permission::Pull),
        "401 -"
    );
}

const RULES: &str = "access:
- {repositories: [b.c/acme/**], groups: [acme], effect: allow}
- {repositories: [b.c/acme/**], effect: deny, hide: true}
- {upstreams: [b.c], users: ['ci-*'], networks: [10.0.0.0/8], actions: [pull], effect: allow}
- {upstreams: [b.c], effect: deny}
- {anyone: true, actions: [pull], effect: allow}
";

#[test]
fn the_first_rule_that_matches_decides() {
    let access = access(RULES, true);
    let nobody = caller(None, Some("10.0.0.1"));
    let acme = caller(Some(("bob", &["acme"])), None);
    let (near, far) = (
        caller(Some(("ci-7", &[])), Some("10.9.9.9")),
        caller(Some(("ci-7", &[])), Some("192.0.2.1")),
    );
    // An IPv4 address on an IPv6 socket.
    let mapped = caller(Some(("ci-7", &[])), Some("::ffff:10.9.9.9"));
    let pull = Permission::Pull;
    for (caller, repository, action, expected) in [
        (&nobody, "b.c/acme/app", pull, "404 c.yml:5"),
        (&acme, "b.c/acme/app", pull, "allowed"),
        (&acme, "b.c/acme/app", Permission::Delete, "allowed"),
        (&near, "b.c/acme/app", pull, "404 c.yml:5"),
        (&near, "b.c/x", pull, "allowed"),
        (&mapped, "b.c/x", pull, "allowed"),
        (&far, "b.c/x", pull, "403 c.yml:7"),
        (&near, "b.c/x", Permission::List, "403 c.yml:7"),
        (&nobody, "b.c/x", pull, "401 c.yml:7"),
        (&nobody, "x/y", pull, "allowed"),
        (&nobody, "x/y", Permission::List, "401 -"),
        (&acme, "x/y", Permission::List, "403 -"),
    ] {
        // Twice: the second time, what matches the repository is remembered.
        for _ in 0..2 {
            assert_eq!(
                decide(&access, caller, repository, action),
                expected,
                "{repository} {action:?}"
            );
        }
    }
    assert!(access.shows(&acme, "b.c", &"b.c/acme/app".parse().unwrap()));
    assert!(!access.shows(&nobody, "b.c", &"b.c/acme/app".parse().unwrap()));
}

#[test]
fn rules_are_explained() {
    let config = config(RULES);
    let explained = |user, groups: &[&str], repository: &str| {
        let caller = caller(Some((user, groups)), None);
        let repository: RepoName = repository.parse().unwrap();
        let resource = Resource {
            upstream: &config.proxy.upstream_of(&repository).name,
            repository: &repository,
            reference: None,
        };
        explain(&config, &caller, &resource, Permission::Pull)
    };
    assert_eq!(
        explained("bob", &["acme"], "b.c/acme/app"),
        "bob may pull b.c/acme/app of b.c: the rule at c.yml:4 decides: allow group acme to do \
         everything in b.c/acme/**"
    );
    assert_eq!(
        explained("bob", &[], "b.c/acme/app"),
        "bob may not (and can't tell whether it exists) pull b.c/acme/app of b.c: the rule at c.yml:5 \
         decides: deny and hide: anyone to do everything in b.c/acme/**"
    );
    let summary = summary(&config).join("\n");
    for line in [
        "  c.yml:6: allow user ci-* from 10.0.0.0/8 to pull in all repositories of b.c",
        "  otherwise: deny anyone everything",
        "  a.example: pull all; list nothing",
        "  b.c: pull nothing; list nothing",
    ] {
        assert!(
            summary.lines().any(|found| found == line),
            "{line}\n{summary}"
        );
    }
}

const REPOSITORIES: [&str; 4] = ["a/x", "a/y", "b.c/x", "b.c/a/x"];
const PATTERNS: [&str; 5] = ["a/x", "a/*", "b.c/**", "**/x", "*"];

/// What `*` and `**` mean for the names of the test, written down.
fn pattern_matches(pattern: &str, name: &str) -> bool {
    match pattern {
        "a/x" => name == "a/x",
        "a/*" => name == "a/x" || name == "a/y",
        "b.c/**" => name.starts_with("b.c/"),
        "**/x" => name.ends_with("/x"),
        _ => false,
    }
}

const USERS: [Option<(&str, &[&str])>; 4] = [
    None,
    Some(("alice", &[])),
    Some(("ci-1", &["g"])),
    Some(("ci-2", &[])),
];
const ADDRESSES: [Option<&str>; 3] = [None, Some("10.1.0.1"), Some("10.2.0.1")];
const ACTIONS: [Permission; 2] = [Permission::Pull, Permission::List];

prop_compose! {
    fn rule()(
        patterns in prop::sample::subsequence(PATTERNS.to_vec(), 0..=2),
        upstreams in prop::sample::subsequence(vec!["a.example", "b.c"], 0..=2),
        anyone in any::<bool>(),
        anonymous in any::<bool>(),
        users in prop::sample::subsequence(vec!["alice", "ci-*"], 0..=2),
        in_group in any::<bool>(),
        networks in prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16"], 0..=2),
        actions in prop::sample::subsequence(ACTIONS.to_vec(), 0..=2),
        effect in prop::sample::select(vec![Effect::Allow, Effect::Deny, Effect::Hide]),
        line in 1..1000u32,
    ) -> AccessRule {
        AccessRule {
            place: line.to_string(),
            upstreams: upstreams.iter().map(ToString::to_string).collect(),
            repositories: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            callers: Callers {
                anyone,
                anonymous,
                users: users.iter().map(|user| crate::oci::Pattern::of_users(user).unwrap()).collect(),
                groups: in_group.then(|| "g".to_owned()).into_iter().collect(),
                networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            },
            actions,
            effect,
        }
    }
}

/// Whether a rule matches, by its printed parts.
fn naive(rule: &AccessRule, user: usize, address: usize, name: &str, action: Permission) -> bool {
    let text = |items: Vec<String>| items;
    let patterns = text(rule.repositories.iter().map(ToString::to_string).collect());
    let upstream = if name.starts_with("b.c/") {
        "b.c"
    } else {
        "a.example"
    };
    let users = text(rule.callers.users.iter().map(ToString::to_string).collect());
    let networks = text(
        rule.callers
            .networks
            .iter()
            .map(ToString::to_string)
            .collect(),
    );
    let who = match user {
        0 => rule.callers.anonymous,
        1 => users.contains(&"alice".to_owned()),
        2 => users.contains(&"ci-*".to_owned()) || !rule.callers.groups.is_empty(),
        _ => users.contains(&"ci-*".to_owned()),
    };
    let whence = match address {
        _ if networks.is_empty() => true,
        0 => false,
        1 => true,
        _ => networks.contains(&"10.0.0.0/8".to_owned()),
    };
    (patterns.is_empty()
        || patterns
            .iter()
            .any(|pattern| pattern_matches(pattern, name)))
        && (rule.upstreams.is_empty() || rule.upstreams.contains(&upstream.to_owned()))
        && (rule.callers.anyone || who)
        && whence
        && (rule.actions.is_empty() || rule.actions.contains(&action))
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(rules in prop::collection::vec(rule(), 1..6)) {
        let proxy = config("").proxy;
        let access = Access::new(rules.clone(), true, &proxy);
        for (user, name) in USERS.iter().enumerate() {
            for (at, address) in ADDRESSES.iter().enumerate() {
                for repository in REPOSITORIES {
                    for action in ACTIONS {
                        let found = decide(&access, &caller(*name, *address), repository, action);
                        let first = rules.iter().find(|rule| naive(rule, user, at, repository, action));
                        let expected = match first.map(|rule| (rule.effect, &rule.place)) {
                            Some((Effect::Allow, _)) => "allowed".to_owned(),
                            Some((Effect::Hide, place)) => format!("404 {place}"),
                            Some((Effect::Deny, place)) if user == 0 => format!("401 {place}"),
                            Some((Effect::Deny, place)) => format!("403 {place}"),
                            None if user == 0 => "401 -".to_owned(),
                            None => "403 -".to_owned(),
                        };
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }
    }
}

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
