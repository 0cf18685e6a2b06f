//! Accounting of bytes: how many are and may be stored, and whether a request fits.
//!
//! A download that would pass the limit waits until the images that are in its way are deleted; the
//! space that whole images leave is for the next ones. What is past the limit all the same (it was
//! lowered, or others fill the disk) is evicted in the background, down to [`LOW`] per mille. No band
//! is kept empty below the limit: deleting takes milliseconds, downloads take longer, and a band of
//! 5 % cost half a percent of the hits (`benches/cache.rs`).

use crate::cache::CacheSettings;

/// Per mille of the limit at which eviction in the background ends.
const LOW: u64 = 998;

/// Space that a download asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceRequest {
    /// Bytes to reserve now.
    pub bytes: u64,
    /// Bytes of the whole blob, as far as they are known. Nothing is evicted for a blob that is
    /// larger than half of what may be stored.
    pub blob: u64,
    /// Whether images may be evicted to make room.
    pub evict: bool,
}

/// The decision on a [`SpaceRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Decision {
    Reserve,
    /// Ask again when something has been deleted, or when all files have been counted.
    Wait,
    /// So many bytes have to be evicted first.
    Evict(u64),
    /// There is no space, and nothing may be evicted.
    Full,
}

/// One measurement of the file system. Bytes.
#[derive(Debug, Clone, Copy)]
struct Measured {
    free: u64,
    /// Bytes that have to stay free.
    min_free: u64,
    /// Bytes that the cache used at that moment.
    used: u64,
    /// Bytes of reservations that were on disk at that moment.
    filled: u64,
}

impl Measured {
    /// Bytes that the cache may use in total.
    fn total(self) -> u64 {
        self.free
            .saturating_add(self.used)
            .saturating_add(self.filled)
            .saturating_sub(self.min_free)
    }
}

/// Bytes: limits, and what counts towards them.
#[derive(Debug)]
pub(in crate::cache) struct Space {
    /// The operator's `storage.maxsize`.
    max_size: Option<u64>,
    /// Whether images are evicted to keep space free on the file system. False where the operator
    /// didn't configure `storage.minfree`: its default only stops growth.
    evicts_for_free: bool,
    measured: Option<Measured>,
    /// Of all files.
    pub(in crate::cache) used: u64,
    /// Of the files that are being evicted.
    pub(in crate::cache) evicting: u64,
    /// That running and paused downloads have reserved.
    pub(in crate::cache) reserved: u64,
    /// Those of the reserved bytes that are on disk already: the file system doesn't report them as
    /// free any more.
    pub(in crate::cache) filled: u64,
    /// All files have been counted.
    pub(in crate::cache) counted: bool,
}

fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

fn per_mille(of: u64, share: u64) -> u64 {
    (of / 1000).saturating_mul(share) + of % 1000 * share / 1000
}

fn change(sum: &mut u64, bytes: u64, more: bool) {
    debug_assert!(
        more || *sum >= bytes,
        "{bytes} bytes of {sum} are taken away"
    );
    *sum = if more {
        sum.saturating_add(bytes)
    } else {
        sum.saturating_sub(bytes)
    };
}

impl Space {
    pub(in crate::cache) fn new(settings: &CacheSettings) -> Self {
        Self {
            max_size: settings.max_size,
            evicts_for_free: settings.evicts_for_free(),
            measured: None,
            used: 0,
            evicting: 0,
            reserved: 0,
            filled: 0,
            counted: false,
        }
    }

    /// Applies other limits.
    pub(in crate::cache) fn configure(&mut self, settings: &CacheSettings) {
        self.max_size = settings.max_size;
        self.evicts_for_free = settings.evicts_for_free();
        let min_free = settings.min_free.as_ref();
        self.measured = self
            .measured
            .take()
            .zip(min_free)
            .map(|(measured, new)| Measured {
                min_free: new.bytes,
                ..measured
            });
    }

    // --- Counting ------------------------------------------------------------------------------

    /// A file has come or gone.
    pub(in crate::cache) fn count_file(&mut self, bytes: u64, came: bool) {
        change(&mut self.used, bytes, came);
    }

    /// A file has been chosen for eviction, or that is over: the file is gone or stays.
    pub(in crate::cache) fn count_eviction(&mut self, bytes: u64, chosen: bool) {
        change(&mut self.evicting, bytes, chosen);
    }

    pub(in crate::cache) fn reserve(&mut self, bytes: u64) {
        change(&mut self.reserved, bytes, true);
    }

