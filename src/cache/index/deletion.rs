//! Decides what is deleted, under the lock; [`work::deletion`](crate::cache::work::deletion) deletes
//! it.

use std::collections::VecDeque;
use std::time::Duration;

use super::Index;
use super::slab::Id;
use super::values::{Blob, BlobState, Entry, LinkState, Turn};
use crate::cache::state::timestamp::Timestamp;
use crate::metrics::Removal;
use crate::oci::{Digest, Tag};
use crate::storage::{Link, LinkKind};

/// An eviction that follows a use as soon as this says that the cache is too small.
const RECENT: Duration = Duration::from_hours(1);

/// How long an entry that is due but held, or whose link can't be removed, is left alone.
pub(crate) const RETRY: Duration = Duration::from_mins(1);

/// Blobs of which a link or the file may have to be removed. What is due is decided when a blob's turn
/// comes, so queueing one too often costs a look and no more.
#[derive(Debug, Default)]
pub(super) struct DeleteQueue {
    pub(super) queue: VecDeque<Id<Blob>>,
    /// Files whose removal failed, with the second at which it is tried again. A blob may have been
    /// forgotten by then.
    pub(super) retries: VecDeque<(u32, Id<Blob>)>,
    pub(super) deleting: usize,
}

/// A blob that is being deleted, or links of it.
#[derive(Debug)]
pub(crate) struct Job {
    blob: Id<Blob>,
    pub(crate) digest: Digest,
    pub(crate) links: Vec<DueLink>,
    reason: Removal,
}

/// A blob whose file has been removed, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemovedBlob {
    pub(crate) reason: Removal,
    pub(crate) bytes: u64,
    /// It was used within the last hour.
    pub(crate) recently_used: bool,
}

/// A link that is to be removed.
#[derive(Debug)]
pub(crate) struct DueLink {
    entry: Id<Entry>,
    pub(crate) link: Link,
    /// Tags that name the manifest.
    pub(crate) tags: Vec<Tag>,
}

impl Index {
    /// Queues a blob of which something may have to be removed.
    pub(super) fn enqueue(&mut self, id: Id<Blob>) {
        let turn = &mut self.blobs.get_mut(id).turn;
        match turn {
            Turn::Queued => {}
            Turn::Deleting { again } => *again = true,
            Turn::Idle | Turn::Held => {
                *turn = Turn::Queued;
                self.deletions.queue.push_back(id);
                self.wake_ups.delete = true;
            }
        }
    }

    /// An entry is to be removed, whatever its time.
    pub(super) fn mark(&mut self, id: Id<Entry>) {
        self.set_link_state(id, LinkState::Marked);
        // From now on it serves no request.
        self.epoch.begin();
        self.enqueue(self.entries.get(id).blob);
    }

    pub(crate) fn mark_link(&mut self, link: &Link) {
        if let Some(id) = self.find_link((&link.repo, link.kind, &link.digest)) {
            self.mark(id);
        }
    }

    /// Whether nothing is queued and nothing is being deleted.
    pub(crate) fn is_settled(&self) -> bool {
        self.deletions.queue.is_empty() && self.deletions.deleting == 0
    }

    /// Begins the next deletion: the blob can be neither held nor linked until [`finish`](Self::finish).
    pub(crate) fn take_job(&mut self, now: Timestamp) -> Option<Job> {
        if !self.complete {
            return None;
        }
        while let Some(id) = self.deletions.queue.pop_front() {
            if self.blobs.get(id).holds > 0 {
                self.postpone(id, now);
                continue;
            }
            let links = self.due_links(id);
            let reason = self.reason(id);
            let blob = self.blobs.get_mut(id);
            if links.is_empty() && !blob.is_orphan() {
                blob.turn = Turn::Idle;
                self.cancel_eviction(id);
                self.forget_unneeded(id);
                continue;
            }
            blob.turn = Turn::Deleting { again: false };
            self.deletions.deleting += 1;
            self.epoch.begin();
            return Some(Job {
                blob: id,
                digest: blob.digest(),
                links,
                reason,
            });
        }
        self.wake_ups.freed = true;
        None
    }

    /// Leaves a held blob alone until it is released: it isn't evicted, and its expired links are
    /// looked at again after a while.
    fn postpone(&mut self, id: Id<Blob>, now: Timestamp) {
        self.blobs.get_mut(id).turn = Turn::Held;
        self.cancel_eviction(id);
        let entries = self.entries_of(id);
        let expired = entries.filter(|(_, entry)| entry.state == LinkState::Expired);
        for entry in expired.map(|(id, _)| id).collect::<Vec<_>>() {
            self.schedule(entry, now.after(RETRY).seconds());
        }
        self.wake_ups.freed = true;
    }

