//! For operators: listings, totals, and purging.

use std::time::SystemTime;

use super::Index;
use super::pins::{FOREVER, Shields};
use super::selection::Selection;
use super::slab::Id;
use super::values::{Blob, Entry};
use crate::cache::state::timestamp::Timestamp;
use crate::oci::{Digest, RepoName, Tag};
use crate::storage::{Link, LinkKind};

/// One link of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryView {
    pub link: Link,
    /// Bytes.
    pub size: u64,
    pub created: SystemTime,
    pub last_use: SystemTime,
    /// None is never.
    pub expiry: Option<SystemTime>,
    pub held: bool,
}

/// An image: a manifest or index that nothing refers to, or a blob that no manifest refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageView {
    pub digest: Digest,
    pub is_manifest: bool,
    /// The repositories that link it, with the tags that name it there.
    pub repositories: Vec<(RepoName, Vec<Tag>)>,
    /// Bytes of everything it refers to that is cached, once each.
    pub size: u64,
    /// Of these, bytes that another image needs, too.
    pub shared: u64,
    pub last_use: SystemTime,
    /// When its last link expires; none is never.
    pub expiry: Option<SystemTime>,
    pub pinned: bool,
    /// When the pin ends that keeps it longest; none is never.
    pub pinned_until: Option<SystemTime>,
}

/// Totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub entries: usize,
    pub blobs: usize,
    pub repositories: usize,
    /// Bytes of all files.
    pub used: u64,
    /// Bytes of downloads that are running.
    pub reserved: u64,
    /// Those of the reserved bytes that are on disk.
    pub staged: u64,
    /// Entries that wait for their expiry.
    pub expiring: usize,
    /// Blobs that wait to be deleted, or are being deleted.
    pub deleting: usize,
    /// Bytes that may be used; none is as much as there is.
    pub limit: Option<u64>,
    /// Everything in the store has been counted.
    pub complete: bool,
}

impl Index {
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            entries: self.entries.len(),
            blobs: self.blobs.len(),
            repositories: self.repos.len(),
            used: self.space.used,
            reserved: self.space.reserved,
            staged: self.space.filled,
            expiring: self.deadlines.len(),
            deleting: self.deletions.queue.len() + self.deletions.deleting,
            limit: self.space.limit(),
            complete: self.complete,
        }
    }

    pub(crate) fn view_entries(&self, from: usize, max: usize) -> (Vec<EntryView>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let entries = page.into_iter().map(|id| self.entries.get(id));
        (entries.map(|entry| self.view_entry(entry)).collect(), next)
    }

    fn view_entry(&self, entry: &Entry) -> EntryView {
        let blob = self.blobs.get(entry.blob);
        EntryView {
            link: self.link_of(entry),
            size: blob.file_size().unwrap_or(0),
            created: entry.origin().created(entry.last_use).system_time(),
            last_use: entry.last_use.system_time(),
            expiry: self.deadline(entry).map(system_time),
            held: blob.holds > 0,
        }
    }

    /// The tags whose manifests were used since a time, on one page of all entries.
    pub(crate) fn tags_used_since(
        &self,
        since: Timestamp,
        from: usize,
        max: usize,
    ) -> (Vec<(RepoName, Tag)>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let entries = page.into_iter().map(|id| self.entries.get(id));
        let used =
            entries.filter(|entry| entry.kind == LinkKind::Revision && entry.last_use >= since);
        let tags = used.flat_map(|entry| {
            let repo = self.repos.get(entry.repo);
            let tags = repo.tags_of(self.hash_blob(entry.blob));
            tags.map(|tag| (repo.name.clone(), tag.clone()))
        });
        (tags.collect(), next)
    }

    /// The content that was used since a time, once for each of its links, on one page of all entries.
    pub(crate) fn used_since(
        &self,
        since: Timestamp,
        from: usize,
        max: usize,
    ) -> (Vec<Digest>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let entries = page.into_iter().map(|id| self.entries.get(id));
        let used = entries.filter(|entry| entry.last_use >= since);
        let digests = used.map(|entry| self.blobs.get(entry.blob).digest());
        (digests.collect(), next)
    }

    pub(crate) fn view_images(&self, from: usize, max: usize) -> (Vec<ImageView>, Option<usize>) {
        let (page, next) = self.blobs.page(from, max);
        let roots = page.into_iter().filter(|id| {
            let blob = self.blobs.get(*id);
            blob.parents == 0 && blob.state.has_file()
        });
        let mut shields = Shields::default();
        let views = roots.map(|id| self.view_image(id, &mut shields));
        (views.collect(), next)
    }

    fn view_image(&self, id: Id<Blob>, shields: &mut Shields) -> ImageView {
        let bytes = |ids: &[Id<Blob>]| -> u64 {
            let sizes = ids.iter().filter_map(|id| self.blobs.get(*id).file_size());
            sizes.sum()
        };
        let size = bytes(&self.everything_below(id));
        let own = bytes(&self.image(id, |_| false));
        let hash = self.hash_blob(id);
        let (mut repositories, mut expiry) = (Vec::new(), Some(0));
        let mut pin_end = None;
        for (_, entry) in self.entries_of(id) {
            let protected = self.protected_until(entry.repo, id, shields);
            pin_end = pin_end.max(protected);
            let deadline = self.deadline(entry).filter(|_| protected != Some(FOREVER));
            let deadline = deadline.map(|at| at.max(protected.unwrap_or(0)));
            expiry = expiry.zip(deadline).map(|(latest, this)| latest.max(this));
            let repo = self.repos.get(entry.repo);
            repositories.push((repo.name.clone(), repo.tags_of(hash).cloned().collect()));
        }
        let is_configured = self.is_pinned_by_configuration(id);
        ImageView {
            digest: self.blobs.get(id).digest(),
            is_manifest: self
                .entries_of(id)
                .any(|(_, entry)| entry.kind == LinkKind::Revision),
            repositories,
            size,
            shared: size.saturating_sub(own),
            last_use: self.image_use(id).system_time(),
            expiry: expiry.map(system_time),
            pinned: pin_end.is_some() || is_configured,
            pinned_until: pin_end
                .filter(|end| *end != FOREVER && !is_configured)
                .map(system_time),
        }
    }

    /// The entries that a selection means, on one page of all entries. For a tag or a digest: the
    /// manifest's, and in the same repository those of what only it refers to.
    pub(crate) fn select(
        &self,
        selection: &Selection,
        from: usize,
        max: usize,
    ) -> (Vec<Id<Entry>>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let mut selected = Vec::new();
        for id in page {
            let entry = self.entries.get(id);
            let repo = self.repos.get(entry.repo);
            if !selection.is_in(&repo.name) {
                continue;
            }
            if selection.is_repository() {
                selected.push(id);
            } else if self.is_selected(selection, entry) {
                for member in self.image(entry.blob, |_| false) {
                    let kinds = [LinkKind::Revision, LinkKind::Layer];
                    let entries = kinds.map(|kind| self.find_entry(entry.repo, kind, member));
                    selected.extend(entries.into_iter().flatten());
                }
            }
        }
        (selected, next)
    }

    /// Marks a selected entry, if `really`; returns how it looked. None when it has gone since.
    pub(crate) fn purge(&mut self, id: Id<Entry>, really: bool) -> Option<EntryView> {
        let view = self.view_entry(self.entries.find(id)?);
        if really {
            self.mark(id);
        }
        Some(view)
    }
}

fn system_time(second: u32) -> SystemTime {
    Timestamp::from_seconds(second).system_time()
}
