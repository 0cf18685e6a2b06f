//! What an operator sees and chooses: listings, totals, and what is purged.

use std::time::SystemTime;

use super::index::Index;
use super::index::entry::{Content, Entry, Repo, entry_flag};
use super::index::slab::Id;
use super::state::timestamp::Timestamp;
use crate::oci::pattern::PatternError;
use crate::oci::{Digest, Pattern, RepoName, Tag};
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
    /// When its last link goes; none is never.
    pub expiry: Option<SystemTime>,
    pub pinned: bool,
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
    /// Bytes that may be used; none is as much as there is.
    pub limit: Option<u64>,
    /// Everything in the store has been counted.
    pub complete: bool,
}

/// What to purge: `<repository>`, `<repository>:<tag>`, both patterns, or `<repository>@<digest>`.
#[derive(Debug, Clone)]
pub struct Selection {
    repo: Pattern,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Everything,
    Tag(Pattern),
    Digest(Digest),
}

/// Why a text selects nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Digest(#[from] crate::oci::digest::DigestError),
}

impl std::str::FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let (repo, what) = if let Some((repo, digest)) = text.split_once('@') {
            (repo, What::Digest(digest.parse()?))
        } else if let Some((repo, tag)) = text.split_once(':') {
            (repo, What::Tag(tag.parse()?))
        } else {
            (text, What::Everything)
        };
        Ok(Self {
            repo: repo.parse()?,
            what,
        })
    }
}

impl Index {
    pub(super) fn usage(&self) -> Usage {
        Usage {
            entries: self.entries.len(),
            blobs: self.contents.len(),
            repositories: self.repos.len(),
            used: self.used,
            reserved: self.capacity.reserved,
            limit: self.capacity.limit(),
            complete: self.complete,
        }
    }

    pub(super) fn view_entries(&self, from: usize, max: usize) -> (Vec<EntryView>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let views = page.into_iter().filter_map(|id| self.view_entry(id));
        (views.collect(), next)
    }

    fn view_entry(&self, id: Id<Entry>) -> Option<EntryView> {
        let entry = self.entries.get(id)?;
        let content = self.contents.get(entry.content)?;
        Some(EntryView {
            link: self.link_of(entry)?,
            size: content.file_size(),
            created: entry.origin().created(entry.last_use).system_time(),
            last_use: entry.last_use.system_time(),
            expiry: self
                .deadline(id)
                .map(|at| Timestamp::from_seconds(at).system_time()),
            held: content.holds > 0,
        })
    }

    pub(super) fn view_images(&self, from: usize, max: usize) -> (Vec<ImageView>, Option<usize>) {
        let (page, next) = self.contents.page(from, max);
        let views = page.into_iter().filter_map(|id| self.view_image(id));
        (views.collect(), next)
    }

    fn view_image(&self, id: Id<Content>) -> Option<ImageView> {
        let root = self
            .contents
            .get(id)
            .filter(|content| Self::is_root(content))?;
        let bytes = |ids: &[Id<Content>]| -> u64 {
            ids.iter()
                .filter_map(|id| self.contents.get(*id))
                .map(Content::file_size)
                .sum()
        };
        let size = bytes(&self.everything_below(id));
        let own = bytes(&self.image(id, |_| false));
        let hash = self.hash_content(id);
        let (mut repositories, mut expiry) = (Vec::new(), Some(0));
        for (entry_id, entry) in self.entries_of(id) {
            let deadline = self.deadline(entry_id);
            expiry = expiry.zip(deadline).map(|(latest, this)| latest.max(this));
            if let Some(repo) = self.repos.get(entry.repo) {
                let tags = repo.tags.iter().filter(|(_, named)| **named == hash);
                repositories.push((
                    repo.name.clone(),
                    tags.map(|(tag, _)| tag.clone()).collect(),
                ));
            }
        }
        Some(ImageView {
            digest: root.digest(),
            is_manifest: self
                .entries_of(id)
                .any(|(_, entry)| entry.kind == LinkKind::Revision),
            repositories,
            size,
            shared: size.saturating_sub(own),
            last_use: self.image_use(id).system_time(),
            expiry: expiry.map(|at| Timestamp::from_seconds(at).system_time()),
            pinned: self.is_pinned(id),
        })
    }

    /// A manifest and all that is reached from it, once each.
    fn everything_below(&self, root: Id<Content>) -> Vec<Id<Content>> {
        let mut all = vec![root];
        let mut seen = std::collections::HashSet::from([root]);
        let mut unread = vec![root];
        while let Some(id) = unread.pop() {
            for (below, _) in self.references(id) {
                if seen.insert(below) {
                    all.push(below);
                    unread.push(below);
                }
            }
        }
        all
    }

    /// The entries that a selection means, on one page of all entries. For a tag or a digest: the
    /// manifest's, and in the same repository those of what only it refers to.
    pub(super) fn select(
        &self,
        selection: &Selection,
        from: usize,
        max: usize,
    ) -> (Vec<Id<Entry>>, Option<usize>) {
        let (page, next) = self.entries.page(from, max);
        let mut selected = Vec::new();
        for id in page {
            let Some(entry) = self.entries.get(id) else {
                continue;
            };
            let Some(repo) = self.repos.get(entry.repo) else {
                continue;
            };
            if !selection.repo.matches(repo.name.as_str()) {
                continue;
            }
            if matches!(selection.what, What::Everything) {
                selected.push(id);
            } else if self.is_selected(&selection.what, repo, entry) {
                for member in self.image(entry.content, |_| false) {
                    let kinds = [LinkKind::Revision, LinkKind::Layer];
                    let entries = kinds.map(|kind| self.find_entry(entry.repo, kind, member));
                    selected.extend(entries.into_iter().flatten());
                }
            }
        }
        (selected, next)
    }

    fn is_selected(&self, what: &What, repo: &Repo, entry: &Entry) -> bool {
        match what {
            What::Everything => true,
            What::Digest(digest) => self
                .contents
                .get(entry.content)
                .is_some_and(|content| content.digest() == *digest),
            What::Tag(pattern) => {
                let hash = self.hash_content(entry.content);
                entry.kind == LinkKind::Revision
                    && repo
                        .tags
                        .iter()
                        .any(|(tag, named)| *named == hash && pattern.matches(tag.as_str()))
            }
        }
    }

    /// Condemns an entry, if `really`; returns how it looked.
    pub(super) fn purge(&mut self, id: Id<Entry>, really: bool) -> Option<EntryView> {
        let view = self.view_entry(id)?;
        let entry = self.entries.get_mut(id)?;
        if really && !entry.flags.has(entry_flag::CONDEMNED) {
            entry.flags.set(entry_flag::CONDEMNED);
            let content = entry.content;
            self.condemn_content(content);
        }
        Some(view)
    }
}
