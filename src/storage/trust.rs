//! What is known of a committed file: when it was modified, and whether it has its digest.

use std::fs::{File, Metadata};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// When a file was modified last, in units of 1/65,536 s since the Unix epoch, as 48 bits. Stores
/// that aren't file systems use any number that differs between two contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Modified(u64);

impl Modified {
    /// Keeps the low 48 bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & 0xffff_ffff_ffff)
    }

    pub const fn to_bits(self) -> u64 {
        self.0
    }

    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        metadata.modified().ok().map(Self::at)
    }

    fn at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let fraction = (u64::from(since.subsec_nanos()) << 16) / 1_000_000_000;
        Self::from_bits(since.as_secs() << 16 | fraction)
    }
}

/// The size and the modification time of an open file.
pub(super) fn stamp(file: &File) -> Option<(u64, Modified)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), Modified::of(&metadata)?))
}

/// Whether open content is known to have its digest. Shared by all who have it open.
#[derive(Debug, Default)]
pub(super) struct Trust(AtomicU8);

impl Trust {
    const VERIFIED: u8 = 1;
    const SUSPECT: u8 = 2;

    pub(super) fn is_verified(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::VERIFIED
    }

    pub(super) fn set_verified(&self) {
        self.0.store(Self::VERIFIED, Ordering::Release);
    }

    pub(super) fn suspect(&self) {
        self.0.store(Self::SUSPECT, Ordering::Release);
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::SUSPECT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_that_differ_by_a_tick_are_told_apart() {
        let at = |nanos| UNIX_EPOCH + Duration::new(1_795_839_197, nanos);
        assert_ne!(Modified::at(at(0)), Modified::at(at(20_000)));
        assert_eq!(Modified::at(at(0)).to_bits() >> 16, 1_795_839_197);
        let last = Modified::at(at(999_999_999)).to_bits();
        assert_eq!(last >> 16, 1_795_839_197);
        assert_eq!(Modified::from_bits(last), Modified::at(at(999_999_999)));
        assert_eq!(Modified::from_bits(u64::MAX).to_bits(), 0xffff_ffff_ffff);
    }
}
