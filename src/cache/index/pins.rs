//! The pins that operators have made at run time: what they keep is neither evicted nor expires.
//!
//! Which content a pin protects is found out when content is about to go: what a tag names changes at any
//! time, and little content is due while it is pinned.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::Index;
use super::selection::{Selection, What};
use super::slab::Id;
#[cfg(test)]
use super::values::Entry;
use super::values::{Blob, Repo};
use crate::cache::state::timestamp::Timestamp;

/// The end of a pin that doesn't end, in seconds.
pub(super) const FOREVER: u32 = u32::MAX;

/// The pins in effect.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// By the repository.
    named: HashMap<String, Vec<Pinned>>,
    /// Those of a pattern of repositories; few, because each is compared with each repository.
    patterns: Vec<Pinned>,
    /// When the first one ends, in seconds.
    next_end: Option<u32>,
}

#[derive(Debug)]
struct Pinned {
    selection: Selection,
    /// In seconds.
    until: u32,
}

impl Pins {
    /// Each with its end; none is never.
    pub(crate) fn new(pins: impl IntoIterator<Item = (Selection, Option<Timestamp>)>) -> Self {
        let mut all = Self::default();
        for (selection, until) in pins {
            let until = until.map_or(FOREVER, Timestamp::rounded_up);
            let of_repository = match selection.literal_repository() {
                Some(repository) => all.named.entry(repository.to_owned()).or_default(),
                None => &mut all.patterns,
            };
            of_repository.push(Pinned { selection, until });
        }
        all.find_next_end();
        all
    }

    pub(super) fn next_end(&self) -> Option<u32> {
        self.next_end
    }

    /// Removes those whose time is over.
    pub(super) fn end(&mut self, now: u32) {
        if self.next_end.is_none_or(|end| end > now) {
            return;
        }
        self.patterns.retain(|pin| pin.until > now);
        self.named.retain(|_, pins| {
            pins.retain(|pin| pin.until > now);
            !pins.is_empty()
        });
        self.find_next_end();
    }

    fn find_next_end(&mut self) {
        let all = self.named.values().flatten().chain(&self.patterns);
        let ends = all.map(|pin| pin.until).filter(|end| *end != FOREVER);
        self.next_end = ends.min();
    }

    fn is_empty(&self) -> bool {
        self.named.is_empty() && self.patterns.is_empty()
    }

    /// Those that select something in a repository.
    fn of<'a>(&'a self, repo: &'a Repo) -> impl Iterator<Item = &'a Pinned> {
        let named = self.named.get(repo.name.as_str());
        let patterns = self.patterns.iter();
        let patterns = patterns.filter(|pin| pin.selection.is_in(&repo.name));
        named.into_iter().flatten().chain(patterns)
    }
}

/// What the pins protect in the repositories that were looked at, for one step under the index's lock.
#[derive(Debug, Default)]
pub(super) struct Shields(HashMap<Id<Repo>, Shield>);

/// What the pins protect in one repository, each with the end of its protection in seconds.
#[derive(Debug, Default)]
struct Shield {
    everything: Option<u32>,
    blobs: HashMap<Id<Blob>, u32>,
}

impl Index {
    /// Replaces the pins.
    pub(crate) fn set_pins(&mut self, pins: Pins) {
        self.pins = pins;
        self.wake_ups.schedule = true;
    }

    /// Until when, in seconds, a pin keeps a blob in a repository: one of the repository, or of an image
    /// that the blob belongs to or is attached to. None if no pin does.
    pub(super) fn protected_until(
        &self,
        repo: Id<Repo>,
        blob: Id<Blob>,
        shields: &mut Shields,
    ) -> Option<u32> {
        if self.pins.is_empty() {
            return None;
        }
        let shield = match shields.0.entry(repo) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(place) => place.insert(self.shield(repo)),
        };
        shield.everything.max(shield.blobs.get(&blob).copied())
    }

    fn shield(&self, id: Id<Repo>) -> Shield {
        let (repo, mut shield) = (self.repos.get(id), Shield::default());
        for Pinned { selection, until } in self.pins.of(repo) {
            let roots: Vec<_> = match selection.what() {
                What::Everything => {
                    shield.everything = shield.everything.max(Some(*until));
                    continue;
                }
                What::Digest(digest) => self.find_blob(digest).into_iter().collect(),
                What::Tag(pattern) => {
                    let tags = repo.tags.iter();
                    let tags = tags.filter(|(tag, _)| pattern.matches(tag.as_str()));
                    tags.filter_map(|(_, hash)| self.find_hashed(*hash))
                        .collect()
                }
            };
            for root in roots {
                for part in self.everything_attached(id, root) {
                    let end = shield.blobs.entry(part).or_default();
                    *end = (*end).max(*until);
                }
            }
        }
        shield
    }

    #[cfg(test)]
    pub(super) fn is_protected(&self, entry: &Entry) -> bool {
        let shields = &mut Shields::default();
        self.protected_until(entry.repo, entry.blob, shields)
            .is_some()
    }
}
