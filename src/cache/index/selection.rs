//! References that select cached content, as operators write them.

use super::Index;
use super::values::Entry;
use crate::oci::pattern::PatternError;
use crate::oci::{Digest, Pattern, RepoName};
use crate::storage::LinkKind;

/// What to purge or to pin: `<repository>`, `<repository>:<tag>`, both patterns, or
/// `<repository>@<digest>`.
#[derive(Debug, Clone)]
pub struct Selection {
    repo: Pattern,
    what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
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

impl Selection {
    /// Whether it selects anything in a repository.
    pub(super) fn is_in(&self, repo: &RepoName) -> bool {
        self.repo.matches(repo.as_str())
    }

    /// Whether it selects everything of its repositories.
    pub(super) fn is_repository(&self) -> bool {
        matches!(self.what, What::Everything)
    }

    /// The repository, where it isn't a pattern of several.
    pub(crate) fn literal_repository(&self) -> Option<&str> {
        self.repo.literal()
    }

    pub(super) fn what(&self) -> &What {
        &self.what
    }
}

impl Index {
    /// Whether an entry of one of its repositories is selected.
    pub(super) fn is_selected(&self, selection: &Selection, entry: &Entry) -> bool {
        match &selection.what {
            What::Everything => true,
            What::Digest(digest) => self.blobs.get(entry.blob).is(digest),
            What::Tag(pattern) => {
                let repo = self.repos.get(entry.repo);
                let mut tags = repo.tags_of(self.hash_blob(entry.blob));
                entry.kind == LinkKind::Revision && tags.any(|tag| pattern.matches(tag.as_str()))
            }
        }
    }
}
