//! What a range of a blob that isn't there causes, by repository.

use crate::config::{RangeMode, RangeRule};
use crate::oci::RepoName;

/// The rules in their order; the first that matches counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRules {
    pub rules: Vec<RangeRule>,
    pub otherwise: RangeMode,
}

impl RangeRules {
    pub(super) fn mode(&self, stored: &RepoName) -> RangeMode {
        let matches = |rule: &&RangeRule| rule.pattern.matches(stored.as_str());
        self.rules
            .iter()
            .find(matches)
            .map_or(self.otherwise, |rule| rule.ranges)
    }
}
