//! What is counted of the tags that are kept fresh (`proxy.keepfresh`).

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::labels::{KeptFresh, KeptFreshResult};
use super::{Metrics, Registrar};

#[derive(Debug)]
pub(super) struct KeptFreshTags {
    revalidations: Family<KeptFreshResult, Counter>,
    received: Counter,
}

impl KeptFreshTags {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let tags = Self {
            revalidations: r.metric(
                "keepfresh_revalidations",
                "Revalidations of tags that are kept fresh, by their result",
            ),
            received: r.bytes(
                "keepfresh_received",
                "Bytes of blobs that were fetched ahead for tags that are kept fresh",
            ),
        };
        for &result in KeptFresh::ALL {
            drop(
                tags.revalidations
                    .get_or_create_owned(&KeptFreshResult { result }),
            );
        }
        tags
    }
}

impl Metrics {
    /// A tag that is kept fresh was looked after.
    pub fn kept_fresh(&self, result: KeptFresh) {
        let tags = &self.downloads.kept_fresh;
        let labels = KeptFreshResult { result };
        tags.revalidations.get_or_create_owned(&labels).inc();
    }

    /// Bytes of blobs were fetched for such a tag.
    pub fn kept_fresh_bytes(&self, bytes: u64) {
        self.downloads.kept_fresh.received.inc_by(bytes);
    }
}
