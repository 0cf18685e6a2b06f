//! The work that the cache does by itself, in tasks of its own.

pub(super) mod expiry;
pub(super) mod reconcile;
pub(super) mod scrub;
pub(super) mod sweeper;
