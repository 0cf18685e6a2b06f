//! What the index is made of. A million of each are expected, so they are small.

use std::collections::BTreeMap;
use std::time::Duration;

use super::slab::Id;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName, Tag};
use crate::storage::{LinkKind, Modified};

/// A digest in 40 bytes: the long ones are rare.
#[derive(Debug)]
pub(in crate::cache) enum Compact {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

impl From<&Digest> for Compact {
    fn from(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(bytes) => Self::Sha256(*bytes),
            Digest::Sha512(bytes) => Self::Sha512(Box::new(*bytes)),
        }
    }
}

/// A file's modification time, or none, in 6 bytes: it fits between other fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::cache) struct Stamp([u16; 3]);

impl Stamp {
    pub(in crate::cache) const NONE: Self = Self([0; 3]);

    pub(in crate::cache) fn get(self) -> Option<Modified> {
        let [high, middle, low] = self.0.map(u64::from);
        (self != Self::NONE).then(|| Modified::from_bits(high << 32 | middle << 16 | low))
    }
}

impl From<Modified> for Stamp {
    fn from(modified: Modified) -> Self {
        let bits = modified.to_bits();
        Self([32, 16, 0].map(|shift| u16::try_from(bits >> shift & 0xffff).unwrap_or(0)))
    }
}

/// A set of marks.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cache) struct Flags(u8);

impl Flags {
    pub(in crate::cache) const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    pub(in crate::cache) const fn set(&mut self, flag: u8) {
        self.0 |= flag;
    }

    pub(in crate::cache) const fn clear(&mut self, flag: u8) {
        self.0 &= !flag;
    }
}

/// Marks of an [`Entry`].
pub(in crate::cache) mod entry_flag {
    /// Changed since the last save.
    pub(in crate::cache) const DIRTY: u8 = 1;
    /// Its link has been seen in the store, or made, in this run.
    pub(in crate::cache) const SEEN: u8 = 2;
    /// Its time is up.
    pub(in crate::cache) const EXPIRED: u8 = 4;
    /// It is to go, whatever its time.
    pub(in crate::cache) const CONDEMNED: u8 = 8;
    /// Removing its link has failed, and is tried again.
    pub(in crate::cache) const FAILED: u8 = 16;
    /// The reference registry cached it: `origin` is the expiry that it wrote.
    pub(in crate::cache) const ADOPTED: u8 = 32;
}

/// Marks of a [`Content`].
pub(in crate::cache) mod content_flag {
    /// The store has the blob's file.
    pub(in crate::cache) const FILE: u8 = 1;
    /// The sweeper is deleting links or the file right now.
    pub(in crate::cache) const DELETING: u8 = 2;
    /// In the sweeper's queue.
    pub(in crate::cache) const QUEUED: u8 = 4;
    /// To be evicted.
    pub(in crate::cache) const EVICTED: u8 = 8;
    /// Some entry is condemned.
    pub(in crate::cache) const CONDEMNED: u8 = 16;
    /// The file was set aside, and no new one has come: the links go when nothing holds it.
    pub(in crate::cache) const LOST: u8 = 32;
    /// A scrub is reading it.
    pub(in crate::cache) const SCRUBBING: u8 = 64;
    /// Its size isn't the one it was verified with, or that a manifest gives, and it hasn't been
    /// verified since.
    pub(in crate::cache) const WRONG_SIZE: u8 = 128;
}

/// A repository, as it is stored.
#[derive(Debug)]
pub(in crate::cache) struct Repo {
    pub(in crate::cache) name: RepoName,
    /// Seconds; none is for ever.
    pub(in crate::cache) ttl: Option<u32>,
    pub(in crate::cache) entries: u32,
    /// Tags, with the hash of the digest they name.
    pub(in crate::cache) tags: BTreeMap<Tag, u64>,
}

/// A link of a repository to content. A million of them are expected: 32 bytes.
#[derive(Debug)]
pub(in crate::cache) struct Entry {
    pub(in crate::cache) repo: Id<Repo>,
    pub(in crate::cache) content: Id<Content>,
    /// The next entry of the same content.
    pub(in crate::cache) next: Option<Id<Entry>>,
    /// Where it stands in the ordered set of deadlines, in seconds; 0 when it isn't in it. Never
    /// later than its true deadline.
    pub(in crate::cache) queued: u32,
    /// When it was created, or, of an adopted entry, the earliest time at which it may expire. In
    /// seconds; [`Entry::origin`] tells which it is.
    origin: u32,
    pub(in crate::cache) last_use: Timestamp,
    pub(in crate::cache) kind: LinkKind,
    pub(in crate::cache) flags: Flags,
}

