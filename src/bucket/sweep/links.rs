//! Reads all links and tags, once: which content hosted repositories have, what is a manifest, which links
//! there are of what is due, and which have no content.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;

use super::IsHosted;
use super::marks::{MAX_MARKED, Marks};
use super::rows::{DELETED, DUE, Facts, Found, HOSTED, LINKED, MANIFEST, Place, Rows};
use crate::bucket::client::{Object, Objects};
use crate::bucket::error::BucketError;
use crate::bucket::keys;
use crate::bucket::names::{self, Name};
use crate::cache::LinkKind;
use crate::oci::{Digest, RepoName, Tag};

/// The longest name of a repository that is read, in bytes: that of the store.
const MAX_NAME: usize = 512;
/// Links of what is due that are kept, at most, 24 bytes each. What has more of them has to wait.
const MAX_LINKS: usize = 2_000_000;
/// Younger links are taken for uses of their content, and are never taken for links that have lost it.
pub(super) const SETTLED: Duration = Duration::from_hours(24);

/// A digest that is due and that the bucket doesn't have: only its links are to be removed.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) digest: Digest,
    pub(super) facts: Facts,
}

/// What a pass over all links goes by.
pub(super) struct Pass<'a> {
    pub(super) objects: &'a Objects,
    pub(super) rows: &'a Rows,
    pub(super) marks: &'a Marks,
    /// Sorted.
    pub(super) missing: &'a [Missing],
    pub(super) is_hosted: &'a IsHosted,
    pub(super) began: SystemTime,
}

/// What links.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Layer,
    Revision,
    /// The tag's number.
    Tag(u32),
}

/// What is linked.
#[derive(Debug, Clone, Copy)]
enum To {
    Row(Place),
    /// The position among what is missing.
    Missing(u32),
}

/// A link of something that is due.
#[derive(Debug)]
struct Due {
    /// The repository's number.
    repo: u32,
    kind: Kind,
    to: To,
}

/// What a pass has found.
#[derive(Debug, Default)]
pub(super) struct Links {
    due: Vec<Due>,
    repos: Names<RepoName>,
    tags: Names<Tag>,
    /// What mirrored repositories link and the bucket doesn't have, unless it is marked already.
    pub(super) dangling: BTreeSet<Digest>,
    /// Links of hosted repositories to what the bucket doesn't have.
    pub(super) lost: u64,
    /// Links, tags, and others.
    pub(super) objects: u64,
    pub(super) foreign: u64,
}

/// A link to remove.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Removed {
    Link(String),
    /// That the tag has named the digest; and what the tag names now, if that is still the same.
    Tag {
        index: String,
        current: String,
        digest: Digest,
    },
}

/// Texts that many links share, by number.
#[derive(Debug)]
struct Names<T> {
    names: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Names<T> {
    fn number(&mut self, name: &T) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.clone());
        self.numbers.insert(name.clone(), number);
        number
    }

    fn get(&self, number: u32) -> Option<&T> {
        self.names.get(number as usize)
    }
}

