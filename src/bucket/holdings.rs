//! What the bucket is known to have, for a short while, so that a redirect seldom asks it.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::oci::{Digest, RepoName};

/// Contents, and links, that are remembered; the least used go first.
const MAX_HOLDINGS: usize = 100_000;
/// How long the bucket is taken to have what it had. Meanwhile another replica may set an object aside, and
/// an operator may delete it: clients that are redirected to it get a 404 until then.
pub(super) const HELD_FOR: Duration = Duration::from_mins(10);
/// How long the bucket is taken to lack what it lacked, unless this replica uploads it.
pub(super) const LACKED_FOR: Duration = Duration::from_mins(1);

/// Whether the bucket has content and the link of a repository to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// It has both; the bytes of the content.
    Held(u64),
    /// It lacks one of them.
    Lacked,
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Content {
    size: u64,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    /// False: the link, or the content, is missing.
    is_held: bool,
    until: Instant,
}

/// What was lately learned of the bucket. Contents and links are apart, so that content which turns out to be
/// wrong or missing is forgotten for all repositories at once.
#[derive(Debug)]
pub(super) struct Holdings {
    contents: Cache<Digest, Content>,
    links: Cache<(RepoName, Digest), Link>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self {
            contents: Cache::new(MAX_HOLDINGS),
            links: Cache::new(MAX_HOLDINGS),
        }
    }
}

impl Holdings {
    pub(super) fn get(&self, repo: &RepoName, digest: &Digest) -> Holding {
        let now = Instant::now();
        let link = self.links.get(&(repo.clone(), *digest));
        match link.filter(|link| now < link.until) {
            None => Holding::Unknown,
            Some(link) if !link.is_held => Holding::Lacked,
            Some(_) => {
                let content = self.contents.get(digest);
                let content = content.filter(|content| now < content.until);
                content.map_or(Holding::Unknown, |content| Holding::Held(content.size))
            }
        }
    }

    /// The bucket has content of this size and the repository's link to it.
    pub(super) fn held(&self, repo: &RepoName, digest: &Digest, size: u64) {
        let until = Instant::now() + HELD_FOR;
        self.contents.insert(*digest, Content { size, until });
        self.link(repo, digest, true, until);
    }

    /// The bucket lacks the content or the link.
    pub(super) fn lacked(&self, repo: &RepoName, digest: &Digest) {
        self.link(repo, digest, false, Instant::now() + LACKED_FOR);
    }

    fn link(&self, repo: &RepoName, digest: &Digest, is_held: bool, until: Instant) {
        let link = Link { is_held, until };
        self.links.insert((repo.clone(), *digest), link);
    }

    /// Nothing is known of the link any more.
    pub(super) fn forget_link(&self, repo: &RepoName, digest: &Digest) {
        self.links.remove(&(repo.clone(), *digest));
    }

    /// Nothing is known of the content any more.
    pub(super) fn forget_content(&self, digest: &Digest) {
        self.contents.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::Holding::{Held, Lacked, Unknown};
    use super::*;
    use crate::oci::Algorithm;

    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn what_the_bucket_has_and_lacks_is_known_for_a_while() {
        let holdings = Holdings::default();
        let digest = Digest::of(Algorithm::Sha256, b"");
        let [app, other]: [RepoName; 2] = ["app", "other"].map(|name| name.parse().unwrap());
        let known = || [&app, &other].map(|repo| holdings.get(repo, &digest));
        assert_eq!(known(), [Unknown, Unknown]);
        holdings.lacked(&app, &digest);
        assert_eq!(known(), [Lacked, Unknown]);
        tokio::time::advance(LACKED_FOR - MOMENT).await;
        assert_eq!(known(), [Lacked, Unknown]);
        tokio::time::advance(MOMENT).await;
        assert_eq!(known(), [Unknown, Unknown]);
        holdings.held(&app, &digest, 7);
        assert_eq!(known(), [Held(7), Unknown]);
        tokio::time::advance(HELD_FOR - MOMENT).await;
        // The content is known to be there for longer, and this link isn't.
        holdings.held(&other, &digest, 7);
        assert_eq!(known(), [Held(7), Held(7)]);
        tokio::time::advance(MOMENT).await;
        assert_eq!(known(), [Unknown, Held(7)]);
        holdings.held(&app, &digest, 7);
        holdings.forget_content(&digest);
        assert_eq!(known(), [Unknown, Unknown]);
        // An upload takes the place of what was missing.
        holdings.lacked(&app, &digest);
        holdings.held(&app, &digest, 7);
        assert_eq!(known(), [Held(7), Held(7)]);
        holdings.forget_link(&app, &digest);
        assert_eq!(known(), [Unknown, Held(7)]);
    }
}
