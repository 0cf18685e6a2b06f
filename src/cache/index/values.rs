//! The values of the index: repositories, blobs, what manifests refer to, and links.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::order::Slot;
use super::slab::{Id, Keyed};
use crate::cache::state::file::Origin;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName, Tag};
use crate::storage::{LinkKind, Modified};

/// A repository, as it is stored.
#[derive(Debug)]
pub(super) struct Repo {
    pub(super) name: RepoName,
    /// None is for ever.
    pub(super) ttl: Option<Duration>,
    pub(super) entries: u32,
    /// Tags, with the hash of the digest they name.
    pub(super) tags: BTreeMap<Tag, u64>,
    pub(super) hosted: Option<Box<HostedRepo>>,
}

impl Repo {
    pub(super) fn new(name: RepoName, ttl: Option<Duration>) -> Self {
        Self {
            name,
            ttl,
            entries: 0,
            tags: BTreeMap::new(),
            hosted: None,
        }
    }

    pub(super) fn hosted(name: RepoName, space: usize) -> Self {
        let hosted = HostedRepo {
            space,
            ..HostedRepo::default()
        };
        Self {
            hosted: Some(Box::new(hosted)),
            ..Self::new(name, None)
        }
    }

    /// Makes a tag name the digest with this hash. Returns the hash that it named before.
    pub(super) fn set_tag(&mut self, tag: &Tag, hash: u64) -> Option<u64> {
        let before = self.tags.insert(tag.clone(), hash);
        self.count_tag(hash, true);
        if let Some(before) = before {
            self.count_tag(before, false);
        }
        before
    }

    /// Removes a tag. Returns the hash that it named.
    pub(super) fn remove_tag(&mut self, tag: &Tag) -> Option<u64> {
        let before = self.tags.remove(tag)?;
        self.count_tag(before, false);
        Some(before)
    }

    fn count_tag(&mut self, hash: u64, more: bool) {
        if let Some(hosted) = &mut self.hosted {
            counted(&mut hosted.tagged, hash, more);
        }
    }

    /// Stands in for a repository that isn't there.
    #[expect(clippy::expect_used, reason = "a constant, which each test parses")]
    pub(super) fn vacant() -> Self {
        let name = RepoName::from_stored("vacant").expect("a name");
        Self::new(name, None)
    }

    /// The tags that name the digest with this hash.
    pub(super) fn tags_of(&self, hash: u64) -> impl Iterator<Item = &Tag> {
        let named = self.tags.iter().filter(move |(_, named)| **named == hash);
        named.map(|(tag, _)| tag)
    }
}

/// What is known of a hosted repository beside its entries.
#[derive(Debug, Default)]
pub(super) struct HostedRepo {
    /// The position of its policy.
    pub(super) space: usize,
    /// How many manifests of the repository refer to a digest, by its hash.
    pub(super) references: HashMap<u64, u32>,
    /// How many tags name a digest, by its hash.
    pub(super) tagged: HashMap<u64, u32>,
}

/// Counts one more or one fewer of something. True when none is left.
pub(super) fn counted(counts: &mut HashMap<u64, u32>, hash: u64, more: bool) -> bool {
    let count = counts.entry(hash).or_default();
    debug_assert!(more || *count > 0, "one reference too many is removed");
    *count = if more {
        count.saturating_add(1)
    } else {
        count.saturating_sub(1)
    };
    let is_zero = *count == 0;
    if is_zero {
        counts.remove(&hash);
    }
    is_zero
}

impl Keyed for Repo {
    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.name.as_str())
    }
}

/// A digest in 40 bytes: the long ones are rare.
#[derive(Debug)]
enum Compact {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// The result of a file's last verification, in 6 bytes, which fit between other fields.
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

/// A blob's position in the delete queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    #[default]
    Idle,
    /// In the queue, once.
    Queued,
    /// Its turn came while it was held: it is queued again when it is released.
    Held,
    /// Its links or its file are being removed. It can be neither held nor linked.
    Deleting {
        /// Something else became due meanwhile: it is queued again.
        again: bool,
    },
}

