//! What the index is made of. A million of each are expected, so they are small.

use std::collections::BTreeMap;

use super::moment::Moment;
use super::slab::Id;
use crate::oci::{Digest, RepoName, Tag};
use crate::store::LinkKind;

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
    /// Seconds.
    pub(super) created: u32,
    pub(super) last_use: Moment,
    pub(super) kind: LinkKind,
    pub(super) flags: Flags,
}

/// What has a digest. A million of them are expected: 88 bytes.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) digest: Compact,
    /// Bytes; 0 until the file is known.
    pub(super) size: u64,
    pub(super) last_use: Moment,
    /// Its time in the order of eviction; 0 when it isn't in it. Never later than the true one.
    pub(super) ranked: u64,
    pub(super) first: Option<Id<Entry>>,
    /// How many manifests refer to it.
    pub(super) parents: u32,
    pub(super) holds: u32,
    pub(super) manifest: Option<Id<Manifest>>,
    pub(super) flags: Flags,
}

/// What a manifest refers to, as hashes of digests: most platforms of an index are never cached.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) references: Box<[u64]>,
}

impl Content {
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
