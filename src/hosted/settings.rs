//! What the operator wants of hosted repositories.

use std::time::Duration;

use crate::cache::HostedPolicy;
use crate::oci::{Pattern, RepoName, Tag};

/// The settings of hosted repositories whose names match the same patterns.
#[derive(Debug, Clone)]
pub struct SpaceSettings {
    /// The operator's name for it, in messages.
    pub name: String,
    /// Names, quota, and what is removed when.
    pub policy: HostedPolicy,
    /// Whether blobs of mirrored repositories count as present for callers that may pull them.
    pub reuse: bool,
    /// Whether clients may delete.
    pub delete: bool,
    /// Whether clients may only pull.
    pub readonly: bool,
    pub incomplete: Incomplete,
    /// Tags that never change once they exist, unless `mutable` matches them, too.
    pub immutable: Vec<Pattern>,
    pub mutable: Vec<Pattern>,
    /// The largest blob, in bytes.
    pub maxblob: u64,
    /// How long an upload without a byte is kept, and a blob that was found for reuse is held.
    pub uploads_ttl: Duration,
    /// Open uploads at a time.
    pub uploads_max: usize,
    pub sync: SyncMode,
}

/// What a manifest may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Incomplete {
    /// A manifest whose parts are missing is refused.
    #[default]
    Refuse,
    Allow,
}

/// When pushed content is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncMode {
    /// Before the success of a manifest that refers to it.
    #[default]
    Manifest,
    /// A blob before its own success, too.
    Blob,
}

impl SpaceSettings {
    pub(super) fn has(&self, repo: &RepoName) -> bool {
        self.policy.has(repo)
    }

    pub(super) fn is_immutable(&self, tag: &Tag) -> bool {
        let matches = |patterns: &[Pattern]| patterns.iter().any(|one| one.matches(tag.as_str()));
        matches(&self.immutable) && !matches(&self.mutable)
    }
}
