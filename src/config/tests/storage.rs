//! What is kept: rules, pins, limits and the background check, and what is said of wrong ones.

use std::time::Duration;

use super::{
    Limits, MinFree, Scrub, SizeLimit, TtlMode, TtlRule, config, environment, load, loaded,
    problems, render,
};

const NOTHING: Limits = Limits {
    max_size: None,
    min_free: MinFree::Off,
    scrub: None,
};

const DEFAULT: Limits = Limits {
    min_free: MinFree::Default,
    ..NOTHING
};

fn rule(pattern: &str, hours: u64) -> TtlRule {
    TtlRule {
        pattern: pattern.parse().unwrap(),
        ttl: (hours > 0).then(|| Duration::from_hours(hours)),
    }
}

#[test]
fn by_default_nothing_is_special() {
    let config = config("");
    assert_eq!(config.limits, DEFAULT);
    assert_eq!(config.proxy.ttl_mode, TtlMode::Sliding);
    assert_eq!(config.proxy.ttl_rules, []);
    assert_eq!(config.proxy.pins, []);
}

const FILE: &str = "\
storage: {filesystem: {rootdirectory: a}, maxsize: 1.5TiB, minfree: 5%, scrub: {interval: 30days}}
proxy:
  remoteurl: https://registry-1.docker.io
  ttlmode: fixed
  pins: ['library/debian:bookworm*', 'ghcr.io/**']
  upstreams:
  - {name: ghcr.io, remoteurl: 'https://ghcr.io', ttl: 48h}
  - {name: quay.io, remoteurl: 'https://quay.io'}
  - {name: gcr.io, remoteurl: 'https://gcr.io', ttl: 0}
  ttls:
  - {repository: 'ghcr.io/owner/*', ttl: 24h}
  - {repository: 'library/debian', ttl: 0}
";

#[test]
fn the_rules_in_the_order_in_which_they_count() {
    let first = loaded(&format!("version: 0.1\n{FILE}"), &[]);
    assert_eq!(first.warnings, Vec::<String>::new());
    let rendered = render(&first.config);
    for config in [first.config, loaded(&rendered, &[]).config] {
        let rules = [
            rule("ghcr.io/owner/*", 24),
            rule("library/debian", 0),
            rule("ghcr.io/**", 48),
            rule("gcr.io/**", 0),
        ];
        assert_eq!(config.proxy.ttl_rules, rules);
        assert_eq!(config.proxy.ttl_mode, TtlMode::Fixed);
        assert_eq!(config.proxy.ttl, Some(Duration::from_hours(168)));
        let pins = ["library/debian:bookworm*", "ghcr.io/**"];
        assert_eq!(config.proxy.pins, pins.map(|pin| pin.parse().unwrap()));
        let limits = Limits {
            max_size: Some(SizeLimit::Bytes(3 << 39)),
            min_free: MinFree::Limit(SizeLimit::Percent(5)),
            scrub: Some(Scrub {
                interval: Duration::from_hours(720),
                rate: 20 << 20,
            }),
        };
        assert_eq!(config.limits, limits);
        assert_eq!(render(&config), rendered);
    }
}

#[test]
fn what_is_asked_for_with_0_or_emptied_is_nothing() {
    for minfree in ["0", "0%", "0GiB"] {
        let text = format!("storage: {{minfree: {minfree}, scrub: {{interval: 0, rate: 1MiB}}}}");
        let first = config(&text);
        assert_eq!(first.limits, NOTHING, "{minfree}");
        assert_eq!(loaded(&render(&first), &[]).config.limits, NOTHING);
    }
    let text = "version: 0.1\nstorage: {maxsize: 1GiB}";
    let emptied = loaded(text, &[("REGISTRY_STORAGE_MAXSIZE", "")]);
    assert_eq!(emptied.config.limits, DEFAULT);
}

