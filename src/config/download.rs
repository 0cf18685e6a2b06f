//! How blobs are downloaded: parallel streams, prefetching, ranges, and abandoned downloads.

use std::ops::RangeInclusive;

use super::section::Section;
use super::size::{self, SizeLimit};

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
/// In percent.
const DEFAULT_FILL_AFTER: u8 = 50;

/// The parallel streams of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Bytes: smaller blobs are downloaded in one stream.
    pub min_size: u64,
    /// The most streams of a full download; 1 to 16, and 1 disables segmented downloads.
    pub count: usize,
    /// The most streams of a blob of which clients request ranges far apart; `count` to 64.
    pub per_blob: usize,
}

/// Limits of the blob streams that are open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// To all upstreams together; 1 to 4096.
    pub total: usize,
    /// To one upstream; 1 to 1024, and at most `total`.
    pub per_upstream: usize,
}

/// Downloads of layers before a client requests them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Layers of one upstream at the same time; at most 64, and 0 turns prefetching off.
    pub downloads: usize,
    /// The most bytes of one image.
    pub max_size: u64,
}

/// What happens to a download when its last client disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbandon {
    /// It continues to the end.
    Finish,
    /// It stops, and resumes at the next request.
    Pause,
    /// [`Finish`](Self::Finish) when more than half is downloaded or the blob is smaller than
    /// 256 MiB, else [`Pause`](Self::Pause).
    Auto,
}

/// What the mirror downloads for a client's range of a blob that is not cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeMode {
    /// The whole blob.
    Fill,
    /// The range alone, until [`Proxy::fill_after`](super::Proxy::fill_after) is reached.
    Passthrough,
}

pub(super) fn segments(segments: &Section<'_>) -> Segments {
    let min_size = segments.size("minsize", DEFAULT_MIN_SIZE);
    let mut count = segments.number("count", COUNT, DEFAULT_COUNT);
    let per_blob = segments.number("perblob", PER_BLOB, DEFAULT_PER_BLOB);
    if segments.text("count").is_none() {
        count = count.min(per_blob);
    } else if per_blob < count {
        let other = segments.path("count");
        let reason = format!("is {per_blob}, less than `{other}`; write at least {count}");
        segments.reject("perblob", reason);
    }
    segments.print("count", count);
    Segments {
        min_size,
        count,
        per_blob,
    }
}

pub(super) fn streams(streams: &Section<'_>) -> Streams {
    let total = streams.number("total", TOTAL, DEFAULT_TOTAL);
    let mut per_upstream = streams.number("perupstream", PER_UPSTREAM, DEFAULT_PER_UPSTREAM);
    if streams.text("perupstream").is_none() {
        per_upstream = per_upstream.min(total);
    } else if per_upstream > total {
        let other = streams.path("total");
        let reason = format!("is {per_upstream}, more than `{other}`; write at most {total}");
        streams.reject("perupstream", reason);
    }
    streams.print("perupstream", per_upstream);
    Streams {
        total,
        per_upstream,
    }
}

pub(super) fn prefetch(prefetch: &Section<'_>) -> Prefetch {
    Prefetch {
        downloads: prefetch.number("downloads", PREFETCH, DEFAULT_PREFETCH),
        max_size: prefetch.size("maxsize", DEFAULT_PREFETCH_SIZE),
    }
}

pub(super) fn max_blob_size(proxy: &Section<'_>) -> u64 {
    let size = proxy.size("maxblobsize", DEFAULT_MAX_BLOB);
    if size == 0 {
        proxy.reject("maxblobsize", "must be more than 0; 1 byte caches no blobs");
    }
    size
}

pub(super) fn on_abandon(proxy: &Section<'_>) -> OnAbandon {
    proxy.choice(
        "onabandon",
        "write finish or pause, or remove the key to decide by the amount downloaded",
        &[("finish", OnAbandon::Finish), ("pause", OnAbandon::Pause)],
        OnAbandon::Auto,
    )
}

/// The mode at `ranges`.
pub(super) fn ranges(section: &Section<'_>) -> RangeMode {
    let modes = [
        ("fill", RangeMode::Fill),
        ("passthrough", RangeMode::Passthrough),
    ];
    section.choice(
        "ranges",
        "write fill or passthrough",
        &modes,
        RangeMode::Fill,
    )
}

/// The percentage at `fillafter`.
pub(super) fn fill_after(proxy: &Section<'_>) -> u8 {
    let parse = |text: &str| match size::limit(text, 1..=100) {
        Ok(SizeLimit::Percent(percent)) => Ok(percent),
        _ => Err("write a whole percentage from 1% to 100%, such as 50%"),
    };
    let percent = proxy
        .parsed("fillafter", parse)
        .unwrap_or(DEFAULT_FILL_AFTER);
    proxy.print("fillafter", format!("{percent}%"));
    percent
}
