//! Redirects of clients to the bucket.

use std::sync::Arc;

use http::HeaderValue;

use super::single_flight::SingleFlight;
use super::verdicts::Question;
use super::{Mirror, MirrorError, Target};
use crate::bucket::{Bucket, KnownRedirect, MIN_REDIRECTED, Redirect, Redirects};
use crate::cache::LinkKind;
use crate::oci::range::Resolved;
use crate::oci::{Digest, RepoName, Requested};

/// Questions to the bucket where a repository's clients get a blob.
pub(super) type Redirecting = SingleFlight<(RepoName, Digest), Option<Redirect>>;

impl Mirror {
    /// How clients are redirected to the bucket. None where they never are.
    pub fn redirects(&self) -> Option<&Redirects> {
        self.bucket.as_ref()?.redirects()
    }

    /// Where a client that may access the repository gets a blob, or a range of it. None where the blob is to
    /// be served. The error is the upstream's, which doesn't let the caller's account have it.
    pub async fn redirect(
        &self,
        target: &Target,
        digest: Digest,
        ranges: Option<&Requested>,
    ) -> Result<Option<HeaderValue>, MirrorError> {
        let question = || Question::Blob(digest);
        self.permit(target, question).await?;
        // The upstream's word of a moment ago counts for more than an old link.
        if self.negatives.answer(target, question).is_some() {
            return Ok(None);
        }
        Ok(self.redirect_stored(&target.stored, digest, ranges).await)
    }

    /// The same for a caller that may have the blob from the repository with this name in the store.
    pub async fn redirect_stored(
        &self,
        stored: &RepoName,
        digest: Digest,
        ranges: Option<&Requested>,
    ) -> Option<HeaderValue> {
        let bucket = self.bucket.as_ref()?;
        let redirect = self.redirect_whole(bucket, stored, digest).await?;
        // Stores differ in what they make of other ranges.
        let is_answered = ranges.is_none_or(|ranges| {
            ranges.is_single() && matches!(ranges.resolve(redirect.size), Resolved::One(_))
        });
        if !is_answered {
            return None;
        }
        // Evictions follow the demand: what is cached is what serves clients while the bucket fails.
        self.cache.used_if_linked(stored, LinkKind::Layer, &digest);
        bucket.on_redirect(&digest);
        Some(redirect.location)
    }

    /// Whether the client gets this blob from the bucket. No use of it.
    pub(super) async fn gets_from_bucket(&self, target: &Target, digest: Digest) -> bool {
        let Some(bucket) = self.bucket.as_ref().filter(|_| target.is_redirected) else {
            return false;
        };
        let redirect = self.redirect_whole(bucket, &target.stored, digest).await;
        redirect.is_some()
    }

    async fn redirect_whole(
        &self,
        bucket: &Arc<Bucket>,
        stored: &RepoName,
        digest: Digest,
    ) -> Option<Redirect> {
        let described = self.sizes.get(&digest);
        if described.is_some_and(|size| size < MIN_REDIRECTED) {
            return None;
        }
        let redirect = match bucket.known_redirect(stored, &digest) {
            KnownRedirect::To(redirect) => redirect,
            KnownRedirect::Nowhere => return None,
            KnownRedirect::Unknown => self.find_redirect(bucket, stored, digest).await?,
        };
        // Whoever reads an object of another size sets it aside.
        let is_right = described.is_none_or(|size| size == redirect.size);
        is_right.then_some(redirect)
    }

    /// Asks the bucket, once for all clients that wait.
    async fn find_redirect(
        &self,
        bucket: &Arc<Bucket>,
        stored: &RepoName,
        digest: Digest,
    ) -> Option<Redirect> {
        let (bucket, repo) = (Arc::clone(bucket), stored.clone());
        // Short: it ends even if all clients have left.
        let ask = |_interest| async move { bucket.find_redirect(&repo, &digest).await };
        let asking = self.redirecting.join((stored.clone(), digest), ask);
        // Lost only if its task is.
        asking.await.ok().flatten()
    }
}
