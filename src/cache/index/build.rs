//! Builds the index: from the state files, then from the listing of the store.

use std::collections::HashSet;
use std::time::Duration;

use super::slab::Id;
use super::values::{LinkState, Repo};
use super::{Index, WakeUps};
use crate::cache::state::file::{Known, Line, Origin};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, RepoName, Tag};
use crate::storage::layout::MAX_STORED_NAME;
use crate::storage::{Link, LinkKind, Unreadable, UnreadableEntry};

/// The TTL of the reference registry 2.8, and the default of its later versions.
const THEIR_TTL: Duration = Duration::from_hours(7 * 24);

/// The parts of the store that couldn't be read, and so aren't known to be missing.
#[derive(Debug, Default)]
pub(crate) struct Unreadables {
    pub(crate) count: u64,
    /// Digests whose file, or a link to it, couldn't be read or doesn't count.
    digests: HashSet<Digest>,
    /// The first bytes of digests of which files may be there.
    blobs: HashSet<u8>,
    /// Any repository may have any link.
    links: bool,
}

impl Unreadables {
    pub(crate) fn add(&mut self, unreadable: &[Unreadable]) {
        self.count += unreadable.len() as u64;
        for Unreadable { entry, .. } in unreadable {
            match entry {
                UnreadableEntry::Blob(digest) => drop(self.digests.insert(*digest)),
                UnreadableEntry::Link(link) => drop(self.digests.insert(link.digest)),
                UnreadableEntry::Blobs(first) => drop(self.blobs.insert(*first)),
                UnreadableEntry::Repositories => self.links = true,
                UnreadableEntry::Tag(..) => {}
            }
        }
    }

    /// Links to these digests are there and don't count.
    pub(crate) fn add_unproved(&mut self, digests: Vec<Digest>) {
        self.digests.extend(digests);
    }

    fn may_have_file(&self, digest: &Digest) -> bool {
        self.digests.contains(digest) || self.blobs.contains(&digest.first_byte())
    }

    pub(crate) fn may_have_link(&self, digest: &Digest) -> bool {
        self.links || self.digests.contains(digest)
    }
}

/// How many entries had no link, links no file, and files no link.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settled {
    pub(crate) gone: usize,
    pub(crate) dangling: usize,
    /// Links of hosted repositories without a file: their content is lost.
    pub(crate) lost: usize,
    pub(crate) orphans: usize,
}

impl Index {
    // --- From the state files ------------------------------------------------------------------

