//! Links that were used a moment ago: whether one of them is still good, and that it is used, is
//! known without the index, whose lock all threads share.
//!
//! An entry is good for [`SPAN`], and only while nothing has begun to go since it was made: each
//! beginning makes all entries void at once. That is rare beside uses, and entries are made again by
//! the next ones.

use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Equivalent;
use quick_cache::sync::Cache as Lru;

use super::Cache;
use super::index::Index;
use super::index::entry::{content_flag, entry_flag};
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
    links: Lru<Key, (Age, Timestamp)>,
}

/// How often something had begun to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(u64);

/// Counts what begins to go. The index has it, and counts under its lock, before anything is removed.
#[derive(Debug, Default)]
pub(super) struct DeletionEpoch(AtomicU64);

impl DeletionEpoch {
    pub(super) fn begins(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn age(&self) -> Age {
        Age(self.0.load(Ordering::SeqCst))
    }
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
        (age, now): (Age, Timestamp),
    ) -> bool {
        let found = self.links.get(&Borrowed(repo, kind, digest));
        found.is_some_and(|(then, used)| {
            then == age && now >= used && now.millis() - used.millis() < SPAN
        })
    }

    /// The index has just said that the link is there, and noted its use. `age` is of before, or of
    /// under the same lock.
    pub(super) fn put(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        (age, now): (Age, Timestamp),
    ) {
        self.links
            .insert(Key(repo.clone(), kind, *digest), (age, now));
    }
}

impl Index {
    /// A link that was seen in this run, with its file, and that nothing is about to take away, has
    /// been used. None, and nothing is noted, when it isn't one.
    pub(super) fn touch_linked(
        &mut self,
        repo: &RepoName,
        kind: LinkKind,
        digest: &Digest,
        now: Timestamp,
    ) -> Option<()> {
        let content = self.find_content(digest)?;
        let entry = self.find_entry(self.find_repo(repo.as_str())?, kind, content)?;
        let flags = self.contents.get(content)?.flags;
        let going = content_flag::DELETING | content_flag::EVICTED | content_flag::LOST;
        if !flags.has(content_flag::FILE) || flags.has(going) {
            return None;
        }
        let known = self.entries.get_mut(entry)?;
        let going = entry_flag::EXPIRED | entry_flag::CONDEMNED | entry_flag::FAILED;
        if !known.flags.has(entry_flag::SEEN) || known.flags.has(going) {
            return None;
        }
        known.last_use = known.last_use.max(now);
        self.mark_dirty(entry);
        let used = self.contents.get_mut(content)?;
        used.last_use = used.last_use.max(now);
        Some(())
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
        let (age, now) = (shared.going.age(), shared.now());
        if shared.recent.has(repo, kind, digest, (age, now)) {
            return true;
        }
        let linked = shared.with(|index| index.touch_linked(repo, kind, digest, now).is_some());
        if linked {
            shared.recent.put(repo, kind, digest, (age, now));
        }
        linked
    }
}

impl Cache {
    /// The size in bytes and the type of a manifest that the repository links, as far as the index
    /// knows: a HEAD needs no more, so no file is read for it. Counts as a use, like
    /// [`used_if_linked`](Self::used_if_linked).
    pub fn linked_manifest(&self, repo: &RepoName, digest: &Digest) -> Option<(u64, ManifestType)> {
        let now = self.0.now();
        self.0.with(|index| {
            let content = index.contents.get(index.find_content(digest)?)?;
            let known = index.manifests.get(content.manifest?)?;
            let found = (content.size, known.media_type);
            index.touch_linked(repo, LinkKind::Revision, digest, now)?;
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_link_is_good_for_a_second_and_until_something_goes() {
        let (recent, going) = (Recent::new(), DeletionEpoch::default());
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"");
        let at = Timestamp::from_millis;
        let has = |repo, kind, millis| recent.has(repo, kind, &digest, (going.age(), at(millis)));
        recent.put(&one, LinkKind::Layer, &digest, (going.age(), at(5000)));
        assert!(has(&one, LinkKind::Layer, 5000));
        assert!(has(&one, LinkKind::Layer, 5999));
        assert!(!has(&one, LinkKind::Layer, 6000));
        assert!(!has(&one, LinkKind::Layer, 4999));
        assert!(!has(&one, LinkKind::Revision, 5000));
        assert!(!has(&other, LinkKind::Layer, 5000));
        going.begins();
        assert!(!has(&one, LinkKind::Layer, 5000));
    }
}
