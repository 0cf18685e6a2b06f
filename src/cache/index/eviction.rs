//! Making room: whole images, least recently used first, are queued for deletion. Pinned images, and
//! images of which anything is held, are never chosen.

use super::Index;
use super::pins::Shields;
use super::slab::Id;
use super::values::{Blob, BlobState};
use crate::cache::policy::{Decision, SpaceRequest};
use crate::cache::state::timestamp::Timestamp;
use crate::storage::LinkKind;

/// Images looked at in one step.
const MAX_SCAN: usize = 512;

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
            Decision::Wait if !self.space.counted && self.unlisted.is_some() => SpaceReply::Full,
            Decision::Wait => SpaceReply::Wait,
            // What belongs together isn't known yet.
            Decision::Evict(_) if !self.complete => SpaceReply::Wait,
            Decision::Evict(need) => {
                let chosen = self.evict(need, now);
                *looked_at += chosen;
                if self.space.evicting > 0 {
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

    /// Evicts images of at least `need` bytes, as far as one step gets. Returns how many were looked
    /// at.
    fn evict(&mut self, need: u64, now: Timestamp) -> usize {
        let (mut bytes, mut looked_at) = (0, 0);
        let (mut kept, mut shields) = (Vec::new(), Shields::default());
        while bytes < need
            && looked_at < MAX_SCAN
            && let Some((place, image)) = self.lru.first()
        {
            looked_at += 1;
            self.lru
                .remove(image, &mut self.blobs.get_mut(image).ranked);
            let order = self.eviction_order(image).unwrap_or(0);
            let used = self.image_use(image).millis().saturating_add(order);
            if used > place {
                // Uses don't move an image in the order.
                self.put_back(image, used);
            } else if let Some(members) = self.evictable(image, &mut shields) {
                for id in members {
                    bytes += self.blobs.get(id).size;
                    self.set_state(id, BlobState::Evicting);
                    self.enqueue(id);
                }
            } else {
                kept.push((image, now.millis().saturating_add(order)));
            }
        }
        // To be looked at again when everything else has been.
        for (image, place) in kept {
            self.put_back(image, place);
        }
        looked_at
    }

    fn put_back(&mut self, image: Id<Blob>, last_use: u64) {
        let slot = &mut self.blobs.get_mut(image).ranked;
        self.lru.set(image, slot, last_use);
    }

    /// The blobs that are removed with an image; none while it is pinned or anything of it is in use.
    fn evictable(&self, image: Id<Blob>, shields: &mut Shields) -> Option<Vec<Id<Blob>>> {
        if self.is_pinned(image, shields) {
            return None;
        }
        // What a hosted repository links, too, isn't evicted with a mirrored image.
        let order = self.eviction_order(image)?;
        let stays = |id| self.eviction_order(id).is_none_or(|other| other > order);
        let mut members = self.image(image, |manifest| {
            self.is_pinned(manifest, shields) || stays(manifest)
        });
        members.retain(|id| !stays(*id));
        let busy = members.iter().any(|id| self.blobs.get(*id).is_busy());
        (!busy).then_some(members)
    }

    pub(super) fn cancel_eviction(&mut self, id: Id<Blob>) {
        if self.blobs.get(id).state == BlobState::Evicting {
            self.set_state(id, BlobState::Present);
        }
    }

    /// Whether a pin keeps this from eviction, of the configuration or one that was made at run time.
    fn is_pinned(&self, id: Id<Blob>, shields: &mut Shields) -> bool {
        self.is_pinned_by_configuration(id)
            || self
                .entries_of(id)
                .any(|(_, entry)| self.protected_until(entry.repo, id, shields).is_some())
    }

    /// Whether a repository that the configuration pins links this, or a pinned tag names it.
    pub(super) fn is_pinned_by_configuration(&self, id: Id<Blob>) -> bool {
        if self.settings.pins.is_empty() {
            return false;
        }
        let hash = self.hash_blob(id);
        self.entries_of(id).any(|(_, entry)| {
            let repo = self.repos.get(entry.repo);
            self.settings.pins.iter().any(|pin| {
                pin.is_repository(&repo.name)
                    || (entry.kind == LinkKind::Revision
                        && repo.tags_of(hash).any(|tag| pin.is_tag(&repo.name, tag)))
            })
        })
    }

    /// Puts a blob that heads an image and stays into the LRU order, and takes any other out.
    pub(super) fn rank(&mut self, id: Id<Blob>) {
        let order = self.eviction_order(id);
        let blob = self.blobs.get_mut(id);
        match order {
            Some(order) if blob.parents == 0 && blob.state == BlobState::Present => {
                if blob.ranked.time().is_none() {
                    let place = blob.last_use.millis().saturating_add(order);
                    self.lru.set(id, &mut blob.ranked, place);
                }
            }
            _ => self.lru.remove(id, &mut blob.ranked),
        }
    }
}
