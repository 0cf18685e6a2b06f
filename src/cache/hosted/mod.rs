//! What hosted repositories need of the cache: their content has no upstream to come from again.
//!
//! Whether a hosted repository has something is decided by the index alone once that is complete, because
//! a link that a client has deleted may be on disk until nobody reads its content. Content that isn't
//! known to have its digest is verified before it is confirmed. Content that is missing or damaged
//! is reported and keeps its links.

mod blobs;
mod manifests;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use super::index::{Index, LinkKey};
use super::{Cache, Full, Inner, MAX_PAGE, NotReady, OverQuota};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName, Tag};
use crate::storage::{Link, LinkKind, StoreError, Tagging};

pub use manifests::ManifestPush;
pub use uploads::PushedFile;

/// How long the answer to a deletion waits for the disk.
const DELETION_TIME: Duration = Duration::from_secs(2);

/// A hosted repository links content that is missing, damaged or unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored content is damaged or missing; pushing it again heals that")]
pub struct Damaged;

/// The result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The repository doesn't have it any more.
    Gone,
    /// The repository didn't have it.
    Missing,
    /// A manifest of the repository refers to it.
    Referenced,
}

/// Why pushed content isn't kept.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the tag {} is immutable and names {digest}", tag.as_str())]
    Immutable { tag: Tag, digest: Box<Digest> },
}

/// Bytes of an open upload that count towards the quota of its space. Dropping it takes them back.
#[derive(Debug)]
#[must_use = "the bytes don't count once this is dropped"]
pub struct Charge {
    shared: Arc<Inner>,
    space: usize,
    bytes: u64,
}

impl Charge {
    /// Counts bytes up to this total, or refuses that.
    pub fn grow(&mut self, total: u64) -> Result<(), OverQuota> {
        let more = total.saturating_sub(self.bytes);
        if more > 0 {
            let space = self.space;
            self.shared.with(|index| index.charge(space, more))?;
            self.bytes += more;
        }
        Ok(())
    }

    /// Takes the bytes back in a step that counts what they have become.
    fn end(mut self, index: &mut Index) {
        index.discharge(self.space, std::mem::take(&mut self.bytes));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let (space, bytes) = (self.space, self.bytes);
            self.shared.with(|index| index.discharge(space, bytes));
        }
    }
}

impl Cache {
    /// Whether a repository is hosted, by its stored name.
    pub fn hosts(&self, repo: &RepoName) -> bool {
        // Not of the index, under whose lock this is asked: patterns don't change.
        let mut policies = self.inner.settings.hosted.iter();
        policies.any(|policy| policy.has(repo))
    }

    /// Whether any repository can be hosted.
    pub fn has_hosted(&self) -> bool {
        !self.inner.settings.hosted.is_empty()
    }

    /// Compares everything in the index with what it covers.
    #[cfg(test)]
    pub(crate) fn check_index(&self) {
        self.inner.with(|index| index.check_invariants());
    }

