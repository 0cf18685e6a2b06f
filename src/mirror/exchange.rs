//! What became of the request to the upstream that an answer needed, for the client to see.

use std::net::SocketAddr;

use super::MirrorError;
use crate::metrics::Outcome;
use crate::oci::{Classified as _, ErrorKind};
use crate::upstream::Failure;

/// A request to the upstream, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exchange {
    /// The upstream was asked, for this client or for several at once.
    pub forwarded: bool,
    /// The status that it answered with; none where no answer came, or none that is known yet.
    pub status: Option<u16>,
    /// What it sends is stored, or being stored.
    pub stored: bool,
    /// The replica that was asked instead of the upstream.
    pub peer: Option<SocketAddr>,
}

impl Exchange {
    /// The exchange behind an outcome: the upstream answers a confirmation or a fetch with 200.
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Revalidated | Outcome::Miss => Self {
                forwarded: true,
                status: Some(200),
                ..Self::default()
            },
            Outcome::Joined => Self::unanswered(),
            Outcome::Hit
            | Outcome::Stale
            | Outcome::Updating
            | Outcome::Redirected
            | Outcome::Error => Self::default(),
        }
    }

    /// The upstream was asked; no status is known.
    pub fn unanswered() -> Self {
        Self {
            forwarded: true,
            ..Self::default()
        }
    }

    /// The request failed with this error, which need not have anything to do with an upstream.
    pub fn failed(error: &MirrorError) -> Self {
        if let MirrorError::StoredSchema1 { asked, .. } = error {
            return Self::failed(asked);
        }
        match error.upstream() {
            Some(_) if error.is_remembered() => Self::default(),
            Some(error) if matches!(error.failure, Failure::Busy | Failure::Offline) => {
                Self::default()
            }
            Some(error) => Self {
                forwarded: true,
                status: error.status(),
                stored: false,
                peer: error.peer(),
            },
            None if error.kind() == ErrorKind::WrongAnswer => Self::unanswered(),
            None => Self::default(),
        }
    }
}
