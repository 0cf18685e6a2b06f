//! How blobs are downloaded: segments, streams, prefetching, ranges, and what is said of wrong
//! values.

use super::{
    OnAbandon, Prefetch, Proxy, RangeMode, RangeRule, Segments, Streams, config, environment, load,
    loaded, problems, render,
};

fn proxy(text: &str) -> Proxy {
    config(&format!("proxy: {{remoteurl: 'https://a', {text}}}")).proxy
}

fn rule(pattern: &str, ranges: RangeMode) -> RangeRule {
    RangeRule {
        pattern: pattern.parse().unwrap(),
        ranges,
    }
}

#[test]
fn defaults() {
    let proxy = proxy("");
    let segments = Segments {
        min_size: 64 << 20,
        count: 4,
        per_blob: 16,
    };
    let streams = Streams {
        total: 128,
        per_upstream: 32,
    };
    assert_eq!((proxy.segments, proxy.streams), (segments, streams));
    let prefetch = Prefetch {
        downloads: 4,
        max_size: 4 << 30,
    };
    assert_eq!((proxy.prefetch, proxy.fill_after), (prefetch, 50));
    assert_eq!(
        (proxy.max_blob_size, proxy.timeouts.min_speed),
        (64 << 30, 1024)
    );
    assert_eq!(proxy.on_abandon, OnAbandon::Auto);
    assert_eq!((proxy.ranges, proxy.range_rules), (RangeMode::Fill, vec![]));
}

const FILE: &str = "\
proxy:
  remoteurl: https://registry-1.docker.io
  segments: {minsize: 1.5GiB, count: 16, perblob: 16}
  streams: {total: 4096, perupstream: 1024}
  prefetch: {downloads: 64, maxsize: 1GiB}
  maxblobsize: 1.5TiB
  minspeed: 0
  onabandon: pause
  ranges: passthrough
  fillafter: 100%
  rangerules:
  - {repository: 'ghcr.io/owner/*', ranges: fill}
  - {repository: 'ghcr.io/**', ranges: passthrough}
";

#[test]
fn what_is_written_is_in_effect_and_read_back() {
    let first = loaded(&format!("version: 0.1\n{FILE}"), &[]);
    assert_eq!(first.warnings, Vec::<String>::new());
    let rendered = render(&first.config);
    for config in [first.config, loaded(&rendered, &[]).config] {
        assert_eq!(render(&config), rendered);
        let proxy = config.proxy;
        let segments = Segments {
            min_size: 3 << 29,
            count: 16,
            per_blob: 16,
        };
        let streams = Streams {
            total: 4096,
            per_upstream: 1024,
        };
        assert_eq!((proxy.segments, proxy.streams), (segments, streams));
        let prefetch = Prefetch {
            downloads: 64,
            max_size: 1 << 30,
        };
        assert_eq!((proxy.prefetch, proxy.fill_after), (prefetch, 100));
        assert_eq!(
            (proxy.max_blob_size, proxy.timeouts.min_speed),
            (3 << 39, 0)
        );
        assert_eq!(proxy.on_abandon, OnAbandon::Pause);
        assert_eq!(proxy.ranges, RangeMode::Passthrough);
        let rules = [
            rule("ghcr.io/owner/*", RangeMode::Fill),
            rule("ghcr.io/**", RangeMode::Passthrough),
        ];
        assert_eq!(proxy.range_rules, rules);
    }
    assert_eq!(proxy("onabandon: finish").on_abandon, OnAbandon::Finish);
    assert_eq!(proxy("segments: {minsize: 0}").segments.min_size, 0);
}

#[test]
fn a_default_gives_way_to_the_bound_that_is_written() {
    let proxy = proxy("segments: {perblob: 2}, streams: {total: 8}");
    assert_eq!((proxy.segments.count, proxy.segments.per_blob), (2, 2));
    assert_eq!((proxy.streams.total, proxy.streams.per_upstream), (8, 8));
}

#[test]
fn rules_from_the_environment() {
    let variables = [
        ("REGISTRY_PROXY_RANGERULES_0_REPOSITORY", "a/*"),
        ("REGISTRY_PROXY_RANGERULES_0_RANGES", "passthrough"),
    ];
    let loaded = load(None, environment(&variables)).unwrap();
    let rules = [rule("a/*", RangeMode::Passthrough)];
    assert_eq!(loaded.config.proxy.range_rules, rules);
    let variables = [
        ("REGISTRY_PROXY_STREAMS_TOTAL", "4"),
        ("REGISTRY_PROXY_STREAMS_PERUPSTREAM", "5"),
    ];
    let expected = "REGISTRY_PROXY_STREAMS_PERUPSTREAM: `proxy.streams.perupstream` is 5, more than `proxy.streams.total`; write at most 4";
    assert_eq!(problems("version: 0.1", &variables), [expected]);
}

