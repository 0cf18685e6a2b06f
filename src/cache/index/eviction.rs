//! Making room: whole images, least recently used first, are queued for deletion. Pinned images, and
//! images of which anything is held, are never chosen.

use super::Index;
use super::blob::{Blob, BlobState};
use super::slab::Id;
use crate::cache::policy::{Decision, Images, SpaceRequest, choose_victims};
use crate::cache::state::timestamp::Timestamp;
use crate::storage::LinkKind;

/// The index's reply to a request for space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpaceReply {
    Reserved,
    /// Ask again when something has been deleted.
    Wait,
    /// More images have to be looked at: ask again.
    Again,
    Full,
}

impl Index {
    /// Reserves space when there is some; else chooses images to evict. `looked_at` counts images over
    /// repeated calls.
    pub(crate) fn reserve_space(
        &mut self,
        request: SpaceRequest,
        now: Timestamp,
        looked_at: &mut usize,
    ) -> SpaceReply {
        match self.space.decide(request) {
            Decision::Reserve => {
                self.space.reserve(request.bytes);
                SpaceReply::Reserved
            }
            Decision::Full => SpaceReply::Full,
            // While the store can't be listed, what fits won't be known soon.
            Decision::Wait if !self.space.is_counted() && self.unlisted.is_some() => {
                SpaceReply::Full
            }
            Decision::Wait => SpaceReply::Wait,
            // What belongs together isn't known yet.
            Decision::Evict(_) if !self.complete => SpaceReply::Wait,
            Decision::Evict(need) => {
                let chosen = self.evict(need, now);
                *looked_at += chosen;
                if self.space.evicting() > 0 {
                    SpaceReply::Wait
                } else if chosen > 0 && *looked_at <= self.lru.len() * 2 {
                    SpaceReply::Again
                } else {
                    SpaceReply::Full
                }
            }
        }
    }

    /// Evicts what is past the limit, as far as one step gets. `looked_at` counts images over
    /// repeated calls. True when another step is due.
    pub(crate) fn trim(&mut self, now: Timestamp, looked_at: &mut usize) -> bool {
        let need = self.space.excess();
        if need == 0 {
            return false;
        }
        let chosen = self.evict(need, now);
        *looked_at += chosen;
        // Once round, and everything is held or pinned.
        chosen > 0 && *looked_at <= self.lru.len() * 2
    }

    /// Returns how many images were looked at.
    fn evict(&mut self, need: u64, now: Timestamp) -> usize {
        let victims = choose_victims(self, need, now.millis());
        for id in victims.blobs {
            self.set_state(id, BlobState::Evicting);
            self.enqueue(id);
        }
        victims.looked_at
    }

    pub(super) fn cancel_eviction(&mut self, id: Id<Blob>) {
        if self.blobs.get(id).state == BlobState::Evicting {
            self.set_state(id, BlobState::Present);
        }
    }

    /// Whether a repository that the operator has pinned links this, or a pinned tag names it.
    pub(super) fn is_pinned(&self, id: Id<Blob>) -> bool {
        if self.pins.is_empty() {
            return false;
        }
        let hash = self.hash_blob(id);
        self.entries_of(id).any(|(_, entry)| {
            let repo = self.repos.get(entry.repo);
            self.pins.iter().any(|pin| {
                pin.is_repository(&repo.name)
                    || (entry.kind == LinkKind::Revision
                        && repo.tags_of(hash).any(|tag| pin.is_tag(&repo.name, tag)))
            })
        })
    }

    /// Puts a blob that heads an image and stays into the LRU order, and takes any other out.
    pub(super) fn rank(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get_mut(id);
        if blob.parents > 0 || blob.state != BlobState::Present {
            self.lru.remove(id, &mut blob.ranked);
        } else if blob.ranked.time().is_none() {
            self.lru.set(id, &mut blob.ranked, blob.last_use.millis());
        }
    }
}

impl Images for Index {
    type Id = Id<Blob>;

    fn pop_oldest(&mut self) -> Option<(Id<Blob>, u64)> {
        let (time, id) = self.lru.first()?;
        self.lru.remove(id, &mut self.blobs.get_mut(id).ranked);
        Some((id, time))
    }

    fn put_back(&mut self, image: Id<Blob>, last_use: u64) {
        let slot = &mut self.blobs.get_mut(image).ranked;
        self.lru.set(image, slot, last_use);
    }

    fn last_use(&self, image: Id<Blob>) -> u64 {
        self.image_use(image).millis()
    }

    fn evictable(&self, image: Id<Blob>) -> Option<Vec<(Id<Blob>, u64)>> {
        if self.is_pinned(image) {
            return None;
        }
        let members = self.image(image, |manifest| self.is_pinned(manifest));
        let members = members.into_iter().map(|id| {
            let blob = self.blobs.get(id);
            (!blob.is_busy()).then_some((id, blob.size))
        });
        members.collect()
    }
}
