//! What the index knows of a digest.

use super::entry::Entry;
use super::graph::Manifest;
use super::order::Slot;
use super::queue::Turn;
use super::slab::Id;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::Digest;
use crate::storage::Modified;

/// A digest in 40 bytes: the long ones are rare.
#[derive(Debug)]
enum Compact {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// What is known of a file's content, in 6 bytes, which fit between other fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check([u16; 3]);

impl Check {
    pub(super) const UNKNOWN: Self = Self([0; 3]);
    /// Its size isn't the one that it was verified with, or that a manifest gives, and it hasn't been
    /// verified since.
    pub(super) const WRONG_SIZE: Self = Self([u16::MAX; 3]);

    /// The file with this modification time had the digest, and the size that the index has.
    pub(super) fn verified(modified: Modified) -> Self {
        let bits = modified.to_bits();
        let check =
            Self([32, 16, 0].map(|shift| u16::try_from(bits >> shift & 0xffff).unwrap_or(0)));
        // The year 2106: such a file is verified each time.
        if check == Self::WRONG_SIZE {
            Self::UNKNOWN
        } else {
            check
        }
    }

    /// The modification time of the file that was verified.
    pub(super) fn modified(self) -> Option<Modified> {
        let [high, middle, low] = self.0.map(u64::from);
        let verified = self != Self::UNKNOWN && self != Self::WRONG_SIZE;
        verified.then(|| Modified::from_bits(high << 32 | middle << 16 | low))
    }
}

/// What the store has of a blob, and whether it stays. Whether its links or its file are being removed
/// at this moment is its [`Turn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobState {
    /// No file, as far as is known.
    Absent,
    Present,
    /// Present and chosen by eviction: all its links are removed, then the file.
    Evicting,
    /// The file was moved to quarantine. Its links are removed when nothing holds it, unless a new
    /// file has been committed by then.
    Quarantined,
}

impl BlobState {
    pub(super) fn has_file(self) -> bool {
        matches!(self, Self::Present | Self::Evicting)
    }
}

/// A digest: with a file, or with links, holds or references to it. A million of them are expected:
/// 88 bytes.
#[derive(Debug)]
pub(crate) struct Blob {
    digest: Compact,
    /// Bytes of the file, or of the one that was verified; 0 until one is known.
    pub(super) size: u64,
    pub(super) last_use: Timestamp,
    /// Its place in the LRU order, in milliseconds; never later than its true last use.
    pub(super) ranked: Slot<u64>,
    /// The first of the entries that link it.
    pub(super) first: Option<Id<Entry>>,
    /// How many manifests refer to it.
    pub(super) parents: u32,
    pub(super) holds: u32,
    pub(super) manifest: Option<Id<Manifest>>,
    pub(super) check: Check,
    /// Changed by `Index::set_state` only.
    pub(super) state: BlobState,
    pub(super) turn: Turn,
}

impl Blob {
    pub(super) fn new(digest: &Digest, parents: u32) -> Self {
        let digest = match digest {
            Digest::Sha256(bytes) => Compact::Sha256(*bytes),
            Digest::Sha512(bytes) => Compact::Sha512(Box::new(*bytes)),
        };
        Self {
            digest,
            size: 0,
            last_use: Timestamp::default(),
            ranked: Slot::default(),
            first: None,
            parents,
            holds: 0,
            manifest: None,
            check: Check::UNKNOWN,
            state: BlobState::Absent,
            turn: Turn::Idle,
        }
    }

    /// Stands in for a blob that isn't there.
    pub(super) fn vacant() -> Self {
        Self::new(&Digest::Sha256([0; 32]), 0)
    }

    pub(super) fn digest(&self) -> Digest {
        match &self.digest {
            Compact::Sha256(bytes) => Digest::Sha256(*bytes),
            Compact::Sha512(bytes) => Digest::Sha512(**bytes),
        }
    }

    pub(super) fn is(&self, digest: &Digest) -> bool {
        match (&self.digest, digest) {
            (Compact::Sha256(own), Digest::Sha256(other)) => own == other,
            (Compact::Sha512(own), Digest::Sha512(other)) => **own == *other,
            _ => false,
        }
    }

    /// Bytes of the file; none where there is none, whatever size was verified.
    pub(super) fn file_size(&self) -> Option<u64> {
        self.state.has_file().then_some(self.size)
    }

    pub(super) fn is_orphan(&self) -> bool {
        self.first.is_none() && self.state.has_file()
    }

    /// Whether it heads an image: a manifest or index that nothing refers to, or a lone blob.
    pub(super) fn is_root(&self) -> bool {
        self.parents == 0 && self.state.has_file()
    }

    /// Whether eviction has to leave it alone.
    pub(super) fn is_busy(&self) -> bool {
        self.holds > 0 || self.turn.is_deleting() || self.state == BlobState::Evicting
    }

    pub(super) fn was_used(&mut self, at: Timestamp) {
        self.last_use = self.last_use.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_six_bytes_and_a_blob_88() {
        let modified = Modified::from_bits(0x1234_5678_9abc);
        assert_eq!(Check::verified(modified).modified(), Some(modified));
        assert_eq!(Check::UNKNOWN.modified(), None);
        assert_eq!(Check::WRONG_SIZE.modified(), None);
        let latest = Modified::from_bits(u64::MAX);
        assert_eq!(Check::verified(latest), Check::UNKNOWN);
        assert_eq!(size_of::<Check>(), 6);
        assert_eq!(size_of::<Option<Blob>>(), 88);
    }
}
