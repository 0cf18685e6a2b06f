//! Content of the bucket that is wrong.

use std::sync::Arc;

use tokio::time::timeout;

use super::{Bucket, keys};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

impl Bucket {
    /// Content was wrong twice: sets it aside, unless a hosted repository may have it, whose only copy it may
    /// be. What is uploaded next takes its place.
    pub async fn distrust(self: &Arc<Self>, digest: &Digest) {
        self.on_missing(digest);
        if self.cache.has_hosted() {
            tracing::error!(%digest, "the bucket's content has another digest; a push of it mends that");
            return;
        }
        let (from, to) = (keys::blob(digest), keys::quarantined(digest));
        let moving = async {
            self.objects.copy(&from, &to).await?;
            self.objects.delete(&from).await
        };
        match timeout(super::SMALL_TIME, moving).await {
            Ok(Ok(())) => {
                self.metrics.quarantined();
                tracing::error!(%digest, quarantine = to, "the bucket's content has another digest; it is set aside");
            }
            Ok(Err(error)) => {
                tracing::error!(%digest, error = %on_one_line(&error), "the bucket's content has another digest, and can't be set aside");
            }
            Err(_elapsed) => {
                tracing::error!(%digest, "the bucket's content has another digest, and setting it aside takes too long");
            }
        }
    }
}