    /// Reserved bytes, of which some are on disk, are given back.
    pub(in crate::cache) fn give_back(&mut self, bytes: u64, filled: u64) {
        change(&mut self.reserved, bytes, false);
        change(&mut self.filled, filled, false);
    }

    /// Of a reservation, `after` bytes are on disk, and no longer `before`.
    pub(in crate::cache) fn fill(&mut self, before: u64, after: u64) {
        change(&mut self.filled, before, false);
        change(&mut self.filled, after, true);
    }

    /// The bytes that the file system has free now, and those that have to stay free; none when that is
    /// unknown.
    pub(in crate::cache) fn measure(&mut self, free: Option<u64>, min_free: u64) {
        self.measured = free.map(|free| Measured {
            free,
            min_free,
            used: self.used,
            filled: self.filled,
        });
    }

    // --- Asking --------------------------------------------------------------------------------

    fn taken(&self) -> u64 {
        self.used.saturating_add(self.reserved)
    }

    /// Bytes that may be used and reserved in total.
    pub(in crate::cache) fn limit(&self) -> Option<u64> {
        smaller(self.max_size, self.measured.map(Measured::total))
    }

    /// The limit that is kept by evicting images.
    fn evicting_limit(&self) -> Option<u64> {
        let measured = self.measured.filter(|_| self.evicts_for_free);
        smaller(self.max_size, measured.map(Measured::total))
    }

    /// Whether the file system's free space is what limits the cache, and not `storage.maxsize`.
    pub(in crate::cache) fn is_limited_by_free_space(&self) -> bool {
        let measured = self.measured.filter(|_| self.evicts_for_free);
        let total = measured.map(Measured::total);
        total.is_some_and(|total| self.max_size.is_none_or(|max_size| total < max_size))
    }

    /// Whether a blob is small enough to evict images for it: at most half of what may be stored.
    fn may_evict_for(&self, blob: u64) -> bool {
        let limit = self.evicting_limit();
        limit.is_none_or(|limit| blob <= limit / 2)
    }

    /// Whether `bytes` more would be within the limit, with nothing evicted. None while that is
    /// unknown, because not all files have been counted.
    fn fits(&self, bytes: u64) -> Option<bool> {
        let Some(limit) = self.limit() else {
            return Some(true);
        };
        if self.counted {
            return Some(self.taken().saturating_add(bytes) <= limit);
        }
        // The free space is known without the files. It decides alone where nothing is evicted.
        let decides = self.evicting_limit().is_none();
        self.measured.filter(|_| decides).map(|measured| {
            let missing = self.reserved.saturating_sub(self.filled);
            missing.saturating_add(bytes) <= measured.free.saturating_sub(measured.min_free)
        })
    }

    /// Whether a blob of so many bytes can be stored at all: either images may be evicted for it, or
    /// there is space for it now.
    pub(in crate::cache) fn can_hold(&self, blob: u64) -> bool {
        let possible = |limit: u64| !self.counted || blob <= limit;
        let within_limit = self.limit().is_none_or(possible);
        within_limit && (self.may_evict_for(blob) || self.fits(blob).unwrap_or(true))
    }

    /// Whether there is space now, with nothing being evicted.
    pub(in crate::cache) fn has_idle(&self, bytes: u64) -> bool {
        self.evicting == 0 && self.fits(bytes).unwrap_or(false)
    }

    /// Decides on a request for space, without reserving anything.
    pub(in crate::cache) fn decide(&self, request: SpaceRequest) -> Decision {
        let SpaceRequest { bytes, blob, evict } = request;
        match self.fits(bytes) {
            Some(true) => return Decision::Reserve,
            Some(false) => {}
            None => return Decision::Wait,
        }
        let limit = self.limit().unwrap_or(u64::MAX);
        let wanted = self.taken().saturating_add(bytes);
        // Reservations can't be evicted, but they end.
        if bytes > limit || !evict {
            return Decision::Full;
        }
        if self.evicting > 0 && wanted.saturating_sub(self.evicting) <= limit {
            return Decision::Wait;
        }
        let evicting_limit = self.evicting_limit().unwrap_or(u64::MAX);
        if limit < evicting_limit || !self.may_evict_for(blob) {
            return Decision::Full;
        }
        Decision::Evict((wanted - limit).saturating_sub(self.evicting))
    }

    /// Bytes to evict because the limit is passed already.
    pub(in crate::cache) fn excess(&self) -> u64 {
        let taken = self.taken().saturating_sub(self.evicting);
        match self.evicting_limit() {
            Some(limit) if taken > limit => taken - per_mille(limit, LOW),
            _ => 0,
        }
    }
}
