//! Why downloads fail, and what clients are told of it.

use std::borrow::Cow;
use std::time::Duration;

use crate::oci::{Classified, Digest, ErrorKind};
use crate::upstream::{UpstreamError, wrong_answer};

/// When a client that finds too many downloads waiting may ask again.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// Why a download failed. Each follower gets a copy.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the upstream sent content of digest {got} for {expected}")]
    Digest {
        expected: Box<Digest>,
        got: Box<Digest>,
    },
    #[error("the upstream announced {announced} bytes of {digest} and sent {sent}")]
    Length {
        digest: Box<Digest>,
        announced: u64,
        sent: u64,
    },
    #[error("byte {at} of {digest} arrived twice with different values")]
    Changed { digest: Box<Digest>, at: u64 },
    #[error("the download ended without a result")]
    Lost,
    #[error("no source sends the bytes that a client waits for")]
    Stuck,
    #[error("the mirror is stopping")]
    Stopping,
    #[error("too many downloads wait for the upstream")]
    Busy,
}

impl DownloadError {
    /// Whether the bytes that have arrived may be right, so that the next download resumes them.
    pub(super) const fn leaves_partial(&self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Stopping | Self::Busy)
    }
}

impl Classified for DownloadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Upstream(error) => error.kind(),
            Self::Digest { .. } | Self::Length { .. } | Self::Changed { .. } => {
                ErrorKind::WrongAnswer
            }
            Self::Stopping | Self::Busy => ErrorKind::Busy,
            Self::Lost | Self::Stuck => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Upstream(error) => error.reason(),
            Self::Digest { .. } | Self::Length { .. } | Self::Changed { .. } => wrong_answer(self),
            Self::Stopping => "the mirror is stopping; ask again".into(),
            Self::Busy => "too many downloads wait; ask again".into(),
            Self::Lost | Self::Stuck => "the mirror failed; its log says why".into(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            Self::Busy => Some(BUSY_RETRY),
            _ => None,
        }
    }
}
