//! The invariants of the index, between any two steps.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use super::Index;
use super::values::{BlobState, LinkState, Turn};
use crate::storage::LinkKind;

impl Index {
    /// Compares every sum, list, order and count with the values that it covers.
    pub(crate) fn check_invariants(&self) {
        self.check_entries();
        self.check_blobs();
        self.check_references();
        self.check_orders();
        self.check_hosted();
    }

    fn check_entries(&self) {
        let (mut per_repo, mut per_blob) = (HashMap::new(), HashMap::new());
        for (id, entry) in self.entries.iter() {
            let name = self.repos.get(entry.repo).name.as_str();
            assert_eq!(self.find_repo(name), Some(entry.repo), "{name}");
            *per_repo.entry(entry.repo).or_insert(0) += 1;
            *per_blob.entry(entry.blob).or_insert(0) += 1;
            let hash = self.hasher.hash_one((entry.repo, entry.kind, entry.blob));
            let found = self
                .entries
                .lookup(hash, |other| std::ptr::eq(other, entry));
            assert_eq!(found, Some(id), "{entry:?} isn't in its table");
            // Each entry that stays and expires has a deadline.
            let due = self.deadline(entry);
            let stays = matches!(entry.state, LinkState::Kept | LinkState::Unconfirmed);
            let deadline = entry.deadline.time();
            if stays && let Some(due) = due {
                let is_pinned = self.is_protected(entry);
                // What a rule keeps is looked at again from time to time.
                let in_time = deadline.is_some_and(|at| at <= due || is_pinned);
                assert!(
                    in_time || self.kept_until(id, due).is_some(),
                    "{entry:?} has no deadline"
                );
            }
        }
        for (id, repo) in self.repos.iter() {
            assert_eq!(Some(&repo.entries), per_repo.get(&id), "{repo:?}");
        }
        for (id, _) in self.blobs.iter() {
            let listed = self
                .entries_of(id)
                .inspect(|(_, entry)| assert_eq!(entry.blob, id));
            let expected = per_blob.get(&id).copied().unwrap_or(0);
            assert_eq!(listed.count(), expected, "entries of a blob");
        }
    }

    fn check_blobs(&self) {
        let (mut used, mut evicting, mut deleting) = (0, 0, 0);
        let mut queued: HashMap<_, usize> = HashMap::new();
        for id in self.deletions.queue.iter().copied() {
            *queued.entry(id).or_default() += 1;
        }
        for (id, blob) in self.blobs.iter() {
            assert_eq!(self.find_blob(&blob.digest()), Some(id));
            let known = blob.first.is_some()
                || blob.holds > 0
                || blob.state.has_file()
                || blob.turn != Turn::Idle;
            assert!(known || !self.complete, "{blob:?} should be forgotten");
            used += blob.file_size().unwrap_or(0);
            let times = queued.remove(&id).unwrap_or(0);
            assert_eq!(times, usize::from(blob.turn == Turn::Queued), "{blob:?}");
            deleting += usize::from(blob.turn.is_deleting());
            assert!(!blob.turn.is_deleting() || blob.holds == 0, "{blob:?}");
            assert!(blob.turn != Turn::Held || blob.holds > 0, "{blob:?}");
            if blob.state == BlobState::Evicting {
                evicting += blob.size;
                let going = blob.turn == Turn::Queued || blob.turn.is_deleting();
                assert!(going, "{blob:?} is evicted, and not queued");
            }
        }
        assert!(queued.is_empty(), "the delete queue has unknown ids");
        assert_eq!(deleting, self.deletions.deleting);
        assert_eq!(used, self.space.used, "bytes of all files");
        assert_eq!(evicting, self.space.evicting, "bytes being evicted");
    }

    fn check_references(&self) {
        let mut counts: HashMap<u64, u32> = HashMap::new();
        let mut manifests = 0;
        for (_, blob) in self.blobs.iter() {
            if let Some(manifest) = blob.manifest {
                assert!(blob.state.has_file(), "{blob:?} is known and missing");
                manifests += 1;
                for hash in &self.graph.manifests.get(manifest).references {
                    *counts.entry(*hash).or_default() += 1;
                }
            }
        }
        assert_eq!(manifests, self.graph.manifests.len());
        for (id, blob) in self.blobs.iter() {
            let count = counts.remove(&self.hash_blob(id)).unwrap_or(0);
            assert_eq!(blob.parents, count, "{blob:?}");
        }
        assert_eq!(
            counts,
            self.graph.unknown(),
            "references to unknown digests"
        );
    }

    /// What hosted repositories count, against their links.
    fn check_hosted(&self) {
        let mut stored = vec![0; self.space_bytes().len()];
        for (id, blob) in self.blobs.iter() {
            let spaces: HashSet<_> = (self.entries_of(id))
                .filter_map(|(_, entry)| self.repos.get(entry.repo).hosted.as_ref())
                .map(|hosted| hosted.space)
                .collect();
            for space in spaces {
                stored[space] += blob.file_size().unwrap_or(0);
            }
        }
        for (bytes, stored) in self.space_bytes().iter().zip(stored) {
            assert_eq!(bytes.stored, stored, "bytes of a space");
        }
        for (id, repo) in self.repos.iter() {
            let Some(hosted) = &repo.hosted else { continue };
            let (mut references, mut tagged) = (HashMap::new(), HashMap::new());
            for (_, entry) in self.entries.iter().filter(|(_, entry)| entry.repo == id) {
                if entry.kind == LinkKind::Revision && !entry.state.is_marked() {
                    let manifest = self.blobs.get(entry.blob).manifest;
                    for hash in self.graph.all_references(manifest) {
                        *references.entry(hash).or_insert(0) += 1;
                    }
                }
            }
            for hash in repo.tags.values() {
                *tagged.entry(*hash).or_insert(0) += 1;
            }
            assert_eq!(hosted.references, references, "references in {}", repo.name);
            assert_eq!(hosted.tagged, tagged, "tags of {}", repo.name);
        }
    }

    /// Everything is in each order once, where its slot says.
    fn check_orders(&self) {
        let mut expected: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(id, entry)| Some((entry.deadline.time()?, id)))
            .collect();
        expected.sort_unstable();
        assert_eq!(self.deadlines.all(), expected, "deadlines");
        let mut expected = Vec::new();
        for (id, blob) in self.blobs.iter() {
            let ranked = blob.parents == 0
                && blob.state == BlobState::Present
                && self.eviction_order(id).is_some();
            assert_eq!(blob.ranked.time().is_some(), ranked, "{blob:?}");
            expected.extend(blob.ranked.time().map(|at| (at, id)));
        }
        expected.sort_unstable();
        assert_eq!(self.lru.all(), expected, "the LRU order");
    }
}
