//! How long entries are kept and how much may be stored: pure functions without I/O and without the
//! index.

mod hosted;
mod space;

use std::time::Duration;

use crate::config::{TtlMode, TtlRule};
use crate::oci::RepoName;

use super::state::file::Origin;
use super::state::timestamp::Timestamp;
pub use hosted::{HostedPolicy, HostedRole, OverQuota};
pub use space::SpaceRequest;
pub(super) use space::{Decision, Space};

/// What was due while the mirror was stopped gets this long from the start on, or its TTL when that
/// is shorter: no request could use it meanwhile, and a wrong clock shows before it has deleted anything.
pub(super) const GRACE: Duration = Duration::from_hours(1);
/// The same when most of the cache was due: then the machine was off for long, or the clock is wrong,
/// and an operator should have the time to notice.
pub(super) const MASS_GRACE: Duration = Duration::from_hours(24);

/// How long entries are kept.
#[derive(Debug, Clone)]
pub struct TtlPolicy {
    /// Where no rule matches; `None` is for ever.
    pub default: Option<Duration>,
    /// The first that matches the stored repository's name counts. A named upstream is the pattern
    /// `<upstream>/**`.
    pub rules: Vec<TtlRule>,
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
        let mut rules = self.rules.iter();
        let rule = rules.find(|rule| rule.pattern.matches(repo.as_str()));
        rule.map_or(self.default, |rule| rule.ttl)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_counts() {
        let hour = Some(Duration::from_hours(1));
        let rule = |pattern: &str, ttl| TtlRule {
            pattern: pattern.parse().unwrap(),
            ttl,
        };
        let policy = TtlPolicy {
            rules: vec![rule("ghcr.io/owner/keep", None), rule("ghcr.io/**", hour)],
            ..TtlPolicy::sliding(Some(Duration::from_hours(168)))
        };
        let ttl = |name: &str| policy.ttl(&name.parse().unwrap());
        assert_eq!(ttl("ghcr.io/owner/keep"), None);
        assert_eq!(ttl("ghcr.io/owner/app"), hour);
        assert_eq!(ttl("library/debian"), Some(Duration::from_hours(168)));
    }
}
