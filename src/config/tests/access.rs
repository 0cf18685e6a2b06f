//! The sections `access` and `deny`, and upstreams with accounts.

use super::{
    Config, Effect, Loaded, Permission, config, environment, loaded, loaded_twice, parse, problems,
};

const ACCOUNT: &str =
    "version: 0.1\nproxy:\n  remoteurl: https://a.example\n  username: u\n  password: hunter2\n";

/// A file with an account, and more lines.
fn with_account(more: &str) -> String {
    format!("{ACCOUNT}{more}")
}

#[test]
fn an_account_on_an_open_address_needs_a_word_on_anonymous_callers() {
    let found = problems(ACCOUNT, &[]);
    assert_eq!(
        found,
        [
            "config.yml:4: everyone who can reach :5000 could pull what the account for a.example can \
          read; write one of:\n  \
          access: [{networks: [10.0.0.0/8], effect: allow}]  # rules for callers\n  \
          auth: {...}  # callers need credentials\n  \
          proxy.anonymous: true  # everyone may; or REGISTRY_PROXY_ANONYMOUS=true"
        ]
    );
    // Each of these says who may.
    for more in [
        "  anonymous: true\n",
        "access: [{networks: [10.0.0.0/8], effect: allow}]\n",
        "access: [{anyone: true, effect: allow}]\n",
        "http: {addr: '127.0.0.1:5000'}\n",
        "http: {addr: 'localhost:5000'}\n",
        "http: {addr: '[::1]:5000'}\n",
        "http: {net: unix, addr: /run/millpond.sock}\n",
    ] {
        assert_eq!(
            problems(&with_account(more), &[]),
            [] as [&str; 0],
            "{more}"
        );
    }
    for more in [
        "http: {addr: '0.0.0.0:1'}\n",
        "http: {addr: '10.0.0.1:1'}\n",
    ] {
        assert_eq!(problems(&with_account(more), &[]).len(), 1, "{more}");
    }
    let variable = [("REGISTRY_PROXY_ANONYMOUS", "true")];
    assert_eq!(problems(ACCOUNT, &variable), [] as [&str; 0]);
}

#[test]
fn each_upstream_with_an_account_needs_its_own_word() {
    let named = "  upstreams:\n  - name: b.example\n    remoteurl: https://b.example\n    \
                 username: u\n    password: p\n";
    let text = format!("version: 0.1\nproxy:\n  remoteurl: https://a.example\n{named}");
    let found = problems(&text, &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("config.yml:7: everyone"), "{found:?}");
    let advice = "proxy.upstreams[0].anonymous: true  # everyone may; or \
                  REGISTRY_PROXY_UPSTREAMS_0_ANONYMOUS=true";
    assert!(found[0].ends_with(advice), "{found:?}");
    let variable = [("REGISTRY_PROXY_UPSTREAMS_0_ANONYMOUS", "true")];
    assert_eq!(problems(&text, &variable), [] as [&str; 0]);
    // That of the default upstream is no word on the others.
    let variable = [("REGISTRY_PROXY_ANONYMOUS", "true")];
    assert_eq!(problems(&text, &variable).len(), 1);
}

#[test]
fn rules_are_read_and_printed() {
    let text = "proxy: {remoteurl: 'https://registry-1.docker.io', upstreams: [{name: ghcr.io, remoteurl: 'https://ghcr.io', aliases: [gh.io]}]}\n\
                access:\n\
                - {upstreams: [gh.io], repositories: [ghcr.io/acme/**], users: ['ci-*', 'repo:a/b@c'], groups: [g], effect: allow}\n\
                - {networks: [10.0.0.0/8, '::1'], actions: [list, pull], effect: deny, hide: true}\n\
                - {anonymous: true, effect: deny}\n\
                deny: {images: [library/evil, 'a/b:1.*']}\n";
    let [first, second] = loaded_twice(text);
    let rules = |config: &Config| config.access.rules.clone();
    let without_place = |mut rule: super::AccessRule| {
        rule.place = String::new();
        rule
    };
    let both = [&first, &second].map(|one| {
        rules(one)
            .into_iter()
            .map(without_place)
            .collect::<Vec<_>>()
    });
    assert_eq!(both[0], both[1]);
    let [acme, network, anonymous] = rules(&first).try_into().unwrap();
    assert_eq!(acme.place, "config.yml:4");
    assert_eq!(acme.upstreams, ["ghcr.io"], "an alias means the name");
    assert!(!acme.callers.anyone && acme.callers.users[0].matches("ci-1"));
    assert!(acme.callers.users[1].matches("repo:a/b@c"));
    assert_eq!(acme.effect, Effect::Allow);
    assert!(network.callers.anyone && network.effect == Effect::Hide);
    assert_eq!(network.actions, [Permission::Pull, Permission::List]);
    assert!(anonymous.callers.anonymous && !anonymous.callers.anyone);
    assert_eq!(first.access.deny.images.len(), 2);
}