#[test]
fn memory_has_a_cap_but_no_file_system() {
    let text = "version: 0.1\nstorage: {inmemory: , maxsize: 1GiB, minfree: 1GiB}\nproxy: {remoteurl: 'https://a'}";
    let memory = loaded(text, &[]);
    let cap = Limits {
        max_size: Some(SizeLimit::Bytes(1 << 30)),
        ..NOTHING
    };
    assert_eq!(memory.config.limits, cap);
    let expected =
        "config.yml:2: `storage.minfree` has no effect: `storage.inmemory` uses no file system";
    assert_eq!(memory.warnings, [expected]);
    assert_eq!(loaded(&render(&memory.config), &[]).config.limits, cap);
    // The driver may come from the environment, and the limit too.
    let found = problems(
        "version: 0.1\nstorage: inmemory",
        &[("REGISTRY_STORAGE_MAXSIZE", "80%")],
    );
    let expected = "REGISTRY_STORAGE_MAXSIZE: `storage.maxsize` is \"80%\", but `storage.inmemory` uses no file system; write a size such as 4GiB";
    assert_eq!(found, [expected]);
}

#[test]
fn rules_from_the_environment() {
    let variables = [
        ("REGISTRY_PROXY_TTLS_0_REPOSITORY", "a/*"),
        ("REGISTRY_PROXY_TTLS_0_TTL", "1h"),
        ("REGISTRY_PROXY_UPSTREAMS_0_NAME", "ghcr.io"),
        ("REGISTRY_PROXY_UPSTREAMS_0_REMOTEURL", "https://ghcr.io"),
        ("REGISTRY_PROXY_UPSTREAMS_0_TTL", "2h"),
    ];
    let loaded = load(None, environment(&variables)).unwrap();
    let rules = [rule("a/*", 1), rule("ghcr.io/**", 2)];
    assert_eq!(loaded.config.proxy.ttl_rules, rules);
}

/// (what follows the version line, the problem).
const SENTENCES: &[(&str, &str)] = &[
    (
        "proxy: {ttlmode: rolling}",
        "config.yml:2: `proxy.ttlmode` is \"rolling\"; write sliding or fixed",
    ),
    (
        "proxy: {ttls: {repository: a, ttl: 1h}}",
        "config.yml:2: `proxy.ttls` must be a list",
    ),
    (
        "proxy: {ttls: [{repositry: a/b, ttl: 1h, repository: a/b}]}",
        "config.yml:2: unknown key `proxy.ttls[0].repositry`; did you mean `proxy.ttls[0].repository`?",
    ),
    (
        "proxy:\n  ttls:\n  - ttl: 1h",
        "config.yml:4: `proxy.ttls[0].repository` is missing; write a pattern such as library/*",
    ),
    (
        "proxy:\n  ttls:\n  - repository: a/b",
        "config.yml:4: `proxy.ttls[0].ttl` is missing; write one such as 24h, or 0 for ever",
    ),
    (
        "proxy:\n  ttls:\n  - repository: a/b\n    ttl: 24",
        "config.yml:5: `proxy.ttls[0].ttl` is \"24\"; it needs a unit, such as 60s, 10m or 168h",
    ),
    (
        "proxy:\n  ttls:\n  - repository: a/[bc]\n    ttl: 24h",
        "config.yml:4: `proxy.ttls[0].repository` is \"a/[bc]\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy:\n  ttls:\n  - repository: a/b:c\n    ttl: 24h",
        "config.yml:4: `proxy.ttls[0].repository` is \"a/b:c\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy:\n  upstreams:\n  - name: ghcr.io\n    remoteurl: https://ghcr.io\n    ttl: soon",
        "config.yml:6: `proxy.upstreams[0].ttl` is \"soon\"; it must be a duration, such as 500ms, 60s, 1h30m or 7days",
    ),
    (
        "proxy: {pins: a/b}",
        "config.yml:2: `proxy.pins` must be a list",
    ),
    (
        "proxy: {pins: ['']}",
        "config.yml:2: `proxy.pins[0]` is \"\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy: {pins: [':latest']}",
        "config.yml:2: `proxy.pins[0]` is \":latest\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy: {pins: ['a/B']}",
        "config.yml:2: `proxy.pins[0]` is \"a/B\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy: {pins: ['a/b:B*', 'a/b:']}",
        "config.yml:2: `proxy.pins[1]` is \"a/b:\"; after the colon, write a tag of letters, digits and . _ -, or * for any of them, such as library/debian:bookworm*",
    ),
    (
        "proxy: {pins: ['localhost:5000/a']}",
        "config.yml:2: `proxy.pins[0]` is \"localhost:5000/a\"; after the colon, write a tag of letters, digits and . _ -, or * for any of them, such as library/debian:bookworm*",
    ),
    (
        "storage: {maxsize: 200G}",
        "config.yml:2: `storage.maxsize` is \"200G\"; it must be a size, such as 200GiB or 1.5TB, or a whole percentage of the file system, such as 80%",
    ),
    (
        "storage: {maxsize: -1GiB}",
        "config.yml:2: `storage.maxsize` is \"-1GiB\"; it must not be negative",
    ),
    (
        "storage: {maxsize: 0}",
        "config.yml:2: `storage.maxsize` must be more than 0; without the key, there is no cap",
    ),
    (
        "storage: {maxsize: 0%}",
        "config.yml:2: `storage.maxsize` is \"0%\"; it must be a percentage from 1% to 100%",
    ),
    (
        "storage: {maxsize: 9999999TiB}",
        "config.yml:2: `storage.maxsize` is \"9999999TiB\"; it must be at most 1048576TiB",
    ),
    (
        "storage: {minfree: 100%}",
        "config.yml:2: `storage.minfree` is \"100%\"; it must be a percentage from 0% to 99%",
    ),
    (
        "storage: {inmemory: , minfree: 5%}",
        "config.yml:2: `storage.minfree` is \"5%\", but `storage.inmemory` uses no file system; write a size such as 4GiB",
    ),
    (
        "storage: {scrub: 30days}",
        "config.yml:2: `storage.scrub` must be a map of keys",
    ),
    (
        "storage: {scrub: {interval: 30}}",
        "config.yml:2: `storage.scrub.interval` is \"30\"; it needs a unit, such as 60s, 10m or 168h",
    ),
    (
        "storage: {scrub: {rate: 20M}}",
        "config.yml:2: `storage.scrub.rate` is \"20M\"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes",
    ),
    (
        "storage: {scrub: {interval: 1h, rate: 0}}",
        "config.yml:2: `storage.scrub.rate` must be more than 0; `storage.scrub.interval: 0` turns the check off",
    ),
];

