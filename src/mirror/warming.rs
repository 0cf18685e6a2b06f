//! What is fetched for an operator who waits for it: nothing of it counts as a client's request, and no
//! prefetch follows.

use std::sync::Arc;

use super::verdicts::Question;
use super::{BlobAnswer, ManifestHit, Mirror, MirrorError, ReadMode, Target};
use crate::cache::CachedManifest;
use crate::download::Client;
use crate::metrics::Outcome;
use crate::oci::{Accept, Digest, Reference, RepoName};

impl Mirror {
    /// A manifest with its content, and whether it is stored.
    pub async fn whole_manifest(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
    ) -> Result<(Arc<CachedManifest>, bool), MirrorError> {
        let (accept, mode) = (Accept::everything(), ReadMode::Content);
        let answer = self.manifest(target, reference, &accept, mode).await?;
        let is_stored = answer.outcome != Outcome::Miss || answer.exchange.stored;
        match answer.found {
            ManifestHit::Whole(manifest) => Ok((manifest, is_stored)),
            // Content was asked for.
            ManifestHit::Head(_) => Err(MirrorError::Lost),
        }
    }

    /// The manifests that are attached to one.
    pub async fn attached(
        self: &Arc<Self>,
        target: &Target,
        digest: Digest,
    ) -> Result<Vec<Digest>, MirrorError> {
        let answer = self.referrers(target, digest, None).await?;
        let referrers = self.listed(answer.index).await?;
        Ok(referrers.iter().map(|referrer| referrer.digest).collect())
    }

    /// Finds a blob as for a client that wants all of it.
    pub async fn fetch_blob(
        &self,
        target: &Target,
        digest: Digest,
    ) -> Result<BlobAnswer, MirrorError> {
        self.permit(target, || Question::Blob(digest)).await?;
        self.find_blob(target, digest, None, Client::UNKNOWN).await
    }

    /// Whether a blob is stored, and the repository links it.
    pub async fn has_blob(&self, target: &Target, digest: &Digest) -> bool {
        let is_its = |repo: &RepoName| *repo == target.stored;
        self.cache.is_linked_by(digest, is_its).await && self.cache.is_usable(digest).await
    }
}
