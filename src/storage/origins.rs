//! Which upstream the content of a data directory came from.
//!
//! A link is the proof that the upstream has the content in this repository. When a repository's
//! upstream is another one than before, its older links prove nothing: they are left where they are,
//! so that the content stays, and count again once they have been written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::oci::RepoName;

/// The name that the default upstream has here.
const DEFAULT: &str = "";

/// The upstreams by name, as a small file keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Origins(BTreeMap<String, Origin>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// Links that were written at this time or before are of another upstream. In nanoseconds since
    /// the epoch; 0 when there are none.
    #[serde(default)]
    changed: u64,
    /// No upstream has the name any more: its repositories are the default upstream's.
    #[serde(default)]
    unnamed: bool,
}

/// An upstream that isn't the one it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamChange {
    /// Empty for the default upstream.
    pub name: String,
    pub before: String,
    pub now: String,
}

impl Origins {
    /// What is to be kept from now on, and what has changed. `upstreams` are names and URLs, the
    /// default one with an empty name.
    pub(super) fn updated(
        &self,
        upstreams: &BTreeMap<String, String>,
        now: SystemTime,
    ) -> (Self, Vec<UpstreamChange>) {
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        let (mut kept, mut changes) = (BTreeMap::new(), Vec::new());
        // Repositories below a name that was never, or is no longer, an upstream are the default's.
        let names: BTreeSet<&String> = self.0.keys().chain(upstreams.keys()).collect();
        for name in names {
            let current = upstreams.get(name);
            let Some(url) = current.or_else(|| upstreams.get(DEFAULT)) else {
                continue;
            };
            let own = self.0.get(name);
            let before = own.or_else(|| self.0.get(DEFAULT));
            // Another upstream with the same URL may have another account.
            let was_unnamed = own.is_none_or(|own| own.unnamed);
            let moved = was_unnamed != current.is_none();
            let since = match before {
                Some(before) if before.url != *url || moved => {
                    changes.push(UpstreamChange {
                        name: name.clone(),
                        before: before.url.clone(),
                        now: url.clone(),
                    });
                    now
                }
                Some(before) => before.changed,
                None => 0,
            };
            let origin = Origin {
                url: url.clone(),
                changed: since,
                unnamed: current.is_none(),
            };
            kept.insert(name.clone(), origin);
        }
        (Self(kept), changes)
    }

    /// Whether any repository may have links that prove nothing.
    pub(super) fn have_changed(&self) -> bool {
        self.0.values().any(|origin| origin.changed > 0)
    }

    /// Links of this repository that were written at this time or before prove nothing.
    pub(super) fn changed(&self, repo: &RepoName) -> Option<SystemTime> {
        let mut components = repo.components();
        let first = components.next().filter(|_| components.next().is_some());
        let origin = first.and_then(|name| self.0.get(name));
        let changed = origin.or_else(|| self.0.get(DEFAULT))?.changed;
        let since_epoch = Duration::from_nanos(changed);
        (changed > 0).then(|| SystemTime::UNIX_EPOCH.checked_add(since_epoch))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |text: &str| text.to_owned();
        all.iter()
            .map(|(name, url)| (own(name), own(url)))
            .collect()
    }

    #[test]
    fn links_of_another_upstream_prove_nothing() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (first, changes) =
            Origins::default().updated(&upstreams(&[("", "a"), ("x.y", "b")]), at(1));
        assert_eq!(changes, []);
        let since = |origins: &Origins, name: &str| origins.changed(&name.parse().unwrap());
        assert_eq!(since(&first, "library/debian"), None);
        assert!(!first.have_changed());

        let (other, changes) = first.updated(&upstreams(&[("", "c"), ("x.y", "b")]), at(2));
        assert_eq!((changes.len(), changes[0].before.as_str()), (1, "a"));
        assert_eq!(since(&other, "library/debian"), Some(at(2)));
        assert_eq!(
            since(&other, "x.y"),
            Some(at(2)),
            "no upstream of a name alone"
        );
        assert_eq!(since(&other, "x.y/app"), None);
        // The same again changes nothing, and the time stays.
        let (same, changes) = other.updated(&upstreams(&[("", "c"), ("x.y", "b")]), at(3));
        assert_eq!((same.clone(), changes), (other, Vec::new()));

        // A name that is no upstream any more, or has become one, changes hands.
        let (gone, changes) = same.updated(&upstreams(&[("", "c")]), at(4));
        assert_eq!((changes.len(), since(&gone, "x.y/app")), (1, Some(at(4))));
        assert!(gone.have_changed());
        let (new, changes) = gone.updated(&upstreams(&[("", "c"), ("q.r", "d")]), at(5));
        assert_eq!((changes.len(), since(&new, "q.r/app")), (1, Some(at(5))));
        assert_eq!(since(&new, "library/debian"), Some(at(2)));

        // The same URL under another name is another account.
        let (one, _) = Origins::default().updated(&upstreams(&[("", "a"), ("x.y", "a")]), at(1));
        let (gone, changes) = one.updated(&upstreams(&[("", "a")]), at(2));
        assert_eq!((changes.len(), since(&gone, "x.y/app")), (1, Some(at(2))));
        let (same, changes) = gone.updated(&upstreams(&[("", "a")]), at(3));
        assert_eq!((changes, same), (Vec::new(), gone));
    }
}
