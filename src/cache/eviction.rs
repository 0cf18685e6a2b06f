//! What goes first when space is short: pure, without I/O.
//!
//! The least recently used image goes, whole: its head and what only it refers to. Never chosen are
//! pinned images, and images of which anything is held; content that another image shares isn't a
//! part of either.
//!
//! Watermarks: a download that would pass the high one, which is the limit, waits until the images
//! are deleted that are in its way, and the room that whole images leave is for the next ones. What
//! is past it all the same (the limit was lowered, or others fill the disk) is evicted in the
//! background, down to [`LOW`] per mille. There is no band that is kept empty below the limit:
//! deleting takes milliseconds, downloads take longer, and a band of 5 % cost half a percent of the
//! hits (`benches/cache.rs`).

use super::capacity::SpaceRequest;
use super::index::Index;
use super::index::entry::{Content, content_flag};
use super::index::slab::Id;
use super::state::timestamp::Timestamp;
use crate::storage::LinkKind;

/// Per mille of the limit at which eviction in the background ends.
const LOW: u64 = 998;
/// Images looked at under one lock.
const MAX_SCAN: usize = 512;

/// How much may be stored, and how much is spoken for. Bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Capacity {
    /// The operator's `storage.maxsize`.
    pub(super) max_size: Option<u64>,
    /// What the file system has room for, measured every few seconds.
    pub(super) room: Option<Room>,
    /// Whether images are evicted to keep space free on the file system. False where the operator
    /// did not configure `storage.minfree`: its default only stops growth.
    pub(super) evicts_for_room: bool,
    /// Bytes that running and paused downloads have reserved.
    pub(super) reserved: u64,
    /// Those of the reserved bytes that are on disk already: the file system doesn't report them
    /// as free any more.
    pub(super) filled: u64,
}

/// One measurement of the file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) free: u64,
    /// Bytes that have to stay free.
    pub(super) min_free: u64,
    /// Bytes that the cache used at that moment.
    pub(super) used: u64,
    /// Bytes of reservations that were on disk at that moment.
    pub(super) filled: u64,
}

impl Room {
    /// Bytes that the cache may use in total.
    fn total(self) -> u64 {
        self.free
            .saturating_add(self.used)
            .saturating_add(self.filled)
            .saturating_sub(self.min_free)
    }
}

fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl Capacity {
    /// Bytes that may be used and reserved in total.
    pub(super) fn limit(&self) -> Option<u64> {
        smaller(self.max_size, self.room.map(Room::total))
    }

    /// The limit that is kept by evicting images.
    fn evicting_limit(&self) -> Option<u64> {
        let room = self.room.filter(|_| self.evicts_for_room);
        smaller(self.max_size, room.map(Room::total))
    }

    /// Whether a blob is small enough to evict images for it: at most half of what may be stored.
    fn may_evict_for(&self, blob: u64) -> bool {
        let limit = self.evicting_limit();
        limit.is_none_or(|limit| blob <= limit / 2)
    }
}

/// What came of asking for space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// When something that is going has gone.
    Wait,
    /// More images have to be looked at: ask again.
    Again,
    /// Nothing more can go.
    Full,
}

/// What one look for images found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    /// Bytes that will be freed.
    pub(super) bytes: u64,
    /// Images that were looked at.
    pub(super) looked_at: usize,
}

fn per_mille(of: u64, share: u64) -> u64 {
    (of / 1000).saturating_mul(share) + of % 1000 * share / 1000
}

impl Index {
    /// Bytes that are used or spoken for.
    fn taken(&self) -> u64 {
        self.used.saturating_add(self.capacity.reserved)
    }

    /// Whether `bytes` more would be within the limit, with nothing evicted. None while that is
    /// unknown, because not all files have been counted.
    fn has_space(&self, bytes: u64) -> Option<bool> {
        let capacity = &self.capacity;
        let Some(limit) = capacity.limit() else {
            return Some(true);
        };
        if self.sized {
            return Some(self.taken().saturating_add(bytes) <= limit);
        }
        // The free space is known without the files. It decides alone where nothing is evicted.
        let decides = capacity.evicting_limit().is_none();
        capacity.room.filter(|_| decides).map(|room| {
            let missing = capacity.reserved.saturating_sub(capacity.filled);
            missing.saturating_add(bytes) <= room.free.saturating_sub(room.min_free)
        })
    }

    /// Whether a blob of so many bytes can be stored at all: either images may be evicted for it, or
    /// there is space for it now.
    pub(super) fn can_hold(&self, blob: u64) -> bool {
        let capacity = &self.capacity;
        let fits = |limit: u64| !self.sized || blob <= limit;
        let within_limit = capacity.limit().is_none_or(fits);
        within_limit && (capacity.may_evict_for(blob) || self.has_space(blob).unwrap_or(true))
    }

    /// Whether there is space now, with nothing being evicted.
    pub(super) fn has_idle_space(&self, bytes: u64) -> bool {
        self.evicting == 0 && self.has_space(bytes).unwrap_or(false)
    }

