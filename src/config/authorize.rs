//! Whose account an upstream is asked with, and for how long its answers about callers are valid.

use std::time::Duration;

use super::section::Section;

const DEFAULT_TTL: Duration = Duration::from_mins(5);
const DEFAULT_STALE: Duration = Duration::from_hours(1);
/// The longest name of a trust group, in bytes.
const MAX_TRUST: usize = 64;

/// Whose account an upstream is asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Authorize {
    /// The mirror's, for all callers.
    #[default]
    Shared,
    /// Each caller's own. Cached content is served to a caller only after the upstream has let it
    /// access the repository.
    Caller,
}

/// How an upstream's answers decide what a caller may read from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerAccess {
    pub authorize: Authorize,
    /// How long the upstream's permission for a caller and a repository is valid.
    pub ttl: Duration,
    /// How much longer it is valid while the upstream can't answer.
    pub stale: Duration,
}

impl Default for CallerAccess {
    fn default() -> Self {
        Self {
            authorize: Authorize::default(),
            ttl: DEFAULT_TTL,
            stale: DEFAULT_STALE,
        }
    }
}

/// Reads the keys of one upstream, whose defaults are `inherited`.
pub(super) fn read(section: &Section<'_>, inherited: &CallerAccess) -> CallerAccess {
    let choices = [("shared", Authorize::Shared), ("caller", Authorize::Caller)];
    CallerAccess {
        authorize: section.choice(
            "authorize",
            "write shared or caller",
            &choices,
            inherited.authorize,
        ),
        ttl: section.duration("accessttl", inherited.ttl),
        stale: section.duration("accessstale", inherited.stale),
    }
}

/// The upstream's trust group, if it is in one.
pub(super) fn trust(section: &Section<'_>) -> Option<String> {
    section.value("trust", |text| {
        let valid = (1..=MAX_TRUST).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        let group = valid.then(|| text.to_owned());
        group.ok_or("write a name without blanks, of at most 64 characters")
    })
}
