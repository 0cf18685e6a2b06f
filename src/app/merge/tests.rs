use std::path::Path;

use super::*;
use crate::config::{self, Loaded};

fn loaded(variables: &[(&str, &str)]) -> Loaded {
    let variables = variables.iter();
    let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config::load(None::<&Path>, variables).unwrap()
}

/// Everything but what is printed, in words.
fn words(config: &Config) -> String {
    let config = Config {
        printed: config::Printed::default(),
        ..config.clone()
    };
    format!("{config:?}")
}

/// Each key that the configuration reads is either applied or named as one that needs a restart, and
/// what happens is what is said.
#[test]
fn every_key_is_applied_or_needs_a_restart() {
    let old = loaded(&[]).config;
    let mut seen = 0;
    for variables in config::every_key() {
        let new = loaded(&variables).config;
        if new.printed == old.printed {
            // A default, written out.
            continue;
        }
        seen += 1;
        let keeps_upstreams = origins(&old) != origins(&new);
        let Merged {
            config,
            applied,
            restart,
        } = Merged::new(&old, new.clone(), keeps_upstreams);
        assert!(applied.len() + restart.len() > 0, "{variables:?}");
        if restart.is_empty() {
            assert_eq!(
                words(&config),
                words(&new),
                "{variables:?} is said to be applied"
            );
        }
        if applied.is_empty() {
            assert_eq!(words(&config), words(&old), "{variables:?} needs a restart");
        }
        // What a restart is needed for is found again by the next reload.
        let again = Merged::new(&config, new, keeps_upstreams);
        assert_eq!(
            (again.applied, again.restart),
            (Vec::new(), restart),
            "{variables:?}"
        );
    }
    assert!(seen > 70, "{seen}");
}

#[test]
fn a_secret_is_named_without_being_shown() {
    let with = |password: &str| {
        let variables = [
            ("REGISTRY_PROXY_ANONYMOUS", "true"),
            ("REGISTRY_PROXY_USERNAME", "u"),
            ("REGISTRY_PROXY_PASSWORD", password),
        ];
        loaded(&variables).config
    };
    let merged = Merged::new(&with("one"), with("hunter2"), false);
    let keys: Vec<_> = merged
        .applied
        .iter()
        .map(|difference| &*difference.key)
        .collect();
    assert_eq!(keys, ["proxy: a secret"]);
    assert!(merged.config.proxy.default == with("hunter2").proxy.default);
    assert!(
        Merged::new(&with("one"), with("one"), false)
            .applied
            .is_empty()
    );
    // It stays with the URL that it is for.
    let mut moved = with("hunter2");
    moved.proxy.default.url = "https://elsewhere".parse().unwrap();
    let merged = Merged::new(&with("one"), moved, true);
    assert!(merged.config.proxy.default == with("one").proxy.default);
    assert_eq!(restart_of(&merged), ["proxy: a secret"]);
}

fn restart_of(merged: &Merged) -> Vec<&str> {
    let keys = merged.restart.iter();
    keys.map(|difference| &*difference.key).collect()
}

#[cfg(feature = "otel")]
#[test]
fn a_secret_that_waits_for_a_restart_is_named() {
    let with = |token: &str| {
        let variables = [
            ("REGISTRY_TRACING_ENDPOINT", "http://collector:4318"),
            ("REGISTRY_TRACING_HEADERS_AUTHORIZATION", token),
            (
                "REGISTRY_HEALTH_HTTP",
                "[{uri: 'http://a/', headers: {X-A: [b]}}]",
            ),
        ];
        loaded(&variables).config
    };
    let merged = Merged::new(&with("one"), with("two"), false);
    assert_eq!(restart_of(&merged), ["tracing: a secret"]);
    assert!(merged.applied.is_empty(), "{:?}", merged.applied);
    let mut checked = with("one");
    let config::HealthProbe::Http { headers, .. } = &mut checked.health.checks[0].probe else {
        panic!("no HTTP check");
    };
    headers.insert("x-a", "c".parse().unwrap());
    let merged = Merged::new(&with("one"), checked, false);
    assert_eq!(restart_of(&merged), ["health: a secret"]);
}

#[test]
fn a_bucket_keeps_its_secret_until_a_restart() {
    let with = |secret: &str, timeout: &str| {
        let storage = format!(
            "{{filesystem: {{rootdirectory: a}}, shared: {{timeout: {timeout}}}, \
             s3: {{bucket: abc, region: r1, accesskey: a, secretkey: {secret}}}}}"
        );
        let variables = [
            ("REGISTRY_STORAGE", storage.as_str()),
            ("REGISTRY_PROXY_REMOTEURL", "https://a"),
        ];
        loaded(&variables).config
    };
    let old = with("one", "1s");
    let merged = Merged::new(&old, with("hunter2", "1s"), false);
    assert_eq!(restart_of(&merged), ["storage.s3: a secret"]);
    assert_eq!(merged.config.bucket, old.bucket);
    let merged = Merged::new(&old, with("hunter2", "2s"), false);
    assert_eq!(restart_of(&merged), ["storage.shared.timeout"]);
    assert_eq!(merged.config.bucket, old.bucket);
    let merged = Merged::new(&old, with("one", "1s"), false);
    assert!(merged.restart.is_empty() && merged.applied.is_empty());
}

#[test]
fn another_storage_driver_keeps_its_limits_with_it() {
    let old = loaded(&[("REGISTRY_STORAGE_MAXSIZE", "80%")]).config;
    let new = loaded(&[
        ("REGISTRY_STORAGE", "inmemory"),
        ("REGISTRY_PROXY_TTL", "1h"),
    ])
    .config;
    let merged = Merged::new(&old, new, false);
    assert_eq!(merged.config.limits, old.limits);
    assert_eq!(merged.config.storage, old.storage);
    let keys: Vec<_> = merged
        .applied
        .iter()
        .map(|difference| &*difference.key)
        .collect();
    assert_eq!(keys, ["proxy.ttl"]);
}
