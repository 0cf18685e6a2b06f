//! Compact storage: values in chunks that never move, named by 32 bits, and hash tables of such
//! names that don't repeat the keys.
//!
//! Nothing here grows in one large step, because that step would happen under the index's lock:
//! chunks are added one at a time, and a table has many small shards that grow by themselves.

use std::fmt;
use std::hash::RandomState;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;

/// Values in one chunk.
const CHUNK: usize = 4096;
/// Parts of a table: with a million entries, growing moves 16,000 of them at a time.
const SHARDS: usize = 64;

/// Names a value of a [`Slab`]. It is used again after the value has been removed.
pub(crate) struct Id<T>(NonZeroU32, PhantomData<fn() -> T>);

impl<T> Id<T> {
    /// Names no value.
    pub(super) const NONE: Self = Self(NonZeroU32::MAX, PhantomData);

    fn at(position: usize) -> Option<Self> {
        let number = NonZeroU32::new(u32::try_from(position).ok()?.checked_add(1)?)?;
        Some(Self(number, PhantomData))
    }

    const fn position(self) -> usize {
        self.0.get() as usize - 1
    }
}

// Derived ones would ask T to be the same.
impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> std::hash::Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A panic in tests. In a release, an error in the log, once: what follows is wrong, and bounded by
/// the value it concerns.
#[cold]
pub(super) fn broken(invariant: &'static str) {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    debug_assert!(false, "{invariant}");
    if !LOGGED.swap(true, Ordering::Relaxed) {
        tracing::error!(invariant, "the index of the cache is inconsistent");
    }
}

/// Values by id.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<Id<T>>,
    /// Stands in for a value that should be there and isn't.
    vacant: T,
}

impl<T> Slab<T> {
    pub(super) fn new(vacant: T) -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            vacant,
        }
    }

    /// At most four thousand million values.
    pub(super) fn insert(&mut self, value: T) -> Id<T> {
        if let Some(id) = self.free.pop()
            && let Some(slot) = slot(&mut self.chunks, id)
        {
            *slot = Some(value);
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let id = Id::at(self.end());
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(Some(value));
        }
        id.unwrap_or_else(|| {
            broken("a slab has too many values");
            Id::NONE
        })
    }

    /// For an id that may name nothing any more.
    pub(super) fn find(&self, id: Id<T>) -> Option<&T> {
        let position = id.position();
        let chunk = self.chunks.get(position / CHUNK)?;
        chunk.get(position % CHUNK)?.as_ref()
    }

    /// The value of an id that has one.
    pub(super) fn get(&self, id: Id<T>) -> &T {
        self.find(id).unwrap_or_else(|| {
            broken("an id names nothing");
            &self.vacant
        })
    }

    /// The value of an id that has one.
    pub(super) fn get_mut(&mut self, id: Id<T>) -> &mut T {
        let value = slot(&mut self.chunks, id).and_then(Option::as_mut);
        value.unwrap_or_else(|| {
            broken("an id names nothing");
            &mut self.vacant
        })
    }

    pub(super) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let value = slot(&mut self.chunks, id)?.take()?;
        self.free.push(id);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.end() - self.free.len()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        let ids = (0..self.end()).filter_map(Id::at);
        ids.filter_map(|id| Some((id, self.find(id)?)))
    }

    /// Every id is below this position.
    fn end(&self) -> usize {
        let full = self.chunks.len().saturating_sub(1) * CHUNK;
        full + self.chunks.last().map_or(0, Vec::len)
    }

    /// At most `max` positions from `from` on, and where the next page begins; `None` at the end. This is how
    /// everything is visited in steps, with the lock given back between them.
    pub(super) fn page(&self, from: usize, max: usize) -> (Vec<Id<T>>, Option<usize>) {
        let to = from.saturating_add(max).min(self.end());
        let ids = (from..to).filter_map(Id::at);
        let page = ids.filter(|id| self.find(*id).is_some()).collect();
        (page, (to < self.end()).then_some(to))
    }
}

