//! How blobs are downloaded: in how many streams, how far ahead, and what becomes of a download that
//! nobody waits for.

use std::ops::RangeInclusive;

use crate::oci::Pattern;

use super::report::{Report, Section, shown};
use super::{SizeLimit, Upstream, retention, size};

const DEFAULT_MIN_SIZE: u64 = 64 << 20;
const COUNT: RangeInclusive<usize> = 1..=16;
const DEFAULT_COUNT: usize = 4;
const PER_BLOB: RangeInclusive<usize> = 1..=64;
const DEFAULT_PER_BLOB: usize = 16;
const TOTAL: RangeInclusive<usize> = 1..=4096;
const DEFAULT_TOTAL: usize = 128;
const PER_UPSTREAM: RangeInclusive<usize> = 1..=1024;
const DEFAULT_PER_UPSTREAM: usize = 32;
const PREFETCH: RangeInclusive<usize> = 0..=64;
const DEFAULT_PREFETCH: usize = 4;
const DEFAULT_PREFETCH_SIZE: u64 = 4 << 30;
const DEFAULT_MAX_BLOB: u64 = 64 << 30;
const DEFAULT_MIN_SPEED: u64 = 1 << 10;
const DEFAULT_FILL_AFTER: u8 = 50;

/// The ranged streams of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Bytes: smaller blobs come in one stream.
    pub min_size: u64,
    /// The most streams of a blob that is read from its start; 1 to 16, and 1 is no segments.
    pub count: usize,
    /// The most streams of a blob of which clients ask for ranges far apart; `count` to 64.
    pub per_blob: usize,
}

/// Streams of blobs that are open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// To all upstreams together; 1 to 4096.
    pub total: usize,
    /// To one upstream; 1 to 1024, and at most `total`.
    pub per_upstream: usize,
}

/// Layers that are fetched before a client asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Layers of one upstream at the same time; at most 64, and 0 turns prefetching off.
    pub downloads: usize,
    /// Bytes of one image at most.
    pub max_size: u64,
}

/// What becomes of a download that its last client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbandon {
    /// It goes on to the end.
    Finish,
    /// It stops, and goes on from there when somebody asks again.
    Pause,
    /// [`Finish`](Self::Finish) when more than half is there or the blob is smaller than 256 MiB,
    /// else [`Pause`](Self::Pause).
    Auto,
}

/// What a client's range of a blob that isn't there makes the mirror fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeMode {
    /// The whole blob.
    Fill,
    /// The range alone, until [`Proxy::fill_after`](super::Proxy::fill_after) is reached.
    Passthrough,
}

impl RangeMode {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Passthrough => "passthrough",
        }
    }
}

/// What ranges do in some repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRule {
    /// Of stored names, as in [`TtlRule::pattern`](super::TtlRule::pattern).
    pub pattern: Pattern,
    pub ranges: RangeMode,
}

pub(super) fn segments(segments: &Section<'_>, report: &mut Report<'_>) -> Segments {
    let min_size = segments.size("minsize", DEFAULT_MIN_SIZE, report);
    let mut count = segments.number("count", &COUNT, DEFAULT_COUNT, report);
    let per_blob = segments.number("perblob", &PER_BLOB, DEFAULT_PER_BLOB, report);
    if segments.text("count").is_none() {
        count = count.min(per_blob);
    } else if per_blob < count {
        let path = segments.path.key("perblob");
        let other = segments.path.key("count");
        let message =
            format!("`{path}` is {per_blob}, less than `{other}`; write at least {count}");
        report.problem(&path, message);
    }
    Segments {
        min_size,
        count,
        per_blob,
    }
}

