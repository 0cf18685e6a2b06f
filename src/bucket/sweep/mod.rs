//! Removes from the bucket what nobody uses, once a day.
//!
//! ```text
//! marks ► list of what is due, and a wait ► content ► uses ► links ► manifests ► selection
//!   ► removal of what is due and still selected ► marks of what is newly selected ► leftovers
//! ```
//!
//! [`selection`] decides by day: what was neither written nor used for the TTL goes, and above the size limit
//! what was least recently used. It is [marked](marks) first, and deleted two days later if nothing has used,
//! written or linked it meanwhile. A sweep that can't read all of the [`record`] of uses removes nothing.
//!
//! **Links that are written meanwhile.** [`announcement`] has the protocol; [`removal`] says in which order
//! things go. What is deleted, and the links of it, are on a list that whoever writes links reads before. The
//! tests try every order of the requests of both.
//!
//! **Several sweeps at once, or killed ones,** do no harm: each has marks and a list of its own, deletes only
//! what is due, and looks at each object just before. What one leaves, the next one removes.
//!
//! **Memory.** 56 bytes for each object of content ([`rows`]), and for what is due 72 for each digest and 24
//! for each link. Everything else is read in pages.
//!
//! **Requests.** With P objects in a page (1,000): 256 lists for content, or one for each P of it; one for
//! each P links and tags. That is some 4,000 for a million objects with three links each. Beside these, a GET
//! for each object of uses, and, if something goes, one for each manifest that stays; a HEAD and a DELETE for
//! each object that goes, and a DELETE for each of its links.
//!
//! What must never happen: content goes that a hosted repository links, or that was used or linked since it
//! was marked; a key that isn't ours is removed.

pub(super) mod announcement;
mod blobs;
mod leftovers;
mod links;
mod marks;
mod patience;
mod record;
mod references;
mod removal;
mod rows;
mod schedule;
mod selection;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use announcement::Announcement;
pub(super) use leftovers::end_uploads;
use links::{Links, Missing, Pass};
use marks::{MAX_MARKED, Marks};
use patience::patiently;
use removal::{Removal, Removals};
use rows::{DELETED, DUE, Facts, Found, MARKED, Rows};
use selection::Selection;

use super::client::Objects;
use super::digests::Digests;
use super::error::BucketError;
use crate::error_chain::on_one_line;
use crate::metrics::{BucketMetrics, BucketSwept};
use crate::oci::{Digest, RepoName};

/// Whether clients push into a repository.
pub type IsHosted = dyn Fn(&RepoName) -> bool + Send + Sync;

/// What the bucket may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// How long content stays that isn't used. None is forever.
    pub ttl: Option<Duration>,
    /// Bytes of all content; more is removed, the least recently used first. None is no limit.
    pub max_size: Option<u64>,
}

/// Sweeps one bucket.
pub(super) struct Sweep {
    pub(super) objects: Objects,
    pub(super) retention: Retention,
    /// As a component of keys.
    pub(super) replica: String,
    pub(super) is_hosted: Arc<IsHosted>,
    pub(super) metrics: Arc<BucketMetrics>,
}

impl fmt::Debug for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sweep({}, {:?})", self.replica, self.retention)
    }
}

/// What a sweep has found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Report {
    /// Objects of content before the sweep, and their bytes.
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) links: u64,
    /// Keys that aren't ours.
    pub(super) foreign: u64,
    pub(super) marked: u64,
    pub(super) removals: Removals,
    pub(super) uploads_ended: u64,
    /// Whether all uses could be read. Otherwise nothing was marked or deleted.
    pub(super) is_informed: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Removals {
            deleted,
            bytes,
            links,
        } = self.removals;
        write!(
            f,
            "objects={} bytes={} links={} foreign={} marked={} deleted={deleted} deleted_bytes={bytes} \
             deleted_links={links}",
            self.objects, self.bytes, self.links, self.foreign, self.marked
        )
    }
}

