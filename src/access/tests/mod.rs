//! The rules against a naive model, and the defaults.

mod deny;

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
        Err(Denied::NoWriters { action, .. }) => format!("nobody may {action}"),
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
fn without_rules_and_users_only_a_unix_socket_writes() {
    let access = access("", false);
    let remote = caller(None, Some("127.0.0.1"));
    let local = Caller {
        is_local: true,
        ..caller(None, None)
    };
    for (action, refused) in [
        (Permission::Push, "nobody may push"),
        (Permission::Delete, "nobody may delete"),
    ] {
        assert_eq!(decide(&access, &remote, "ci/app", action), refused);
        assert_eq!(decide(&access, &local, "ci/app", action), "allowed");
    }
    let denied = Denied::NoWriters {
        action: "push",
        repository: "ci/app".into(),
    };
    let message = denied.to_string();
    let rule = "{networks: [10.0.0.0/8], repositories: [ci/app], actions: [push], effect: allow}";
    assert!(message.contains(rule), "{message}");
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