    /// Reserves space when there is some; else chooses what goes. `looked_at` counts images over
    /// repeated calls.
    pub(super) fn admit(
        &mut self,
        request: SpaceRequest,
        now: Timestamp,
        looked_at: &mut usize,
    ) -> Admission {
        let SpaceRequest { bytes, blob, evict } = request;
        match self.has_space(bytes) {
            Some(true) => {
                self.capacity.reserved = self.capacity.reserved.saturating_add(bytes);
                return Admission::Admitted;
            }
            Some(false) => {}
            // Nobody can tell what fits, and nothing may go.
            None => return Admission::Wait,
        }
        let limit = self.capacity.limit().unwrap_or(u64::MAX);
        let wanted = self.taken().saturating_add(bytes);
        // Reservations can't be evicted, but they end.
        if bytes > limit || !evict {
            return Admission::Full;
        }
        if self.evicting > 0 && wanted.saturating_sub(self.evicting) <= limit {
            return Admission::Wait;
        }
        let evicting_limit = self.capacity.evicting_limit().unwrap_or(u64::MAX);
        if limit < evicting_limit || !self.capacity.may_evict_for(blob) {
            return Admission::Full;
        }
        // What belongs together isn't known yet.
        if !self.complete {
            return Admission::Wait;
        }
        let need = (wanted - limit).saturating_sub(self.evicting);
        let chosen = self.evict(need, now);
        *looked_at += chosen.looked_at;
        if self.evicting > 0 {
            Admission::Wait
        } else if chosen.looked_at > 0 && *looked_at <= self.ranking.len() * 2 {
            Admission::Again
        } else {
            Admission::Full
        }
    }

    /// Bytes to evict because the limit is passed already.
    pub(super) fn excess(&self) -> u64 {
        let taken = self.taken().saturating_sub(self.evicting);
        match self.capacity.evicting_limit() {
            Some(limit) if taken > limit => taken - per_mille(limit, LOW),
            _ => 0,
        }
    }

    /// Chooses images of at least `need` bytes, least recently used first, and hands them to the
    /// sweeper. Looks at a bounded number of them.
    pub(super) fn evict(&mut self, need: u64, now: Timestamp) -> Chosen {
        let mut chosen = Chosen {
            bytes: 0,
            looked_at: 0,
        };
        let mut kept = Vec::new();
        while chosen.bytes < need
            && chosen.looked_at < MAX_SCAN
            && let Some((ranked, number)) = self.ranking.pop_first()
        {
            chosen.looked_at += 1;
            let Some(id) = Id::from_number(number) else {
                continue;
            };
            let Some(root) = self.contents.get_mut(id) else {
                continue;
            };
            root.ranked = 0;
            // Uses don't move an image in the order; it is moved when its turn comes.
            let used = self.image_use(id).millis();
            if used > ranked {
                self.rank_at(id, used);
                continue;
            }
            let image = self.image(id, |manifest| self.is_pinned(manifest));
            if self.is_pinned(id) || image.iter().any(|id| self.is_busy(*id)) {
                kept.push(id);
                continue;
            }
            for member in image {
                chosen.bytes += self.choose(member);
            }
        }
        // To be looked at again when everything else has been.
        for id in kept {
            self.rank_at(id, now.millis());
        }
        chosen
    }

    /// Marks content to go; returns its bytes.
    fn choose(&mut self, id: Id<Content>) -> u64 {
        let Some(content) = self.contents.get_mut(id) else {
            return 0;
        };
        if content.flags.has(content_flag::EVICTED) {
            return 0;
        }
        content.flags.set(content_flag::EVICTED);
        let size = content.size;
        self.evicting = self.evicting.saturating_add(size);
        self.enqueue(id);
        size
    }

    /// Takes back that content is to be evicted.
    pub(super) fn spare(&mut self, id: Id<Content>) {
        if let Some(content) = self.contents.get_mut(id)
            && content.flags.has(content_flag::EVICTED)
        {
            content.flags.clear(content_flag::EVICTED);
            self.evicting = self.evicting.saturating_sub(content.size);
            self.rank(id);
        }
    }

    /// Whether content is held, or on its way out already.
    fn is_busy(&self, id: Id<Content>) -> bool {
        self.contents.get(id).is_some_and(|content| {
            content.holds > 0
                || content
                    .flags
                    .has(content_flag::DELETING | content_flag::EVICTED)
        })
    }

    /// Whether a repository that the operator has pinned links this, or a pinned tag names it.
    pub(super) fn is_pinned(&self, id: Id<Content>) -> bool {
        if self.pins.is_empty() {
            return false;
        }
        let hash = self.hash_content(id);
        self.entries_of(id).any(|(_, entry)| {
            let Some(repo) = self.repos.get(entry.repo) else {
                return false;
            };
            let tags = || repo.tags.iter().filter(|(_, named)| **named == hash);
            self.pins.iter().any(|pin| {
                pin.is_whole(&repo.name)
                    || (entry.kind == LinkKind::Revision
                        && tags().any(|(tag, _)| pin.is_tag(&repo.name, tag)))
            })
        })
    }

    // --- The order -----------------------------------------------------------------------------

    /// Puts the head of an image in the order, and takes everything else out.
    pub(super) fn rank(&mut self, id: Id<Content>) {
        let Some(content) = self.contents.get(id) else {
            return;
        };
        if !Self::is_root(content) || content.flags.has(content_flag::EVICTED) {
            self.unrank(id);
        } else if content.ranked == 0 {
            self.rank_at(id, content.last_use.millis());
        }
    }

    fn rank_at(&mut self, id: Id<Content>, millis: u64) {
        self.unrank(id);
        if let Some(content) = self.contents.get_mut(id) {
            content.ranked = millis.max(1);
            self.ranking.insert((content.ranked, id.number()));
        }
    }

    pub(super) fn unrank(&mut self, id: Id<Content>) {
        if let Some(content) = self.contents.get_mut(id)
            && content.ranked != 0
        {
            self.ranking.remove(&(content.ranked, id.number()));
            content.ranked = 0;
        }
    }
}