#[test]
fn every_sentence() {
    for (text, expected) in SENTENCES {
        let found = problems(&format!("version: 0.1\n{text}\n"), &[]);
        assert_eq!(found, [*expected], "{text}");
    }
    let pin = |length: usize| {
        format!(
            "version: 0.1\nproxy: {{pins: ['{}']}}",
            "a/".repeat(length / 2)
        )
    };
    assert_eq!(problems(&pin(512), &[]), Vec::<String>::new());
    let found = problems(&pin(514), &[]);
    assert!(
        found.len() == 1 && found[0].ends_with("; a pattern is at most 512 bytes long"),
        "{found:?}"
    );
}

/// (keys of the proxy, keys of the storage, the warning).
const WARNINGS: &[(&str, &str, &str)] = &[
    (
        "pins: ['debian:bookworm']",
        "",
        "config.yml:3: `proxy.pins[0]` is \"debian:bookworm\", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian",
    ),
    (
        "ttls: [{repository: docker.io/library/*, ttl: 1h}]",
        "",
        "config.yml:3: `proxy.ttls[0].repository` is \"docker.io/library/*\", which matches nothing: the default upstream's repositories are stored without its name; write library/*",
    ),
    (
        "",
        "maxsize: 200",
        "config.yml:2: `storage.maxsize` is only 200 bytes: hardly anything fits",
    ),
];

#[test]
fn every_warning() {
    let warnings = |proxy: &str, storage: &str, url: &str| {
        let text = format!(
            "version: 0.1\nstorage: {{{storage}}}\nproxy: {{remoteurl: '{url}', {proxy}}}\n"
        );
        loaded(&text, &[]).warnings
    };
    let hub = "https://registry-1.docker.io";
    for (proxy, storage, expected) in WARNINGS {
        assert_eq!(
            warnings(proxy, storage, hub),
            [*expected],
            "{proxy} {storage}"
        );
    }
    let none = Vec::<String>::new();
    assert_eq!(warnings("pins: ['**', '**an', 'a/*']", "", hub), none);
    // Only Docker Hub's images get a component.
    assert_eq!(warnings("pins: ['debian']", "", "https://a.example"), none);
}
