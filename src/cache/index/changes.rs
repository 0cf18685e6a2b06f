//! What has changed since the last save, for the journal.

use super::entry::Entry;
use super::slab::Id;
use crate::storage::Link;

/// Whether an entry is among the changes. Only [`Changes`] sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Dirty(bool);

#[derive(Debug)]
pub(super) struct Changes {
    /// False without a journal: then nothing is collected.
    enabled: bool,
    /// At most two for an entry.
    dirty: Vec<Id<Entry>>,
    /// At most one for each entry there was since the last save.
    removed: Vec<Link>,
}

impl Changes {
    pub(super) fn new(enabled: bool) -> Self {
        Self {
            enabled,
            dirty: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Notes that an entry was added or used. True for the first one since the last save.
    pub(super) fn mark(&mut self, id: Id<Entry>, dirty: &mut Dirty) -> bool {
        if !self.enabled || std::mem::replace(&mut dirty.0, true) {
            return false;
        }
        self.dirty.push(id);
        self.dirty.len() == 1
    }

    /// Notes that an entry was removed. True for the first one since the last save.
    pub(super) fn remove(&mut self, link: Link) -> bool {
        if self.enabled {
            self.removed.push(link);
        }
        self.removed.len() == 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.removed.is_empty()
    }

    /// Takes at most `max` removed links, then entries, which may have been removed since. An entry
    /// counts if [`unmark`](Self::unmark) says so. What is put may have been removed before, so there
    /// are no entries while links remain.
    pub(super) fn take(&mut self, max: usize) -> (Vec<Link>, Vec<Id<Entry>>) {
        let removed = self.removed.len().min(max);
        let rest = self.removed.split_off(removed);
        let removed = std::mem::replace(&mut self.removed, rest);
        if !self.removed.is_empty() {
            return (removed, Vec::new());
        }
        let from = self.dirty.len().saturating_sub(max);
        (removed, self.dirty.split_off(from))
    }

    /// Whether an entry that was taken had changed. False for the second mention of an id that was
    /// used again.
    pub(super) fn unmark(dirty: &mut Dirty) -> bool {
        std::mem::take(&mut dirty.0)
    }
}