    /// Why a blob is about to be removed, if it is.
    fn reason(&self, id: Id<Blob>) -> Removal {
        match self.blobs.get(id).state {
            BlobState::Evicting if self.space.is_limited_by_free_space() => Removal::MinFree,
            BlobState::Evicting => Removal::MaxSize,
            BlobState::Quarantined => Removal::Damaged,
            BlobState::Absent | BlobState::Present => {
                let mut states = self.entries_of(id).map(|(_, entry)| entry.state);
                match states.next() {
                    None => Removal::Unlinked,
                    // The last link is the one that decides; they mostly go together.
                    Some(state) if state.is_marked() => Removal::Purged,
                    Some(_) => Removal::Expired,
                }
            }
        }
    }

    fn due_links(&self, id: Id<Blob>) -> Vec<DueLink> {
        let state = self.blobs.get(id).state;
        let whole = |entry: &Entry| match state {
            BlobState::Evicting => true,
            // What a hosted repository has lost is no cache miss: a push heals it.
            BlobState::Quarantined => !self.is_hosted(entry),
            BlobState::Absent | BlobState::Present => false,
        };
        let is_due = |state: LinkState| state.is_marked() || state == LinkState::Expired;
        self.entries_of(id)
            .filter(|(_, entry)| is_due(entry.state) || whole(entry))
            .map(|(id, entry)| DueLink {
                entry: id,
                link: self.link_of(entry),
                tags: self.tags_of(entry),
            })
            .collect()
    }

    /// The tags that name the manifest of an entry.
    fn tags_of(&self, entry: &Entry) -> Vec<Tag> {
        if entry.kind == LinkKind::Layer {
            return Vec::new();
        }
        let repo = self.repos.get(entry.repo);
        repo.tags_of(self.hash_blob(entry.blob)).cloned().collect()
    }

    /// Notes which of the links are gone. True when the file is to be removed, too.
    pub(crate) fn unlinked(&mut self, job: &Job, gone: &[bool], now: Timestamp) -> bool {
        for (due, gone) in job.links.iter().zip(gone) {
            if *gone {
                let hash = self.hash_blob(job.blob);
                let repo = self.repos.get_mut(self.entries.get(due.entry).repo);
                for tag in &due.tags {
                    // It may name something else by now.
                    if repo.tags.get(tag) == Some(&hash) {
                        repo.remove_tag(tag);
                    }
                }
                self.remove_entry(due.entry);
            } else {
                let quarantined = self.blobs.get(job.blob).state == BlobState::Quarantined;
                let marked = quarantined || self.entries.get(due.entry).state.is_marked();
                self.set_link_state(due.entry, LinkState::Failed { marked });
                self.schedule(due.entry, now.after(RETRY).seconds());
            }
        }
        let blob = self.blobs.get(job.blob);
        // A new file may have come in the place of a quarantined one without the index noticing.
        let quarantined = blob.state == BlobState::Quarantined;
        blob.first.is_none() && (blob.state.has_file() || quarantined)
    }

    /// Ends a deletion. `removed` tells whether the file could be removed, if it was to be. Returns
    /// what there is to count.
    pub(crate) fn finish(
        &mut self,
        job: &Job,
        removed: Option<bool>,
        now: Timestamp,
    ) -> Option<RemovedBlob> {
        let id = job.blob;
        let mut counted = None;
        match removed {
            Some(true) => {
                let blob = self.blobs.get(id);
                counted = blob.file_size().map(|bytes| RemovedBlob {
                    reason: job.reason,
                    bytes,
                    recently_used: now < blob.last_use.after(RECENT),
                });
                self.file_removed(id);
            }
            Some(false) => {
                let retry_at = now.after(RETRY).seconds();
                self.deletions.retries.push_back((retry_at, id));
                // It may be the next deadline.
                self.wake_ups.schedule = true;
            }
            None => {}
        }
        self.cancel_eviction(id);
        self.deletions.deleting = self.deletions.deleting.saturating_sub(1);
        let turn = std::mem::take(&mut self.blobs.get_mut(id).turn);
        if turn == (Turn::Deleting { again: true }) {
            self.enqueue(id);
        }
        self.wake_ups.freed = true;
        self.forget_unneeded(id);
        counted
    }
}