fn slot<T>(chunks: &mut [Vec<Option<T>>], id: Id<T>) -> Option<&mut Option<T>> {
    let position = id.position();
    chunks.get_mut(position / CHUNK)?.get_mut(position % CHUNK)
}

/// A value that a [`Table`] finds by its key.
pub(super) trait Keyed {
    /// The hash of the key, which never changes.
    fn hash(&self, hasher: &RandomState) -> u64;
}

/// A [`Slab`] whose values are found by their keys, too.
#[derive(Debug)]
pub(super) struct Table<T> {
    values: Slab<T>,
    hasher: RandomState,
    shards: Vec<HashTable<Id<T>>>,
}

/// Bits that a shard's table itself uses least: it takes the lowest and the highest.
const fn shard(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

impl<T: Keyed> Table<T> {
    pub(super) fn new(vacant: T, hasher: &RandomState) -> Self {
        Self {
            values: Slab::new(vacant),
            hasher: hasher.clone(),
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
        }
    }

    /// The value whose key has this hash and for which `is` holds.
    pub(super) fn lookup(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<Id<T>> {
        let shard = self.shards.get(shard(hash))?;
        shard.find(hash, |id| is(self.values.get(*id))).copied()
    }

    /// Makes room for so many keys, so that the shards needn't grow step by step.
    pub(super) fn reserve(&mut self, keys: usize) {
        // A little more than its share, because no hash deals evenly.
        let share = keys / SHARDS + keys / SHARDS / 16;
        for shard in &mut self.shards {
            shard.reserve(share, |id| self.values.get(*id).hash(&self.hasher));
        }
    }

    /// Adds a value whose key isn't there.
    pub(super) fn insert(&mut self, value: T) -> Id<T> {
        let hash = value.hash(&self.hasher);
        let id = self.values.insert(value);
        if let Some(shard) = self.shards.get_mut(shard(hash)) {
            shard.insert_unique(hash, id, |id| self.values.get(*id).hash(&self.hasher));
        }
        id
    }

    pub(super) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let value = self.values.remove(id)?;
        let hash = value.hash(&self.hasher);
        if let Some(shard) = self.shards.get_mut(shard(hash))
            && let Ok(entry) = shard.find_entry(hash, |other| *other == id)
        {
            entry.remove();
        }
        Some(value)
    }
}

impl<T> Deref for Table<T> {
    type Target = Slab<T>;

    fn deref(&self) -> &Slab<T> {
        &self.values
    }
}

impl<T> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut Slab<T> {
        &mut self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reused_and_pages_cover_everything() {
        let mut slab = Slab::new(0);
        let ids: Vec<_> = (0..CHUNK * 2 + 7).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.remove(ids[5]), Some(5));
        assert_eq!(slab.remove(ids[5]), None);
        assert_eq!(slab.len(), CHUNK * 2 + 6);
        let (mut seen, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let (page, next) = slab.page(at, 1000);
            assert!(page.len() <= 1000);
            seen.extend(page.iter().map(|id| *slab.get(*id)));
            from = next;
        }
        let expected: Vec<_> = (0..CHUNK * 2 + 7).filter(|n| *n != 5).collect();
        assert_eq!(seen, expected);
        assert_eq!(slab.find(ids[5]), None);
        assert_eq!(slab.insert(99), ids[5]);
        assert_eq!(slab.get(ids[5]), &99);
    }

    /// Few hashes, so that many keys share one.
    impl Keyed for u64 {
        fn hash(&self, _: &RandomState) -> u64 {
            (self % 10).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
    }

    #[test]
    fn a_table_finds_by_key_and_removes_by_id() {
        let hasher = RandomState::new();
        let mut table = Table::new(0, &hasher);
        let ids: Vec<_> = (0..500_u64).map(|value| table.insert(value)).collect();
        assert_eq!(table.remove(ids[123]), Some(123));
        for (value, id) in (0..).zip(&ids) {
            let found = table.lookup(value.hash(&hasher), |other| *other == value);
            assert_eq!(found, (value != 123).then_some(*id));
        }
    }
}
