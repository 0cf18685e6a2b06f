//! Links of repositories to blobs: made, used, kept and forgotten; and the tags of repositories.

use super::slab::{Id, broken};
use super::values::{Blob, BlobState, Entry, LinkState, Repo, Turn};
use super::{Index, LinkKey};
use crate::cache::state::file::Origin;
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, ManifestType, RepoName, Tag};
use crate::storage::LinkKind;

impl Index {
    pub(super) fn intern_repo(&mut self, name: &RepoName) -> Id<Repo> {
        if let Some(known) = self.find_repo(name.as_str()) {
            return known;
        }
        self.repos.insert(self.new_repo(name))
    }

    pub(super) fn intern_blob(&mut self, digest: &Digest) -> Id<Blob> {
        if let Some(known) = self.find_blob(digest) {
            return known;
        }
        let parents = self.graph.take_count(self.hash_digest(digest));
        self.blobs.insert(Blob::new(digest, parents))
    }

    /// Adds an entry that isn't there.
    pub(super) fn insert_entry(
        &mut self,
        (repo, kind, blob): (Id<Repo>, LinkKind, Id<Blob>),
        times: (Origin, Timestamp),
    ) -> Id<Entry> {
        self.count_in_space(repo, blob, true);
        let mut entry = Entry::new((repo, kind, blob), times);
        entry.next = self.blobs.get(blob).first;
        let id = self.entries.insert(entry);
        self.blobs.get_mut(blob).first = Some(id);
        let owner = self.repos.get_mut(repo);
        owner.entries += 1;
        if owner.hosted.is_some() {
            if kind == LinkKind::Revision {
                self.count_parts(repo, blob, true);
            }
            self.rank_again(blob);
        }
        self.schedule_deadline(id);
        id
    }

    /// A link was used, and its file is there, with `size` bytes. Nothing is noted of a blob that is
    /// being deleted.
    pub(crate) fn touch(
        &mut self,
        link: LinkKey<'_>,
        size: u64,
        now: Timestamp,
    ) -> Option<Id<Entry>> {
        let (repo, kind, digest) = link;
        let blob = self.intern_blob(digest);
        if self.blobs.get(blob).turn.is_deleting() {
            return None;
        }
        let repo = self.intern_repo(repo);
        let entry = match self.find_entry(repo, kind, blob) {
            Some(known) => known,
            None => self.insert_entry((repo, kind, blob), (Origin::Created(now), now)),
        };
        self.note_use(entry, blob, now);
        self.confirm(entry);
        // A late use of a file that has been quarantined since doesn't bring it back: a commit does.
        if self.blobs.get(blob).state != BlobState::Quarantined {
            self.file_present(blob, size);
        }
        Some(entry)
    }

    /// A link was made in the store, and its file is there, with `size` bytes: it stays, even if the
    /// one that was there before was marked.
    pub(crate) fn link(&mut self, link: LinkKey<'_>, size: u64, now: Timestamp) {
        if let Some(entry) = self.touch(link, size, now) {
            self.keep(entry);
        }
    }

    /// Notes a use of a link that the store has, whose file is there, and that nothing is about to
    /// remove. False, and nothing is noted, when it isn't one.
    pub(crate) fn touch_kept(&mut self, link: LinkKey<'_>, now: Timestamp) -> bool {
        self.find_kept(link)
            .map(|(entry, blob)| self.note_use(entry, blob, now))
            .is_some()
    }

    /// Like [`touch_kept`](Self::touch_kept) for a manifest, with its size and type; none also when
    /// the manifest hasn't been read.
    pub(crate) fn touch_manifest(
        &mut self,
        repo: &RepoName,
        digest: &Digest,
        now: Timestamp,
    ) -> Option<(u64, ManifestType)> {
        let found = self.kept_manifest(repo, digest)?;
        let (entry, id) = self.find_kept((repo, LinkKind::Revision, digest))?;
        self.note_use(entry, id, now);
        Some(found)
    }

    /// The same without noting a use.
    pub(crate) fn kept_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Option<(u64, ManifestType)> {
        let (_, id) = self.find_kept((repo, LinkKind::Revision, digest))?;
        let blob = self.blobs.get(id);
        let manifest = self.graph.manifests.get(blob.manifest?);
        Some((blob.size, manifest.media_type))
    }

    fn find_kept(&self, link: LinkKey<'_>) -> Option<(Id<Entry>, Id<Blob>)> {
        let entry = self.find_link(link)?;
        let id = self.entries.get(entry).blob;
        let blob = self.blobs.get(id);
        let kept = blob.state == BlobState::Present
            && !blob.turn.is_deleting()
            && self.entries.get(entry).state == LinkState::Kept;
        kept.then_some((entry, id))
    }

    pub(super) fn note_use(&mut self, id: Id<Entry>, blob: Id<Blob>, now: Timestamp) {
        let entry = self.entries.get_mut(id);
        entry.last_use = entry.last_use.max(now);
        self.mark_dirty(id);
        self.blobs.get_mut(blob).was_used(now);
    }