/// (what follows the version line, the problem).
const SENTENCES: &[(&str, &str)] = &[
    (
        "proxy:\n  segments:\n    minsize: 64M",
        "config.yml:4: `proxy.segments.minsize` is \"64M\"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes",
    ),
    (
        "proxy:\n  segments:\n    count: 0",
        "config.yml:4: `proxy.segments.count` is \"0\"; write a whole number from 1 to 16",
    ),
    (
        "proxy: {segments: {count: 17}}",
        "config.yml:2: `proxy.segments.count` is \"17\"; write a whole number from 1 to 16",
    ),
    (
        "proxy: {segments: {count: +4}}",
        "config.yml:2: `proxy.segments.count` is \"+4\"; write a whole number from 1 to 16",
    ),
    (
        "proxy: {segments: {perblob: 65}}",
        "config.yml:2: `proxy.segments.perblob` is \"65\"; write a whole number from 1 to 64",
    ),
    (
        "proxy:\n  segments:\n    count: 5\n    perblob: 4",
        "config.yml:5: `proxy.segments.perblob` is 4, less than `proxy.segments.count`; write at least 5",
    ),
    (
        "proxy: {segments: {countt: 5}}",
        "config.yml:2: unknown key `proxy.segments.countt`; did you mean `proxy.segments.count`?",
    ),
    (
        "proxy: {segments: 4}",
        "config.yml:2: `proxy.segments` must be a map of keys",
    ),
    (
        "proxy: {perupstream: 4}",
        "config.yml:2: unknown key `proxy.perupstream`; did you mean `proxy.streams.perupstream`?",
    ),
    (
        "proxy: {streams: {total: 4097}}",
        "config.yml:2: `proxy.streams.total` is \"4097\"; write a whole number from 1 to 4096",
    ),
    (
        "proxy: {streams: {total: many}}",
        "config.yml:2: `proxy.streams.total` is \"many\"; write a whole number from 1 to 4096",
    ),
    (
        "proxy: {streams: {perupstream: 1025}}",
        "config.yml:2: `proxy.streams.perupstream` is \"1025\"; write a whole number from 1 to 1024",
    ),
    (
        "proxy:\n  streams:\n    perupstream: 129",
        "config.yml:4: `proxy.streams.perupstream` is 129, more than `proxy.streams.total`; write at most 128",
    ),
    (
        "proxy:\n  maxblobsize: 0",
        "config.yml:3: `proxy.maxblobsize` must be more than 0; 1 byte caches no blobs",
    ),
    (
        "proxy:\n  minspeed: 1KiB/s",
        "config.yml:3: `proxy.minspeed` is \"1KiB/s\"; it must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes",
    ),
    (
        "proxy: {prefetch: {downloads: 65}}",
        "config.yml:2: `proxy.prefetch.downloads` is \"65\"; write a whole number from 0 to 64",
    ),
    (
        "proxy: {prefetch: {downloads: 99999999999999999999999}}",
        "config.yml:2: `proxy.prefetch.downloads` is \"99999999999999999999999\"; write a whole number from 0 to 64",
    ),
    (
        "proxy: {onabandon: stop}",
        "config.yml:2: `proxy.onabandon` is \"stop\"; write finish or pause, or remove the key to decide by the amount downloaded",
    ),
    (
        "proxy: {ranges: through}",
        "config.yml:2: `proxy.ranges` is \"through\"; write fill or passthrough",
    ),
    (
        "proxy:\n  rangerules:\n  - ranges: fill",
        "config.yml:4: `proxy.rangerules[0].repository` is missing; write a pattern such as library/*",
    ),
    (
        "proxy:\n  rangerules:\n  - repository: a/b",
        "config.yml:4: `proxy.rangerules[0].ranges` is missing; write fill or passthrough",
    ),
    (
        "proxy:\n  rangerules:\n  - repository: a/b\n    ranges: on",
        "config.yml:5: `proxy.rangerules[0].ranges` is \"on\"; write fill or passthrough",
    ),
    (
        "proxy:\n  rangerules:\n  - repository: a/B\n    ranges: fill",
        "config.yml:4: `proxy.rangerules[0].repository` is \"a/B\"; write a repository of lower-case letters, digits and . _ - /, or * and ** for any of them, such as ghcr.io/owner/**",
    ),
    (
        "proxy: {rangerules: [{repository: a/b, range: fill, ranges: fill}]}",
        "config.yml:2: unknown key `proxy.rangerules[0].range`; did you mean `proxy.rangerules[0].ranges`?",
    ),
    (
        "proxy: {fillafter: 0%}",
        "config.yml:2: `proxy.fillafter` is \"0%\"; write a whole percentage from 1% to 100%, such as 50%",
    ),
    (
        "proxy: {fillafter: 50}",
        "config.yml:2: `proxy.fillafter` is \"50\"; write a whole percentage from 1% to 100%, such as 50%",
    ),
];

#[test]
fn every_sentence() {
    for (text, expected) in SENTENCES {
        let found = problems(&format!("version: 0.1\n{text}\n"), &[]);
        assert_eq!(found, [*expected], "{text}");
    }
}

#[test]
fn a_rule_that_matches_nothing_is_a_warning() {
    let text = "version: 0.1\nproxy: {remoteurl: 'https://docker.io', rangerules: [{repository: debian, ranges: fill}]}";
    let expected = "config.yml:2: `proxy.rangerules[0].repository` is \"debian\", which matches nothing: Docker Hub's official images are stored under `library/`; write library/debian";
    assert_eq!(loaded(text, &[]).warnings, [expected]);
}
