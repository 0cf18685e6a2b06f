//! What the index is made of. A million of each are expected, so they are small.

use std::collections::BTreeMap;
use std::time::Duration;

use super::slab::Id;
use super::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName, Tag};
use crate::storage::{LinkKind, Modified};

/// A digest in 40 bytes: the long ones are rare.
#[derive(Debug)]
pub(super) enum Compact {
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
pub(super) struct Stamp([u16; 3]);

impl Stamp {
    pub(super) const NONE: Self = Self([0; 3]);

    pub(super) fn get(self) -> Option<Modified> {
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
pub(super) struct Flags(u8);

impl Flags {
    pub(super) const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u8) {
        self.0 |= flag;
    }

    pub(super) const fn clear(&mut self, flag: u8) {
        self.0 &= !flag;
    }
}

/// Marks of an [`Entry`].
pub(super) mod entry_flag {
    /// Changed since the last save.
    pub(in super::super) const DIRTY: u8 = 1;
    /// Its link has been seen in the store, or made, in this run.
    pub(in super::super) const SEEN: u8 = 2;
    /// Its time is up.
    pub(in super::super) const EXPIRED: u8 = 4;
    /// It is to go, whatever its time.
    pub(in super::super) const CONDEMNED: u8 = 8;
    /// Removing its link has failed, and is tried again.
    pub(in super::super) const FAILED: u8 = 16;
    /// The reference registry cached it: `origin` is the expiry that it wrote.
    pub(in super::super) const ADOPTED: u8 = 32;
}

/// Marks of a [`Content`].
pub(super) mod content_flag {
    /// The store has the blob's file.
    pub(in super::super) const FILE: u8 = 1;
    /// The sweeper is deleting links or the file right now.
    pub(in super::super) const DELETING: u8 = 2;
    /// In the sweeper's queue.
    pub(in super::super) const QUEUED: u8 = 4;
    /// To be evicted.
    pub(in super::super) const EVICTED: u8 = 8;
    /// Some entry is condemned.
    pub(in super::super) const CONDEMNED: u8 = 16;
    /// The file was set aside, and no new one has come: the links go when nothing holds it.
    pub(in super::super) const LOST: u8 = 32;
    /// A scrub is reading it.
    pub(in super::super) const SCRUBBING: u8 = 64;
    /// Its size isn't the one it was verified with, or that a manifest gives, and it hasn't been
    /// verified since.
    pub(in super::super) const WRONG_SIZE: u8 = 128;
}

/// A repository, as it is stored.
#[derive(Debug)]
pub(super) struct Repo {
    pub(super) name: RepoName,
    /// Seconds; none is for ever.
    pub(super) ttl: Option<u32>,
    pub(super) entries: u32,
    /// Tags, with the hash of the digest they name.
    pub(super) tags: BTreeMap<Tag, u64>,
}

/// A link of a repository to content. A million of them are expected: 32 bytes.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) repo: Id<Repo>,
    pub(super) content: Id<Content>,
    /// The next entry of the same content.
    pub(super) next: Option<Id<Entry>>,
    /// Where it stands in the ordered set of deadlines, in seconds; 0 when it isn't in it. Never
    /// later than its true deadline.
    pub(super) queued: u32,
    /// When it was created, or, of an adopted entry, the earliest time at which it may expire. In
    /// seconds; [`Entry::origin`] tells which it is.
    origin: u32,
    pub(super) last_use: Timestamp,
    pub(super) kind: LinkKind,
    pub(super) flags: Flags,
}

/// Where an entry's life began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This mirror cached it, at this time.
    Created(Timestamp),
    /// The reference registry cached it, and wrote this expiry. When it was cached isn't known,
    /// because the file doesn't say which TTL that registry had.
    Adopted(Timestamp),
}

impl Entry {
    pub(super) fn new(
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

    pub(super) fn origin(&self) -> Origin {
        let time = Timestamp::from_seconds(self.origin);
        if self.flags.has(entry_flag::ADOPTED) {
            Origin::Adopted(time)
        } else {
            Origin::Created(time)
        }
    }

    pub(super) fn set_origin(&mut self, origin: Origin) {
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
    pub(super) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Created(one), Self::Created(other)) => Self::Created(one.min(other)),
            (Self::Adopted(one), Self::Adopted(other)) => Self::Adopted(one.max(other)),
            (adopted @ Self::Adopted(_), Self::Created(_))
            | (Self::Created(_), adopted @ Self::Adopted(_)) => adopted,
        }
    }

    /// When the entry was created: of an adopted one that isn't known, and its last use is the best
    /// guess.
    pub(super) fn created(self, last_use: Timestamp) -> Timestamp {
        match self {
            Self::Created(time) => time,
            Self::Adopted(_) => last_use,
        }
    }
}

/// What has a digest. A million of them are expected: 88 bytes.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) digest: Compact,
    /// Bytes; 0 until the file is known.
    pub(super) size: u64,
    pub(super) last_use: Timestamp,
    /// Its time in the order of eviction; 0 when it isn't in it. Never later than the true one.
    pub(super) ranked: u64,
    pub(super) first: Option<Id<Entry>>,
    /// How many manifests refer to it.
    pub(super) parents: u32,
    pub(super) holds: u32,
    pub(super) manifest: Option<Id<Manifest>>,
    /// The modification time of the file that was found to have the digest, with this `size`.
    pub(super) verified: Stamp,
    pub(super) flags: Flags,
}

/// What a manifest is, and what it refers to, as hashes of digests: most platforms of an index are
/// never cached.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) media_type: ManifestType,
    pub(super) references: Box<[u64]>,
}

impl Content {
    /// Bytes of the file; 0 where there is none, whatever size it was verified with.
    pub(super) fn file_size(&self) -> u64 {
        if self.flags.has(content_flag::FILE) {
            self.size
        } else {
            0
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