    /// Takes lines of the state files.
    pub(crate) fn load(&mut self, lines: &[Line<'_>]) {
        for line in lines {
            let Some(repo) = self.repo_of(line) else {
                continue;
            };
            if let Some(known) = line.known {
                self.restore(repo, line, known);
            } else if let Some(blob) = self.find_blob(&line.digest)
                && let Some(entry) = self.find_entry(repo, line.kind, blob)
                // One that was made or used since the start is there, whatever the journal says.
                && self.entries.get(entry).state == LinkState::Unconfirmed
            {
                self.remove_entry(entry);
                self.forget_unneeded(blob);
            }
        }
    }

    fn repo_of(&mut self, line: &Line<'_>) -> Option<Id<Repo>> {
        let known = self.find_repo(line.repo);
        if known.is_some() || line.known.is_none() || line.repo.len() > MAX_STORED_NAME {
            return known;
        }
        let name = RepoName::from_stored(line.repo).ok()?;
        Some(self.intern_repo(&name))
    }

    /// Adds an entry of the state file. A known one keeps the wider span of times.
    fn restore(&mut self, repo: Id<Repo>, line: &Line<'_>, known: Known) {
        let Known {
            origin,
            last_use,
            verified,
        } = known;
        let last_use = last_use.unwrap_or_else(|| self.guess_use(repo, origin));
        let blob = self.intern_blob(&line.digest);
        self.blobs.get_mut(blob).was_used(last_use);
        if let Some(entry) = self.find_entry(repo, line.kind, blob) {
            let entry = self.entries.get_mut(entry);
            entry.set_origin(entry.origin().merge(origin));
            entry.last_use = entry.last_use.max(last_use);
        } else {
            self.insert_entry((repo, line.kind, blob), (origin, last_use));
        }
        if let Some(verified) = verified {
            self.restore_verified(blob, verified);
        }
    }

    /// When an adopted entry was last used, as far as its expiry tells: the reference registry's TTL
    /// is most likely the one that is configured here. It only matters for what is evicted first; the
    /// entry doesn't expire before its own time, however wrong this is.
    fn guess_use(&self, repo: Id<Repo>, origin: Origin) -> Timestamp {
        let Origin::Adopted(expiry) = origin else {
            return self.started;
        };
        let ttl = self.repos.get(repo).ttl.unwrap_or(THEIR_TTL);
        expiry.before(ttl).min(self.started)
    }

    // --- From the store ------------------------------------------------------------------------

    /// A link was seen in the store. One that no state knows starts its time now, or has that of
    /// the same blob linked in the other way, which share one entry in the file.
    pub(crate) fn link_found(&mut self, link: &Link, now: Timestamp) {
        let (repo, blob) = (self.intern_repo(&link.repo), self.intern_blob(&link.digest));
        if let Some(known) = self.find_entry(repo, link.kind, blob) {
            return self.confirm(known);
        }
        let other = match link.kind {
            LinkKind::Layer => LinkKind::Revision,
            LinkKind::Revision => LinkKind::Layer,
        };
        let sibling = self.find_entry(repo, other, blob);
        let times = sibling.map_or((Origin::Created(now), now), |id| {
            let entry = self.entries.get(id);
            (entry.origin(), entry.last_use)
        });
        let entry = self.insert_entry((repo, link.kind, blob), times);
        self.blobs.get_mut(blob).was_used(times.1);
        self.confirm(entry);
        self.mark_dirty(entry);
    }

    /// A stored link can't be read, or is of another upstream: it gets an entry, so that its blob isn't
    /// taken for unlinked. It expires like others, and serves no request.
    pub(crate) fn unproved_found(&mut self, link: &Link, now: Timestamp) {
        let (repo, blob) = (self.intern_repo(&link.repo), self.intern_blob(&link.digest));
        if self.find_entry(repo, link.kind, blob).is_none() {
            self.insert_entry((repo, link.kind, blob), (Origin::Created(now), now));
        }
    }

    /// A tag was seen in the store. False, and nothing is noted, when the repository doesn't link
    /// what it names.
    pub(crate) fn tag_found(&mut self, repo: &RepoName, tag: &Tag, digest: &Digest) -> bool {
        let entry = self.find_link((repo, LinkKind::Revision, digest));
        let linked = entry.is_some_and(|id| self.entries.get(id).state != LinkState::Unconfirmed);
        if linked {
            self.set_tag(repo, tag, digest);
        }
        linked
    }

    /// All files of the store have been counted.
    pub(crate) fn all_files_found(&mut self) {
        self.space.counted = true;
        self.wake_ups.freed = true;
    }

    /// A page of manifests that haven't been read.
    pub(crate) fn unread_manifests(&self, from: usize, max: usize) -> (Vec<Digest>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let unread = page.into_iter().filter_map(|id| {
            let entry = self.entries.get(id);
            let blob = self.blobs.get(entry.blob);
            let unread = entry.kind == LinkKind::Revision
                && blob.manifest.is_none()
                && blob.state.has_file();
            unread.then(|| blob.digest())
        });
        (unread.collect(), next)
    }

    /// The store can't be listed.
    pub(crate) fn set_unlisted(&mut self, reason: String) {
        self.unlisted = Some(reason);
        self.wake_ups.freed = true;
    }

    // --- Both together -------------------------------------------------------------------------

    /// A page of entries after everything was seen: forgets those without a link, and marks links
    /// without a file if `removes`; those of hosted repositories stay. Returns where the next page begins.
    pub(crate) fn settle_entries(
        &mut self,
        (from, max): (usize, usize),
        unreadable: &Unreadables,
        removes: bool,
        settled: &mut Settled,
    ) -> Option<usize> {
        let (page, next) = self.entries.page(from, max);
        for id in page {
            let entry = self.entries.get(id);
            let (blob, seen) = (entry.blob, entry.state != LinkState::Unconfirmed);
            let known = self.blobs.get(blob);
            let (digest, file) = (known.digest(), known.state.has_file());
            if !seen && !unreadable.may_have_link(&digest) {
                settled.gone += 1;
                self.remove_entry(id);
                self.forget_unneeded(blob);
            } else if seen && !file && !unreadable.may_have_file(&digest) {
                if self.is_hosted(self.entries.get(id)) {
                    settled.lost += 1;
                    self.note_loss(blob);
                } else if removes {
                    settled.dangling += 1;
                    self.mark(id);
                }
            } else {
                self.note_opaque(id);
            }
        }
        next
    }

    /// A page of blobs, after the entries: queues files that no link names, if `removes`, and forgets
    /// what has no file either. Returns where the next page begins.
    pub(crate) fn settle_blobs(
        &mut self,
        (from, max): (usize, usize),
        unreadable: &Unreadables,
        removes: bool,
        settled: &mut Settled,
    ) -> Option<usize> {
        let (page, next) = self.blobs.page(from, max);
        for id in page {
            let blob = self.blobs.get(id);
            if blob.is_orphan() && removes && !unreadable.may_have_link(&blob.digest()) {
                settled.orphans += 1;
                self.enqueue(id);
            } else {
                self.forget_unneeded(id);
            }
        }
        next
    }

    /// Everything has been seen and settled.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
        self.unlisted = None;
        self.wake_ups = WakeUps {
            schedule: true,
            delete: true,
            freed: true,
        };
    }
}
