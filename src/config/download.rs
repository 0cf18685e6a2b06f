//! How blobs are downloaded: parallel streams, prefetching, ranges, and abandoned downloads.

use std::ops::RangeInclusive;

use serde::Serialize;

use super::print;
use super::section::Section;

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

/// The parallel streams of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Segments {
    /// Bytes: smaller blobs are downloaded in one stream.
    #[serde(rename = "minsize", serialize_with = "print::size")]
    pub min_size: u64,
    /// The most streams of a full download; 1 to 16, and 1 disables segmented downloads.
    pub count: usize,
    /// The most streams of a blob of which clients request ranges far apart; `count` to 64.
    #[serde(rename = "perblob")]
    pub per_blob: usize,
}

/// Limits of the blob streams that are open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Streams {
    /// To all upstreams together; 1 to 4096.
    pub total: usize,
    /// To one upstream; 1 to 1024, and at most `total`.
    #[serde(rename = "perupstream")]
    pub per_upstream: usize,
}

/// Downloads of layers before a client requests them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Prefetch {
    /// Layers of one upstream at the same time; at most 64, and 0 turns prefetching off.
    pub downloads: usize,
    /// The most bytes of one image.
    #[serde(rename = "maxsize", serialize_with = "print::size")]
    pub max_size: u64,
}

/// What happens to a download when its last client disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeMode {
    /// The whole blob.
    Fill,
    /// The range alone, until [`Proxy::fill_after`](super::Proxy::fill_after) is reached.
    Passthrough,
}

pub(super) fn segments(segments: &Section<'_>) -> Segments {
    let mut count = segments.number("count", COUNT, DEFAULT_COUNT);
    let per_blob = segments.number("perblob", PER_BLOB, DEFAULT_PER_BLOB);
    if segments.text("count").is_none() {
        count = count.min(per_blob);
    } else if per_blob < count {
        let other = segments.path("count");
        let reason = format!("is {per_blob}, less than `{other}`; write at least {count}");
        segments.reject("perblob", reason);
    }
    Segments {
        min_size: segments.size("minsize", DEFAULT_MIN_SIZE),
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
    let choice = proxy.choice(
        "onabandon",
        "write finish or pause, or remove the key to decide by the amount downloaded",
        &[("finish", OnAbandon::Finish), ("pause", OnAbandon::Pause)],
    );
    choice.unwrap_or(OnAbandon::Auto)
}

/// The mode at `ranges`.
pub(super) fn ranges(section: &Section<'_>) -> RangeMode {
    let modes = [
        ("fill", RangeMode::Fill),
        ("passthrough", RangeMode::Passthrough),
    ];
    let mode = section.choice("ranges", "write fill or passthrough", &modes);
    mode.unwrap_or(RangeMode::Fill)
}
