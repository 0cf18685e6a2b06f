//! What is counted of downloads.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::labels::OfUpstream;
use super::{InFlight, Metrics, set};

/// The counters of downloads. They have no label for a single download.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    downloads: Gauge,
    followers: Gauge,
    resumed: Counter,
    paused: Counter,
    sources_changed: Counter,
    streams: Family<OfUpstream, Gauge>,
    waiting: Gauge,
    segments: Counter,
    partials: Gauge,
    partial_bytes: Gauge,
    prefetched: Counter,
    prefetched_used: Counter,
    prefetch_dropped: Counter,
}

impl Fetching {
    pub(super) fn register(&self, r: &mut Registry) {
        let help = "Open streams of blobs";
        r.register("upstream_streams", help, self.streams.clone());
        for (name, help, gauge) in [
            ("downloads_in_flight", "Downloads running", &self.downloads),
            (
                "followers",
                "Clients reading a running download",
                &self.followers,
            ),
            (
                "streams_waiting",
                "Streams of blobs that wait for another to end",
                &self.waiting,
            ),
            (
                "partials",
                "Blobs of which a part is there, and no download runs",
                &self.partials,
            ),
            (
                "partial_bytes",
                "Bytes that are there of those",
                &self.partial_bytes,
            ),
        ] {
            r.register(name, help, gauge.clone());
        }
        self.register_counters(r);
    }

    fn register_counters(&self, r: &mut Registry) {
        for (name, help, counter) in [
            (
                "downloads_resumed",
                "Downloads that went on where the upstream had broken off",
                &self.resumed,
            ),
            (
                "download_sources_changed",
                "Downloads that went on with another repository's source after one had failed",
                &self.sources_changed,
            ),
            (
                "downloads_paused",
                "Downloads that stopped because nobody waited for them",
                &self.paused,
            ),
            (
                "segments_opened",
                "Ranged streams opened beside a blob's first",
                &self.segments,
            ),
            (
                "prefetch_dropped",
                "Images whose layers were not fetched ahead, because too many others waited for that",
                &self.prefetch_dropped,
            ),
        ] {
            r.register(name, help, counter.clone());
        }
        for (name, help, counter) in [
            (
                "prefetched",
                "Bytes of blobs fetched ahead",
                &self.prefetched,
            ),
            (
                "prefetched_used",
                "Bytes of blobs fetched ahead that a client then asked for",
                &self.prefetched_used,
            ),
        ] {
            r.register_with_unit(name, help, Unit::Bytes, counter.clone());
        }
    }
}

impl Metrics {
    /// Counts a running download until dropped.
    pub fn download(&self) -> InFlight {
        InFlight::new(&self.fetching.downloads)
    }

    /// Counts a client that reads a running download until dropped.
    pub fn follower(&self) -> InFlight {
        InFlight::new(&self.fetching.followers)
    }

    pub fn download_resumed(&self) {
        self.fetching.resumed.inc();
    }

    /// A download continues with another source.
    pub fn source_changed(&self) {
        self.fetching.sources_changed.inc();
    }

    /// A download has paused because no client waits for it.
    pub fn download_paused(&self) {
        self.fetching.paused.inc();
    }

    /// Counts an open stream of a blob until dropped. `upstream` is a configured name.
    pub fn stream(&self, upstream: &str) -> InFlight {
        let upstream = upstream.to_owned();
        let streams = &self.fetching.streams;
        InFlight::new(&streams.get_or_create_owned(&OfUpstream { upstream }))
    }

    /// Counts a stream of a blob that waits for its turn until dropped.
    pub fn waiting_stream(&self) -> InFlight {
        InFlight::new(&self.fetching.waiting)
    }

    /// A ranged stream has been opened beside a blob's first.
    pub fn segment_opened(&self) {
        self.fetching.segments.inc();
    }

    /// Takes over how many blobs are there in part without a running download, and how many bytes
    /// of them.
    pub fn partials(&self, blobs: u64, bytes: u64) {
        set(&self.fetching.partials, blobs);
        set(&self.fetching.partial_bytes, bytes);
    }

    /// `bytes` of a blob were fetched ahead.
    pub fn prefetched(&self, bytes: u64) {
        self.fetching.prefetched.inc_by(bytes);
    }

    /// A client asked for a blob of which `bytes` were fetched ahead.
    pub fn prefetched_used(&self, bytes: u64) {
        self.fetching.prefetched_used.inc_by(bytes);
    }

    /// An image's layers were not fetched ahead, because too many others waited for that.
    pub fn prefetch_dropped(&self) {
        self.fetching.prefetch_dropped.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form() {
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
        metrics.download_resumed();
        metrics.download_paused();
        metrics.segment_opened();
        metrics.prefetch_dropped();
        metrics.partials(9, 9);
        metrics.partials(3, 4096);
        metrics.prefetched(7);
        metrics.prefetched(2);
        metrics.prefetched_used(5);
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
