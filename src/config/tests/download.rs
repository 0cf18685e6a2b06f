//! How blobs are downloaded: segments, streams, prefetching and ranges.

use super::{
    OnAbandon, Prefetch, Proxy, RangeMode, RangeRule, Segments, Streams, config, loaded_twice,
    problems,
};

fn proxy(text: &str) -> Proxy {
    config(&format!("proxy: {{remoteurl: 'https://a', {text}}}")).proxy
}

pub(super) fn rule(pattern: &str, ranges: RangeMode) -> RangeRule {
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
fn written_values_are_in_effect_and_read_back() {
    for config in loaded_twice(FILE) {
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
fn a_default_is_lowered_to_a_written_bound() {
    let proxy = proxy("segments: {perblob: 2}, streams: {total: 8}");
    assert_eq!((proxy.segments.count, proxy.segments.per_blob), (2, 2));
    assert_eq!((proxy.streams.total, proxy.streams.per_upstream), (8, 8));
}

#[test]
fn a_variable_and_the_file_are_compared() {
    let text = "version: 0.1\nproxy: {streams: {total: 4}}";
    let found = problems(text, &[("REGISTRY_PROXY_STREAMS_PERUPSTREAM", "5")]);
    let expected = "REGISTRY_PROXY_STREAMS_PERUPSTREAM: `proxy.streams.perupstream` is 5, more than `proxy.streams.total`; write at most 4";
    assert_eq!(found, [expected]);
}
