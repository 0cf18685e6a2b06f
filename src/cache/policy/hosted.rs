//! How long hosted content is kept, and how much of it.

use std::time::Duration;

use crate::oci::{Pattern, RepoName, Tag};

/// Who decides which hosted content stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostedRole {
    /// This server, by its rules.
    #[default]
    Decides,
    /// This server, once it knows all that there is. Until then everything stays.
    Learns,
    /// Another replica: nothing expires, and the copies are evicted like what is mirrored.
    Copies,
}

/// What is kept of the hosted repositories whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedPolicy {
    pub repositories: Vec<Pattern>,
    /// Bytes that distinct blobs and open uploads may have; none is no limit.
    pub quota: Option<u64>,
    /// How long a layer that no manifest of its repository refers to is kept after its last use.
    pub grace: Duration,
    /// The same for a manifest without a tag; none is for ever.
    pub untagged: Option<Duration>,
    /// The same for every manifest; none is for ever.
    pub ttl: Option<Duration>,
    /// Manifests with tags of each repository that don't expire: the newest ones.
    pub keep_newest: usize,
    /// Those with a tag that matches don't expire either.
    pub keep_tags: Vec<Pattern>,
    /// Whether images are evicted when space is short and no mirrored one can go.
    pub evictable: bool,
}

impl HostedPolicy {
    pub fn has(&self, repo: &RepoName) -> bool {
        let mut patterns = self.repositories.iter();
        patterns.any(|pattern| pattern.matches(repo.as_str()))
    }

    pub(in crate::cache) fn keeps_tag(&self, tag: &Tag) -> bool {
        let mut patterns = self.keep_tags.iter();
        patterns.any(|pattern| pattern.matches(tag.as_str()))
    }
}

/// A push would exceed a quota. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more bytes are needed, {used} of {quota} are used")]
pub struct OverQuota {
    pub needed: u64,
    pub used: u64,
    pub quota: u64,
}
