//! What is counted of the bucket that replicas share.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::labels::{BucketRequest, BucketUpload};
use super::replicas::{SourceFigures, Sources};
use super::{InFlight, Metrics, Registrar, set};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    kind: BucketRequest,
    /// The class of the status, as `2xx`; `none` without an answer.
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUpload {
    result: BucketUpload,
}

/// What a sweep of the bucket has found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketSwept {
    /// Objects of content after it, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    /// Keys that are neither the reference registry's nor ours.
    pub foreign: u64,
    /// What the next sweeps will delete, as far as this one has chosen it.
    pub marked: u64,
    /// Objects of content, and their bytes.
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// Whether it could read all uses; otherwise it has removed nothing.
    pub is_informed: bool,
}

/// The last sweep of the bucket by this replica.
#[derive(Debug)]
struct SweepFigures {
    objects: Gauge,
    bytes: Gauge,
    foreign: Gauge,
    marked: Gauge,
    informed: Gauge,
    deleted: Counter,
    deleted_bytes: Counter,
}

impl SweepFigures {
    fn register(r: &mut Registrar<'_>) -> Self {
        Self {
            objects: r.metric(
                "bucket_objects",
                "Objects of content in the bucket after the last sweep by this replica",
            ),
            bytes: r.bytes(
                "bucket",
                "Bytes of content in the bucket after the last sweep by this replica",
            ),
            foreign: r.metric(
                "bucket_foreign",
                "Keys of the bucket that the last sweep didn't know",
            ),
            marked: r.metric(
                "bucket_marked",
                "Digests that the last sweep has marked for deletion",
            ),
            informed: r.metric(
                "bucket_uses_known",
                "Whether the last sweep could read all uses; otherwise it removed nothing",
            ),
            deleted: r.metric(
                "bucket_deleted",
                "Objects of content that sweeps of this replica have deleted",
            ),
            deleted_bytes: r.bytes("bucket_deleted", "Bytes of those"),
        }
    }
}

/// The bucket.
#[derive(Debug)]
pub struct BucketMetrics {
    requests: Family<OfRequest, Counter>,
    queued: Gauge,
    uploads: Family<OfUpload, Counter>,
    uploaded: Counter,
    quarantined: Counter,
    redirects: Counter,
    blob_bodies: Gauge,
    sweep: SweepFigures,
    source: SourceFigures,
}

impl BucketMetrics {
    pub(super) fn register(r: &mut Registrar<'_>, sources: &Sources) -> Self {
        let metrics = Self {
            requests: r.metric(
                "bucket_requests",
                "Requests to the bucket, by their kind and the class of the status",
            ),
            queued: r.metric(
                "bucket_uploads_queued",
                "Links and tags that wait to be uploaded with their content",
            ),
            uploads: r.metric(
                "bucket_uploads",
                "Links and tags that were to be uploaded with their content, by the result",
            ),
            uploaded: r.bytes(
                "bucket_uploaded",
                "Bytes of content that the bucket has taken",
            ),
            quarantined: r.metric(
                "bucket_quarantined",
                "Objects of the bucket that were wrong twice and were set aside",
            ),
            redirects: r.metric(
                "bucket_redirects",
                "Requests of clients that were redirected to the bucket",
            ),
            blob_bodies: r.metric(
                "blob_bodies_in_flight",
                "Bodies of blobs that are being sent, counted where their number decides about redirects",
            ),
            sweep: SweepFigures::register(r),
            source: sources.figures("bucket"),
        };
        for &result in BucketUpload::ALL {
            drop(metrics.uploads.get_or_create_owned(&OfUpload { result }));
        }
        metrics
    }

    /// A request was answered with this status, or not at all.
    pub fn request(&self, kind: BucketRequest, status: Option<u16>) {
        let status = match status.map(|status| status / 100) {
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
            None => "none",
        };
        self.requests
            .get_or_create_owned(&OfRequest { kind, status })
            .inc();
        if kind == BucketRequest::Get {
            self.source.requests.inc();
        }
    }

    /// What was fetched from the bucket.
    pub fn source(&self) -> &SourceFigures {
        &self.source
    }

    /// So much waits to be uploaded.
    pub fn queued(&self, count: usize) {
        set(&self.queued, count as u64);
    }

    pub fn upload(&self, result: BucketUpload) {
        self.uploads.get_or_create_owned(&OfUpload { result }).inc();
    }

    /// The bucket has taken content.
    pub fn uploaded(&self, bytes: u64) {
        self.uploaded.inc_by(bytes);
    }

    /// The bucket was swept.
    pub fn swept(&self, swept: BucketSwept) {
        let sweep = &self.sweep;
        set(&sweep.objects, swept.objects);
        set(&sweep.bytes, swept.bytes);
        set(&sweep.foreign, swept.foreign);
        set(&sweep.marked, swept.marked);
        set(&sweep.informed, swept.is_informed.into());
        sweep.deleted.inc_by(swept.deleted);
        sweep.deleted_bytes.inc_by(swept.deleted_bytes);
    }

    pub fn quarantined(&self) {
        self.quarantined.inc();
    }

    /// A client was redirected to the bucket.
    pub fn redirected(&self) {
        self.redirects.inc();
    }

    /// Counts the body of a blob while it is being sent.
    pub fn blob_body(&self) -> InFlight {
        InFlight::new(&self.blob_bodies)
    }

    /// The same, unless more than `above` are being sent.
    pub fn blob_body_unless_above(&self, above: usize) -> Option<InFlight> {
        InFlight::unless_above(&self.blob_bodies, above)
    }
}

impl Metrics {
    /// Metrics of the bucket.
    pub fn bucket(&self) -> Arc<BucketMetrics> {
        Arc::clone(&self.upstreams.bucket)
    }
}
