//! Deadlines of entries, and the changes that a save writes.

use std::time::Duration;

use super::Index;
use super::pins::Shields;
use super::slab::Id;
use super::values::{Entry, LinkState};
use crate::cache::state::file::Record;
use crate::cache::state::timestamp::Timestamp;
use crate::storage::{Link, LinkKind};

/// Entries looked at under one lock: well under a millisecond.
const BATCH: usize = 256;
/// When an entry that is due and pinned is looked at again, in seconds: a pin that ends, or a tag that
/// moves away, is noticed that much later.
const PIN_CHECK: u32 = 15 * 60;

/// What has changed since the last save, where there is a journal for it.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// False without a journal: then nothing is collected.
    enabled: bool,
    /// Entries that were added or used, at most two mentions of each: its id may have been reused.
    dirty: Vec<Id<Entry>>,
    /// At most one for each entry there was since the last save.
    removed: Vec<Link>,
}

/// What has changed since the last save, in the order in which it is to be replayed.
#[derive(Debug)]
pub(crate) struct Unsaved {
    pub(crate) removed: Vec<Link>,
    pub(crate) put: Vec<Record>,
}

impl Changes {
    pub(super) fn new(enabled: bool) -> Self {
        Self {
            enabled,
            ..Self::default()
        }
    }
}

impl Index {
    // --- Deadlines -----------------------------------------------------------------------------

    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// When an entry expires, in whole seconds, rounded up; none is never.
    pub(super) fn deadline(&self, entry: &Entry) -> Option<u32> {
        let repo = self.repos.get(entry.repo);
        if let Some(hosted) = &repo.hosted {
            return self.hosted_deadline(entry, hosted);
        }
        let ttl = repo.ttl?;
        let (mut deadline, since) = self.settings.ttl.due(entry.origin(), entry.last_use, ttl);
        if since < self.started {
            deadline = deadline.max(self.started.after(ttl.min(self.grace)));
        }
        Some(deadline.rounded_up())
    }

    /// Whether an entry's time was over when the mirror started, whatever grace the start gives.
    fn was_due(&self, entry: &Entry) -> bool {
        let ttl = self.repos.get(entry.repo).ttl;
        ttl.is_some_and(|ttl| {
            let (due, _) = self.settings.ttl.due(entry.origin(), entry.last_use, ttl);
            due <= self.started
        })
    }

    /// How many entries on a page were due at the start, and where the next page begins.
    pub(crate) fn count_due(&self, from: usize, max: usize) -> (usize, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let due = page
            .into_iter()
            .filter(|id| self.was_due(self.entries.get(*id)));
        (due.count(), next)
    }

    /// Puts an entry at a time, in seconds, wherever it stood before.
    pub(super) fn schedule(&mut self, id: Id<Entry>, at: u32) {
        let slot = &mut self.entries.get_mut(id).deadline;
        self.wake_ups.schedule |= self.deadlines.set(id, slot, at);
    }

    /// Puts an entry that expires at its deadline.
    pub(super) fn schedule_deadline(&mut self, id: Id<Entry>) {
        if let Some(at) = self.deadline(self.entries.get(id)) {
            self.schedule(id, at);
        }
    }

