//! What hosted repositories have in the bucket, and which server was the last to write it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;

use super::client::Small;
use super::error::BucketError;
use super::names::{self, Name};
use super::{Bucket, REQUESTS_AT_A_TIME, keys};
use crate::cache::LinkKind;
use crate::oci::{Digest, Pattern, RepoName, Tag};

/// Manifests and tags that are read, at most: some 200 MB of them.
const MAX_LISTED: usize = 2_000_000;
/// The longest name of a writer that is read, in bytes.
const MAX_WRITER: u64 = 64;

/// What one hosted repository has in the bucket.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Those that it links.
    pub manifests: BTreeSet<Digest>,
    /// What they name.
    pub tags: BTreeMap<Tag, Digest>,
}

/// The same of all hosted repositories that have something there.
pub type Inventories = BTreeMap<RepoName, Inventory>;

/// A link or a tag in a list.
struct Listed<'a> {
    repo: RepoName,
    name: Name<'a>,
    modified: SystemTime,
}

impl Bucket {
    /// The manifests and tags of the repositories that match one of these patterns. One list request for each
    /// 1,000 objects of the directories that the patterns name, and a GET for each tag.
    pub async fn inventory(&self, patterns: &[&Pattern]) -> Result<Inventories, BucketError> {
        let mut all = Inventories::new();
        let mut tags = Vec::new();
        let mut listed = 0;
        let mut note = |found: Listed<'_>| {
            match found.name {
                Name::Revision(digest) => {
                    let of_repo = all.entry(found.repo).or_default();
                    of_repo.manifests.insert(digest);
                }
                Name::TagCurrent(tag) => {
                    if let Ok(tag) = tag.parse::<Tag>() {
                        tags.push((found.repo, tag));
                    }
                }
                Name::Layer(_) | Name::TagIndex(..) => return Ok(()),
            }
            listed += 1;
            let limit = MAX_LISTED;
            (listed <= limit)
                .then_some(())
                .ok_or(BucketError::TooMany { limit })
        };
        self.list_links(patterns, &mut note).await?;
        for page in tags.chunks(REQUESTS_AT_A_TIME) {
            let asked = page.iter().map(|(repo, tag)| self.tag(repo, tag));
            for ((repo, tag), named) in page.iter().zip(try_join_all(asked).await?) {
                if let Some(named) = named {
                    let of_repo = all.entry(repo.clone()).or_default();
                    of_repo.tags.insert(tag.clone(), named);
                }
            }
        }
        Ok(all)
    }

    /// Removes the links of layers that are as old as `age` says and aren't needed; how many. A link may come
    /// to be needed until it is removed.
    pub async fn remove_unneeded_layers(
        &self,
        patterns: &[&Pattern],
        age: impl Fn(&RepoName) -> Duration + Sync,
        is_needed: impl Fn(&RepoName, &Digest) -> bool + Sync,
    ) -> Result<u64, BucketError> {
        let now = self.objects.now();
        let mut unneeded = Vec::new();
        let mut note = |found: Listed<'_>| {
            let old = now.duration_since(found.modified).unwrap_or_default();
            if let Name::Layer(digest) = found.name
                && old >= age(&found.repo)
                && unneeded.len() < MAX_LISTED
                && !is_needed(&found.repo, &digest)
            {
                unneeded.push((found.repo, digest));
            }
            Ok(())
        };
        self.list_links(patterns, &mut note).await?;
        let mut removed = 0;
        for (repo, digest) in unneeded {
            let removing = self.unshare_unneeded(&repo, (LinkKind::Layer, &digest), || {
                is_needed(&repo, &digest)
            });
            removed += u64::from(removing.await?);
        }
        Ok(removed)
    }

    /// Shows all links and tags of the repositories that match. Objects that are none are left alone.
    async fn list_links(
        &self,
        patterns: &[&Pattern],
        note: &mut (dyn for<'a> FnMut(Listed<'a>) -> Result<(), BucketError> + Send),
    ) -> Result<(), BucketError> {
        let all = keys::repositories();
        for directory in directories(patterns) {
            let mut objects = match directory {
                "" => self.objects.list(&all),
                directory => self.objects.list(&format!("{all}/{directory}")),
            };
            while let Some(object) = objects.try_next().await? {
                let below = object.key.strip_prefix(&all);
                let Some((repo, name)) = below.and_then(|key| names::link(key.strip_prefix('/')?))
                else {
                    continue;
                };
                let Ok(repo) = RepoName::from_stored(repo) else {
                    continue;
                };
                if patterns
                    .iter()
                    .any(|pattern| pattern.matches(repo.as_str()))
                {
                    note(Listed {
                        repo,
                        name,
                        modified: object.modified,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The name of the server that was the last to write hosted repositories, if one has noted that.
    pub async fn hosted_writer(&self) -> Result<Option<String>, BucketError> {
        let read = self
            .objects
            .get_small(keys::HOSTED_WRITER, MAX_WRITER, None)
            .await;
        Ok(match read {
            Ok(Small::Whole(text, _)) => Some(String::from_utf8_lossy(&text).trim().to_owned()),
            Ok(Small::Missing | Small::Unchanged) => None,
            // Not ours.
            Err(BucketError::TooLarge { .. }) => Some(String::new()),
            Err(error) => return Err(error),
        })
    }

    /// Notes that the server of this name writes hosted repositories.
    pub async fn set_hosted_writer(&self, name: &str) -> Result<(), BucketError> {
        let text = Bytes::copy_from_slice(name.as_bytes());
        self.objects.put(keys::HOSTED_WRITER, vec![text]).await
    }
}

/// The directories below which all repositories are that match, none of which is within another.
fn directories<'a>(patterns: &[&'a Pattern]) -> BTreeSet<&'a str> {
    let all: BTreeSet<_> = patterns.iter().map(|pattern| pattern.directory()).collect();
    let is_within = |inner: &str, outer: &str| {
        let rest = inner.strip_prefix(outer);
        inner != outer && (outer.is_empty() || rest.is_some_and(|rest| rest.starts_with('/')))
    };
    let outermost = all
        .iter()
        .filter(|inner| !all.iter().any(|outer| is_within(inner, outer)));
    outermost.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_listed_once() {
        for (patterns, expected) in [
            (vec!["ci/**", "ci/app", "team-*/x"], vec![""]),
            (vec!["ci/**", "ci/app", "cit/a*"], vec!["ci", "cit"]),
            (vec!["ci/app", "ci/app-2"], vec!["ci/app", "ci/app-2"]),
        ] {
            let patterns: Vec<Pattern> =
                patterns.iter().map(|text| text.parse().unwrap()).collect();
            let patterns: Vec<_> = patterns.iter().collect();
            assert!(directories(&patterns).into_iter().eq(expected));
        }
    }
}
