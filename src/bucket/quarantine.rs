//! Objects of the bucket whose content doesn't have its digest.

use std::sync::Arc;

use tokio::time::timeout;

use super::client::SMALL_TIME;
use super::{Bucket, keys};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

impl Bucket {
    /// Content was wrong twice: sets it aside, unless a hosted repository may have it, whose only copy it may
    /// be. What is uploaded next takes its place.
    pub async fn distrust(self: &Arc<Self>, digest: &Digest) {
        self.on_missing(digest);
        if self.cache.has_hosted() {
            tracing::error!(%digest, "an object of the bucket doesn't have its digest; pushing the content again heals that");
            return;
        }
        let (from, to) = (keys::blob(digest), keys::quarantined(digest));
        let moving = async {
            self.objects.copy(&from, &to).await?;
            self.objects.delete(&from).await
        };
        match timeout(SMALL_TIME, moving).await {
            Ok(Ok(())) => {
                self.metrics.quarantined();
                tracing::error!(%digest, quarantine = to, "an object of the bucket doesn't have its digest; it was moved to the quarantine");
            }
            Ok(Err(error)) => {
                tracing::error!(%digest, error = %on_one_line(&error), "an object of the bucket doesn't have its digest, and can't be moved to the quarantine");
            }
            Err(_elapsed) => {
                tracing::error!(%digest, "an object of the bucket doesn't have its digest, and moving it to the quarantine takes too long");
            }
        }
    }
}
