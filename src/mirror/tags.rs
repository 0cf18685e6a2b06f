//! What is known of tags, and for how long it is fresh.
//!
//! A registry may answer one tag with different manifests for different Accept lists (an index, or
//! one platform's manifest for an old client), so a record belongs to a tag AND the list.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::cache::ManifestMeta;
use crate::clock::Clock;
use crate::metrics::Outcome;
use crate::oci::{Accept, Digest, RepoName, Tag};

/// Records kept; the least used go first. A record costs about 300 bytes.
const MAX_RECORDS: usize = 100_000;
/// Tags that wait for their manifest; a client asks for it right after its HEAD.
const MAX_EXPECTED: usize = 10_000;
/// How long a client that could be given something stale waits for the upstream's word on it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long stale content is served before a failing upstream is asked again: an outage costs a
/// client's patience once in this time, not at every request.
pub(super) const RECHECK: Duration = Duration::from_secs(15);
/// The longest that a `Retry-After` puts off the next question.
const MAX_RECHECK: Duration = Duration::from_mins(5);

/// How long an upstream that has failed, perhaps with a `Retry-After`, isn't asked again.
pub(super) fn recheck_after(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or(RECHECK).min(MAX_RECHECK)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TagKey {
    pub repo: RepoName,
    pub tag: Tag,
    pub accept: Accept,
}

#[derive(Debug, Clone)]
struct Record {
    known: ManifestMeta,
    fresh_until: Instant,
    /// `Stale` when the upstream couldn't be asked, else `Hit`.
    outcome: Outcome,
}

#[derive(Debug)]
pub(super) struct TagRecords {
    records: Cache<TagKey, Record>,
    /// Tags that a HEAD has resolved to a manifest which the store doesn't have yet.
    expected: Cache<(RepoName, Digest), TagKey>,
    ttl: Duration,
    clock: Clock,
}

impl TagRecords {
    pub(super) fn new(ttl: Duration, clock: Clock) -> Self {
        Self {
            records: Cache::new(MAX_RECORDS),
            expected: Cache::new(MAX_EXPECTED),
            ttl,
            clock,
        }
    }

    /// Records with another time, of nothing yet. None if the time is the same.
    pub(super) fn renewed(&self, ttl: Duration) -> Option<Self> {
        (ttl != self.ttl).then(|| Self::new(ttl, self.clock))
    }

    /// What is served without asking the upstream, and the outcome to report. `stretch`: how many times
    /// as long as usual what the upstream has said is fresh, to save requests.
    pub(super) fn fresh(
        &self,
        key: &TagKey,
        stretch: impl FnOnce() -> u32,
    ) -> Option<(ManifestMeta, Outcome)> {
        let record = self.records.get(key)?;
        let now = self.clock.now();
        let is_fresh = now < record.fresh_until || {
            let more = self.ttl.saturating_mul(stretch().saturating_sub(1));
            record.outcome == Outcome::Hit && now < record.fresh_until + more
        };
        is_fresh.then_some((record.known, record.outcome))
    }

    /// The digest that the upstream named last.
    pub(super) fn last_digest(&self, key: &TagKey) -> Option<Digest> {
        Some(self.records.get(key)?.known.digest)
    }

    /// The upstream has just said so.
    pub(super) fn confirmed(&self, key: TagKey, known: ManifestMeta) {
        self.insert(key, known, self.ttl, Outcome::Hit);
    }

    /// The upstream couldn't say; it is asked again after a while, or when it wished to be.
    pub(super) fn unconfirmed(
        &self,
        key: TagKey,
        known: ManifestMeta,
        retry_after: Option<Duration>,
    ) {
        self.insert(key, known, recheck_after(retry_after), Outcome::Stale);
    }

    fn insert(&self, key: TagKey, known: ManifestMeta, fresh: Duration, outcome: Outcome) {
        let record = Record {
            known,
            fresh_until: self.clock.now() + fresh,
            outcome,
        };
        self.records.insert(key, record);
    }

    /// The tag's manifest isn't stored: once it is, the tag is to name it.
    pub(super) fn expect_manifest(&self, key: &TagKey, digest: Digest) {
        self.expected
            .insert((key.repo.clone(), digest), key.clone());
    }

    /// The tag for which this manifest is expected; no longer from then on.
    pub(super) fn take_expected(&self, repo: &RepoName, digest: Digest) -> Option<TagKey> {
        self.expected
            .remove(&(repo.clone(), digest))
            .map(|(_, key)| key)
    }

    pub(super) fn forget(&self, key: &TagKey) {
        self.records.remove(key);
    }
}
