//! Entries in time: when they expire, and what of them is saved.

use std::time::Duration;

use super::index::Index;
use super::index::entry::{Entry, Origin, entry_flag};
use super::index::slab::Id;
use super::policy::TtlMode;
use super::state::timestamp::Timestamp;
use crate::storage::{Link, LinkKind, Modified};

/// What was due while the mirror was stopped gets this long from the start on, or its TTL when that
/// is shorter: nobody could use it meanwhile, and a wrong clock shows before it has deleted anything.
pub(super) const GRACE: Duration = Duration::from_hours(1);
/// The same when most of the cache was due: then the machine was off for long, or the clock is
/// wrong, and somebody should have the time to notice.
pub(super) const MASS_GRACE: Duration = Duration::from_hours(24);

/// How an entry stands in the state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) link: Link,
    pub(super) origin: Origin,
    pub(super) last_use: Timestamp,
    /// None is never.
    pub(super) expiry: Option<Timestamp>,
    /// The size and the modification time with which its file was verified.
    pub(super) verified: Option<(u64, Modified)>,
}

/// What has changed since the last save, in the order in which it is to be replayed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) removed: Vec<Link>,
    pub(super) put: Vec<Record>,
}

impl Index {
    // --- Time ----------------------------------------------------------------------------------

    /// What was due at the start waits this long.
    pub(super) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// When an entry expires, in whole seconds, rounded up; none is never.
    pub(super) fn deadline(&self, id: Id<Entry>) -> Option<u32> {
        let (mut deadline, ttl, since) = self.due(id)?;
        if since < self.started {
            deadline = deadline.max(self.started.after(ttl.min(self.grace)));
        }
        Some(deadline.after(Duration::from_millis(999)).seconds())
    }

    /// Whether an entry's time was up when the mirror started.
    pub(super) fn is_overdue(&self, id: Id<Entry>) -> bool {
        let due = self.due(id);
        due.is_some_and(|(deadline, _, _)| deadline <= self.started)
    }

    /// When an entry's time is up, whatever grace the start gives; its TTL; and when that began.
    /// None is never.
    fn due(&self, id: Id<Entry>) -> Option<(Timestamp, Duration, Timestamp)> {
        let entry = self.entries.get(id)?;
        let ttl = Duration::from_secs(self.repos.get(entry.repo)?.ttl?.into());
        let used = entry.last_use;
        Some(match (entry.origin(), self.policy.mode) {
            (Origin::Created(_), TtlMode::Sliding) => (used.after(ttl), ttl, used),
            (Origin::Created(created), TtlMode::Fixed) => (created.after(ttl), ttl, created),
            // What the reference registry promised is kept; a use extends it.
            (Origin::Adopted(expiry), TtlMode::Sliding) => (used.after(ttl).max(expiry), ttl, used),
            (Origin::Adopted(expiry), TtlMode::Fixed) => (expiry, ttl, Timestamp::default()),
        })
    }

    // --- Saving --------------------------------------------------------------------------------

    pub(super) fn mark_dirty(&mut self, id: Id<Entry>) {
        if self.journaling
            && let Some(entry) = self.entries.get_mut(id)
            && !entry.flags.has(entry_flag::DIRTY)
        {
            entry.flags.set(entry_flag::DIRTY);
            self.news.schedule |= self.dirty.is_empty();
            self.dirty.push(id);
        }
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty()
    }

    /// Takes at most `max` changes of each kind.
    pub(super) fn take_changes(&mut self, max: usize) -> Changes {
        let removed = if self.removed.len() > max {
            self.removed.drain(..max).collect()
        } else {
            std::mem::take(&mut self.removed)
        };
        // What is put may have been removed before, so removals are all written first.
        if !self.removed.is_empty() {
            return Changes {
                removed,
                put: Vec::new(),
            };
        }
        let from = self.dirty.len().saturating_sub(max);
        let mut put = Vec::with_capacity(self.dirty.len() - from);
        for id in self.dirty.split_off(from) {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            // An id that was used again may be here twice.
            if entry.flags.has(entry_flag::DIRTY) {
                entry.flags.clear(entry_flag::DIRTY);
                put.extend(self.record(id));
            }
        }
        Changes { removed, put }
    }

    /// How an entry is written down.
    pub(super) fn record(&self, id: Id<Entry>) -> Option<Record> {
        let entry = self.entries.get(id)?;
        Some(Record {
            link: self.link_of(entry)?,
            origin: entry.origin(),
            last_use: entry.last_use,
            expiry: self.deadline(id).map(Timestamp::from_seconds),
            verified: self.verified_as(entry.content),
        })
    }

    /// A page of everything, for the snapshot; and where the next one begins.
    pub(super) fn records(&self, from: usize, max: usize) -> (Vec<Record>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let own = page.into_iter().filter(|id| !self.is_shadowed(*id));
        (own.filter_map(|id| self.record(id)).collect(), next)
    }

    /// Whether the entry has no line of its own in the snapshot: the file has one for each
    /// repository and digest, which is the manifest's.
    fn is_shadowed(&self, id: Id<Entry>) -> bool {
        self.entries.get(id).is_some_and(|entry| {
            entry.kind == LinkKind::Layer
                && self
                    .find_entry(entry.repo, LinkKind::Revision, entry.content)
                    .is_some()
        })
    }
}
