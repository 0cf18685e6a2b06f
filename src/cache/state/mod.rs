//! The expiry state on disk.

pub(super) mod file;
pub(super) mod journal;
pub(super) mod record;
pub(super) mod timestamp;
