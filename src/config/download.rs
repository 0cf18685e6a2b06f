//! How blobs are downloaded: parallel streams, prefetching, ranges, and abandoned downloads.

use super::section::Section;
use super::size::{self, SizeLimit};

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
    let min_size = segments.size("minsize", 64 << 20);
    let mut count = segments.number("count", 1..=16, 4);
    let per_blob = segments.number("perblob", 1..=64, 16);
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
    let total = streams.number("total", 1..=4096, 128);
    let per_upstream = streams.number("perupstream", 1..=1024, total.min(32));
    if per_upstream > total {
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
        downloads: prefetch.number("downloads", 0..=64, 4),
        max_size: prefetch.size("maxsize", 4 << 30),
    }
}

pub(super) fn max_blob_size(proxy: &Section<'_>) -> u64 {
    let size = proxy.size("maxblobsize", 64 << 30);
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
    let percent = proxy.parsed("fillafter", parse).unwrap_or(50);
    proxy.print("fillafter", format!("{percent}%"));
    percent
}
