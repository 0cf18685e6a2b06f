//! What is known of tags, and for how long it is served: `proxy.tags` decides, by the rules that
//! match a tag.
//!
//! A registry may answer one tag with different manifests for different Accept lists (an index, or
//! one platform's manifest for an old client), so a record belongs to a tag AND the list.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::cache::ManifestMeta;
use crate::clock::Clock;
use crate::config::{Freshness, TagTimes, Tags};
use crate::metrics::Outcome;
use crate::oci::{Accept, Digest, RepoName, Tag};
use crate::upstream::Validator;

/// Records kept; the least used go first. A record costs about 300 bytes.
const MAX_RECORDS: usize = 100_000;
/// Tags that wait for their manifest; a client asks for it right after its HEAD.
const MAX_EXPECTED: usize = 10_000;
/// Validators kept; without one, the upstream is asked without a condition.
const MAX_VALIDATORS: usize = 10_000;
/// As long as a record is needed that has no end.
const FOR_EVER: Duration = Duration::from_hours(100 * 365 * 24);
/// How long a client that could be given something stale waits for the upstream's word on it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long stale content is served before a failing upstream is asked again: an outage costs a
/// client's patience once in this time, not at every request.
pub(super) const RECHECK: Duration = Duration::from_secs(15);
/// The longest that a `Retry-After` puts off the next question.
const MAX_RECHECK: Duration = Duration::from_mins(5);

/// How much too high the age of another replica's answer may be: seconds are rounded up.
const IMPRECISION: Duration = Duration::from_secs(2);

/// What the answer of another replica is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    Fresh,
    /// That one couldn't ask the upstream.
    Stale,
    /// The same, and what is known here is newer.
    Outdated,
}

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
    /// When the upstream said so, or the records began if that was before.
    confirmed_at: Instant,
    fresh_until: Instant,
    /// `Stale` when the upstream couldn't be asked, `Updating` while it is being asked, else `Hit`.
    outcome: Outcome,
}

#[derive(Debug)]
pub(super) struct TagRecords {
    records: Cache<TagKey, Record>,
    /// With which the upstream is asked whether a record still holds. Not in the record, of which each
    /// request gets a copy.
    validators: Cache<TagKey, Validator>,
    /// Tags that a HEAD has resolved to a manifest which the store doesn't have yet.
    expected: Cache<(RepoName, Digest), TagKey>,
    rules: Tags,
    began: Instant,
    clock: Clock,
}

impl TagRecords {
    pub(super) fn new(rules: Tags, clock: Clock) -> Self {
        Self {
            records: Cache::new(MAX_RECORDS),
            validators: Cache::new(MAX_VALIDATORS),
            expected: Cache::new(MAX_EXPECTED),
            rules,
            began: clock.now(),
            clock,
        }
    }

    /// Records by other rules, of nothing yet. None if the rules are the same.
    pub(super) fn renewed(&self, rules: &Tags) -> Option<Self> {
        (*rules != self.rules).then(|| Self::new(rules.clone(), self.clock))
    }

    pub(super) fn freshness(&self, key: &TagKey) -> Freshness {
        self.rules.freshness(&key.repo, &key.tag)
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
        let is_fresh = now < record.fresh_until
            || match self.freshness(key) {
                Freshness::Limited(times) if record.outcome == Outcome::Hit => {
                    let more = times.ttl.saturating_mul(stretch().saturating_sub(1));
                    now < record.fresh_until + more
                }
                _ => false,
            };
        is_fresh.then_some((record.known, record.outcome))
    }

    /// What is served although it isn't fresh, because its time allows that while the upstream is being
    /// asked. The caller is to ask: for a while, others aren't told so again.
    pub(super) fn begin_update(&self, key: &TagKey) -> Option<(ManifestMeta, Outcome)> {
        let Freshness::Limited(times) = self.freshness(key) else {
            return None;
        };
        if times.stale_while_revalidate.is_zero() {
            return None;
        }
        let record = self.records.get(key)?;
        let now = self.clock.now();
        let end = record.confirmed_at + times.ttl + times.stale_while_revalidate;
        if now >= end {
            return None;
        }
        let updating = Record {
            fresh_until: (now + RECHECK).min(end),
            outcome: Outcome::Updating,
            ..record.clone()
        };
        self.records.insert(key.clone(), updating);
        Some((record.known, Outcome::Updating))
    }

