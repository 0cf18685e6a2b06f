//! An entry as the state files have it.

use super::timestamp::Timestamp;
use crate::storage::{Link, Modified};

/// How an entry began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This mirror cached it, at this time.
    Created(Timestamp),
    /// The reference registry cached it, and wrote this expiry. When it was cached isn't known,
    /// because the file doesn't say which TTL that registry had.
    Adopted(Timestamp),
}

impl Origin {
    /// The origin of an entry that two records describe. An adopted expiry stays in force.
    pub(crate) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Created(one), Self::Created(other)) => Self::Created(one.min(other)),
            (Self::Adopted(one), Self::Adopted(other)) => Self::Adopted(one.max(other)),
            (adopted @ Self::Adopted(_), Self::Created(_))
            | (Self::Created(_), adopted @ Self::Adopted(_)) => adopted,
        }
    }

    /// When the entry was created. Of an adopted one that isn't known; its last use is the best
    /// guess.
    pub(crate) fn created(self, last_use: Timestamp) -> Timestamp {
        match self {
            Self::Created(time) => time,
            Self::Adopted(_) => last_use,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) link: Link,
    pub(crate) origin: Origin,
    pub(crate) last_use: Timestamp,
    /// None is never.
    pub(crate) expiry: Option<Timestamp>,
    /// The size and the modification time with which its file was verified.
    pub(crate) verified: Option<(u64, Modified)>,
}
