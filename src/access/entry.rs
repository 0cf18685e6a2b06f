//! An entry of the deny list, and the bounds of the list.

use serde::{Deserialize, Serialize};

/// The most entries.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// The most entries that are patterns of images: each is compared with each request.
pub(super) const MAX_IMAGES: usize = 1_000;
/// The longest reason, in bytes.
pub(super) const MAX_REASON: usize = 1_000;

/// An entry of the deny list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedEntry {
    /// A digest, or a pattern of `repository` or `repository:tag`.
    pub reference: String,
    /// What clients are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// RFC 3339; none for an entry of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<String>,
}

impl DeniedEntry {
    pub(super) fn because(&self) -> String {
        let reason = self.reason.as_ref();
        reason.map_or_else(String::new, |reason| format!(": {reason}"))
    }

    pub(super) fn is_configured(&self) -> bool {
        self.added.is_none()
    }
}
