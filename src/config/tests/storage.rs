//! What is cached for how long: rules, pins, limits and the background check.

use std::time::Duration;

use super::{
    Limits, MinFree, Scrub, SizeLimit, TtlMode, TtlRule, config, loaded, loaded_twice, problems,
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

pub(super) fn rule(pattern: &str, hours: u64) -> TtlRule {
    TtlRule {
        pattern: pattern.parse().unwrap(),
        ttl: (hours > 0).then(|| Duration::from_hours(hours)),
    }
}

#[test]
fn defaults() {
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
fn rules_of_upstreams_come_after_others() {
    for config in loaded_twice(FILE) {
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
    }
}

#[test]
fn zero_and_empty_values_turn_limits_off() {
    for minfree in ["0", "0%", "0GiB"] {
        let text = format!(
            "storage: {{minfree: {minfree}, scrub: {{interval: 0, rate: 1MiB}}}}\n\
             proxy: {{remoteurl: 'https://a'}}"
        );
        for config in loaded_twice(&text) {
            assert_eq!(config.limits, NOTHING, "{minfree}");
        }
    }
    let text = "version: 0.1\nstorage: {maxsize: 1GiB}";
    let emptied = loaded(text, &[("REGISTRY_STORAGE_MAXSIZE", "")]);
    assert_eq!(emptied.config.limits, DEFAULT);
}

#[test]
fn memory_has_a_cap_and_no_file_system() {
    let text = "storage: {inmemory: , maxsize: 1GiB}\nproxy: {remoteurl: 'https://a'}";
    for config in loaded_twice(text) {
        let cap = Limits {
            max_size: Some(SizeLimit::Bytes(1 << 30)),
            ..NOTHING
        };
        assert_eq!(config.limits, cap);
    }
    // The driver may come from the environment, and the limit too.
    let found = problems(
        "version: 0.1\nstorage: inmemory",
        &[("REGISTRY_STORAGE_MAXSIZE", "80%")],
    );
    let expected = "REGISTRY_STORAGE_MAXSIZE: `storage.maxsize` is \"80%\", but `storage.inmemory` uses no file system; write a size such as 4GiB";
    assert_eq!(found, [expected]);
}
