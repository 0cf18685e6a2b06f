//! Links that were used in the last second: one that is here needs no look at the index, whose lock
//! all threads share.
//!
//! An entry is good for [`SPAN`], and only while no deletion has begun since it was made: each one
//! makes all entries void. That is rare beside uses, and the next uses make them again.

use quick_cache::Equivalent;
use quick_cache::sync::Cache as Lru;

use super::Cache;
use super::index::LinkKey;
use super::state::timestamp::Timestamp;
use crate::oci::{Digest, RepoName};
use crate::storage::LinkKind;

/// Links remembered; the least used are forgotten first.
const MAX_RECENT: usize = 4096;
/// Milliseconds. A use within them isn't noted again: to whole seconds, it is the same time.
const SPAN: u64 = 1000;

/// The links that were used last, with the deletion epoch and the time of that use.
#[derive(Debug)]
pub(super) struct Recent(Lru<Key, (u64, Timestamp)>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(RepoName, LinkKind, Digest);

#[derive(Hash)]
struct Borrowed<'a>(LinkKey<'a>);

impl Equivalent<Key> for Borrowed<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == (&key.0, key.1, &key.2)
    }
}

impl Recent {
    pub(super) fn new() -> Self {
        Self(Lru::new(MAX_RECENT))
    }

    /// Whether the link was used less than [`SPAN`] ago, and no deletion has begun since.
    pub(super) fn has(&self, link: LinkKey<'_>, (epoch, now): (u64, Timestamp)) -> bool {
        self.0.get(&Borrowed(link)).is_some_and(|(then, used)| {
            then == epoch && now >= used && now.millis() - used.millis() < SPAN
        })
    }

    /// The index has the link, and has noted its use. The epoch is from before that.
    pub(super) fn put(&self, (repo, kind, digest): LinkKey<'_>, now: (u64, Timestamp)) {
        self.0.insert(Key(repo.clone(), kind, *digest), now);
    }
}

impl Cache {
    /// Whether the repository has this link, as far as the index knows. If so, the use is counted,
    /// and the caller needn't look at the store. False also where the index doesn't know yet, and
    /// where the link or its file is about to be removed.
    ///
    /// Nothing is held: the file may be gone when it is opened. Takes well under a microsecond, and
    /// no lock when the same link was used in the last second.
    pub fn used_if_linked(&self, repo: &RepoName, kind: LinkKind, digest: &Digest) -> bool {
        let shared = &*self.inner;
        let link = (repo, kind, digest);
        let (epoch, now) = (shared.epoch.current(), shared.now());
        if shared.recent.has(link, (epoch, now)) {
            return true;
        }
        let linked = shared.with(|index| index.touch_kept(link, now));
        if linked {
            shared.recent.put(link, (epoch, now));
        }
        linked
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::cache::index::DeletionEpoch;
    use crate::oci::Algorithm;

    #[test]
    fn a_link_is_remembered_for_a_second_and_until_a_deletion() {
        let (recent, epoch) = (Recent::new(), DeletionEpoch::default());
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"");
        let at = |millis| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            (epoch.current(), Timestamp::of(time))
        };
        let has = |repo, kind, millis| recent.has((repo, kind, &digest), at(millis));
        recent.put((&one, LinkKind::Layer, &digest), at(5000));
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