pub(super) fn streams(streams: &Section<'_>, report: &mut Report<'_>) -> Streams {
    let total = streams.number("total", &TOTAL, DEFAULT_TOTAL, report);
    let mut per_upstream =
        streams.number("perupstream", &PER_UPSTREAM, DEFAULT_PER_UPSTREAM, report);
    if streams.text("perupstream").is_none() {
        per_upstream = per_upstream.min(total);
    } else if per_upstream > total {
        let path = streams.path.key("perupstream");
        let other = streams.path.key("total");
        let message =
            format!("`{path}` is {per_upstream}, more than `{other}`; write at most {total}");
        report.problem(&path, message);
    }
    Streams {
        total,
        per_upstream,
    }
}

pub(super) fn prefetch(prefetch: &Section<'_>, report: &mut Report<'_>) -> Prefetch {
    Prefetch {
        downloads: prefetch.number("downloads", &PREFETCH, DEFAULT_PREFETCH, report),
        max_size: prefetch.size("maxsize", DEFAULT_PREFETCH_SIZE, report),
    }
}

pub(super) fn max_blob_size(proxy: &Section<'_>, report: &mut Report<'_>) -> u64 {
    let size = proxy.size("maxblobsize", DEFAULT_MAX_BLOB, report);
    if size == 0 {
        let path = proxy.path.key("maxblobsize");
        let message = format!("`{path}` must be more than 0; 1 byte caches no blobs");
        report.problem(&path, message);
    }
    size
}

pub(super) fn min_speed(proxy: &Section<'_>, report: &mut Report<'_>) -> u64 {
    proxy.size("minspeed", DEFAULT_MIN_SPEED, report)
}

pub(super) fn on_abandon(proxy: &Section<'_>, report: &mut Report<'_>) -> OnAbandon {
    match proxy.text("onabandon") {
        None => OnAbandon::Auto,
        Some("finish") => OnAbandon::Finish,
        Some("pause") => OnAbandon::Pause,
        Some(other) => {
            let path = proxy.path.key("onabandon");
            let message = format!(
                "`{path}` is {}; write finish or pause, or leave it out to decide by how much is \
                 there",
                shown(other)
            );
            report.problem(&path, message);
            OnAbandon::Auto
        }
    }
}

/// The mode at `ranges`.
pub(super) fn ranges(section: &Section<'_>, report: &mut Report<'_>) -> RangeMode {
    match section.text("ranges").unwrap_or("fill") {
        "fill" => RangeMode::Fill,
        "passthrough" => RangeMode::Passthrough,
        other => {
            let path = section.path.key("ranges");
            let message = format!("`{path}` is {}; write fill or passthrough", shown(other));
            report.problem(&path, message);
            RangeMode::Fill
        }
    }
}

pub(super) fn range_rules(
    proxy: &Section<'_>,
    default: &Upstream,
    report: &mut Report<'_>,
) -> Vec<RangeRule> {
    let mut rules = Vec::new();
    for rule in proxy.sections("rangerules") {
        let pattern = retention::rule_pattern(&rule, default, report);
        if rule.text("ranges").is_none() {
            let path = rule.path.key("ranges");
            let message = format!("`{path}` is missing; write fill or passthrough");
            report.problem(&rule.path, message);
        }
        let ranges = ranges(&rule, report);
        // What is no pattern has been reported.
        if let Some(pattern) = pattern.and_then(|pattern| pattern.parse().ok()) {
            rules.push(RangeRule { pattern, ranges });
        }
    }
    rules
}

/// In percent.
pub(super) fn fill_after(proxy: &Section<'_>, report: &mut Report<'_>) -> u8 {
    let Some(text) = proxy.text("fillafter") else {
        return DEFAULT_FILL_AFTER;
    };
    if let Ok(SizeLimit::Percent(percent)) = size::limit(text, 1..=100) {
        return percent;
    }
    let path = proxy.path.key("fillafter");
    let value = shown(text);
    let message =
        format!("`{path}` is {value}; write a whole percentage from 1% to 100%, such as 50%");
    report.problem(&path, message);
    DEFAULT_FILL_AFTER
}