impl Pass<'_> {
    pub(super) async fn run(&self) -> Result<Links, BucketError> {
        let mut links = Links::default();
        let directory = keys::repositories();
        let mut listed = self.objects.list(&directory);
        let mut repo: Option<(RepoName, bool)> = None;
        while let Some(object) = listed.try_next().await? {
            let below = object.key.strip_prefix(&directory);
            let name = below.and_then(|below| names::link(below.strip_prefix('/')?));
            let Some((text, name)) = name else {
                links.foreign += 1;
                continue;
            };
            if repo.as_ref().is_none_or(|(repo, _)| repo.as_str() != text) {
                repo = repository(text).map(|repo| {
                    let is_hosted = (self.is_hosted)(&repo);
                    (repo, is_hosted)
                });
            }
            match &repo {
                Some((repo, is_hosted)) => self.see(&mut links, (repo, *is_hosted), name, &object),
                None => links.foreign += 1,
            }
        }
        Ok(links)
    }

    fn see(
        &self,
        links: &mut Links,
        (repo, is_hosted): (&RepoName, bool),
        name: Name<'_>,
        object: &Object,
    ) {
        let (digest, tag) = match name {
            Name::Layer(digest) | Name::Revision(digest) => (digest, None),
            Name::TagIndex(tag, digest) => {
                let Ok(tag) = tag.parse::<Tag>() else {
                    links.foreign += 1;
                    return;
                };
                (digest, Some(tag))
            }
            Name::TagCurrent(_) => {
                links.objects += 1;
                return;
            }
        };
        links.objects += 1;
        let (to, facts) = match self.rows.find(&digest) {
            Found::At(place) => match self.rows.get(place) {
                Some(row) => (To::Row(place), &row.facts),
                None => return,
            },
            Found::Unlisted => return,
            Found::Missing => match self.missing(&digest) {
                Some(found) => found,
                None => return self.dangles(links, is_hosted, digest, object),
            },
        };
        if is_hosted {
            facts.add(HOSTED);
        }
        if matches!(name, Name::Revision(_)) {
            facts.add(MANIFEST);
        }
        if !self.is_settled(object) {
            facts.add(LINKED);
        }
        if facts.any(DUE) {
            let is_newer = self
                .marks
                .began()
                .is_none_or(|began| object.modified >= began);
            if is_newer || links.due.len() >= MAX_LINKS {
                facts.add(LINKED);
                return;
            }
            let kind = match (name, tag) {
                (_, Some(tag)) => Kind::Tag(links.tags.number(&tag)),
                (Name::Revision(_), None) => Kind::Revision,
                (_, None) => Kind::Layer,
            };
            let repo = links.repos.number(repo);
            links.due.push(Due { repo, kind, to });
        }
    }

    fn missing(&self, digest: &Digest) -> Option<(To, &Facts)> {
        let at = self
            .missing
            .binary_search_by(|other| other.digest.cmp(digest));
        let at = at.ok()?;
        let missing = self.missing.get(at)?;
        Some((To::Missing(u32::try_from(at).ok()?), &missing.facts))
    }

    fn is_settled(&self, object: &Object) -> bool {
        let age = self.began.duration_since(object.modified);
        age.is_ok_and(|age| age >= SETTLED)
    }

    /// The bucket has no content for this link. It may have got it after that was listed.
    fn dangles(&self, links: &mut Links, is_hosted: bool, digest: Digest, object: &Object) {
        if is_hosted {
            links.lost += 1;
        } else if self.is_settled(object)
            && links.dangling.len() < MAX_MARKED
            && !self.marks.contain(&digest)
        {
            links.dangling.insert(digest);
        }
    }
}

impl Links {
    /// The links of what was deleted.
    pub(super) fn removed<'a>(
        &'a self,
        rows: &'a Rows,
        missing: &'a [Missing],
    ) -> impl Iterator<Item = Removed> + 'a {
        self.due.iter().filter_map(move |link| {
            let (digest, facts) = match link.to {
                To::Row(place) => rows.get(place).map(|row| (row.digest(), &row.facts))?,
                To::Missing(at) => missing
                    .get(at as usize)
                    .map(|missing| (missing.digest, &missing.facts))?,
            };
            let repo = self.repos.get(link.repo)?;
            let removed = match link.kind {
                Kind::Layer => Removed::Link(keys::link(repo, LinkKind::Layer, &digest)),
                Kind::Revision => Removed::Link(keys::link(repo, LinkKind::Revision, &digest)),
                Kind::Tag(tag) => {
                    let tag = self.tags.get(tag)?;
                    Removed::Tag {
                        index: keys::tag_index(repo, tag, &digest),
                        current: keys::tag_current(repo, tag),
                        digest,
                    }
                }
            };
            facts.any(DELETED).then_some(removed)
        })
    }
}

fn repository(text: &str) -> Option<RepoName> {
    let is_short = text.len() <= MAX_NAME;
    is_short.then(|| RepoName::from_stored(text).ok()).flatten()
}