    /// The store has the link: it is kept, unless it is marked.
    pub(super) fn confirm(&mut self, id: Id<Entry>) {
        match self.entries.get(id).state {
            LinkState::Kept | LinkState::Marked => {}
            LinkState::Unconfirmed | LinkState::Expired | LinkState::Failed { .. } => self.keep(id),
        }
    }

    /// Nothing removes the link before its time is over.
    pub(super) fn keep(&mut self, id: Id<Entry>) {
        self.set_link_state(id, LinkState::Kept);
        // One that was due is in no order.
        if self.entries.get(id).deadline.time().is_none() {
            self.schedule_deadline(id);
        }
    }

    /// Forgets an entry whose link is gone.
    pub(super) fn remove_entry(&mut self, id: Id<Entry>) {
        let entry = self.entries.get_mut(id);
        self.deadlines.remove(id, &mut entry.deadline);
        let (repo, blob, next) = (entry.repo, entry.blob, entry.next);
        let counts = entry.kind == LinkKind::Revision && !entry.state.is_marked();
        self.note_removed(self.link_of(self.entries.get(id)));
        self.unchain(id, blob, next);
        self.entries.remove(id);
        if self.repos.get(repo).hosted.is_some() {
            self.count_in_space(repo, blob, false);
            if counts {
                self.count_parts(repo, blob, false);
            }
            self.rank_again(blob);
        }
        let owner = self.repos.get_mut(repo);
        owner.entries = owner.entries.saturating_sub(1);
        if owner.entries == 0 {
            self.repos.remove(repo);
        }
    }

    /// Takes an entry out of its blob's list.
    fn unchain(&mut self, id: Id<Entry>, blob: Id<Blob>, next: Option<Id<Entry>>) {
        let head = &mut self.blobs.get_mut(blob).first;
        if *head == Some(id) {
            *head = next;
            return;
        }
        let mut at = *head;
        while let Some(before) = at {
            let entry = self.entries.get_mut(before);
            at = entry.next;
            if at == Some(id) {
                entry.next = next;
                return;
            }
        }
        broken("an entry isn't in its blob's list");
    }

    /// Notes that the upstream of a repository has given content that is about to be committed and linked.
    pub(crate) fn arrives(&mut self, digest: &Digest, repo: &RepoName) {
        self.arriving.push((*digest, repo.clone()));
    }

    /// Removes the note of [`arrives`](Self::arrives): the content is linked, or won't be.
    pub(crate) fn arrived(&mut self, digest: &Digest, repo: &RepoName) {
        let mut arriving = self.arriving.iter();
        if let Some(at) = arriving.position(|(of, by)| of == digest && by == repo) {
            self.arriving.swap_remove(at);
        }
    }

    /// Whether a repository that `accepts` links the blob, or is about to. Only links that the store has
    /// and that prove something count: others may be of an upstream that had the repository's name before.
    pub(crate) fn is_linked_by(
        &self,
        digest: &Digest,
        accepts: &dyn Fn(&RepoName) -> bool,
    ) -> bool {
        let mut arriving = self.arriving.iter();
        if arriving.any(|(of, by)| of == digest && accepts(by)) {
            return true;
        }
        let mut at = self
            .find_blob(digest)
            .and_then(|blob| self.blobs.get(blob).first);
        while let Some(id) = at {
            let entry = self.entries.get(id);
            if entry.state == LinkState::Kept && accepts(&self.repos.get(entry.repo).name) {
                return true;
            }
            at = entry.next;
        }
        false
    }

    /// Forgets a blob of which nothing is known any more.
    pub(super) fn forget_unneeded(&mut self, id: Id<Blob>) {
        let blob = self.blobs.get(id);
        let needed = blob.first.is_some()
            || blob.holds > 0
            || blob.state.has_file()
            || blob.turn != Turn::Idle;
        if !needed {
            let (hash, parents) = (self.hash_blob(id), blob.parents);
            self.blobs.remove(id);
            self.hosted.forget(id);
            self.graph.put_count(hash, parents);
        }
    }

    /// A tag names a manifest that the repository links; otherwise nothing is noted.
    pub(crate) fn set_tag(&mut self, repo: &RepoName, tag: &Tag, digest: &Digest) {
        let hash = self.hash_digest(digest);
        if let Some(id) = self.find_repo(repo.as_str()) {
            let before = self.repos.get_mut(id).set_tag(tag, hash);
            self.untagged(id, before);
        }
    }

    pub(crate) fn remove_tag(&mut self, repo: &RepoName, tag: &Tag) {
        if let Some(id) = self.find_repo(repo.as_str()) {
            let before = self.repos.get_mut(id).remove_tag(tag);
            self.untagged(id, before);
        }
    }

    /// A tag doesn't name a manifest any more, by the hash of its digest.
    pub(super) fn untagged(&mut self, repo: Id<Repo>, hash: Option<u64>) {
        if let Some(hash) = hash.filter(|_| self.repos.get(repo).hosted.is_some()) {
            self.reschedule(repo, hash);
        }
    }
}