/// Where an entry's life began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Origin {
    /// This mirror cached it, at this time.
    Created(Timestamp),
    /// The reference registry cached it, and wrote this expiry. When it was cached isn't known,
    /// because the file doesn't say which TTL that registry had.
    Adopted(Timestamp),
}

impl Entry {
    pub(in crate::cache) fn new(
        (repo, kind, content): (Id<Repo>, LinkKind, Id<Content>),
        next: Option<Id<Self>>,
        (origin, last_use): (Origin, Timestamp),
    ) -> Self {
        let mut entry = Self {
            repo,
            content,
            next,
            queued: 0,
            origin: 0,
            last_use,
            kind,
            flags: Flags::default(),
        };
        entry.set_origin(origin);
        entry
    }

    pub(in crate::cache) fn origin(&self) -> Origin {
        let time = Timestamp::from_seconds(self.origin);
        if self.flags.has(entry_flag::ADOPTED) {
            Origin::Adopted(time)
        } else {
            Origin::Created(time)
        }
    }

    pub(in crate::cache) fn set_origin(&mut self, origin: Origin) {
        match origin {
            Origin::Created(time) => {
                self.origin = time.seconds();
                self.flags.clear(entry_flag::ADOPTED);
            }
            Origin::Adopted(expiry) => {
                // Part of a second is a second: never early.
                self.origin = expiry.after(Duration::from_millis(999)).seconds();
                self.flags.set(entry_flag::ADOPTED);
            }
        }
    }
}

impl Origin {
    /// What two accounts of one entry come to. An expiry that was adopted stays in force.
    pub(in crate::cache) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Created(one), Self::Created(other)) => Self::Created(one.min(other)),
            (Self::Adopted(one), Self::Adopted(other)) => Self::Adopted(one.max(other)),
            (adopted @ Self::Adopted(_), Self::Created(_))
            | (Self::Created(_), adopted @ Self::Adopted(_)) => adopted,
        }
    }

    /// When the entry was created: of an adopted one that isn't known, and its last use is the best
    /// guess.
    pub(in crate::cache) fn created(self, last_use: Timestamp) -> Timestamp {
        match self {
            Self::Created(time) => time,
            Self::Adopted(_) => last_use,
        }
    }
}

/// What has a digest. A million of them are expected: 88 bytes.
#[derive(Debug)]
pub(in crate::cache) struct Content {
    pub(in crate::cache) digest: Compact,
    /// Bytes; 0 until the file is known.
    pub(in crate::cache) size: u64,
    pub(in crate::cache) last_use: Timestamp,
    /// Its time in the order of eviction; 0 when it isn't in it. Never later than the true one.
    pub(in crate::cache) ranked: u64,
    pub(in crate::cache) first: Option<Id<Entry>>,
    /// How many manifests refer to it.
    pub(in crate::cache) parents: u32,
    pub(in crate::cache) holds: u32,
    pub(in crate::cache) manifest: Option<Id<Manifest>>,
    /// The modification time of the file that was found to have the digest, with this `size`.
    pub(in crate::cache) verified: Stamp,
    pub(in crate::cache) flags: Flags,
}

/// What a manifest is, and what it refers to, as hashes of digests: most platforms of an index are
/// never cached.
#[derive(Debug)]
pub(in crate::cache) struct Manifest {
    pub(in crate::cache) media_type: ManifestType,
    pub(in crate::cache) references: Box<[u64]>,
}

impl Content {
    /// Bytes of the file; 0 where there is none, whatever size it was verified with.
    pub(in crate::cache) fn file_size(&self) -> u64 {
        if self.flags.has(content_flag::FILE) {
            self.size
        } else {
            0
        }
    }

    pub(in crate::cache) fn digest(&self) -> Digest {
        match &self.digest {
            Compact::Sha256(bytes) => Digest::Sha256(*bytes),
            Compact::Sha512(bytes) => Digest::Sha512(**bytes),
        }
    }

    pub(in crate::cache) fn is(&self, digest: &Digest) -> bool {
        match (&self.digest, digest) {
            (Compact::Sha256(own), Digest::Sha256(other)) => own == other,
            (Compact::Sha512(own), Digest::Sha512(other)) => **own == *other,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_six_bytes_and_content_stays_small() {
        let modified = Modified::from_bits(0x1234_5678_9abc);
        assert_eq!(Stamp::from(modified).get(), Some(modified));
        assert_eq!(Stamp::NONE.get(), None);
        assert_eq!(size_of::<Stamp>(), 6);
        assert!(size_of::<Content>() <= 88);
    }
}