impl Sweep {
    /// Sweeps the bucket. What fails is tried again for about a minute; then the sweep ends where it is.
    pub(super) async fn run(&self) -> Result<Report, BucketError> {
        let objects = &self.objects;
        let marks = patiently(|| Marks::read(objects)).await?;
        let began = objects.now();
        let announcement = self.announce(&marks).await?;
        let (mut rows, mut foreign) = blobs::list(objects).await?;
        let missing = self.note(&marks, &rows).await;
        let ttl = self.retention.ttl;
        let record = record::read(objects, &mut rows, ttl, began).await?;
        let links = self.links(&marks, (&rows, &missing), began).await?;
        foreign += marks.foreign + record.foreign + links.foreign;
        let mut report = Report {
            objects: rows.objects,
            bytes: rows.bytes,
            links: links.objects,
            foreign,
            is_informed: record.is_whole,
            ..Report::default()
        };
        if links.lost > 0 {
            tracing::warn!(
                links = links.lost,
                "hosted repositories link content that the bucket doesn't have; pushing it again heals that"
            );
        }
        let mut processed = Vec::new();
        if record.is_whole {
            self.follow(&mut rows, began).await?;
            let found = (&rows, &missing[..], &links);
            let removed = self.remove(&marks, announcement.as_ref(), found, began);
            let (removals, has_time) = removed.await?;
            report.removals = removals;
            if has_time {
                processed.extend(marks.due.iter().map(|mark| mark.key.clone()));
            } else {
                tracing::warn!(%report, "the bucket is too slow: the next sweep has to delete the rest");
            }
        }
        if let Some(announcement) = &announcement {
            patiently(|| announcement.withdraw(objects)).await?;
        }
        if record.is_whole {
            report.marked = self.mark(&rows, links.dangling, began).await?;
        }
        processed.extend(marks.forgotten);
        processed.extend(record.old);
        leftovers::remove(objects, &processed).await?;
        patiently(|| announcement::remove_void(objects)).await?;
        match end_uploads(objects, began).await {
            Ok(ended) => report.uploads_ended = ended,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "uploads to the bucket that were never finished can't be removed");
            }
        }
        self.tell(&report);
        Ok(report)
    }

    /// Tells all replicas what may be deleted. None where nothing is due.
    async fn announce(&self, marks: &Marks) -> Result<Option<Announcement>, BucketError> {
        let due: Vec<_> = marks.due().collect();
        if due.is_empty() {
            return Ok(None);
        }
        let list = Digests::encoded(due, true).await?;
        let announcement = Announcement::make(&self.objects, &self.replica, list).await?;
        Ok(Some(announcement))
    }

    /// Notes in the rows what is marked; returns what is due and not there, sorted.
    async fn note(&self, marks: &Marks, rows: &Rows) -> Vec<Missing> {
        let mut missing = Vec::new();
        for mark in &marks.due {
            for digest in mark.digests.iter() {
                match rows.find(&digest) {
                    Found::At(place) => {
                        rows.get(place).inspect(|row| row.facts.add(DUE));
                    }
                    Found::Missing => missing.push(digest),
                    Found::Unlisted => {}
                }
            }
            tokio::task::yield_now().await;
        }
        for digests in &marks.others {
            for digest in digests.iter() {
                if let Found::At(place) = rows.find(&digest) {
                    rows.get(place).inspect(|row| row.facts.add(MARKED));
                }
            }
            tokio::task::yield_now().await;
        }
        missing.sort_unstable();
        missing.dedup();
        let due = |digest| {
            let facts = Facts::default();
            facts.add(DUE);
            Missing { digest, facts }
        };
        missing.into_iter().map(due).collect()
    }

    async fn links(
        &self,
        marks: &Marks,
        (rows, missing): (&Rows, &[Missing]),
        began: SystemTime,
    ) -> Result<Links, BucketError> {
        let pass = Pass {
            objects: &self.objects,
            rows,
            marks,
            missing,
            is_hosted: &*self.is_hosted,
            began,
        };
        patiently(|| pass.run()).await
    }

    /// Takes what used manifests refer to for used, if that makes a difference.
    async fn follow(&self, rows: &mut Rows, now: SystemTime) -> Result<(), BucketError> {
        let selection = Selection::of(rows, &self.retention, now).await;
        let mut takes = selection;
        let mut goes = false;
        for part in rows.parts() {
            for (_, row) in part {
                goes |= takes.takes(row);
            }
            tokio::task::yield_now().await;
        }
        if goes {
            references::follow(&self.objects, rows, selection.stays()).await?;
        }
        Ok(())
    }

    /// Deletes what is due and still selected; and whether none of it has to wait.
    async fn remove(
        &self,
        marks: &Marks,
        announcement: Option<&Announcement>,
        (rows, missing, links): (&Rows, &[Missing], &Links),
        now: SystemTime,
    ) -> Result<(Removals, bool), BucketError> {
        let (Some(announcement), Some(marked)) = (announcement, marks.began()) else {
            return Ok((Removals::default(), true));
        };
        let removal = Removal {
            objects: &self.objects,
            announcement,
            rows,
            missing,
            links,
            marked,
        };
        let mut selection = Selection::of(rows, &self.retention, now).await;
        removal.run(&mut selection).await
    }

    /// Marks what is selected and isn't marked yet; how much.
    async fn mark(
        &self,
        rows: &Rows,
        dangling: impl IntoIterator<Item = Digest>,
        began: SystemTime,
    ) -> Result<u64, BucketError> {
        let mut selection = Selection::of(rows, &self.retention, began).await;
        let mut digests: Vec<_> = dangling.into_iter().collect();
        for part in rows.parts() {
            for (_, row) in part {
                let is_new = selection.takes(row) && !row.facts.any(MARKED | DUE | DELETED);
                if is_new && digests.len() < MAX_MARKED {
                    digests.push(row.digest());
                }
            }
            tokio::task::yield_now().await;
        }
        let count = digests.len() as u64;
        if count > 0 {
            marks::write(&self.objects, &self.replica, began, digests).await?;
        }
        Ok(count)
    }

    fn tell(&self, report: &Report) {
        tracing::info!(%report, "swept the bucket");
        self.metrics.swept(BucketSwept {
            objects: report.objects - report.removals.deleted.min(report.objects),
            bytes: report.bytes - report.removals.bytes.min(report.bytes),
            foreign: report.foreign,
            marked: report.marked,
            deleted: report.removals.deleted,
            deleted_bytes: report.removals.bytes,
            is_informed: report.is_informed,
        });
    }
}