    /// When something is due next.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let entry = self.deadlines.first().map(|(at, _)| at);
        let retry = self.deletions.retries.front().map(|(at, _)| *at);
        let next = entry.into_iter().chain(retry).chain(self.pins.next_end());
        let next = next.min()?;
        Some(Timestamp::from_seconds(next))
    }

    /// Hands what is due to the delete queue, at most a batch. True when there may be more.
    pub(crate) fn expire(&mut self, now: Timestamp) -> bool {
        let now = now.seconds();
        self.pins.end(now);
        let (mut looked_at, mut shields) = (0, Shields::default());
        while let Some((_, id)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            if looked_at == BATCH {
                return true;
            }
            looked_at += 1;
            self.deadlines
                .remove(id, &mut self.entries.get_mut(id).deadline);
            self.reach_deadline(id, now, &mut shields);
        }
        while let Some((_, id)) = self.deletions.retries.pop_front_if(|(at, _)| *at <= now) {
            if self.blobs.find(id).is_some() {
                self.enqueue(id);
            }
        }
        false
    }

    fn reach_deadline(&mut self, id: Id<Entry>, now: u32, shields: &mut Shields) {
        let entry = self.entries.get(id);
        let (repo, blob) = (entry.repo, entry.blob);
        if !entry.state.is_marked() {
            match self.deadline(entry) {
                None => return,
                // Uses don't move an entry in the order.
                Some(later) if later > now => return self.schedule(id, later),
                Some(_) if self.protected_until(repo, blob, shields).is_some() => {
                    return self.schedule(id, now.saturating_add(PIN_CHECK));
                }
                Some(_) => {
                    if let Some(later) = self.kept_until(id, now) {
                        return self.schedule(id, later);
                    }
                    self.set_link_state(id, LinkState::Expired);
                }
            }
        }
        self.enqueue(blob);
    }

    // --- Saving --------------------------------------------------------------------------------

    /// Notes that an entry was added or used.
    pub(super) fn mark_dirty(&mut self, id: Id<Entry>) {
        let entry = self.entries.get_mut(id);
        if self.changes.enabled && !std::mem::replace(&mut entry.dirty, true) {
            self.changes.dirty.push(id);
            self.wake_ups.schedule |= self.changes.dirty.len() == 1;
        }
    }

    pub(super) fn note_removed(&mut self, link: Link) {
        if self.changes.enabled {
            self.changes.removed.push(link);
            self.wake_ups.schedule |= self.changes.removed.len() == 1;
        }
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.dirty.is_empty() || !self.changes.removed.is_empty()
    }

    /// Takes at most `max` removed links, then at most `max` entries. What is put may have been removed
    /// before, so there are no entries while links remain.
    pub(crate) fn take_changes(&mut self, max: usize) -> Unsaved {
        let Changes { dirty, removed, .. } = &mut self.changes;
        let rest = removed.split_off(removed.len().min(max));
        let mut unsaved = Unsaved {
            removed: std::mem::replace(removed, rest),
            put: Vec::new(),
        };
        if removed.is_empty() {
            for id in dirty.split_off(dirty.len().saturating_sub(max)) {
                // It may have been removed since, or was mentioned before.
                let changed = self.entries.find(id).is_some_and(|entry| entry.dirty);
                if changed {
                    self.entries.get_mut(id).dirty = false;
                    unsaved.put.push(self.record(self.entries.get(id)));
                }
            }
        }
        unsaved
    }

    /// How an entry is written down.
    fn record(&self, entry: &Entry) -> Record {
        let blob = self.blobs.get(entry.blob);
        Record {
            link: self.link_of(entry),
            origin: entry.origin(),
            last_use: entry.last_use,
            expiry: self.deadline(entry).map(Timestamp::from_seconds),
            // One that isn't durable may be torn by a power cut: it is verified again after a start.
            verified: (blob.check.modified())
                .filter(|_| !self.hosted.unsynced.contains(&entry.blob))
                .map(|modified| (blob.size, modified)),
        }
    }

    /// A page of everything, for the snapshot; and where the next one begins.
    pub(crate) fn records(&self, from: usize, max: usize) -> (Vec<Record>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let entries = page.into_iter().map(|id| self.entries.get(id));
        let own = entries.filter(|entry| !self.is_shadowed(entry));
        (own.map(|entry| self.record(entry)).collect(), next)
    }

    /// Whether the entry has no line of its own in the snapshot: the file has one for each
    /// repository and digest, which is the manifest's.
    fn is_shadowed(&self, entry: &Entry) -> bool {
        let revision = || self.find_entry(entry.repo, LinkKind::Revision, entry.blob);
        entry.kind == LinkKind::Layer && revision().is_some()
    }
}
