//! Whom a request is for.

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    Client,
    /// No client waits for it.
    Background,
}
