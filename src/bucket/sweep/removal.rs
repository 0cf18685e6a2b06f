//! Deletes what is due and still unused: the content first, then its links, then the tags that name it.
//!
//! A link without content is harmless: whoever reads a link asks for the content at the same time, and takes
//! content that is missing for missing. Content without a link would cost its next reader a question to the
//! upstream, and links would be lost of content that a killed sweep has left. So a sweep that ends at any
//! point leaves nothing that a reader trusts wrongly, and marks that make the next one remove the rest.

use std::time::SystemTime;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::announcement::Announcement;
use super::links::{Links, Missing, Removed};
use super::patience::patiently;
use super::rows::{DELETED, DUE, HOSTED, LINKED, Place, Rows};
use super::selection::Selection;
use crate::bucket::client::Objects;
use crate::bucket::day::Day;
use crate::bucket::error::BucketError;
use crate::bucket::keys;

/// Requests at a time.
const REQUESTS: usize = 8;

/// What is deleted, and by what it is decided.
pub(super) struct Removal<'a> {
    pub(super) objects: &'a Objects,
    pub(super) announcement: &'a Announcement,
    pub(super) rows: &'a Rows,
    pub(super) missing: &'a [Missing],
    pub(super) links: &'a Links,
    /// When the sweep began that has marked it: what has been used or written since stays.
    pub(super) marked: SystemTime,
}

/// What a removal has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::bucket) struct Removals {
    /// Objects of content, and their bytes.
    pub(in crate::bucket) deleted: u64,
    pub(in crate::bucket) bytes: u64,
    /// Links and tags.
    pub(in crate::bucket) links: u64,
}

/// What became of content that was due.
enum Content {
    /// It had so many bytes.
    Deleted(u64),
    /// Or it was gone already.
    Stays,
    /// There was no more time.
    Late,
}

impl Removal<'_> {
    /// Deletes; and whether the time was enough. Otherwise the marks stay, for the next sweep.
    pub(super) async fn run(
        &self,
        selection: &mut Selection,
    ) -> Result<(Removals, bool), BucketError> {
        let (mut removals, mut has_time) = (Removals::default(), true);
        // `buffer_unordered` would do the same, but the compiler couldn't tell that the sweep's future is `Send`.
        // Each to its end, also when there is no more time: a deletion that is dropped may still be done later.
        let (mut due, mut running) = (
            self.due(selection).await.into_iter(),
            FuturesUnordered::new(),
        );
        loop {
            running.extend(
                due.by_ref()
                    .take(REQUESTS - running.len())
                    .map(|place| self.content(place)),
            );
            match running.next().await.transpose()? {
                None => break,
                Some(Content::Deleted(bytes)) => {
                    removals.deleted += 1;
                    removals.bytes += bytes;
                }
                Some(Content::Stays) => {}
                Some(Content::Late) => has_time = false,
            }
        }
        let (mut missing, mut running) = (self.missing.iter(), FuturesUnordered::new());
        loop {
            running.extend(
                missing
                    .by_ref()
                    .take(REQUESTS - running.len())
                    .map(|missing| self.absence(missing)),
            );
            if running.next().await.transpose()?.is_none() {
                break;
            }
        }
        let mut links = self.links.removed(self.rows, self.missing);
        let mut running = FuturesUnordered::new();
        loop {
            running.extend(
                links
                    .by_ref()
                    .take(REQUESTS - running.len())
                    .map(|link| self.link(link)),
            );
            match running.next().await.transpose()? {
                None => break,
                Some(is_removed) => {
                    has_time &= is_removed;
                    removals.links += u64::from(is_removed);
                }
            }
        }
        Ok((removals, has_time))
    }

    /// What is due and still to go.
    async fn due(&self, selection: &mut Selection) -> Vec<Place> {
        let mut places = Vec::new();
        // Of the day before, not all may have been known.
        let unused = Day::of(self.marked).before(1);
        for part in self.rows.parts() {
            for (place, row) in part {
                let is_selected = selection.takes(row);
                let is_unused = row.last < unused && row.modified() < self.marked;
                if is_selected && is_unused && row.facts.any(DUE) {
                    places.push(place);
                }
            }
            tokio::task::yield_now().await;
        }
        places
    }

    /// Deletes content, unless it has been written again.
    async fn content(&self, place: Place) -> Result<Content, BucketError> {
        let Some(row) = self.rows.get(place) else {
            return Ok(Content::Stays);
        };
        let key = keys::blob(&row.digest());
        let there = patiently(|| self.objects.head(&key)).await?;
        let Some(there) = there else {
            row.facts.add(DELETED);
            return Ok(Content::Stays);
        };
        if there.modified >= self.marked {
            row.facts.add(LINKED);
            return Ok(Content::Stays);
        }
        if !self.delete(&key).await? {
            return Ok(Content::Late);
        }
        row.facts.add(DELETED);
        Ok(Content::Deleted(there.size))
    }

    /// Deletes an object. False where there is no more time.
    async fn delete(&self, key: &str) -> Result<bool, BucketError> {
        patiently(|| self.announcement.delete(self.objects, key)).await
    }

    /// Looks once more for content that was missing: only then its links go.
    async fn absence(&self, missing: &Missing) -> Result<(), BucketError> {
        if missing.facts.any(LINKED | HOSTED) {
            return Ok(());
        }
        let key = keys::blob(&missing.digest);
        if patiently(|| self.objects.head(&key)).await?.is_none() {
            missing.facts.add(DELETED);
        }
        Ok(())
    }

    /// Removes a link. False where there is no more time.
    async fn link(&self, link: Removed) -> Result<bool, BucketError> {
        let key = match link {
            Removed::Link(key) => key,
            Removed::Tag {
                index,
                current,
                digest,
            } => {
                // Found by its index: so that goes last.
                let is_named = patiently(|| self.objects.names(&current, &digest)).await?;
                if is_named && !self.delete(&current).await? {
                    return Ok(false);
                }
                index
            }
        };
        self.delete(&key).await
    }
}