    /// Counts bytes of an upload towards the quota of a space, or refuses them. The space is a position
    /// in [`CacheSettings::hosted`](super::CacheSettings).
    pub fn charge(&self, space: usize, bytes: u64) -> Result<Charge, OverQuota> {
        let mut charge = Charge {
            shared: Arc::clone(&self.inner),
            space,
            bytes: 0,
        };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Counts bytes that are there already, whatever the quota is.
    pub fn charge_existing(&self, space: usize, bytes: u64) -> Charge {
        self.inner.with(|index| index.charge_anyway(space, bytes));
        Charge {
            shared: Arc::clone(&self.inner),
            space,
            bytes,
        }
    }

    /// The blobs that hosted repositories have lost, at most `max` of them, and how many there are.
    pub fn lost(&self, max: usize) -> (Vec<Digest>, usize) {
        self.inner.with(|index| index.lost(max))
    }

    /// All hosted repositories that have something, sorted. Waits for the index to be complete.
    pub async fn hosted_repositories(&self) -> Result<Vec<RepoName>, NotReady> {
        self.ready().await?;
        let all = self.inner.repositories().await.into_iter();
        let hosted = all.filter_map(|(repo, is_hosted)| is_hosted.then_some(repo));
        let mut hosted: Vec<_> = hosted.collect();
        hosted.sort_unstable();
        Ok(hosted)
    }

    /// Whether a hosted repository has a link. Counts as a use, and keeps a link whose time is over. Until
    /// the index is complete, the store is asked for what the index doesn't know.
    async fn has_hosted_link(&self, repo: &RepoName, kind: LinkKind, digest: &Digest) -> bool {
        let (now, link) = (self.inner.now(), (repo, kind, digest));
        let known = |index: &mut Index| {
            let is_kept = index.revive(link, now);
            (is_kept || index.complete || index.is_marked(link)).then_some(is_kept)
        };
        if let Some(is_kept) = self.inner.with(known) {
            return is_kept;
        }
        let linked = self
            .inner
            .store
            .linked(&Link::new(repo, kind, digest))
            .await;
        self.readable("link", linked)
    }

    /// Waits a while for the removal of a link that a client has deleted. One whose content is held is
    /// removed later, and serves no request until then.
    async fn deleted(&self, link: LinkKey<'_>) {
        let gone = |index: &mut Index| index.is_gone_or_held(link).then_some(());
        let gone = self.inner.until_freed(gone);
        drop(tokio::time::timeout(DELETION_TIME, gone).await);
    }

    /// Makes durable what an earlier process has written, so that the first push needn't wait for that.
    pub async fn settle_store(&self) {
        if let Err(error) = self.inner.store.publish(&[], &[], None).await {
            let error = on_one_line(&error);
            tracing::warn!(
                error,
                "what is stored can't be made durable yet; the first push tries it again"
            );
        }
    }

    /// Makes a link to stored content that is held, and counts it in place of what was charged for it.
    /// Returns whether it is a new one.
    async fn link_pushed(
        &self,
        link: &Link,
        size: u64,
        charge: Charge,
    ) -> Result<bool, StoreError> {
        self.inner.store.link(link).await?;
        let (now, key) = (self.inner.now(), (&link.repo, link.kind, &link.digest));
        Ok(self.inner.with(|index| {
            let is_new = !index.has_link(key);
            index.link(key, size, now);
            charge.end(index);
            is_new
        }))
    }

    /// Removes a new link again where what it belongs to has failed.
    fn unless_failed<T, E>(&self, link: &Link, is_new: bool, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() && is_new {
            let key = (&link.repo, link.kind, &link.digest);
            self.inner.with(|index| index.delete(key));
        }
        result
    }

    /// Makes blobs and links durable, then tags. Blobs whose bytes may be lost by that are set aside. The
    /// error has the tags that name what they shall nevertheless.
    async fn make_durable(
        &self,
        blobs: &[Digest],
        links: &[Link],
        tagging: Option<&Tagging>,
    ) -> Result<(), (Vec<Tag>, StoreError)> {
        let unsynced = self.inner.with(|index| index.unsynced(blobs));
        let published = self.inner.store.publish(&unsynced, links, tagging);
        let Err(failed) = published.await else {
            self.inner.with(|index| index.set_synced(&unsynced));
            return Ok(());
        };
        self.inner.metrics.store_failed();
        tracing::error!(error = %on_one_line(&failed), blobs = failed.lost.len(), "a push fails; its blobs must be pushed again");
        for digest in &failed.lost {
            self.quarantine(digest, None).await;
        }
        Err((failed.tagged, failed.source))
    }
}

impl Inner {
    /// All repositories that have something, each with whether it is hosted, in no order.
    pub(super) async fn repositories(&self) -> Vec<(RepoName, bool)> {
        let mut all = Vec::new();
        let look = |index: &mut Index, at| {
            let (page, next) = index.repositories(at, MAX_PAGE);
            all.extend(page);
            next
        };
        self.pages(look).await;
        all
    }
}
