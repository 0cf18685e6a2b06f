//! What is counted of downloads.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::keep_fresh::KeptFreshTags;
use super::labels::OfUpstream;
use super::{InFlight, Metrics, Registrar, set};

/// The counters of downloads. They have no label for a single download.
#[derive(Debug)]
pub struct Downloads {
    running: Gauge,
    followers: Gauge,
    /// Downloads that resumed after the upstream had broken off.
    pub resumed: Counter,
    /// Downloads that paused because no client waited for them.
    pub paused: Counter,
    /// Downloads that continued with another source.
    pub sources_changed: Counter,
    /// Ranged streams opened beside a blob's first.
    pub segments: Counter,
    streams: Family<OfUpstream, Gauge>,
    waiting: Gauge,
    partials: Gauge,
    partial_bytes: Gauge,
    /// Bytes of blobs fetched ahead.
    pub prefetched: Counter,
    /// Bytes of blobs fetched ahead that a client then asked for.
    pub prefetched_used: Counter,
    /// Images whose layers were not fetched ahead, because too many others waited for that.
    pub prefetch_dropped: Counter,
    pub(super) kept_fresh: KeptFreshTags,
}

impl Downloads {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            streams: r.metric("upstream_streams", "Open streams of blobs"),
            running: r.metric("downloads_in_flight", "Downloads running"),
            followers: r.metric("followers", "Clients reading a running download"),
            waiting: r.metric("streams_waiting",
                "Streams of blobs that wait for another to end",
            ),
            partials: r.metric("partials",
                "Blobs of which a part is there, and no download runs",
            ),
            partial_bytes: r.metric("partial_bytes", "Bytes that are there of those"),
            resumed: r.metric("downloads_resumed",
                "Downloads that went on where the upstream had broken off",
            ),
            sources_changed: r.metric("download_sources_changed",
                "Downloads that went on with another repository's source after one had failed",
            ),
            paused: r.metric("downloads_paused",
                "Downloads that stopped because nobody waited for them",
            ),
            segments: r.metric("segments_opened",
                "Ranged streams opened beside a blob's first",
            ),
            prefetch_dropped: r.metric("prefetch_dropped",
                "Images whose layers were not fetched ahead, because too many others waited for that",
            ),
            kept_fresh: KeptFreshTags::register(r),
            prefetched: r.bytes("prefetched", "Bytes of blobs fetched ahead"),
            prefetched_used: r.bytes("prefetched_used",
                "Bytes of blobs fetched ahead that a client then asked for",
            ),
        }
    }
}

impl Metrics {
    /// Counts a running download until dropped.
    pub fn download(&self) -> InFlight {
        InFlight::new(&self.downloads.running)
    }

    /// Counts a client that reads a running download until dropped.
    pub fn follower(&self) -> InFlight {
        InFlight::new(&self.downloads.followers)
    }

    /// Counts an open stream of a blob until dropped. `upstream` is a configured name.
    pub fn stream(&self, upstream: &str) -> InFlight {
        let upstream = upstream.to_owned();
        let streams = &self.downloads.streams;
        InFlight::new(&streams.get_or_create_owned(&OfUpstream { upstream }))
    }

    /// Counts a stream of a blob that waits for its turn until dropped.
    pub fn waiting_stream(&self) -> InFlight {
        InFlight::new(&self.downloads.waiting)
    }

    /// Takes over how many blobs are there in part without a running download, and how many bytes
    /// of them.
    pub fn partials(&self, blobs: u64, bytes: u64) {
        set(&self.downloads.partials, blobs);
        set(&self.downloads.partial_bytes, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_rendered_as_text() {
        let metrics = Metrics::new();
        let (_hub, _quay, gone) = (
            metrics.stream("docker.io"),
            metrics.stream("quay.io"),
            metrics.stream("quay.io"),
        );
        drop(gone);
        let (_one, _two, gone) = (
            metrics.waiting_stream(),
            metrics.waiting_stream(),
            metrics.waiting_stream(),
        );
        drop(gone);
        let (_one, gone) = (metrics.follower(), metrics.follower());
        drop(gone);
        metrics.downloads.resumed.inc();
        metrics.downloads.paused.inc();
        metrics.downloads.segments.inc();
        metrics.downloads.prefetch_dropped.inc();
        metrics.partials(9, 9);
        metrics.partials(3, 4096);
        metrics.downloads.prefetched.inc_by(7);
        metrics.downloads.prefetched.inc_by(2);
        metrics.downloads.prefetched_used.inc_by(5);
        let text = metrics.render();
        for line in [
            r#"millpond_upstream_streams{upstream="docker.io"} 1"#,
            r#"millpond_upstream_streams{upstream="quay.io"} 1"#,
            "millpond_streams_waiting 2",
            "millpond_followers 1",
            "millpond_downloads_in_flight 0",
            "millpond_downloads_resumed_total 1",
            "millpond_downloads_paused_total 1",
            "millpond_segments_opened_total 1",
            "millpond_prefetch_dropped_total 1",
            "millpond_partials 3",
            "millpond_partial_bytes 4096",
            "millpond_prefetched_bytes_total 9",
            "millpond_prefetched_used_bytes_total 5",
        ] {
            let found = text.lines().any(|found| found == line);
            assert!(found, "{line} is not in\n{text}");
        }
    }
}
