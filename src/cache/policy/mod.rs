//! How long entries are kept, what is pinned, how much may be stored, and what is evicted: pure
//! functions over small views, without I/O and without the index.

mod lru;
mod space;

use std::time::Duration;

use crate::oci::pattern::PatternError;
use crate::oci::{Pattern, RepoName, Tag};

use super::state::record::Origin;
use super::state::timestamp::Timestamp;
pub(super) use lru::{Images, choose_victims};
pub use space::SpaceRequest;
pub(super) use space::{Decision, Space};

/// What was due while the mirror was stopped gets this long from the start on, or its TTL when that
/// is shorter: no request could use it meanwhile, and a wrong clock shows before it has deleted anything.
pub(super) const GRACE: Duration = Duration::from_hours(1);
/// The same when most of the cache was due: then the machine was off for long, or the clock is wrong,
/// and an operator should have the time to notice.
pub(super) const MASS_GRACE: Duration = Duration::from_hours(24);

/// When the time of an entry begins to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TtlMode {
    /// At its last use.
    #[default]
    Sliding,
    /// When it was cached.
    Fixed,
}

/// How long entries are kept.
#[derive(Debug, Clone)]
pub struct TtlPolicy {
    /// Where no rule matches; `None` is for ever.
    pub default: Option<Duration>,
    /// The first that matches the stored repository's name counts. A named upstream is the pattern
    /// `<upstream>/**`.
    pub rules: Vec<(Pattern, Option<Duration>)>,
    pub mode: TtlMode,
}

impl TtlPolicy {
    /// The same for all, extended on use.
    pub fn sliding(default: Option<Duration>) -> Self {
        Self {
            default,
            rules: Vec::new(),
            mode: TtlMode::Sliding,
        }
    }

    pub fn ttl(&self, repo: &RepoName) -> Option<Duration> {
        let rule = self
            .rules
            .iter()
            .find(|(pattern, _)| pattern.matches(repo.as_str()));
        rule.map_or(self.default, |(_, ttl)| *ttl)
    }

    /// When an entry's time is over, and when it began.
    pub(super) fn due(
        &self,
        origin: Origin,
        last_use: Timestamp,
        ttl: Duration,
    ) -> (Timestamp, Timestamp) {
        match (origin, self.mode) {
            (Origin::Created(_), TtlMode::Sliding) => (last_use.after(ttl), last_use),
            (Origin::Created(created), TtlMode::Fixed) => (created.after(ttl), created),
            // What the reference registry promised is kept; a use extends it.
            (Origin::Adopted(expiry), TtlMode::Sliding) => {
                (last_use.after(ttl).max(expiry), last_use)
            }
            (Origin::Adopted(expiry), TtlMode::Fixed) => (expiry, Timestamp::default()),
        }
    }
}

/// Images that are never evicted: `repository` or `repository:tag`, both patterns. It doesn't keep
/// them from expiring: that is what a TTL of 0 for the repository is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    repo: Pattern,
    tag: Option<Pattern>,
}

impl std::str::FromStr for Pin {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (repo, tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag.parse()?)),
            None => (text, None),
        };
        Ok(Self {
            repo: repo.parse()?,
            tag,
        })
    }
}

impl Pin {
    /// Whether everything of the repository is pinned.
    pub(super) fn is_whole(&self, repo: &RepoName) -> bool {
        self.tag.is_none() && self.repo.matches(repo.as_str())
    }

    pub(super) fn is_tag(&self, repo: &RepoName, tag: &Tag) -> bool {
        let tag_matches = |pattern: &Pattern| pattern.matches(tag.as_str());
        self.tag.as_ref().is_some_and(tag_matches) && self.repo.matches(repo.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_counts() {
        let hour = Some(Duration::from_hours(1));
        let policy = TtlPolicy {
            rules: vec![
                ("ghcr.io/owner/keep".parse().unwrap(), None),
                ("ghcr.io/**".parse().unwrap(), hour),
            ],
            ..TtlPolicy::sliding(Some(Duration::from_hours(168)))
        };
        let ttl = |name: &str| policy.ttl(&name.parse().unwrap());
        assert_eq!(ttl("ghcr.io/owner/keep"), None);
        assert_eq!(ttl("ghcr.io/owner/app"), hour);
        assert_eq!(ttl("library/debian"), Some(Duration::from_hours(168)));
    }

    #[test]
    fn a_pin_is_a_repository_or_a_tag() {
        let repo: RepoName = "library/debian".parse().unwrap();
        let tag: Tag = "bookworm-slim".parse().unwrap();
        let pin = |text: &str| text.parse::<Pin>().unwrap();
        assert!(pin("library/*").is_whole(&repo) && !pin("library/*").is_tag(&repo, &tag));
        let tagged = pin("library/debian:bookworm*");
        assert!(!tagged.is_whole(&repo) && tagged.is_tag(&repo, &tag));
        assert!(!pin("library/debian:trixie").is_tag(&repo, &tag));
        assert!("a:".parse::<Pin>().is_err());
    }
}
