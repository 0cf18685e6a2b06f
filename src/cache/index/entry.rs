//! The links of repositories to blobs, and the repositories.

use std::collections::BTreeMap;
use std::time::Duration;

use super::blob::Blob;
use super::changes::Dirty;
use super::order::Slot;
use super::slab::Id;
use crate::cache::state::record::Origin;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{RepoName, Tag};
use crate::storage::LinkKind;

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

impl Repo {
    pub(super) fn new(name: RepoName, ttl: Option<Duration>) -> Self {
        // Part of a second is a second: never early.
        let seconds = |ttl: Duration| {
            let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            u32::try_from(whole).unwrap_or(u32::MAX)
        };
        Self {
            name,
            ttl: ttl.map(seconds),
            entries: 0,
            tags: BTreeMap::new(),
        }
    }

    /// Stands in for a repository that isn't there.
    #[expect(clippy::expect_used, reason = "a constant, which each test parses")]
    pub(super) fn vacant() -> Self {
        let name = RepoName::from_stored("vacant").expect("a name");
        Self::new(name, None)
    }

    pub(super) fn ttl(&self) -> Option<Duration> {
        self.ttl.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// The tags that name the digest with this hash.
    pub(super) fn tags_of(&self, hash: u64) -> impl Iterator<Item = &Tag> {
        let named = self.tags.iter().filter(move |(_, named)| **named == hash);
        named.map(|(tag, _)| tag)
    }
}

/// What becomes of a link.
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
    pub(super) dirty: Dirty,
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
            dirty: Dirty::default(),
            last_use,
        };
        entry.set_origin(origin);
        entry
    }

    /// Stands in for an entry that isn't there.
    pub(super) fn vacant() -> Self {
        let times = (Origin::Created(Timestamp::default()), Timestamp::default());
        Self::new((Id::NONE, LinkKind::Layer, Id::NONE), times)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_32_bytes() {
        assert_eq!(size_of::<Option<Entry>>(), 32);
    }
}