#[test]
fn rules_may_come_from_variables() {
    let variables = [
        ("REGISTRY_ACCESS_0_EFFECT", "allow"),
        ("REGISTRY_ACCESS_0_NETWORKS", "[10.0.0.0/8]"),
        ("REGISTRY_ACCESS_0_ACTIONS_0", "pull"),
    ];
    let Loaded { config, .. } = parse("version: 0.1", "c", environment(&variables)).unwrap();
    let rule = &config.access.rules[0];
    assert_eq!(rule.place, "REGISTRY_ACCESS_0_ACTIONS_0");
    assert_eq!(rule.actions, [Permission::Pull]);
}

#[test]
fn a_rule_that_another_covers_is_found_and_one_that_it_does_not_is_not() {
    let doubts = |rules: &str| {
        let text =
            format!("version: 0.1\nproxy: {{remoteurl: 'https://a.example'}}\naccess: [{rules}]\n");
        loaded(&text, &[]).warnings.len()
    };
    for covered in [
        "{repositories: ['**'], effect: deny}, {repositories: [a/*], effect: deny}",
        "{networks: [10.0.0.0/8], effect: deny}, {networks: [10.1.0.0/16], effect: deny}",
        "{users: [a, b], effect: deny}, {users: [b], actions: [pull], effect: allow}",
    ] {
        assert_eq!(doubts(covered), 1, "{covered}");
    }
    for other in [
        "{repositories: [a/*], effect: deny}, {repositories: ['**'], effect: deny}",
        "{networks: [10.1.0.0/16], effect: deny}, {networks: [10.0.0.0/8], effect: deny}",
        "{users: [a], effect: deny}, {users: [b], effect: allow}",
        "{anonymous: true, effect: deny}, {anyone: true, effect: allow}",
        "{actions: [pull], effect: deny}, {effect: deny}",
        "{networks: [10.0.0.0/8], effect: deny}, {anyone: true, effect: allow}",
    ] {
        assert_eq!(doubts(other), 0, "{other}");
    }
}

#[test]
fn references_mean_what_is_stored() {
    let proxy = config(
        "proxy: {remoteurl: 'https://registry-1.docker.io', upstreams: [{name: ghcr.io, remoteurl: 'https://ghcr.io', aliases: ['gh:8443']}]}",
    )
    .proxy;
    let digest = format!("sha256:{}", "0".repeat(64));
    for (written, stored) in [
        ("debian:12", "library/debian:12"),
        ("docker.io/library/debian", "library/debian"),
        ("docker.io/debian", "library/debian"),
        ("a/b", "a/b"),
        ("**", "**"),
        ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("gh:8443/a/b:1", "ghcr.io/a/b:1"),
        (&digest, &digest),
    ] {
        assert_eq!(proxy.stored_reference(written), stored, "{written}");
    }
    let other = config("proxy: {remoteurl: 'https://a.example'}").proxy;
    assert_eq!(other.stored_reference("debian"), "debian");
    let upstream = |name: &str| proxy.upstream_of(&name.parse().unwrap()).name.clone();
    assert_eq!(
        (upstream("ghcr.io/a"), upstream("a/b")),
        ("ghcr.io".to_owned(), "docker.io".to_owned())
    );
}
