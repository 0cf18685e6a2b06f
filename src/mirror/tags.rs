//! What is known of tags, and for how long it is believed.
//!
//! A registry may answer one tag with different manifests for different Accept lists (an index, or
//! one platform's manifest for an old client), so a record belongs to a tag AND the list.

use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::cache::ManifestMeta;
use crate::clock::Clock;
use crate::oci::{Accept, Digest, RepoName, Tag};

/// Records kept; the least used go first. A record costs about 300 bytes.
const MAX_RECORDS: usize = 100_000;
/// Tags that wait for their manifest; a client asks for it right after its HEAD.
const MAX_AWAITING: usize = 10_000;
/// How long a stale tag is served before a failing upstream is asked again: an outage costs a
/// client's patience once in this time, not at every request.
pub(super) const RECHECK: Duration = Duration::from_secs(15);
/// The longest that a `Retry-After` puts off the next question.
pub(super) const MAX_RECHECK: Duration = Duration::from_mins(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TagKey {
    pub repo: RepoName,
    pub tag: Tag,
    pub accept: Accept,
}

#[derive(Debug, Clone)]
struct Record {
    known: ManifestMeta,
    believed_until: Instant,
    stale: bool,
}

/// A record as it stands now.
#[derive(Debug, Clone)]
pub(super) enum Lookup {
    /// Believed without asking; `stale` when that is because the upstream couldn't be asked.
    Fresh {
        known: ManifestMeta,
        stale: bool,
    },
    /// To be asked again.
    Expired(ManifestMeta),
    Unknown,
}

#[derive(Debug)]
pub(super) struct TagRecords {
    records: Cache<TagKey, Record>,
    /// Tags that a HEAD has resolved to a manifest which the store doesn't have yet.
    awaiting: Cache<(RepoName, Digest), TagKey>,
    ttl: Duration,
    clock: Clock,
}

impl TagRecords {
    pub(super) fn new(ttl: Duration, clock: Clock) -> Self {
        Self {
            records: Cache::new(MAX_RECORDS),
            awaiting: Cache::new(MAX_AWAITING),
            ttl,
            clock,
        }
    }

    pub(super) fn get(&self, key: &TagKey) -> Lookup {
        match self.records.get(key) {
            None => Lookup::Unknown,
            Some(Record {
                known,
                believed_until,
                stale,
            }) if self.clock.now() < believed_until => Lookup::Fresh { known, stale },
            Some(Record { known, .. }) => Lookup::Expired(known),
        }
    }

    /// The upstream has just said so.
    pub(super) fn confirmed(&self, key: TagKey, known: ManifestMeta) {
        self.insert(key, known, self.ttl, false);
    }

    /// The upstream couldn't say; it is asked again after a while, or when it wished to be.
    pub(super) fn unconfirmed(
        &self,
        key: TagKey,
        known: ManifestMeta,
        retry_after: Option<Duration>,
    ) {
        self.insert(
            key,
            known,
            retry_after.unwrap_or(RECHECK).min(MAX_RECHECK),
            true,
        );
    }

    fn insert(&self, key: TagKey, known: ManifestMeta, believed: Duration, stale: bool) {
        let believed_until = self.clock.now() + believed;
        self.records.insert(
            key,
            Record {
                known,
                believed_until,
                stale,
            },
        );
    }

    /// The tag's manifest isn't stored: once it is, the tag is to name it.
    pub(super) fn awaits(&self, key: &TagKey, digest: Digest) {
        self.awaiting
            .insert((key.repo.clone(), digest), key.clone());
    }

    /// The tag that waits for this manifest, once.
    pub(super) fn arrived(&self, repo: &RepoName, digest: Digest) -> Option<TagKey> {
        self.awaiting
            .remove(&(repo.clone(), digest))
            .map(|(_, key)| key)
    }

    pub(super) fn forget(&self, key: &TagKey) {
        self.records.remove(key);
    }
}