    /// What the upstream named last.
    pub(super) fn last(&self, key: &TagKey) -> Option<ManifestMeta> {
        Some(self.records.get(key)?.known)
    }

    /// From when on a tag is to be asked for again, so that it stays fresh: a quarter of its time before the
    /// end, and at most `margin`.
    pub(super) fn renewed_from(&self, key: &TagKey, margin: Duration) -> Instant {
        let Some(record) = self.records.get(key) else {
            return self.began;
        };
        match self.freshness(key) {
            Freshness::Limited(times) => {
                let margin = margin.min(times.ttl / 4);
                record.fresh_until.checked_sub(margin).unwrap_or(self.began)
            }
            Freshness::Immutable | Freshness::Offline => record.fresh_until,
        }
    }

    /// With which the upstream can be asked whether the record still holds.
    pub(super) fn validator(&self, key: &TagKey) -> Option<Validator> {
        self.validators.get(key)
    }

    /// The upstream has said so this long ago, with this validator, if any.
    pub(super) fn confirmed(
        &self,
        key: &TagKey,
        known: ManifestMeta,
        validator: Option<Validator>,
        age: Duration,
    ) {
        match validator {
            Some(validator) => self.validators.insert(key.clone(), validator),
            None => drop(self.validators.remove(key)),
        }
        self.note(key, known, age);
    }

    /// What another replica's answer of this age is worth.
    pub(super) fn worth(&self, key: &TagKey, age: Duration) -> Worth {
        match self.freshness(key) {
            Freshness::Limited(times) if age > times.ttl => {}
            Freshness::Limited(_) | Freshness::Immutable | Freshness::Offline => {
                return Worth::Fresh;
            }
        }
        let known = self.records.get(key);
        let known = known.map(|known| self.clock.now().duration_since(known.confirmed_at));
        if known.is_some_and(|known| age > known + IMPRECISION) {
            Worth::Outdated
        } else {
            Worth::Stale
        }
    }

    /// How long ago the upstream said that the tag names this digest.
    pub(super) fn age(&self, key: &TagKey, digest: &Digest) -> Option<Duration> {
        let record = self.records.get(key)?;
        let age = self.clock.now().duration_since(record.confirmed_at);
        (record.known.digest == *digest).then_some(age)
    }

    /// The upstream has just said that what it said last still holds; or nobody needs to ask it.
    pub(super) fn still_holds(&self, key: &TagKey, known: ManifestMeta) {
        self.note(key, known, Duration::ZERO);
    }

    fn note(&self, key: &TagKey, known: ManifestMeta, age: Duration) {
        let ttl = match self.freshness(key) {
            Freshness::Limited(times) => times.ttl,
            Freshness::Immutable | Freshness::Offline => FOR_EVER,
        };
        let now = self.clock.now();
        let record = Record {
            known,
            confirmed_at: now.checked_sub(age).unwrap_or(self.began),
            fresh_until: now + ttl.saturating_sub(age),
            outcome: Outcome::Hit,
        };
        self.records.insert(key.clone(), record);
    }

    fn confirmed_at(&self, key: &TagKey) -> Instant {
        let record = self.records.get(key);
        record.map_or(self.began, |record| record.confirmed_at)
    }

    /// Until when what is known may be served while the upstream can't answer.
    fn stale_until(&self, key: &TagKey) -> Instant {
        match self.freshness(key) {
            Freshness::Limited(TagTimes {
                ttl,
                stale_if_error: Some(limit),
                ..
            }) => self.confirmed_at(key) + ttl + limit,
            Freshness::Limited(_) | Freshness::Immutable | Freshness::Offline => {
                self.clock.now() + FOR_EVER
            }
        }
    }

    /// Whether what is known may be served although the upstream can't answer.
    pub(super) fn may_be_stale(&self, key: &TagKey) -> bool {
        self.clock.now() < self.stale_until(key)
    }

    /// The upstream couldn't say; it is asked again after a while, or when it wished to be.
    pub(super) fn unconfirmed(
        &self,
        key: &TagKey,
        known: ManifestMeta,
        retry_after: Option<Duration>,
    ) {
        let asked_again = self.clock.now() + recheck_after(retry_after);
        let record = Record {
            known,
            confirmed_at: self.confirmed_at(key),
            fresh_until: asked_again.min(self.stale_until(key)),
            outcome: Outcome::Stale,
        };
        self.records.insert(key.clone(), record);
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
