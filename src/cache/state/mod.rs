//! The expiry state on disk.

pub(super) mod file;
pub(super) mod journal;
pub(super) mod timestamp;
