//! Elements in the order of a time: links by deadline, images by last use.
//!
//! Each element keeps its own time in a [`Slot`], so it is removed without a search.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use super::slab::Id;

/// A time and the number of an id, in as few bytes as the time allows.
pub(super) trait Key: Copy + Ord {
    type Time: Copy + Ord + Default;
    /// The earliest time that can be stored; the default time stands for "in no order".
    const EARLIEST: Self::Time;

    fn new(time: Self::Time, number: u32) -> Self;
    fn parts(self) -> (Self::Time, u32);
}

/// Seconds.
impl Key for u64 {
    type Time = u32;
    const EARLIEST: u32 = 1;

    fn new(time: u32, number: u32) -> Self {
        Self::from(time) << 32 | Self::from(number)
    }

    fn parts(self) -> (u32, u32) {
        ((self >> 32) as u32, (self & 0xffff_ffff) as u32)
    }
}

/// Milliseconds.
impl Key for (u64, u32) {
    type Time = u64;
    const EARLIEST: u64 = 1;

    fn new(time: u64, number: u32) -> Self {
        (time, number)
    }

    fn parts(self) -> (u64, u32) {
        self
    }
}

/// Where an element stands in an [`Order`]. Only the order changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Slot<Time>(Time);

impl<Time: Copy + Default + PartialEq> Slot<Time> {
    /// None when the element isn't in the order.
    pub(super) fn time(self) -> Option<Time> {
        (self.0 != Time::default()).then_some(self.0)
    }
}

#[derive(Debug)]
pub(super) struct Order<K, T> {
    keys: BTreeSet<K>,
    elements: PhantomData<fn() -> T>,
}

impl<K, T> Default for Order<K, T> {
    fn default() -> Self {
        Self {
            keys: BTreeSet::new(),
            elements: PhantomData,
        }
    }
}

impl<K: Key, T> Order<K, T> {
    /// Puts an element at a time, wherever it was before. True when it is the first one now.
    pub(super) fn set(&mut self, id: Id<T>, slot: &mut Slot<K::Time>, time: K::Time) -> bool {
        self.remove(id, slot);
        *slot = Slot(time.max(K::EARLIEST));
        let key = K::new(slot.0, id.number());
        let first = self.keys.first().is_none_or(|first| key < *first);
        self.keys.insert(key);
        first
    }

    pub(super) fn remove(&mut self, id: Id<T>, slot: &mut Slot<K::Time>) {
        if let Some(time) = std::mem::take(slot).time() {
            self.keys.remove(&K::new(time, id.number()));
        }
    }

    /// The first element with its time.
    pub(super) fn first(&self) -> Option<(Id<T>, K::Time)> {
        let (time, number) = self.keys.first()?.parts();
        Some((Id::from_number(number)?, time))
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(K::Time, u32)> {
        self.keys.iter().map(|key| key.parts()).collect()
    }
}
