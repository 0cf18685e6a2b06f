//! Elements in the order of a time: links by deadline, images by last use.
//!
//! Each element keeps its own time in a [`Slot`], so it is removed without a search.

use std::collections::BTreeSet;

use super::slab::Id;

/// Where an element stands in an [`Order`]; only the order changes it. The default time stands for
/// "in no order".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Slot<Time>(Time);

impl<Time: Copy + Default + PartialEq> Slot<Time> {
    /// None when the element isn't in the order.
    pub(super) fn time(self) -> Option<Time> {
        (self.0 != Time::default()).then_some(self.0)
    }
}

#[derive(Debug)]
pub(super) struct Order<Time, T>(BTreeSet<(Time, Id<T>)>);

impl<Time, T> Default for Order<Time, T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<Time: Copy + Default + Ord + From<u8>, T> Order<Time, T> {
    /// Puts an element at a time, wherever it was before. True when it is the first one now.
    pub(super) fn set(&mut self, id: Id<T>, slot: &mut Slot<Time>, time: Time) -> bool {
        self.remove(id, slot);
        *slot = Slot(time.max(1.into()));
        let key = (slot.0, id);
        let first = self.0.first().is_none_or(|first| key < *first);
        self.0.insert(key);
        first
    }

    pub(super) fn remove(&mut self, id: Id<T>, slot: &mut Slot<Time>) {
        if let Some(time) = std::mem::take(slot).time() {
            self.0.remove(&(time, id));
        }
    }

    pub(super) fn first(&self) -> Option<(Time, Id<T>)> {
        self.0.first().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(Time, Id<T>)> {
        self.0.iter().copied().collect()
    }
}
