//! The work that the cache does by itself, in tasks of its own.

pub(super) mod deletion;
pub(super) mod expiry;
pub(super) mod reconcile;
mod save;
pub(super) mod scrub;