impl Turn {
    pub(super) fn is_deleting(self) -> bool {
        matches!(self, Self::Deleting { .. })
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
    pub(super) manifest: Option<Id<ManifestRecord>>,
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

    /// Whether eviction has to leave it alone.
    pub(super) fn is_busy(&self) -> bool {
        self.holds > 0 || self.turn.is_deleting() || self.state == BlobState::Evicting
    }

    pub(super) fn was_used(&mut self, at: Timestamp) {
        self.last_use = self.last_use.max(at);
    }
}

impl Keyed for Blob {
    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.digest())
    }
}

/// What a manifest is, and what it refers to, as sorted hashes of digests: most platforms of an index
/// are never cached.
#[derive(Debug)]
pub(super) struct ManifestRecord {
    pub(super) media_type: ManifestType,
    pub(super) references: Box<[u64]>,
}

/// Whether a link stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Known from the state file, or from a link that can't be read. Serves no request. Once the
    /// store has been listed, only links that can't be read are in this state.
    Unconfirmed,
    /// The store has it, and nothing is about to remove it.
    Kept,
    /// Its time is over. A use before it is removed keeps it.
    Expired,
    /// To be removed, whatever its time: purged, or its blob is missing. A use doesn't keep it; only
    /// making the link again does.
    Marked,
    /// It couldn't be removed. A use keeps it. Otherwise it is tried again: soon if it was marked,
    /// else when its time is over.
    Failed { marked: bool },
}

impl LinkState {
    /// Whether it is removed whatever its time.
    pub(super) fn is_marked(self) -> bool {
        matches!(self, Self::Marked | Self::Failed { marked: true })
    }
}

/// A link of a repository to a blob. A million of them are expected: 32 bytes.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) repo: Id<Repo>,
    pub(super) blob: Id<Blob>,
    /// The next entry of the same blob.
    pub(super) next: Option<Id<Entry>>,
    /// In seconds; never later than its true deadline.
    pub(super) deadline: Slot<u32>,
    /// Of [`Entry::origin`], in seconds.
    origin: u32,
    adopted: bool,
    pub(super) kind: LinkKind,
    pub(super) state: LinkState,
    /// Whether it is among the changes since the last save.
    pub(super) dirty: bool,
    pub(super) last_use: Timestamp,
}

impl Entry {
    pub(super) fn new(
        (repo, kind, blob): (Id<Repo>, LinkKind, Id<Blob>),
        (origin, last_use): (Origin, Timestamp),
    ) -> Self {
        let mut entry = Self {
            repo,
            blob,
            next: None,
            deadline: Slot::default(),
            origin: 0,
            adopted: false,
            kind,
            state: LinkState::Unconfirmed,
            dirty: false,
            last_use,
        };
        entry.set_origin(origin);
        entry
    }

    pub(super) fn is(&self, repo: Id<Repo>, kind: LinkKind, blob: Id<Blob>) -> bool {
        self.repo == repo && self.kind == kind && self.blob == blob
    }

    pub(super) fn origin(&self) -> Origin {
        let time = Timestamp::from_seconds(self.origin);
        if self.adopted {
            Origin::Adopted(time)
        } else {
            Origin::Created(time)
        }
    }

    pub(super) fn set_origin(&mut self, origin: Origin) {
        (self.adopted, self.origin) = match origin {
            Origin::Created(time) => (false, time.seconds()),
            // Part of a second is a second: never early.
            Origin::Adopted(expiry) => (true, expiry.rounded_up()),
        };
    }
}

impl Keyed for Entry {
    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.repo, self.kind, self.blob))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_6_bytes_a_blob_88_and_an_entry_32() {
        let modified = Modified::from_bits(0x1234_5678_9abc);
        assert_eq!(Check::verified(modified).modified(), Some(modified));
        assert_eq!(Check::UNKNOWN.modified(), None);
        assert_eq!(Check::WRONG_SIZE.modified(), None);
        let latest = Modified::from_bits(u64::MAX);
        assert_eq!(Check::verified(latest), Check::UNKNOWN);
        assert_eq!(size_of::<Check>(), 6);
        assert_eq!(size_of::<Option<Blob>>(), 88);
        assert_eq!(size_of::<Option<Entry>>(), 32);
    }
}
