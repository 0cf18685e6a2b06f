//! Links that were used a moment ago: whether one of them is still good, and that it is used, is
//! known without the index, whose lock all threads share.
//!
//! An entry is good for [`SPAN`], and only while nothing has begun to go since it was made: each
//! beginning makes all entries void at once. That is rare beside uses, and entries are made again by
//! the next ones.

use quick_cache::Equivalent;
use quick_cache::sync::Cache as Lru;

use super::Cache;
use super::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName};
use crate::storage::LinkKind;

/// Links remembered; the least used go first.
const MAX_RECENT: usize = 4096;
/// Milliseconds. A use within them isn't noted again: to whole seconds, it is the same time.
const SPAN: u64 = 1000;

/// The links that were used last.
#[derive(Debug)]
pub(super) struct Recent {
    links: Lru<Key, (u64, Timestamp)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(RepoName, LinkKind, Digest);

/// A key whose parts are somebody else's.
#[derive(Hash)]
struct Borrowed<'a>(&'a RepoName, LinkKind, &'a Digest);

impl Equivalent<Key> for Borrowed<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == key.0 && self.1 == key.1 && *self.2 == key.2
    }
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            links: Lru::new(MAX_RECENT),
        }
    }

    /// Whether the link was there less than [`SPAN`] ago, was used then, and nothing goes since.
    pub(super) fn has(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        (epoch, now): (u64, Timestamp),
    ) -> bool {
        let found = self.links.get(&Borrowed(repo, kind, digest));
        found.is_some_and(|(then, used)| {
            then == epoch && now >= used && now.millis() - used.millis() < SPAN
        })
    }

    /// The index has just said that the link is there, and noted its use. `epoch` is of before, or of
    /// under the same lock.
    pub(super) fn put(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        (epoch, now): (u64, Timestamp),
    ) {
        self.links
            .insert(Key(repo.clone(), kind, *digest), (epoch, now));
    }
}

impl Cache {
    /// Whether the repository has this link, as far as the index knows: then a use of it is noted,
    /// and the store needn't be asked. False also where the index doesn't know yet, and where the
    /// link or its file is about to go.
    ///
    /// Nothing is held: the file may be gone by the time that it is opened. Takes well under a
    /// microsecond, and no lock when the same was asked a moment ago.
    pub fn used_if_linked(&self, repo: &RepoName, kind: LinkKind, digest: &Digest) -> bool {
        let shared = &*self.0;
        let (epoch, now) = (shared.epoch.current(), shared.now());
        if shared.recent.has(repo, kind, digest, (epoch, now)) {
            return true;
        }
        let linked = shared.with(|index| index.touch_kept(repo, kind, digest, now));
        if linked {
            shared.recent.put(repo, kind, digest, (epoch, now));
        }
        linked
    }

    /// The size in bytes and the type of a manifest that the repository links, as far as the index
    /// knows: a HEAD needs no more, so no file is read for it. Counts as a use, like
    /// [`used_if_linked`](Self::used_if_linked).
    pub fn linked_manifest(&self, repo: &RepoName, digest: &Digest) -> Option<(u64, ManifestType)> {
        let now = self.0.now();
        self.0.with(|index| index.touch_manifest(repo, digest, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::index::DeletionEpoch;
    use crate::oci::Algorithm;

    #[test]
    fn a_link_is_good_for_a_second_and_until_something_goes() {
        let (recent, epoch) = (Recent::new(), DeletionEpoch::default());
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"");
        let at = Timestamp::from_millis;
        let has =
            |repo, kind, millis| recent.has(repo, kind, &digest, (epoch.current(), at(millis)));
        recent.put(&one, LinkKind::Layer, &digest, (epoch.current(), at(5000)));
        assert!(has(&one, LinkKind::Layer, 5000));
        assert!(has(&one, LinkKind::Layer, 5999));
        assert!(!has(&one, LinkKind::Layer, 6000));
        assert!(!has(&one, LinkKind::Layer, 4999));
        assert!(!has(&one, LinkKind::Revision, 5000));
        assert!(!has(&other, LinkKind::Layer, 5000));
        epoch.begin();
        assert!(!has(&one, LinkKind::Layer, 5000));
    }
}
